"""Every figure of the notebooks, as functions that return a matplotlib Figure and keep no state.

One style, 6.5 inches wide; colours are Okabe and Ito's, safe for colour-blind readers, and fixed:
orange-red is the person's right, blue the left, black the middle; each method has its own.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.evaluate.score import Claim
from hrnetpp_lib.pose.keypoints import Skeleton

WIDTH_IN = 6.5
SIDE_COLOURS = {"left": "#0072B2", "right": "#D55E00", "centre": "#222222"}
METHOD_COLOURS = {
    "hrnet": "#7F7F7F",
    "heatmap": "#E69F00",
    "regression": "#009E73",
    "ensemble": "#CC79A7",
    "target": "#56B4E9",
}
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "image.interpolation": "nearest",
}


class InlineFigure(Figure):
    """A figure that Jupyter shows when it is the value of a cell; plain ones need pyplot's state for that."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def new_figure(
    rows: int, columns: int, height_in: float, images: bool = False, **grid: object
) -> tuple[Figure, np.ndarray]:
    """A figure of the one width and its axes as a (rows, columns) array.

    Args:
        rows, columns: The grid.
        height_in: Figure height in inches.
        images: Axes for pictures, without ticks and frames.
        grid: Passed to Figure.subplots, e.g. sharex.
    """
    figure = InlineFigure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **grid)
    if images:
        for ax in axes.flat:
            ax.set_axis_off()
    return figure, axes


