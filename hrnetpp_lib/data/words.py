"""What a table of persons and a person's crops are like, in sentences made from their own numbers."""

from collections.abc import Sequence

import numpy as np

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.pose.geometry import Size

# An affine map (2, 3) of a crop, image px -> input px, and whether it mirrors: of `augment.sample_crop`.
Crop = tuple[np.ndarray, bool]


def say_persons(table: PersonTable) -> str:
    """How many persons a picture has, and how high they are."""
    crowds = np.unique(table.image_index, return_counts=True)[1]
    low, middle, high = np.percentile(table.bboxes_xywh[:, 3], (5, 50, 95))
    alone = 100 * (crowds == 1).mean()
    return (
        f"{len(table)} labelled persons in {len(crowds)} pictures, {alone:.0f}% of which show one alone; a "
        f"person's box is {middle:.0f} px high (median), {low:.0f} to {high:.0f} px for nine in ten."
    )


def say_labels(table: PersonTable) -> str:
    """Which keypoints are labelled least, and how often hidden ones are."""
    seen = (table.keypoints[:, :, 2] > 0).mean(axis=0)
    names = [name.replace("_", " ") for name in table.skeleton.names]
    never = [name for name, share in zip(names, seen, strict=True) if share == 0]
    most, least = np.argmax(seen), np.argmin(np.where(seen > 0, seen, 2))
    hidden = 100 * (table.keypoints[:, :, 2] == 1).mean()
    without = f"Never labelled here: {', '.join(never)}. Of the others the" if never else "The"
    return (
        f"{without} {names[least]} is labelled least, for {100 * seen[least]:.0f}% of the persons, the "
        f"{names[most]} most, for {100 * seen[most]:.0f}%; {hidden:.0f}% of all keypoints are labelled but "
        "hidden."
    )


def title_labels(table: PersonTable) -> str:
    """Which keypoints are labelled least, for a figure."""
    seen = (table.keypoints[:, :, 2] > 0).mean(axis=0)
    if never := int((seen == 0).sum()):
        others = f"the others for {100 * seen[seen > 0].mean():.0f}% of the persons"
        return f"{never} of {len(seen)} keypoints are never labelled, {others}"
    name = table.skeleton.names[np.argmin(seen)].replace("_", " ")
    return f"labelled least: the {name}, for {100 * seen.min():.0f}% of the persons"


def zoom_and_turn(matrix: np.ndarray, plain: np.ndarray) -> tuple[float, float]:
    """How much larger than by a plain crop, and turned by how many degrees, a crop shows the person.

    Of matrices (2, 3), image px -> input px; a mirrored one may be given too. Clockwise is positive.
    """
    zoom = np.sqrt(abs(np.linalg.det(matrix[:, :2]) / np.linalg.det(plain[:, :2])))
    right, down = matrix[:, 1]  # where the picture's downward direction, which mirroring leaves, points to
    return float(zoom), float(np.degrees(np.arctan2(-right, down)))


def name_crop(crop: Crop, plain: np.ndarray) -> str:
    """What augmentation did to a crop, as a title of two lines."""
    zoom, turn = zoom_and_turn(crop[0], plain)
    return f"x{zoom:.2f}, {turn:+z.0f}\N{DEGREE SIGN}\n{'' if crop[1] else 'not '}mirrored"


def say_crops(crops: Sequence[Crop], plain: np.ndarray) -> str:
    """What augmentation did to several crops of one person."""
    zooms, turns = zip(*(zoom_and_turn(matrix, plain) for matrix, _ in crops), strict=True)
    mirrored, straight = sum(flipped for _, flipped in crops), sum(abs(turn) < 0.5 for turn in turns)
    return (
        f"Of these {len(crops)} crops {mirrored} are mirrored and {straight} not turned; the person "
        f"appears {min(zooms):.2f} to {max(zooms):.2f} times as large as without augmentation, turned by "
        f"{min(turns):+z.0f} to {max(turns):+z.0f} degrees."
    )


def say_rounding(keypoints_input: np.ndarray, cells: np.ndarray, input_hw: Size, heatmap_hw: Size) -> str:
    """How far (n, 2) keypoints, input px, are from the (n, 2) cells that their Gaussians are drawn on."""
    away = np.linalg.norm(keypoints_input - cells * (np.array(input_hw) / heatmap_hw)[::-1], axis=1)
    return (
        f"Rounding moves these {len(away)} keypoints by {away.mean():.1f} px of the crop on average and by "
        f"up to {away.max():.1f} px, before any network has seen them."
    )
