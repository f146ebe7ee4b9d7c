"""Charts and pictures, as functions that return a matplotlib Figure and keep no state.

One style, 6.5 inches wide; colours are Okabe and Ito's, safe for colour-blind readers, and fixed:
orange-red is the person's right, blue the left, black the middle; each method has its own.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from hrnetpp_lib.evaluate.statistics import BOUND, Judged, Verdict
from hrnetpp_lib.evaluate.table import Claim
from hrnetpp_lib.pose.keypoints import Skeleton

WIDTH_IN = 6.5
SIDE_COLOURS = {"left": "#0072B2", "right": "#D55E00", "centre": "#222222"}
YELLOW = "#F0E442"  # of boxes, and of what is pointed at
TRUTH_LINE = {"color": "#222222", "ls": "--", "lw": 1}
_TITLE_IN = 0.22  # what `describe` adds for a title
ZOOM = 4  # cells to each side of what is shown enlarged
GROUND = 190  # grey on which all colours, white and black can be told
METHOD_COLOURS = {
    **{"hrnet": "#7F7F7F", "heatmap": "#E69F00", "regression": "#009E73", "ensemble": "#CC79A7"},
    **{"target": "#56B4E9"},
}
_KIND_COLOURS = {  # of predicted keypoints
    **{"good": "#009E73", "jitter": "#56B4E9", "inversion": "#E69F00", "swap": "#CC79A7", "miss": "#7F7F7F"},
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
    """A figure that Jupyter shows when it is the value of a cell; plain ones need pyplot's state for that.

    Attributes:
        alt, caption: What `describe` says of it, for those who cannot see it, and under it.
    """

    alt = caption = ""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=self.dpi)
        # 256 colours: executed notebooks are committed, and crops are noise to a compressor.
        few = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(buffer := io.BytesIO(), format="png", optimize=True)
        return buffer.getvalue()

    def _ipython_display_(self) -> None:
        from IPython.display import Markdown, display

        png = base64.b64encode(self._repr_png_()).decode("ascii")
        data = {"image/png": png, "text/plain": self.alt or repr(self)}
        display(data, metadata={"image/png": {"alt": self.alt}} if self.alt else {}, raw=True)
        if self.caption:
            display(Markdown(f"*Figure: {self.caption}*"))


def describe(figure: InlineFigure, alt: str, caption: str, title: str = "") -> InlineFigure:
    """Give a figure its words and give it back: what it shows, for a screen reader, and what it means.

    `title` is the finding in a few words; the figure gets higher by a line for it.
    """
    figure.alt, figure.caption = alt, caption
    if title:
        figure.set_figheight(figure.get_figheight() + _TITLE_IN)
        figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
    return figure


def new_figure(rows: int, columns: int, height_in: float, **grid: object) -> tuple[Figure, np.ndarray]:
    """A figure of the one width and its (rows, columns) axes; `grid` is for Figure.subplots, e.g. sharex."""
    figure = InlineFigure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def _image_grid(number: int, columns: int, aspect: float, title_in: float) -> tuple[Figure, np.ndarray]:
    """A figure for so many pictures of that height per width, with room for titles; its axes in a row."""
    rows = -(-number // columns)
    figure, axes = new_figure(rows, columns, rows * (WIDTH_IN / columns * aspect + title_in))
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes.ravel()


def save(figure: Figure, path: Path) -> Figure:
    """Write a PNG and give the figure back, so that a notebook cell shows it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure.savefig(path)
    return figure


def draw_pose(
    ax: Axes, keypoints: np.ndarray, skeleton: Skeleton, threshold: float = 0.0, width: float = 1.5
) -> None:
    """Limbs and (K, 3) keypoints of visibility or score over the threshold, in the colours of their sides."""
    shown = keypoints[:, 2] > threshold
    limbs = [(a, b) for a, b in skeleton.limbs if shown[a] and shown[b]]
    sides = [{skeleton.side(a), skeleton.side(b)} - {"centre"} for a, b in limbs]
    colours = [SIDE_COLOURS[side.pop() if len(side) == 1 else "centre"] for side in sides]
    # Two collections draw several times as fast as a line for each limb and dot.
    segments = [keypoints[[a, b], :2] for a, b in limbs]
    ax.add_collection(LineCollection(segments, colors=colours, lw=width, capstyle="round", alpha=0.9))
    dots = np.flatnonzero(shown)
    edges = [SIDE_COLOURS[skeleton.side(k)] for k in dots]
    hollow = (keypoints[dots, 2] == 1) & (threshold == 0)  # labelled, not visible
    faces = ["white" if empty else edge for empty, edge in zip(hollow, edges, strict=True)]
    size = (2.2 * width) ** 2
    ax.scatter(*keypoints[dots, :2].T, s=size, c=faces, edgecolors=edges, linewidths=0.8, zorder=2)


