"""From a heatmap to a coordinate, in figures small enough to check by hand."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hrnetpp_lib.draw.plots import METHOD_COLOURS, STYLE, TRUTH_LINE, ZOOM, draw_heat, draw_pose, new_figure
from hrnetpp_lib.pose.keypoints import Skeleton


@mpl.rc_context(STYLE)
def render_cells(
    rows: dict[str, np.ndarray], found: Sequence[float], true_x: float, ylabel: str | None = None
) -> Figure:
    """Rows of cells as bars, title by title: what was found in each as a line, the truth as a dashed one.

    Args:
        rows: Title -> (W,) values of the cells.
        found: For each row a place in cells.
        true_x: Where the keypoint is, in cells.
        ylabel: What the bars are, where all are the same; then they share an axis.
    """
    figure, (axes,) = new_figure(1, len(rows), 2.3, sharey=ylabel is not None)
    for ax, (title, values), x in zip(axes, rows.items(), found, strict=True):
        ax.bar(range(len(values)), values, color=METHOD_COLOURS["target"], width=0.8)
        ax.axvline(true_x, label=f"truth {true_x:g}", **TRUTH_LINE)
        ax.axvline(x, color=METHOD_COLOURS["regression"], lw=1.5, label="what is read")
        ax.set(title=title, xlabel="cell", xticks=range(0, len(values), 2))
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel(ylabel or "")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@mpl.rc_context(STYLE)
def render_marginals(
    heatmap: np.ndarray, mass: np.ndarray, found_xy: Sequence[float], true_xy: Sequence[float]
) -> Figure:
    """A (H, W) heatmap, its softmax, and the softmax's sums by column and by row, which give x and y."""
    figure, ((left, right, columns, rows),) = new_figure(1, 4, 2.1, width_ratios=[1.35, 1.35, 1, 1])
    for ax, values, title in ((left, heatmap, "heatmap H"), (right, mass, "softmax(60 H)")):
        ax.imshow(values, cmap="inferno")
        ax.plot(*true_xy, "+", color="white", ms=9)
        ax.set(title=title, xlabel="x (cells)", ylabel="y (cells)" if ax is left else "")
        ax.locator_params(integer=True)
        ax.grid(visible=False)
    _sums(columns, mass.sum(axis=0), found_xy[0], true_xy[0], "x", "column")
    _sums(rows, mass.sum(axis=1), found_xy[1], true_xy[1], "y", "row")
    return figure


def _sums(ax: Axes, sums: np.ndarray, found: float, true: float, name: str, line: str) -> None:
    """One marginal as bars, with the truth and its centre of mass."""
    ax.bar(range(len(sums)), sums, color=METHOD_COLOURS["target"], width=0.8)
    ax.axvline(true, **TRUTH_LINE)
    ax.axvline(found, color=METHOD_COLOURS["regression"], lw=1.5)
    ax.set(title=f"sum of each {line}\n{name} = {found:.2f}", xlabel=f"{name} (cells)", ylim=(0, 1))
    ax.locator_params(axis="x", integer=True)


@mpl.rc_context(STYLE)
def render_way(
    crop: np.ndarray,
    heatmap: np.ndarray,
    mass: np.ndarray,
    keypoints: np.ndarray,
    skeleton: Skeleton,
    shown: int,
) -> Figure:
    """The whole way in five steps: crop, heatmap, softmax, coordinate, pose.

    Args:
        crop: (h, w, 3) uint8 RGB, input px.
        heatmap: (H, W), of the keypoint shown; (0, 0) is the centre of its first cell.
        mass: (H, W) softmax of it.
        keypoints: (K, 3) as (x, y, score), heatmap cells.
        skeleton: Of the K keypoints.
        shown: Which of them is followed.
    """
    figure, (axes,) = new_figure(1, 5, 1.9)
    across, down = crop.shape[1] / heatmap.shape[1], crop.shape[0] / heatmap.shape[0]  # px per cell
    in_crop = keypoints * (across, down, 1)
    (x, y), name = keypoints[shown, :2], skeleton.names[shown].replace("_", " ")
    titles = (
        *("what the\nnetwork sees", f"heatmap H:\n{name}", "softmax(60 H),\nenlarged"),
        *(f"its centre of mass:\n({x:.2f}, {y:.2f})", "all keypoints:\nthe pose"),
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
        ax.set_axis_off()
        if ax not in (axes[1], axes[2]):
            ax.imshow(crop)
    draw_heat(axes[1], crop, heatmap)
    axes[2].imshow(mass, cmap="inferno")
    rows = ZOOM * crop.shape[0] / crop.shape[1]  # the crop's shape: all panels are equal
    axes[2].set(xlim=(x - ZOOM, x + ZOOM), ylim=(y + rows, y - rows))
    for ax, place in ((axes[2], (x, y)), (axes[3], in_crop[shown])):
        ax.plot(*place[:2], "o", color=METHOD_COLOURS["regression"], mec="white", ms=6)
    draw_pose(axes[4], in_crop, skeleton)
    for ax in axes[:-1]:
        ax.annotate("", (1.2, 0.5), (1.04, 0.5), "axes fraction", arrowprops={"arrowstyle": "->"})
    return figure