def save(figure: Figure, path: Path) -> Figure:
    """Write a PNG and give the figure back, so that a notebook cell shows it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure.savefig(path)
    return figure


def draw_pose(
    ax: Axes, keypoints: np.ndarray, skeleton: Skeleton, threshold: float = 0.0, width: float = 1.5
) -> None:
    """Draw limbs and keypoints in the colours of their sides.

    Args:
        ax: Where to draw, in the frame of the keypoints.
        keypoints: (K, 3) as (x, y, visibility or score); drawn where the third value exceeds `threshold`.
            Visibility 1 (labelled, not visible) gives a hollow dot.
        skeleton: Names, sides and limbs.
        threshold: See keypoints.
        width: Line width in points.
    """
    shown = keypoints[:, 2] > threshold
    limbs = [(a, b) for a, b in skeleton.limbs if shown[a] and shown[b]]
    sides = [{skeleton.side(a), skeleton.side(b)} - {"centre"} for a, b in limbs]
    colours = [SIDE_COLOURS[side.pop() if len(side) == 1 else "centre"] for side in sides]
    # Two collections draw several times as fast as a line for each limb and dot.
    segments = [keypoints[[a, b], :2] for a, b in limbs]
    ax.add_collection(LineCollection(segments, colors=colours, lw=width, capstyle="round", alpha=0.9))
    dots = np.flatnonzero(shown)
    edges = [SIDE_COLOURS[skeleton.side(k)] for k in dots]
    hollow = (keypoints[dots, 2] == 1) & (threshold == 0)
    faces = ["white" if empty else edge for empty, edge in zip(hollow, edges, strict=True)]
    size = (2.2 * width) ** 2
    ax.scatter(*keypoints[dots, :2].T, s=size, c=faces, edgecolors=edges, linewidths=0.8, zorder=2)


def draw_box(ax: Axes, bbox_xywh: np.ndarray) -> None:
    """Outline a box in yellow, in the frame of the axes."""
    x, y, w, h = bbox_xywh
    ax.add_patch(mpl.patches.Rectangle((x, y), w, h, fill=False, ec="#F0E442", lw=1.2))


@mpl.rc_context(STYLE)
def render_images(
    images: Sequence[np.ndarray],
    poses: Sequence[Sequence[np.ndarray]],
    skeleton: Skeleton,
    boxes: Sequence[np.ndarray] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
    threshold: float = 0.0,
) -> Figure:
    """A grid of pictures with poses and boxes drawn over them.

    Args:
        images: (h, w, 3) uint8 RGB each.
        poses: For each image, its poses, (K, 3) in its px.
        skeleton: Of the poses.
        boxes: For each image, (n, 4) xywh in its px.
        titles: One per image.
        columns: Pictures a row.
        threshold: See `draw_pose`.
    """
    rows = -(-len(images) // columns)
    aspect = max(image.shape[0] / image.shape[1] for image in images)
    height = rows * (WIDTH_IN / columns * aspect + (0.22 if titles else 0.05))
    figure, axes = new_figure(rows, columns, height, images=True)
    for i, image in enumerate(images):
        ax = axes.flat[i]
        ax.imshow(image)
        for pose in poses[i]:
            draw_pose(ax, pose, skeleton, threshold)
        for box in boxes[i] if boxes is not None else ():
            draw_box(ax, box)
        ax.set(xlim=(0, image.shape[1] - 1), ylim=(image.shape[0] - 1, 0))
        if titles:
            ax.set_title(titles[i], fontsize=7.5)
    return figure


def heat_layer(heatmap: np.ndarray, hw: tuple[int, int], blend: float = 0.6) -> np.ndarray:
    """A heatmap as a layer to draw over its crop, transparent where the map is zero.

    Args:
        heatmap: (H, W), clipped to [0, 1] for display.
        hw: Height and width of the crop.
        blend: Opacity of the heatmap at its peak.

    Returns:
        (h, w, 4) uint8 RGBA.
    """
    big = cv2.resize(np.clip(heatmap, 0, 1).astype(np.float32), hw[::-1], interpolation=cv2.INTER_LINEAR)
    layer = mpl.colormaps["inferno"](big, bytes=True)
    layer[:, :, 3] = 255 * blend * np.sqrt(np.clip(big, 0, 1))
    return layer


def blur_pictures(figure: Figure) -> None:
    """Blur the pictures of a figure until nobody on them can be recognised; what is drawn over them stays.

    Every image of three channels is a picture; heatmap layers have four, maps one.
    """
    for image in (image for ax in figure.axes for image in ax.images):
        pixels = np.asarray(image.get_array())
        if pixels.ndim == 3 and pixels.shape[2] == 3:
            size = pixels.shape[1::-1]
            coarse = [max(1, round(8 * length / max(size))) for length in size]
            few = cv2.resize(pixels, coarse, interpolation=cv2.INTER_AREA)
            image.set_data(cv2.resize(few, size, interpolation=cv2.INTER_LINEAR))


@mpl.rc_context(STYLE)
def render_heatmaps(
    crops: Sequence[np.ndarray], heatmaps: Sequence[np.ndarray], titles: Sequence[str], columns: int = 6
) -> Figure:
    """A grid of crops with one heatmap over each.

    Args:
        crops: (h, w, 3) uint8 RGB each.
        heatmaps: (H, W) each.
        titles: One per crop.
        columns: Pictures a row.
    """
    rows = -(-len(crops) // columns)
    aspect = crops[0].shape[0] / crops[0].shape[1]
    figure, axes = new_figure(rows, columns, rows * (WIDTH_IN / columns * aspect + 0.22), images=True)
    for ax, crop, heatmap, title in zip(axes.flat, crops, heatmaps, titles, strict=False):
        ax.imshow(crop)
        ax.imshow(heat_layer(heatmap, crop.shape[:2]))
        ax.set_title(title, fontsize=7)
    return figure


@mpl.rc_context(STYLE)
def render_shift(maps: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Square maps side by side, with a cross through the middle of each."""
    figure, axes = new_figure(1, len(maps), 1.9, images=True)
    for ax, values, title in zip(axes[0], maps, titles, strict=True):
        middle = (len(values) - 1) / 2
        ax.imshow(values, cmap="inferno")
        ax.axhline(middle, color="white", lw=0.7)
        ax.axvline(middle, color="white", lw=0.7)
        ax.set_title(title)
    return figure