def white_rim(width: float) -> list:
    """Makes white lines visible on white ground."""
    return [patheffects.Stroke(linewidth=width, foreground="#444444"), patheffects.Normal()]


def draw_truth(ax: Axes, keypoints: np.ndarray, skeleton: Skeleton, width: float = 1.6) -> None:
    """The labelled ones of (K, 3) true keypoints, white and ringed in the colours of their sides, and limbs.

    Limbs are white with a dark rim.
    """
    shown = keypoints[:, 2] > 0
    segments = [keypoints[[a, b], :2] for a, b in skeleton.limbs if shown[a] and shown[b]]
    limbs = LineCollection(segments, colors="white", lw=width, capstyle="round", zorder=1)
    limbs.set_path_effects(white_rim(width + 1.2))
    ax.add_collection(limbs)
    rims = [SIDE_COLOURS[skeleton.side(k)] for k in np.flatnonzero(shown)]
    size = (2.4 * width) ** 2
    ax.scatter(*keypoints[shown, :2].T, s=size, c="white", edgecolors=rims, linewidths=1.0, zorder=1.5)


def paint_poses(
    image: np.ndarray,
    poses: np.ndarray,
    skeleton: Skeleton,
    bboxes_xywh: np.ndarray = (),
    threshold: float = 0.0,
) -> np.ndarray:
    """A copy of an image, (h, w, 3) uint8 RGB, with boxes and poses drawn in it by OpenCV, in milliseconds.

    Args:
        image: What to draw on.
        poses: (N, K, 3) as (x, y, score) in its px; keypoints over the threshold are drawn as by `draw_pose`.
        skeleton: The K keypoints.
        bboxes_xywh: (n, 4) in its px.
        threshold: Of scores.
    """
    painted, width = np.array(image), max(1, round(max(image.shape[:2]) / 300))
    colours = {side: _rgb(code) for side, code in SIDE_COLOURS.items()}

    def place(x: float, y: float) -> tuple[int, int]:  # in eighths of a px; OpenCV's lines end at 2^15 px
        return tuple(round(8 * min(max(float(v), -20_000), 20_000)) for v in (x, y))

    how = {"lineType": cv2.LINE_AA, "shift": 3}
    for x, y, w, h in bboxes_xywh:
        cv2.rectangle(painted, place(x, y), place(x + w, y + h), _rgb(YELLOW), width, **how)
    for pose in poses:
        shown, points = pose[:, 2] > threshold, [place(*point[:2]) for point in pose]
        for a, b in skeleton.limbs:
            if shown[a] and shown[b]:
                sides = {skeleton.side(a), skeleton.side(b)} - {"centre"}
                colour = colours[sides.pop() if len(sides) == 1 else "centre"]
                cv2.line(painted, points[a], points[b], colour, width, **how)
        for k in np.flatnonzero(shown):
            cv2.circle(painted, points[k], 8 * (width + 1), colours[skeleton.side(k)], -1, **how)
    return painted


def _rgb(code: str) -> tuple[int, int, int]:
    """#RRGGBB as three numbers."""
    return tuple(bytes.fromhex(code[1:]))


def draw_box(ax: Axes, bbox_xywh: np.ndarray) -> None:
    """Outline a box in yellow, in the frame of the axes."""
    x, y, w, h = bbox_xywh
    ax.add_patch(mpl.patches.Rectangle((x, y), w, h, fill=False, ec=YELLOW, lw=1.2))


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
    """Pictures, each with its poses, (K, 3) in its px, see `draw_pose`, and its (n, 4) xywh boxes over it."""
    aspect = max(image.shape[0] / image.shape[1] for image in images)
    figure, axes = _image_grid(len(images), columns, aspect, 0.22 if titles else 0.05)
    for i, (ax, image) in enumerate(zip(axes, images, strict=False)):
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
    """A (H, W) heatmap as (h, w, 4) uint8 RGBA to draw over its crop: transparent at 0, `blend` at 1."""
    big = cv2.resize(np.clip(heatmap, 0, 1).astype(np.float32), hw[::-1], interpolation=cv2.INTER_LINEAR)
    layer = mpl.colormaps["inferno"](big, bytes=True)
    layer[:, :, 3] = 255 * blend * np.sqrt(np.clip(big, 0, 1))
    return layer


