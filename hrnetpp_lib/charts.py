"""Every chart of the notebooks: curves, bars, statistics and intervals, in the style of plots.py."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hrnetpp_lib.bootstrap import Claim
from hrnetpp_lib.keypoints import Skeleton
from hrnetpp_lib.persons import PersonTable
from hrnetpp_lib.plots import METHOD_COLOURS, STYLE, new_figure

_KIND_COLOURS = {
    "good": "#009E73",
    "jitter": "#56B4E9",
    "inversion": "#E69F00",
    "swap": "#CC79A7",
    "miss": "#7F7F7F",
}


@mpl.rc_context(STYLE)
def render_curves(records: dict[str, list[dict]], colours: dict[str, str]) -> Figure:
    """Training loss and validation metric against epochs, one line per method.

    Args:
        records: Metrics of `train.read_metrics` by method name.
        colours: One per method.
    """
    figure, axes = new_figure(1, 2, 2.3)
    loss_ax, metric_ax = axes[0]
    metric = "metric"
    for name, epochs in records.items():
        loss_ax.plot([e["epoch"] for e in epochs], [e["loss"] for e in epochs], "o-", ms=3, c=colours[name])
        scored = [e for e in epochs if "value" in e]
        metric_ax.plot(
            [e["epoch"] for e in scored],
            [e["value"] for e in scored],
            "o-",
            ms=3,
            c=colours[name],
            label=name,
        )
        metric = scored[-1]["metric"] if scored else metric
    loss_ax.set(xlabel="epoch", ylabel="mean training loss", yscale="log")
    metric_ax.set(xlabel="epoch", ylabel=f"{metric} on val")
    # Room above: a flat curve would lie on the frame.
    best = max((e["value"] for epochs in records.values() for e in epochs if "value" in e), default=0)
    metric_ax.set_ylim(0, 1.1 * best or 1)
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
    bottom = np.zeros(len(table.skeleton))
    for value, text, colour in (
        (2, "visible", "#009E73"),
        (1, "hidden", "#E69F00"),
        (0, "no label", "#CCCCCC"),
    ):
        share = (table.keypoints[:, :, 2] == value).mean(axis=0)
        labels.bar(range(len(share)), share, bottom=bottom, color=colour, label=text)
        bottom += share
    names = [name.replace("_", " ") for name in table.skeleton.names]
    labels.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    labels.set(ylabel="share of persons", ylim=(0, 1))
    labels.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


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


@mpl.rc_context(STYLE)
def render_error_kinds(counts: dict[str, np.ndarray], skeleton: Skeleton) -> Figure:
    """Stacked bars of the kinds of keypoints, a bar per keypoint.

    Args:
        counts: Kind -> (K,) numbers, of `diagnose.Diagnosis.counts`.
        skeleton: Names the keypoints.
    """
    figure, axes = new_figure(1, 1, 2.8)
    total = np.maximum(sum(counts.values()), 1)
    bottom = np.zeros(len(skeleton))
    for kind, number in counts.items():
        axes[0, 0].bar(
            range(len(skeleton)), number / total, bottom=bottom, color=_KIND_COLOURS[kind], label=kind
        )
        bottom += number / total
    names = [name.replace("_", " ") for name in skeleton.names]
    axes[0, 0].set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes[0, 0].set(ylabel="share of labelled keypoints", ylim=(0, 1))
    axes[0, 0].legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
