"""What was found beside the truth: people with their true pose in white, and steps beside the report's."""

from collections.abc import Mapping, Sequence

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.draw.plots import (
    GROUND,
    METHOD_COLOURS,
    STYLE,
    WIDTH_IN,
    YELLOW,
    InlineFigure,
    draw_pose,
    draw_truth,
    new_figure,
)
from hrnetpp_lib.evaluate.mistakes import Mistake
from hrnetpp_lib.files import project_root
from hrnetpp_lib.pose.keypoints import Skeleton

_THRESHOLD = 0.05  # keypoints that score no more are not drawn


@mpl.rc_context(STYLE)
def render_people(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    poses: Sequence[np.ndarray],
    skeleton: Skeleton,
    titles: Sequence[str],
    frames: Sequence[np.ndarray] | None = None,
    ringed: Sequence[int] | None = None,
) -> Figure:
    """Pictures side by side: the true pose white, the found one over it in the colours of its sides.

    Args:
        images: n pictures, (h, w, 3) uint8 RGB.
        truths: n times (K, 3) as (x, y, visibility) in its px.
        poses: n times (K, 3) as (x, y, score) in its px; keypoints with hardly a score are not drawn.
        skeleton: The K keypoints.
        titles: One for each.
        frames: (n, 4) xywh parts to show; the whole pictures without.
        ringed: A keypoint of each: ringed where it was found, with a line from where it is.
    """
    frames = [(0, 0, i.shape[1], i.shape[0]) for i in images] if frames is None else frames
    columns = max(len(images), 3)
    aspect = max((h / w for _, _, w, h in frames), default=0.5)
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    height = WIDTH_IN / columns * aspect + 0.1 + 0.15 * lines
    figure, (axes,) = new_figure(1, columns, height)
    for ax in axes[len(images) :]:
        ax.set_axis_off()
    for i, (ax, image) in enumerate(zip(axes, images, strict=False)):
        ax.imshow(image)
        draw_truth(ax, truths[i], skeleton)
        draw_pose(ax, poses[i], skeleton, _THRESHOLD, width=1.3)
        if ringed is not None:
            found, true = poses[i][ringed[i], :2], truths[i][ringed[i], :2]
            ax.plot(*zip(true, found, strict=True), color=YELLOW, lw=1.2, zorder=3)
            ax.plot(*found, "o", ms=9, mfc="none", mec=YELLOW, mew=1.6, zorder=3)
        x, y, w, h = frames[i]
        ax.set(xlim=(x - 0.5, x + w - 0.5), ylim=(y + h - 0.5, y - 0.5))
        ax.set(xticks=[], yticks=[], facecolor=[GROUND / 255] * 3)  # a frame may reach out of its picture
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
        ax.set_title(titles[i], fontsize=7.5)
    if not len(images):
        axes[0].text(0, 0.5, "nobody was found", va="center")
    return figure


def render_examples(examples: Sequence[Mistake], skeleton: Skeleton) -> Figure:
    """Examples of kinds of errors, as `render_people`. Raises: HrnetppError if an image cannot be read."""
    names = [skeleton.names[one.keypoint].replace("_", " ") for one in examples]
    titles = [
        f"{one.kind}\n{name}, {one.error_cells:.1f} cells" for one, name in zip(examples, names, strict=True)
    ]
    images, keypoints = [read_image(one.image) for one in examples], [one.keypoint for one in examples]
    poses = [one.truth for one in examples], [one.pose for one in examples]
    return render_people(images, *poses, skeleton, titles, [one.frame_xywh for one in examples], keypoints)


def render_screenshot(name: str) -> Figure:
    """The checkout's figures/<name>.png, of a widget, as wide as the text and twice as sharp as a chart.

    It is no photograph: `hide_pictures` leaves it. Raises: HrnetppError if it cannot be read.
    """
    image = read_image(project_root() / "figures" / f"{name}.png")
    figure = InlineFigure(figsize=(WIDTH_IN, WIDTH_IN * image.shape[0] / image.shape[1]), dpi=220)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.imshow(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), interpolation="antialiased")
    return figure


