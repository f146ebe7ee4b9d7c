"""What a network is worth on labelled people: OKS of each on its true box, AP on a detector's boxes."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from hrnetpp_lib.data.annotations import labelled_persons
from hrnetpp_lib.data.crops import TrainCrops
from hrnetpp_lib.data.layout import StageData
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.evaluate.diagnose import px_per_cell
from hrnetpp_lib.evaluate.infer import Predictions, plain_and_mirrored, poses_of_heatmaps
from hrnetpp_lib.evaluate.metrics import keypoint_similarity, oks
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.model.losses import heatmap_mse
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.geometry import EXACT_SHIFT, bbox_to_center_scale, crop_matrix
from hrnetpp_lib.pose.heatmap import draw_gaussians
from hrnetpp_lib.recipe import NO_AUGMENTATION, STAGE3, scaled_alpha

_CROPS_A_BATCH = 16  # and as many mirrored ones
_NEAR = 0.5  # similarity with the own keypoint from which on it was recognised (good or jitter)


@dataclass(frozen=True)
class Measure:
    """A network's figures on P labelled persons, decoded in one way; shares and AP in 0..1.

    Attributes:
        oks: Mean over persons, on their true boxes.
        oks_of_persons: Theirs, a byte each (255 is 1), packed by zlib.
        metrics: The dataset's own, on val's boxes; nothing where they were not asked for.
        pck: Share of labelled keypoints within 0.5 and within 4 cells of the truth.
        near_error_cells: Median error of the keypoints that were recognised: how precise they are.
        miss_share: Share of labelled keypoints that were not.
        loss: Heatmap MSE on the true boxes without augmentation; None for averages of several views.
        inversions: (K,) share of labelled keypoints that are nearer to the person's own mirror partner, which
            was recognised: left for right. None in results that were measured before it was.
    """

    oks: float
    oks_of_persons: bytes
    metrics: dict[str, float]
    pck: tuple[float, float]
    near_error_cells: float | None
    miss_share: float
    loss: float | None = None
    inversions: tuple[float, ...] | None = None

    @property
    def persons(self) -> np.ndarray:
        """(P,) OKS of each person, in 0..1, to the nearest 1/255."""
        return np.frombuffer(zlib.decompress(self.oks_of_persons), np.uint8) / 255


def decodings(card: ModelCard, heatmap_sigma: float) -> dict[str, ModelCard]:
    """Every way to decode a network: the maximum or soft-argmax, with the official or the exact flip shift.

    soft_scaled has the alpha that makes the softmax as wide, in sigmas, as the report's makes it.
    """
    ways = {"quarter": replace(card, decoder="quarter_offset")}
    for name, alpha in (("soft", STAGE3.alpha), ("soft_scaled", scaled_alpha(heatmap_sigma))):
        ways[name] = replace(card, decoder="soft_argmax", alpha=alpha)
    return ways | {f"{name}_exact": replace(way, coordinates=EXACT_SHIFT) for name, way in ways.items()}


@torch.no_grad()
def predict_ways(
    network: torch.nn.Module, cards: Mapping[str, ModelCard], table: PersonTable, heatmap_sigma: float
) -> tuple[dict[str, Predictions], float]:
    """Poses of all boxes of a table by one pass of the network and its mirror, decoded as each card says.

    The cards have the input size and crops in common. Gives also the mean heatmap MSE of the plain crops.
    """
    network.eval()
    first = next(iter(cards.values()))
    boxes = zip(*bbox_to_center_scale(table.bboxes_xywh, first.input_hw), strict=True)
    hw = first.coordinates.crop_hw(first.input_hw)
    matrices = np.array([crop_matrix(*box, 0.0, hw) for box in boxes])
    crops = TrainCrops(table, first.input_hw, heatmap_sigma, NO_AUGMENTATION, first.coordinates)
    found, loss, done = {name: [] for name in cards}, 0.0, 0
    for batch in torch.utils.data.DataLoader(crops, batch_size=_CROPS_A_BATCH):
        plain, mirrored = plain_and_mirrored(network, batch.image, flip=True)
        target = draw_gaussians(batch.peaks, batch.target_weight, plain.shape[-2:], heatmap_sigma)
        loss += float(heatmap_mse(plain.cpu(), target, batch.target_weight)) * len(plain)
        for name, card in cards.items():
            of_batch = matrices[done : done + len(plain)]
            found[name].append(poses_of_heatmaps(plain, mirrored, of_batch, card))
        done += len(plain)
    return {name: _joined(parts) for name, parts in found.items()}, loss / max(done, 1)


def _joined(parts: list[Predictions]) -> Predictions:
    keypoints, scores = ([getattr(part, name) for part in parts] for name in ("keypoints", "scores"))
    return Predictions(np.concatenate(keypoints), np.concatenate(scores), parts[0].input_hw)


def measure(
    on_true: Predictions, on_found: Predictions | None, data: StageData, loss: float | None = None
) -> Measure:
    """The figures of poses on the true boxes of COCO data's labelled persons, and on val's boxes."""
    table = labelled_persons(data.truth)
    truth, labelled = table.keypoints.astype(np.float64), table.keypoints[:, :, 2] > 0
    sigmas, found = table.skeleton.oks_sigmas, on_true.keypoints
    persons = oks(found, truth, table.areas, sigmas, labelled)
    own = keypoint_similarity(found, truth, table.areas, sigmas)
    near = (own >= _NEAR)[labelled]
    partner = truth[:, table.skeleton.flip_order]
    with_partner = keypoint_similarity(found, partner, table.areas, sigmas) * (partner[:, :, 2] > 0)
    inverted = labelled & (with_partner >= _NEAR) & (with_partner > own)
    cells = np.linalg.norm(found - truth[:, :, :2], axis=2)
    cells = (cells / px_per_cell(table.bboxes_xywh, on_true.input_hw)[:, None])[labelled]
    return Measure(
        oks=float(persons.mean()),
        oks_of_persons=zlib.compress(np.round(255 * persons).astype(np.uint8).tobytes(), 9),
        metrics=score(on_found, data) if on_found else {},
        pck=(float((cells <= 0.5).mean()), float((cells <= 4).mean())),
        near_error_cells=float(np.median(cells[near])) if near.any() else None,
        miss_share=float(1 - near.mean()),
        loss=loss,
        inversions=tuple((inverted.sum(axis=0) / np.maximum(labelled.sum(axis=0), 1)).round(4).tolist()),
    )