def draw_heat(ax: Axes, crop: np.ndarray, heatmap: np.ndarray) -> None:
    """A (H, W) heatmap over its crop, (h, w, 3) uint8 in grey, with a line at half of its peak."""
    ax.imshow(np.repeat(crop.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8))
    ax.imshow(heat_layer(heatmap, crop.shape[:2]))
    if heatmap.min() < heatmap.max() / 2:
        rows, columns = heatmap.shape
        ys = (np.arange(rows) + 0.5) * crop.shape[0] / rows - 0.5
        xs = (np.arange(columns) + 0.5) * crop.shape[1] / columns - 0.5
        ax.contour(xs, ys, heatmap, [heatmap.max() / 2], colors="white", linewidths=0.7)


def mark_truth(ax: Axes, xy: np.ndarray) -> None:
    """A white cross where a keypoint is labelled."""
    ax.plot(*xy, "+", color="white", ms=7, mew=1.6, path_effects=white_rim(2.8))


def hide_pictures(figure: Figure) -> None:
    """Put a plain ground in the place of a figure's pictures; what is drawn over them stays."""
    for image in (image for ax in figure.axes for image in ax.images):
        pixels = np.asarray(image.get_array())
        if pixels.ndim == 3 and pixels.shape[2] == 3:  # heatmap layers have four channels, maps one
            image.set_data(np.full_like(pixels, GROUND))


@mpl.rc_context(STYLE)
def render_heatmaps(
    crops: Sequence[np.ndarray],
    heatmaps: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int = 6,
    truth: Sequence[np.ndarray] = (),
) -> Figure:
    """Crops, so many to a row, (h, w, 3) uint8 RGB, each in grey with its (H, W) heatmap and its title.

    `truth`: of each (3,), x and y in px of the crop and 0 where there is no label: a white cross.
    """
    figure, axes = _image_grid(len(crops), columns, crops[0].shape[0] / crops[0].shape[1], 0.22)
    for ax, crop, heatmap, title in zip(axes, crops, heatmaps, titles, strict=False):
        draw_heat(ax, crop, heatmap)
        ax.set_title(title, fontsize=7)
    for ax, (x, y, labelled) in zip(axes, truth, strict=False):
        if labelled:
            mark_truth(ax, (x, y))
    return figure


