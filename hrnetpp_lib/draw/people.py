"""People as the files have them: pictures with labels, what is labelled, and a box on its way to a crop."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.draw.plots import (
    METHOD_COLOURS,
    STYLE,
    WIDTH_IN,
    InlineFigure,
    draw_box,
    draw_pose,
    new_figure,
    white_rim,
)
from hrnetpp_lib.pose.keypoints import Skeleton

_GAP_IN, _TITLE_IN = 0.06, 0.2
_WHITE = "#FFFFFF"
_VISIBILITIES = {"visible": (2, "#009E73"), "hidden": (1, "#E69F00"), "no label": (0, "#CCCCCC")}


@mpl.rc_context(STYLE)
def render_gallery(
    images: Sequence[np.ndarray],
    poses: Sequence[Sequence[np.ndarray]],
    skeleton: Skeleton,
    boxes: Sequence[np.ndarray],
    titles: Sequence[str] = (),
    columns: int = 4,
    true_boxes: Sequence[np.ndarray] = (),
) -> Figure:
    """Pictures of any shape in rows of one height, with poses, boxes and, in white, true boxes over them.

    Args:
        images: (h, w, 3) uint8 RGB each, so many to a row; a last row of few is as high as those above it.
        poses: Of each image its (K, 3) keypoints in its px, see `draw_pose`.
        skeleton: Theirs.
        boxes, true_boxes: Of each image (n, 4) xywh in its px.
        titles: One each.
        columns: Images a row, at most.
    """
    rows = -(-len(images) // columns)
    parts = np.array_split(np.arange(len(images)), rows)
    wide = [sum(images[i].shape[1] / images[i].shape[0] for i in part) for part in parts]
    room = WIDTH_IN - _GAP_IN * (columns - 1)
    heights = [min(room / shape, 2.6) for shape in wide]
    above = _TITLE_IN if titles else _GAP_IN
    total = sum(heights) + above * rows
    figure, top = InlineFigure(figsize=(WIDTH_IN, total)), total
    for part, height in zip(parts, heights, strict=True):
        top, left = top - above - height, 0.0
        for i in part:
            width = height * images[i].shape[1] / images[i].shape[0]
            ax = figure.add_axes([left / WIDTH_IN, top / total, width / WIDTH_IN, height / total])
            left += width + _GAP_IN
            ax.set_axis_off()
            ax.imshow(images[i], aspect="auto")
            for pose in poses[i]:
                draw_pose(ax, pose, skeleton)
            for box in true_boxes[i] if len(true_boxes) else ():
                _outline(ax, box, _WHITE, lw=3.2)  # to be seen under a box that is equal
            for box in boxes[i]:
                draw_box(ax, box)
            ax.set(xlim=(-0.5, images[i].shape[1] - 0.5), ylim=(images[i].shape[0] - 0.5, -0.5))
            if titles:
                ax.set_title(titles[i], fontsize=7.5, pad=2)
    return figure


def _outline(
    ax: mpl.axes.Axes, bbox_xywh: Sequence[float], colour: str, ls: str = "-", lw: float = 1.4
) -> None:
    """A box with a dark rim, to be seen on any ground."""
    x, y, w, h = bbox_xywh
    box = mpl.patches.Rectangle((x, y), w, h, fill=False, ec=colour, lw=lw, ls=ls)
    box.set_path_effects(white_rim(lw + 1))
    ax.add_patch(box)


@mpl.rc_context(STYLE)
def render_labels(table: PersonTable, title: str) -> Figure:
    """How high the persons' boxes are, and how often each keypoint is visible, hidden or not labelled."""
    figure, ((heights, labels),) = new_figure(1, 2, 0.9 + 0.15 * len(table.skeleton), width_ratios=[1, 1.4])
    heights.hist(table.bboxes_xywh[:, 3], 24, color=METHOD_COLOURS["target"])
    heights.locator_params(axis="y", integer=True)
    heights.set(xlabel="height of a person's box (px)", ylabel="persons", xlim=(0, None))
    rows, left = range(len(table.skeleton)), np.zeros(len(table.skeleton))
    for kind, (value, colour) in _VISIBILITIES.items():
        share = 100 * (table.keypoints[:, :, 2] == value).mean(axis=0)
        labels.barh(rows, share, left=left, color=colour, label=kind, height=0.8)
        left += share
    labels.set_yticks(rows, [name.replace("_", " ") for name in table.skeleton.names], fontsize=7)
    labels.set(xlabel="share of persons (%)", xlim=(0, 100), ylim=(len(table.skeleton) - 0.5, -0.5))
    labels.grid(axis="y", visible=False)
    handles = labels.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower right", ncols=3)
    figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
    return figure


@mpl.rc_context(STYLE)
def render_box_stages(
    image: np.ndarray,
    pose: np.ndarray,
    skeleton: Skeleton,
    stages: dict[str, np.ndarray],
    crop: np.ndarray,
    crop_pose: np.ndarray,
) -> Figure:
    """A box as it grows, stage by stage on its image, and at last the crop.

    Args:
        image: (h, w, 3) uint8 RGB.
        pose: (K, 3) in its px.
        skeleton: Of the pose.
        stages: Title -> (4,) xywh in image px; the last holds the others. Panels have those before dashed.
        crop: (h, w, 3) uint8 RGB, what the last box holds.
        crop_pose: (K, 3) in the crop's px.
    """
    x, y, w, h = list(stages.values())[-1]
    frame = x - 0.06 * w, x + 1.06 * w, y + 1.06 * h, y - 0.06 * h
    titles = [*stages, f"the crop\n{crop.shape[1]} x {crop.shape[0]} px"]
    shapes = [h / w] * len(stages) + [crop.shape[0] / crop.shape[1]]
    figure, (axes,) = new_figure(1, len(titles), WIDTH_IN / len(titles) * max(shapes) + 0.4)
    for number, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        ax.set_axis_off()
        ax.set_title(title)
        if number == len(stages):
            ax.imshow(crop)
            draw_pose(ax, crop_pose, skeleton)
            ax.set(xlim=(-0.5, crop.shape[1] - 0.5), ylim=(crop.shape[0] - 0.5, -0.5))
            continue
        ax.add_patch(
            mpl.patches.Rectangle((frame[0], frame[3]), 1.12 * w, 1.12 * h, color="black", zorder=-1)
        )
        ax.imshow(image)
        draw_pose(ax, pose, skeleton, width=1.0)
        for earlier in list(stages.values())[:number]:
            _outline(ax, earlier, "#CCCCCC", ls="--")
        draw_box(ax, list(stages.values())[number])
        ax.set(xlim=frame[:2], ylim=frame[2:])
    return figure