def render_sharpening(snapshots: list[dict], keypoint: int, persons: int = 3) -> Figure:
    """The heatmaps of one keypoint over the evaluated epochs, person by person, whole persons to a row.

    Args:
        snapshots: Of `journal.read_snapshots`.
        keypoint: Index.
        persons: How many of the snapshot's eight; as many as there are, if fewer.
    """
    chosen = [snapshots[i] for i in np.unique(np.linspace(0, len(snapshots) - 1, 6).round().astype(int))]
    people = range(min(persons, len(chosen[0]["crops"])))
    shown = [(snapshot, person) for person in people for snapshot in chosen]
    crops = [snapshot["crops"][person] for snapshot, person in shown]
    heatmaps = [snapshot["heatmaps"][person, keypoint].astype(np.float32) for snapshot, person in shown]
    titles = [
        f"epoch {snapshot['epoch']}\npeak {heatmap.max():.2f}"
        for (snapshot, _), heatmap in zip(shown, heatmaps, strict=True)
    ]
    return render_heatmaps(crops, heatmaps, titles, columns=len(chosen) * max(6 // len(chosen), 1))


@mpl.rc_context(STYLE)
def render_curves(records: dict[str, list[dict]], colours: dict[str, str]) -> Figure:
    """Training loss and validation metric against epochs, one line per method.

    Args:
        records: Metrics of `journal.read_metrics` by method name.
        colours: One per method.
    """
    figure, axes = new_figure(1, 2, 2.3)
    loss_ax, metric_ax = axes[0]
    scored = {name: [epoch for epoch in epochs if "value" in epoch] for name, epochs in records.items()}
    for name, epochs in records.items():
        for ax, points, key in ((loss_ax, epochs, "loss"), (metric_ax, scored[name], "value")):
            x, y = [epoch["epoch"] for epoch in points], [epoch[key] for epoch in points]
            ax.plot(x, y, "o-", ms=3, c=colours[name], label=name)
    every = [epoch for epochs in scored.values() for epoch in epochs]
    metric = every[-1]["metric"] if every else "metric"
    loss_ax.set(xlabel="epoch", ylabel="mean training loss", yscale="log")
    # Room above: a flat curve would lie on the frame.
    top = 1.1 * max((epoch["value"] for epoch in every), default=0) or 1
    metric_ax.set(xlabel="epoch", ylabel=f"{metric} on val", ylim=(0, top))
    metric_ax.locator_params(axis="x", integer=True)
    metric_ax.legend()
    return figure


@mpl.rc_context(STYLE)
def render_bars(
    labels: Sequence[str],
    values: Sequence[float],
    colours: Sequence[str],
    xlabel: str,
    digits: int = 3,
    intervals: Sequence[tuple[float, float]] | None = None,
) -> Figure:
    """Horizontal bars with their values written at the end, first label on top.

    Args:
        labels, values, colours: One per bar.
        xlabel: Names the values.
        digits: Of the written values.
        intervals: (low, high) of each value, drawn as a line over its bar.
    """
    figure, axes = new_figure(1, 1, 0.4 + 0.28 * len(labels))
    ax = axes[0, 0]
    ranges = None if intervals is None else np.abs(np.transpose(intervals) - np.asarray(values))
    bars = ax.barh(range(len(labels)), values, color=list(colours), height=0.65, xerr=ranges, capsize=3)
    ax.bar_label(bars, [f"{value:.{digits}f}" for value in values], padding=3)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set(xlabel=xlabel)
    highest = values if intervals is None else [high for _, high in intervals]
    ax.set_xlim(0, 1.1 * max(*highest, 0.1))
    ax.grid(axis="y", visible=False)
    return figure


@mpl.rc_context(STYLE)
def render_statistics(table: PersonTable, title: str) -> Figure:
    """Persons per image, box heights, and how often each keypoint is labelled, of one table.

    Args:
        table: Labelled persons.
        title: Names the dataset.
    """
    figure, axes = new_figure(1, 3, 2.4, width_ratios=[1, 1.2, 2.2])
    people, heights, labels = axes[0]
    counts = np.bincount(np.unique(table.image_index, return_counts=True)[1])
    people.bar(range(1, len(counts)), counts[1:], color=METHOD_COLOURS["target"])
    people.set(xlabel="labelled persons per image", ylabel="images", title=title)
    heights.hist(table.bboxes_xywh[:, 3], 24, color=METHOD_COLOURS["target"])
    heights.set(xlabel="box height (px)", ylabel="persons")
    kinds = {"visible": (2, "#009E73"), "hidden": (1, "#E69F00"), "no label": (0, "#CCCCCC")}
    shares = {kind: (table.keypoints[:, :, 2] == value).mean(axis=0) for kind, (value, _) in kinds.items()}
    _stack(labels, shares, {kind: colour for kind, (_, colour) in kinds.items()}, table.skeleton)
    labels.set(ylabel="share of persons")
    labels.tick_params(axis="x", labelsize=6, rotation=90)
    return figure


def _stack(ax: Axes, shares: dict[str, np.ndarray], colours: dict[str, str], skeleton: Skeleton) -> None:
    """A bar per keypoint, divided into kinds: (K,) shares each."""
    bottom = np.zeros(len(skeleton))
    for kind, share in shares.items():
        ax.bar(range(len(skeleton)), share, bottom=bottom, color=colours[kind], label=kind)
        bottom += share
    ax.set_xticks(range(len(skeleton)), [name.replace("_", " ") for name in skeleton.names])
    ax.set(ylim=(0, 1))
    ax.legend(ncols=len(shares), loc="lower center", bbox_to_anchor=(0.5, 1.0))


@mpl.rc_context(STYLE)
def render_lines(
    x: np.ndarray,
    lines: dict[str, np.ndarray],
    xlabel: str,
    ylabel: str,
    colours: dict[str, str] | None = None,
) -> Figure:
    """Several curves over the same x, with a legend."""
    figure, axes = new_figure(1, 1, 2.4)
    for name, y in lines.items():
        axes[0, 0].plot(x, y, lw=1.5, label=name, color=(colours or {}).get(name))
    axes[0, 0].set(xlabel=xlabel, ylabel=ylabel)
    axes[0, 0].legend(ncols=2)
    return figure


@mpl.rc_context(STYLE)
def render_claims(claims: Sequence[Claim]) -> Figure:
    """Differences between rows of Table 1: the report's, and ours with 95% intervals, in points of AP."""
    figure, axes = new_figure(1, 1, 0.6 + 0.42 * len(claims))
    ax = axes[0, 0]
    rows = np.arange(len(claims))
    ours = np.array([claim.ours for claim in claims])
    ranges = np.abs([[c.ours - c.low for c in claims], [c.high - c.ours for c in claims]])
    ax.axvline(0, color="#222222", lw=0.8)
    ax.errorbar(
        ours, rows, xerr=ranges, fmt="o", ms=4, color=METHOD_COLOURS["regression"], capsize=3, label="ours"
    )
    ax.plot([c.paper for c in claims], rows, "x", color="#222222", ms=6, label="report")
    ax.set_yticks(rows, [f"{c.better}\nminus {c.worse}" for c in claims], fontsize=7)
    ax.invert_yaxis()
    ax.set(xlabel="difference in COCO AP (points)")
    ax.margins(y=0.15)
    ax.legend(loc="best")
    return figure


_KIND_COLOURS = {
    "good": "#009E73",
    "jitter": "#56B4E9",
    "inversion": "#E69F00",
    "swap": "#CC79A7",
    "miss": "#7F7F7F",
}


@mpl.rc_context(STYLE)
def render_error_kinds(counts: dict[str, np.ndarray], skeleton: Skeleton) -> Figure:
    """Stacked bars of the kinds of keypoints, a bar per keypoint.

    Args:
        counts: Kind -> (K,) numbers, of `diagnose.Diagnosis.counts`.
        skeleton: Names the keypoints.
    """
    figure, axes = new_figure(1, 1, 2.8)
    ax, total = axes[0, 0], np.maximum(sum(counts.values()), 1)
    _stack(ax, {kind: number / total for kind, number in counts.items()}, _KIND_COLOURS, skeleton)
    ax.set(ylabel="share of labelled keypoints")
    ax.set_xticks(ax.get_xticks(), ax.get_xticklabels(), rotation=60, ha="right", fontsize=7)
    return figure