@mpl.rc_context(STYLE)
def render_steps(steps: Mapping[str, Mapping[str, tuple[float, float]]]) -> Figure:
    """Steps side by side: points by which each metric moved here (dots) and in the report (crosses).

    Args:
        steps: Title -> metric -> points here, and in the report.
    """
    figure, (axes,) = new_figure(1, len(steps), 2.2, sharex=True, sharey=True)
    values = [abs(value) for pairs in steps.values() for pair in pairs.values() for value in pair]
    reach = 1.15 * max(1.0, *values)  # a tenth of a point must not look like much
    for ax, (title, pairs) in zip(axes, steps.items(), strict=True):
        rows = range(len(pairs))
        ax.axvline(0, color="#222222", lw=0.8)
        for row, (here, _) in zip(rows, pairs.values(), strict=True):
            ax.plot([0, here], [row, row], color=METHOD_COLOURS["regression"], lw=2)
        here, report = zip(*pairs.values(), strict=True)
        ax.plot(here, rows, "o", ms=5, color=METHOD_COLOURS["regression"], label="this run")
        ax.plot(report, rows, "x", ms=6, mew=1.5, color="#222222", label="report")
        ax.set(title=title, xlim=(-reach, reach), xlabel="points")
        ax.set_yticks(rows, pairs)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@mpl.rc_context(STYLE)
def render_kinds(shares: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]) -> Figure:
    """Percent of the keypoints of each kind, a panel for good and one for what is wrong, a bar a network."""
    figure, axes = new_figure(1, 2, 2.3, width_ratios=[1, 3.2])
    kinds = list(next(iter(shares.values())))
    width = 0.8 / len(shares)
    for ax, part in zip(axes[0], (kinds[:1], kinds[1:]), strict=True):
        for i, (name, values) in enumerate(shares.items()):
            places = np.arange(len(part)) + (i - (len(shares) - 1) / 2) * width
            bars = ax.bar(
                places, [values[k] for k in part], width=0.92 * width, color=colours[name], label=name
            )
            ax.bar_label(bars, fmt="%.1f", fontsize=6, padding=1)
        most = max(values[k] for values in shares.values() for k in part)
        ax.set(ylabel="% of keypoints", ylim=(0, 1.15 * max(most, 5.0)), xticks=range(len(part)))
        ax.set_xticklabels(part)
        ax.grid(axis="x", visible=False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shares))
    return figure


@mpl.rc_context(STYLE)
def render_precision(
    errors: Mapping[str, np.ndarray], reference: str, colours: Mapping[str, str], most: float = 3.0
) -> Figure:
    """Share of keypoints within so many cells, left, and right how far each network is ahead of one of them.

    Args:
        errors: Network -> (n,) errors in cells.
        reference: The network that the others are compared with.
        colours: By network.
        most: Cells to which the axes go.
    """
    grid = np.linspace(0, most, 121)
    within = {
        name: 100 * np.searchsorted(np.sort(one), grid, side="right") / max(len(one), 1)
        for name, one in errors.items()
    }
    figure, ((left, right),) = new_figure(1, 2, 2.5)
    for name, share in within.items():
        left.plot(grid, share, color=colours[name], lw=1.5, label=name)
        right.plot(grid, share - within[reference], color=colours[name], lw=1.5)
    furthest = max(float(np.abs(share - within[reference]).max()) for share in within.values())
    reach = max(5.0, 1.1 * furthest)  # a fraction of a point must not look like much
    left.set(title="Share within so many cells", xlabel="error (cells)", ylabel="% of good and jitter")
    right.set(title=f"The same, minus the {reference} model's", xlabel="error (cells)", ylabel="points")
    right.set_ylim(-reach, reach)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(errors))
    return figure
