"""HRNet and HRNet++ as a drawing, made from the networks themselves."""

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from hrnetpp_lib.draw.plots import STYLE, new_figure
from hrnetpp_lib.model.hrnet import HRNet

# The report's four changes in its order.
CHANGE_COLOURS = ("#E69F00", "#0072B2", "#CC79A7", "#009E73")
_CHANGES = ("gate in each residual unit", "average pooling on the way down", "skips", "sub-pixel head")
_GREY, _BLACK = "#9A9A9A", "#222222"
_BOX = 0.52, 0.5  # width and height, where modules are a unit apart
_BETWEEN_BRANCHES = 1.25

Point = tuple[float, float]


@mpl.rc_context(STYLE)
def render_networks(networks: dict[str, HRNet]) -> Figure:
    """Networks one under the other, title by title: HR modules from left to right, resolutions downwards.

    What the four switches change has the change's colour and number.
    """
    heights = [5.4 if network.skips else 4.6 for network in networks.values()]  # arcs take room
    figure, axes = new_figure(len(networks), 1, 0.47 * sum(heights) + 0.25, height_ratios=heights)
    for (ax,), (title, network) in zip(axes, networks.items(), strict=True):
        _draw_network(ax, network)
        ax.set_title(title, loc="left")
    marks = [
        mpl.lines.Line2D([], [], marker="o", ls="", ms=9, color=colour, label=f"{i}  {words}")
        for i, (colour, words) in enumerate(zip(CHANGE_COLOURS, _CHANGES, strict=True), 1)
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, handletextpad=0.2, columnspacing=1.2)
    return figure


def _draw_network(ax: Axes, network: HRNet) -> None:
    ax.set_axis_off()
    modules = [module for stage in (2, 3, 4) for module in getattr(network, f"stage{stage}")]
    xs = [1.35 + i + 0.25 * len(module.branches) for i, module in enumerate(modules)]
    stem = (0.55, 0.0)
    _box(ax, stem, "stem,\nlayer1", gated=network.config["se"], width=0.85)
    incoming = [(stem[0] + 0.43, 0.0)]
    for number, (x, module) in enumerate(zip(xs, modules, strict=True), 1):
        branches = range(len(module.branches))
        _exchange(ax, network, incoming, [(x - _BOX[0] / 2, _y(b)) for b in branches])
        for b in branches:
            _box(ax, (x, _y(b)), f"m{number}", gated=network.config["se"])
        incoming = [(x + _BOX[0] / 2, _y(b)) for b in branches]
    for key in network.skips:
        source, target, branch = (int(part.strip("mbranch")) for part in key.split("_"))
        _skip(ax, xs[source - 1], xs[target - 1], branch, plain=target < len(modules))
    end = _head(ax, incoming) if network.head else _last_sum(ax, incoming)
    ax.text(end + 0.1, 0, "1x1 conv:\nheatmaps", fontsize=6.5, va="center")
    for b, size in enumerate(("1/4, C", "1/8, 2C", "1/16, 4C", "1/32, 8C")):
        ax.text(0.55, _y(b) - 0.5 * (b == 0), size, fontsize=6.5, color=_GREY, ha="center", va="center")
    _numbers(ax, network, xs)
    ax.set(xlim=(0, xs[-1] + 4.0), ylim=(_y(3) - 0.4, 1.15 if network.skips else 0.35))


def _y(branch: int) -> float:
    return -_BETWEEN_BRANCHES * branch


def _box(ax: Axes, centre: Point, words: str, gated: bool, width: float = _BOX[0]) -> None:
    """Residual units; a gated one ends in a strip of the first change's colour."""
    x, y = centre[0] - width / 2, centre[1] - _BOX[1] / 2
    style = {"boxstyle": "round,pad=0,rounding_size=0.08", "mutation_aspect": 1, "zorder": 3}
    ax.add_patch(FancyBboxPatch((x, y), width, _BOX[1], fc="#F0F0F0", ec=_BLACK, lw=0.6, **style))
    if gated:
        strip = (x + width - 0.13, y), 0.13, _BOX[1]
        ax.add_patch(mpl.patches.Rectangle(*strip, fc=CHANGE_COLOURS[0], ec="none", zorder=3.5))
    ax.text(centre[0] - 0.06 * gated, centre[1], words, fontsize=6, ha="center", va="center", zorder=4)


