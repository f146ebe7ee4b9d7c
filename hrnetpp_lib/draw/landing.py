"""Where a keypoint lands: its heatmap on the crop, from above, from near, and the mass that is averaged."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hrnetpp_lib.draw.plots import (
    METHOD_COLOURS,
    STYLE,
    TRUTH_LINE,
    WIDTH_IN,
    YELLOW,
    ZOOM,
    InlineFigure,
    draw_pose,
    draw_truth,
    heat_layer,
    new_figure,
)
from hrnetpp_lib.evaluate.hills import Landing
from hrnetpp_lib.pose.keypoints import Skeleton

_MARKS = {  # decoder -> marker, size, colour
    "arg_max": ("s", 11, METHOD_COLOURS["target"]),
    "quarter_offset": ("D", 8, METHOD_COLOURS["heatmap"]),
    "soft_argmax": ("o", 6, METHOD_COLOURS["regression"]),
}


@mpl.rc_context(STYLE)
def render_landing(example: Landing, skeleton: Skeleton, alpha: float) -> Figure:
    """One keypoint in four panels: the crop, its heatmap from above and from near, the sums of its softmax.

    The truth is white, or a dashed line.
    """
    heatmap, places, true_xy = example.heatmap, example.places(alpha), example.true_xy
    aspect = heatmap.shape[0] / heatmap.shape[1]
    widths = [1, 1, aspect, 1.1]  # pictures of one height
    height = 0.85 + 0.85 * WIDTH_IN * aspect / sum(widths)
    figure = InlineFigure(figsize=(WIDTH_IN, height), layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=widths)
    seen, above, near = (figure.add_subplot(grid[:, i]) for i in range(3))
    _draw_crop(seen, example, skeleton)
    for ax, scale in ((above, 0.6), (near, 1)):
        _draw_map(ax, heatmap, places, true_xy, scale)
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    left, top, side = x - ZOOM - 0.5, y - ZOOM - 0.5, 2 * ZOOM + 1
    above.add_patch(mpl.patches.Rectangle((left, top), side, side, fill=False, ec=YELLOW, lw=0.8))
    above.set(title="from above", xlim=(-0.5, heatmap.shape[1] - 0.5), ylim=(heatmap.shape[0] - 0.5, -0.5))
    near.set(title=f"{ZOOM} cells around the top", xlim=(left, left + side), ylim=(top + side, top))
    mass = np.exp(alpha * (heatmap - heatmap.max()).astype(np.float64))
    for axis, name in enumerate("xy"):
        ax = figure.add_subplot(grid[axis, 3])
        found = {how: place[axis] for how, place in places.items()}
        _draw_sums(ax, (mass / mass.sum()).sum(axis=axis), found, true_xy[axis], name)
        ax.set_title("" if axis else f"softmax({alpha:g} H), summed")
    figure.legend(*near.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_crop(ax: Axes, example: Landing, skeleton: Skeleton) -> None:
    """The crop under the heatmap with both poses; the keypoint ringed."""
    ax.set_axis_off()
    ax.imshow(example.crop)
    ax.imshow(heat_layer(example.heatmap, example.crop.shape[:2]))
    draw_truth(ax, example.truth, skeleton)
    draw_pose(ax, example.pose, skeleton, 0.05, width=1.0)
    ax.plot(*example.pose[example.keypoint, :2], "o", ms=10, mfc="none", mec=YELLOW, mew=1.5, zorder=3)
    height, width = example.crop.shape[:2]
    ax.set(title="the crop", xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _draw_map(
    ax: Axes, heatmap: np.ndarray, places: Mapping[str, Sequence[float]], true_xy: np.ndarray, scale: float
) -> None:
    """The heatmap in greys with its contours, and where the decoders and the truth are."""
    top = max(0.2, float(heatmap.max()))
    ax.imshow(heatmap, cmap="Greys_r", vmin=min(0.0, float(heatmap.min())), vmax=1.4 * top)
    if heatmap.max() > max(0.0, heatmap.min()):
        levels = np.linspace(max(0.0, heatmap.min()), heatmap.max(), 7)[1:-1]
        ax.contour(heatmap, levels=levels, colors=YELLOW, linewidths=0.5)
    star = {"mfc": "white", "mec": "#222222", "mew": 0.6, "ls": "", "zorder": 6}
    ax.plot(*true_xy, "*", ms=9 * scale, label="truth", **star)
    for name, xy in places.items():
        marker, points, colour = _MARKS[name]
        label = name.replace("_", " ")
        ax.plot(
            *xy,
            marker,
            ms=points * scale,
            mfc="none",
            mec=colour,
            mew=2 * scale,
            ls="",
            zorder=5,
            label=label,
        )
    ax.tick_params(labelsize=6)
    ax.locator_params(integer=True, nbins=5)
    ax.grid(visible=False)


def _draw_sums(ax: Axes, sums: np.ndarray, found: Mapping[str, float], true: float, name: str) -> None:
    """The softmax's sums along one axis, as far as anything is there."""
    ax.bar(range(len(sums)), sums, color="#CCCCCC", width=0.9)
    ax.axvline(true, **TRUTH_LINE)
    for how, place in found.items():
        ax.axvline(place, color=_MARKS[how][2], lw=1.5)
    heavy = np.flatnonzero(sums > 0.02)
    ends = [*found.values(), *heavy, np.clip(true, 0, len(sums) - 1)]
    ax.set(xlim=(min(ends) - 2.5, max(ends) + 2.5), ylim=(0, 1), yticks=(0, 0.5, 1))
    ax.set_xlabel(f"{name} (cells)", fontsize=7, labelpad=1)
    ax.tick_params(labelsize=6)
    ax.locator_params(axis="x", integer=True, nbins=6)


@mpl.rc_context(STYLE)
def render_alphas(panels: Mapping[str, Mapping[float, float]], alpha: float) -> Figure:
    """Error in cells against alpha, on a logarithmic axis, a panel each; dashed the network's own alpha."""
    figure, (axes,) = new_figure(1, len(panels), 2.3, sharey=True)
    for ax, (title, errors) in zip(axes, panels.items(), strict=True):
        ax.plot(list(errors), list(errors.values()), "o-", ms=3, color=METHOD_COLOURS["regression"])
        ax.axvline(alpha, **TRUTH_LINE)
        ax.set(title=title, xscale="log", xlabel="alpha")
    most = max(error for errors in panels.values() for error in errors.values())
    axes[0].set(ylabel="error of soft-argmax (cells)", ylim=(0, 1.1 * max(most, 2.0)))
    return figure
