"""Trainings beside each other, heatmaps as they sharpen, and poses with the truth in white under them."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hrnetpp_lib.draw.plots import (
    METHOD_COLOURS,
    STYLE,
    WIDTH_IN,
    draw_heat,
    draw_pose,
    draw_truth,
    mark_truth,
    new_figure,
)
from hrnetpp_lib.evaluate.inversions import NETWORKS, Inversions, plural, widest_pair
from hrnetpp_lib.pose.keypoints import Skeleton

_PAIR = METHOD_COLOURS["hrnet"], METHOD_COLOURS["heatmap"]  # plain HRNet, HRNet++
_LEAST_SPAN = 10.0  # of an axis of percent or points: smaller differences shall look small


@mpl.rc_context(STYLE)
def render_training(pair: dict[str, Sequence[dict]], titles: tuple[str, str]) -> Figure:
    """Losses, their relative difference, and val's metric of two trainings over the epochs.

    Args:
        pair: Name -> `journal.read_metrics`; plain HRNet first.
        titles: Of the difference, and of the metric.
    """
    figure, ((losses, difference, metric),) = new_figure(1, 3, 2.5)
    scored = {name: [epoch for epoch in epochs if "value" in epoch] for name, epochs in pair.items()}
    for colour, (name, epochs) in zip(_PAIR, pair.items(), strict=True):
        losses.plot(*_points(epochs, "loss", 1000), "-", lw=1.3, c=colour, label=name)
        losses.plot(
            *_points([e for e in scored[name] if "val_loss" in e], "val_loss", 1000),
            "s:",
            ms=3.5,
            c=colour,
            mfc="white",
        )
        metric.plot(*_points(scored[name], "value", 100), "o-", ms=3.5, c=colour, label=name)
    losses.set(title="loss\n(squares: on val)", ylabel="1000 x mean loss", ylim=(0, None))
    both = [{epoch["epoch"]: epoch for epoch in epochs} for epochs in pair.values()]
    for key, style in (
        ("loss", {"ls": "-"}),
        ("val_loss", {"ls": ":", "marker": "s", "ms": 3.5, "mfc": "white"}),
    ):
        shared = [n for n in both[0] if n in both[1] and key in both[0][n] and key in both[1][n]]
        change = [100 * (both[1][n][key] / both[0][n][key] - 1) for n in shared]
        difference.plot(shared, change, c=_PAIR[1], **style)
    difference.axhline(0, color=_PAIR[0], lw=1)
    reach = max(_LEAST_SPAN, 1.1 * max(np.abs(line.get_ydata()).max(initial=0) for line in difference.lines))
    difference.set(title=titles[0], ylabel="{1} minus {0} (%)".format(*pair), ylim=(-reach, reach))
    top = max(_LEAST_SPAN, 1.15 * max(ax_line.get_ydata().max() for ax_line in metric.lines))
    of = scored[next(iter(pair))][-1]["metric"]
    metric.set(title=f"{of} on val:\n{titles[1]}", ylabel="points", ylim=(0, top))
    for ax in (losses, difference, metric):
        ax.set_xlabel("epoch")
        ax.title.set_fontsize(7.5)
        ax.set_xlim(0, 1.03 * max(epochs[-1]["epoch"] for epochs in pair.values()))
        ax.locator_params(axis="y", integer=True, nbins=6)
        ax.locator_params(axis="x", integer=True, nbins=5)
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@mpl.rc_context(STYLE)
def render_curves(epochs: Sequence[dict], colour: str, unit: str, title: str) -> Figure:
    """Loss and val's metric of one training over the epochs.

    Args:
        epochs: Of `journal.read_metrics`.
        colour: Of its curves.
        unit: Of the loss.
        title: Of the metric.
    """
    figure, ((losses, metric),) = new_figure(1, 2, 2.4)
    scored = [epoch for epoch in epochs if "value" in epoch]
    losses.plot(*_points(epochs, "loss", 1), "-", lw=1.3, c=colour)
    on_val = _points([epoch for epoch in scored if "val_loss" in epoch], "val_loss", 1)
    losses.plot(*on_val, "s:", ms=3.5, c=colour, mfc="white")
    top = max(line.get_ydata().max(initial=0) for line in losses.lines)
    losses.set(title="loss\n(squares: on val)", ylabel=unit, ylim=(0, 1.15 * top))
    values = _points(scored, "value", 100)
    metric.plot(*values, "o-", ms=3.5, c=colour)
    metric.set(title=f"{scored[-1]['metric']} on val:\n{title}", ylabel="points")
    metric.set_ylim(0, max(_LEAST_SPAN, 1.15 * values[1].max()))
    for ax in (losses, metric):
        ax.set(xlabel="epoch", xlim=(0, 1.03 * epochs[-1]["epoch"]))
        ax.locator_params(axis="x", integer=True, nbins=5)
    return figure


def _points(epochs: Sequence[dict], key: str, factor: float) -> tuple[list, np.ndarray]:
    return [epoch["epoch"] for epoch in epochs], factor * np.array([epoch[key] for epoch in epochs], float)


@mpl.rc_context(STYLE)
def render_sharpening(
    snapshots: Sequence[dict], keypoint: int, examples: dict[str, int], truth: np.ndarray
) -> Figure:
    """One keypoint's maps over up to six epochs, of people chosen by a rule; the truth is a white cross.

    Args:
        snapshots: Of `journal.read_snapshots`, of N people.
        keypoint: Its number.
        examples: Why somebody is shown -> which of the N.
        truth: (N, K, 3) true keypoints in px of the crops; the third is 0 where there is no label.
    """
    chosen = [snapshots[i] for i in np.unique(np.linspace(0, len(snapshots) - 1, 6).round().astype(int))]
    rows = len(examples) if len(chosen) > 3 else 1
    columns = len(examples) * len(chosen) // rows
    shape = chosen[0]["crops"].shape[1] / chosen[0]["crops"].shape[2]
    figure, axes = new_figure(rows, columns, rows * (WIDTH_IN / columns * shape + 0.38))
    shown = [(why, person, kept) for why, person in examples.items() for kept in chosen]
    for ax, (why, person, kept) in zip(axes.flat, shown, strict=True):
        heatmap = kept["heatmaps"][person, keypoint].astype(np.float32)
        _show_map(ax, kept["crops"][person], heatmap, truth[person, keypoint])
        head = f"{why}\n" if kept is chosen[0] else "\n"
        ax.set_title(f"{head}epoch {kept['epoch']}: {heatmap.max():.2f}", fontsize=7, loc="left")
    return figure


def _show_map(ax: Axes, crop: np.ndarray, heatmap: np.ndarray, true: np.ndarray) -> None:
    ax.set_axis_off()
    draw_heat(ax, crop, heatmap)
    if true[2] > 0:
        mark_truth(ax, true[:2])
    ax.set(xlim=(-0.5, crop.shape[1] - 0.5), ylim=(crop.shape[0] - 0.5, -0.5))


@mpl.rc_context(STYLE)
def render_maps(crop: np.ndarray, maps: np.ndarray, titles: Sequence[str], truth: np.ndarray) -> Figure:
    """A crop's maps, with the truth as a white cross; all of them together first, where that fills the rows.

    Args:
        crop: (h, w, 3) uint8 RGB.
        maps: (K, H, W).
        titles: Of the K keypoints.
        truth: (K, 3) in px of the crop; the third is 0 where there is no label.
    """
    panels = list(zip(titles, maps, truth, strict=True))
    if len(panels) % 6:
        panels.insert(0, ("all together", maps.max(axis=0), np.zeros(3)))
    number = len(panels)
    columns = next((n for n in (6, 5, 7) if number % n == 0), 6)
    rows = -(-number // columns)
    figure, axes = new_figure(
        rows, columns, rows * (WIDTH_IN / columns * crop.shape[0] / crop.shape[1] + 0.2)
    )
    for ax in axes.flat[number:]:
        ax.set_axis_off()
    for ax, (title, heatmap, true) in zip(axes.flat, panels, strict=False):
        _show_map(ax, crop, heatmap, true)
        ax.set_title(title, fontsize=7)
    return figure


@mpl.rc_context(STYLE)
def render_beside(
    crops: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    poses: dict[str, Sequence[np.ndarray]],
    titles: dict[str, Sequence[str]],
    skeleton: Skeleton,
    threshold: float = 0.2,
) -> Figure:
    """The same crops by several networks, a row each: the truth in white, and what was predicted over it.

    Args:
        crops: N of (h, w, 3) uint8 RGB.
        truth: N of (K, 3) in px of the crops; the third is 0 where there is no label.
        poses: Name of a network -> N of (K, 3) as (x, y, score).
        titles: Name of a network -> N titles.
        skeleton: Of the K keypoints.
        threshold: Of scores.
    """
    shape = crops[0].shape[0] / crops[0].shape[1]
    size = len(poses), len(crops)
    figure, axes = new_figure(*size, size[0] * (WIDTH_IN / size[1] * shape + 0.35))
    for row, (name, found) in zip(axes, poses.items(), strict=True):
        for i, ax in enumerate(row):
            ax.set_axis_off()
            ax.imshow(crops[i])
            draw_truth(ax, truth[i], skeleton)
            draw_pose(ax, found[i], skeleton, threshold, width=1.2)
            ax.set(xlim=(-0.5, crops[i].shape[1] - 0.5), ylim=(crops[i].shape[0] - 0.5, -0.5))
            ax.set_title((f"{name}\n" if i == 0 else "\n") + titles[name][i], fontsize=7.5, loc="left")
    return figure


@mpl.rc_context(STYLE)
def render_inversions(trainings: Sequence[Inversions], skeleton: Skeleton) -> Figure:
    """A dot a training: how often it takes left for right, pair by pair, and the AP beside one of them.

    Args:
        trainings: Of any of `inversions.NETWORKS`.
        skeleton: Of their keypoints.
    """
    figure, ((pairs, against),) = new_figure(1, 2, 2.6, width_ratios=[1.6, 1])
    networks = [name for name in NETWORKS if any(one.network == name for one in trainings)]
    names = [plural(pair, skeleton) for pair in skeleton.flip_pairs]
    widest = widest_pair(trainings, skeleton)
    colours = METHOD_COLOURS | {"control": METHOD_COLOURS["target"], "reported": METHOD_COLOURS["ensemble"]}
    colours |= {"grown_hrnet": "#0072B2", "grown": "#D55E00"}
    for number, name in enumerate(networks):
        colour = colours[name]
        of_name = [one for one in trainings if one.network == name]
        for one in of_name:
            shares = [one.share(pair) for pair in skeleton.flip_pairs]
            places = np.arange(len(names)) + 0.7 * ((number + 0.5) / len(networks) - 0.5)
            pairs.plot(places, shares, "o", ms=4, c=colour, alpha=0.6)
        points = [one.share(widest) for one in of_name], [one.ap for one in of_name]
        against.plot(*points, "o", ms=5, c=colour, alpha=0.8, label=NETWORKS[name])
    pairs.set_xticks(range(len(names)), names, rotation=45, ha="right")
    pairs.set(ylabel="inverted: left for right (%)", ylim=(0, None))
    against.set(xlabel=f"{plural(widest, skeleton)} inverted (%)", ylabel="COCO AP", xlim=(0, None))
    figure.legend(*against.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
