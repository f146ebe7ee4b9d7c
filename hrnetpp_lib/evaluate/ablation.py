"""Networks that differ in one change, each trained once: their table, and sentences made from it."""

from collections.abc import Mapping

from torch import nn

from hrnetpp_lib.evaluate.table import in_percent, points
from hrnetpp_lib.model.anatomy import count_macs

_LEARNT = 1.0  # point of AP that a network has at least, if it learnt anything
_NAMES = {"hrnet": "plain HRNet", "hrnetpp": "HRNet++"}


def in_markdown(
    aps: Mapping[str, float],
    losses: Mapping[str, float],
    networks: Mapping[str, nn.Module],
    input_hw: tuple[int, int],
) -> str:
    """AP, last training loss and cost of some networks, by name, as a table.

    Args:
        aps: AP, 0..1; below 0 where nobody is counted.
        losses: Of the last epoch.
        networks: The same networks, trained or not.
        input_hw: Height and width of their input in px.
    """
    lines = ["| | AP | last training loss | parameters, M | GMAC |", "|---|---|---|---|---|"]
    for name, network in networks.items():
        parameters = sum(each.numel() for each in network.parameters()) / 1e6
        macs = count_macs(network, input_hw) / 1e9
        cells = f"{in_percent(aps[name]):.1f} | {losses[name]:.2e} | {parameters:.2f} | {macs:.3f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def say_switches(aps: Mapping[str, float]) -> str:
    """How plain HRNet, HRNet++ and plain HRNet with one change each ended, of AP, 0..1, by name."""
    ours = {name: in_percent(ap) for name, ap in aps.items()}
    plain, best = ours["hrnet"], max(ours, key=ours.get)
    single = {name.partition("+")[2]: ours[name] for name in ours if name.startswith("hrnet+")}
    steps = ", ".join(
        f"{name} {points(ap - plain)}" for name, ap in sorted(single.items(), key=lambda each: -each[1])
    )
    spread = max(ours.values()) - min(ours.values())
    if ours[best] < _LEARNT:
        return (
            f"In this run all of them end below {_LEARNT:g} point of AP: so short a training teaches nothing "
            "here, and no bar says anything of a change."
        )
    return (
        f"In this run HRNet++ scores AP {ours['hrnetpp']:.1f} and plain HRNet {plain:.1f}; one change alone "
        f"moves plain HRNet by: {steps}. The highest is {_NAMES.get(best, best)}, {spread:.1f} points above "
        "the lowest."
    )


def say_alphas(aps: Mapping[float, float]) -> str:
    """How the report's alpha and the scaled one ended, of AP, 0..1, by alpha, the report's first."""
    (report, first), (scaled, second) = ((alpha, in_percent(ap)) for alpha, ap in aps.items())
    moved = points(second - first)
    verdict = "the same AP" if moved == "0.0" else f"{moved} points"
    return (
        f"In this run stage 3 with alpha {scaled:g} ends at AP {second:.1f}, with the report's {report:g} at "
        f"{first:.1f}: {verdict}."
    )