def _exchange(ax: Axes, network: HRNet, sources: Sequence[Point], targets: Sequence[Point]) -> None:
    """Every branch to every other; a new one, in the next stage, from the lowest alone."""
    pooled = network.config["avgpool_down"]
    for a, source in enumerate(sources):
        for b, target in enumerate(targets):
            if b < len(sources) or a == len(sources) - 1:
                down = CHANGE_COLOURS[1] if pooled and b > a else _GREY
                _line(ax, source, target, down, 1.0 if b > a or a == b else 0.5)


def _line(ax: Axes, start: Point, end: Point, colour: str, width: float = 1.0) -> None:
    ax.plot(*zip(start, end, strict=True), color=colour, lw=width, zorder=1, solid_capstyle="round")


def _skip(ax: Axes, source: float, target: float, branch: int, plain: bool) -> None:
    """An arc from one module to a later one; those into the last are drawn strongly, the others faintly."""
    bottom = _y(branch) + _BOX[1] / 2
    rise = (0.9 if branch == 0 else 0.55) + 0.1 * (target - source) * (branch == 0)
    points = [(source, bottom), ((source + target) / 2, bottom + rise), (target, bottom)]
    path = Path(points, [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    look = {"alpha": 0.35, "lw": 0.5} if plain else {"alpha": 1, "lw": 1.1}
    ax.add_patch(PathPatch(path, fc="none", ec=CHANGE_COLOURS[2], zorder=2, **look))


def _last_sum(ax: Axes, sources: Sequence[Point]) -> float:
    """HRNet's last exchange: all branches, enlarged, are added to the first. Returns where it ends."""
    x = sources[0][0] + 1.0
    for source in sources:
        _line(ax, source, (x - 0.15, 0), _GREY)
    _node(ax, (x, 0), "+", _GREY)
    return x + 0.15


def _head(ax: Axes, sources: Sequence[Point]) -> float:
    """HRNet++'s head: a step up at a time, each joined to the next branch. Returns where it ends."""
    colour, at = CHANGE_COLOURS[3], sources[-1]
    for step, source in enumerate(reversed(sources[:-1]), 1):
        node = (source[0] + 0.8 * step, source[1])
        _line(ax, at, (node[0] - 0.1, node[1] - 0.1), colour, 1.5)
        _line(ax, source, (node[0] - 0.15, node[1]), _GREY)
        _node(ax, node, "c", colour)
        at = (node[0] + 0.15, node[1])
    ax.text(
        at[0] - 0.7, _y(2), "up: shuffle to 2x2\nc: concatenate,\n    1x1 conv", fontsize=6.5, va="center"
    )
    return at[0]


def _node(ax: Axes, centre: Point, words: str, colour: str) -> None:
    ax.plot(*centre, "o", ms=8, mfc="white", mec=colour, mew=1.2, zorder=4)
    ax.text(*centre, words, fontsize=6.5, ha="center", va="center_baseline", zorder=5)


def _numbers(ax: Axes, network: HRNet, xs: Sequence[float]) -> None:
    """The number of each change that is on, where one sees it."""
    on = network.config
    places = {
        "se": (xs[0] + 0.3, 0.42),
        "avgpool_down": (0.98 + (xs[0] - 1.24) / 2 + 0.1, -_BETWEEN_BRANCHES / 2 - 0.25),
        "skips": ((xs[0] + xs[-1]) / 2, 0.95),
        "subpixel_head": (xs[-1] + 0.95, _y(2) - 0.75),
    }
    for number, (switch, place) in enumerate(places.items(), 1):
        if on[switch]:
            ax.plot(*place, "o", ms=9, color=CHANGE_COLOURS[number - 1], zorder=6)
            ax.text(*place, str(number), color="white", fontsize=7, weight="bold", ha="center", zorder=7)
            ax.texts[-1].set_va("center_baseline")