@mpl.rc_context(STYLE)
def render_shift(maps: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Square maps side by side, with a cross through the middle of each."""
    figure, axes = new_figure(1, len(maps), 1.9)
    for ax, values, title in zip(axes[0], maps, titles, strict=True):
        ax.set_axis_off()
        ax.imshow(values, cmap="inferno")
        for draw_line in (ax.axhline, ax.axvline):
            draw_line((len(values) - 1) / 2, color="white", lw=0.7)
        ax.set_title(title)
    return figure


@mpl.rc_context(STYLE)
def render_bars(
    labels: Sequence[str],
    values: Sequence[float],
    colours: Sequence[str],
    xlabel: str,
    digits: int = 3,
    least: float = 0.1,
) -> Figure:
    """Horizontal bars, first label on top, their values at the end; the axis reaches `least` at least."""
    figure, ((ax,),) = new_figure(1, 1, 0.4 + 0.28 * len(labels))
    bars = ax.barh(range(len(labels)), values, color=list(colours), height=0.65)
    ax.bar_label(bars, [f"{value:.{digits}f}" for value in values], padding=3)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set(xlabel=xlabel, xlim=(0, 1.1 * max(*values, least)))
    ax.grid(axis="y", visible=False)
    return figure


def _stack(ax: Axes, shares: dict[str, np.ndarray], names: Sequence[str], ylabel: str) -> None:
    """A bar per keypoint, divided into kinds: (K,) shares each."""
    bottom = np.zeros(len(names))
    for kind, share in shares.items():
        ax.bar(range(len(names)), share, bottom=bottom, color=_KIND_COLOURS[kind], label=kind)
        bottom += share
    ax.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.set(ylim=(0, 1), ylabel=ylabel)
    ax.legend(ncols=len(shares), loc="lower center", bbox_to_anchor=(0.5, 1.0))


@mpl.rc_context(STYLE)
def render_panels(
    x: np.ndarray,
    panels: dict[str, dict[str, np.ndarray]],
    xlabel: str,
    ylabels: Sequence[str],
    colours: dict = METHOD_COLOURS,
) -> Figure:
    """Panels side by side, title by title, each with its curves over the same x.

    One ylabel is for all panels, which then share their axis; else there is one for each.
    """
    figure, (axes,) = new_figure(1, len(panels), 2.3, sharey=len(ylabels) == 1)
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, y in lines.items():
            ax.plot(x, y, lw=1.5, label=name, color=colours.get(name))
        ax.set(title=title, xlabel=xlabel)
        if len(lines) > 1:
            ax.legend()
    for ax, ylabel in zip(axes, ylabels, strict=False):
        ax.set_ylabel(ylabel)
    return figure


@mpl.rc_context(STYLE)
def render_histograms(
    samples: dict[str, np.ndarray], xlabel: str, ylabel: str, colours: dict = METHOD_COLOURS
) -> Figure:
    """Histograms of (n,) values one under the other on the same axes, each with its median as a line."""
    figure, axes = new_figure(len(samples), 1, 0.3 + 1.15 * len(samples), sharex=True, sharey=True)
    low, high = (f(np.concatenate([*samples.values(), [0, 1]])) for f in (np.min, np.max))
    for (ax,), (name, values) in zip(axes, samples.items(), strict=True):
        ax.hist(values, np.linspace(low, high, 41), color=colours.get(name))
        middle = np.median(values)
        ax.axvline(middle, color="#222222", lw=1.2)
        ax.set_title(f"{name}: median {middle:.2f} of {len(values):,}", loc="left")
        ax.set_ylabel(ylabel)
    axes[-1, 0].set_xlabel(xlabel)
    return figure


@mpl.rc_context(STYLE)
def render_claims(claims: Sequence[Claim]) -> Figure:
    """Steps between rows of Table 1, in points of AP: the report's, and ours, a dot a training."""
    figure, ((ax,),) = new_figure(1, 1, 1.0 + 0.45 * len(claims))
    labels = [f"{c.better}\nminus {c.worse}" for c in claims]
    _forest(
        ax, labels, [c.differences for c in claims], [c.verdict for c in claims], [c.paper for c in claims]
    )
    ax.plot(
        [c.here for c in claims], range(len(claims)), "d", mfc="none", mec="#222222", label="these networks"
    )
    ax.set(xlabel="difference in COCO AP (points)")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


@mpl.rc_context(STYLE)
def render_verdicts(claims: Sequence[Judged]) -> Figure:
    """What each claim is worth, in points: mean OKS on true boxes left, AP on detected ones right.

    Claims without a pair of trainings are left out.
    """
    claims = [one for one in claims if one.seeds]
    figure, axes = new_figure(1, 2, 1.2 + 0.22 * len(claims), sharey=True)
    labels = [f"{one.experiment}  {one.claim}" for one in claims]
    for ax, name in zip(axes[0], ("OKS", "AP"), strict=True):
        report = [one.report if name == "AP" else None for one in claims]
        _forest(
            ax,
            labels,
            [one.differences[name] for one in claims],
            [one.verdicts[name] for one in claims],
            report,
        )
        # Claims reach from tenths to tens of points, and the interval of two pairs further.
        ax.set_xscale("symlog", linthresh=BOUND, linscale=1.0)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.tick_params(axis="x", labelsize=6.5)
        ax.set(xlabel=f"difference in {name} (points),\nlogarithmic beyond {BOUND:g}")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _forest(
    ax: Axes,
    labels: Sequence[str],
    differences: Sequence[Sequence[float]],
    verdicts: Sequence[Verdict],
    report: Sequence[float | None],
) -> None:
    """A row a claim: mean in its 95% interval, full where a verdict fell; below, a dot a pair."""
    ax.axvspan(-BOUND, BOUND, color="#eeeeee", lw=0)
    ax.axvline(0, color="#222222", lw=0.8)
    colour = METHOD_COLOURS["regression"]
    for row, (values, verdict) in enumerate(zip(differences, verdicts, strict=True)):
        dots = [row + 0.25] * len(values)
        ax.plot(values, dots, ".", ms=4, c=colour, alpha=0.4, label="a pair" * (not row and len(values) > 0))
        if verdict.mean is not None:
            fill = colour if verdict.more_pairs == 0 else "white"
            ranges = [[verdict.mean - verdict.low], [verdict.high - verdict.mean]]
            ax.errorbar(verdict.mean, row, xerr=ranges, fmt="o", ms=5, c=colour, mfc=fill, capsize=3)
        if report[row] is not None:
            ax.plot(report[row], row, "x", color="#222222", ms=6, label="report" * (not row))
    ax.set_yticks(range(len(labels)), labels, fontsize=7)
    ax.set_ylim(max(len(labels), 1) - 0.5, -0.5)


@mpl.rc_context(STYLE)
def render_error_kinds(counts: dict[str, np.ndarray], skeleton: Skeleton) -> Figure:
    """Stacked bars of the kinds of each keypoint that occurs, of the (K,) `diagnose.Diagnosis.counts`."""
    figure, ((ax,),) = new_figure(1, 1, 2.8)
    total = sum(counts.values())
    some = np.flatnonzero(total)
    shares = {kind: number[some] / total[some] for kind, number in counts.items()}
    names = [skeleton.names[k] for k in some]
    _stack(ax, shares, names, "share of labelled keypoints")
    ax.set_xticks(ax.get_xticks(), ax.get_xticklabels(), rotation=60, ha="right", fontsize=7)
    return figure
