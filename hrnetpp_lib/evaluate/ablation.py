"""Networks that differ in one change, each trained once: their table, and sentences made from it."""

from collections.abc import Mapping

from torch import nn

from hrnetpp_lib.evaluate.table import in_percent, points
from hrnetpp_lib.model.anatomy import count_macs

_LEARNT = 1.0  # point of AP that a network has at least, if it learnt anything
_NAMES = {"hrnet": "plain HRNet", "hrnetpp": "HRNet++"}


def count_costs(networks: Mapping[str, nn.Module], input_hw: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Name -> parameters and multiply-adds of one (height, width) px input."""
    return {
        name: (sum(each.numel() for each in network.parameters()), count_macs(network, input_hw))
        for name, network in networks.items()
    }


def in_markdown(
    aps: Mapping[str, float], losses: Mapping[str, float], costs: Mapping[str, tuple[int, int]]
) -> str:
    """AP, last training loss and cost of some networks, by name, as a table.

    Args:
        aps: AP, 0..1; below 0 where nobody is counted.
        losses: Of the last epoch.
        costs: Of `count_costs`.
    """
    lines = ["| | AP | last training loss | parameters, M | GMAC |", "|---|---|---|---|---|"]
    for name, (parameters, macs) in costs.items():
        cells = f"{in_percent(aps[name]):.1f} | {losses[name]:.2e} | {parameters / 1e6:.2f}"
        lines.append(f"| {name} | {cells} | {macs / 1e9:.3f} |")
    return "\n".join(lines)


def say_costs(losses: Mapping[str, float], costs: Mapping[str, tuple[int, int]]) -> str:
    """What the changes cost, all and one by one, and which network ends with the least training loss."""
    (plain, plain_macs), (ours, our_macs) = costs["hrnet"], costs["hrnetpp"]
    single = {name: macs for name, (_, macs) in costs.items() if name.startswith("hrnet+")}
    dear, cheap = max(single, key=single.get), min(single, key=single.get)
    best = min(losses, key=losses.get)
    return (
        f"In this profile HRNet++ has {_more(ours, plain)} parameters and {_more(our_macs, plain_macs)} "
        f"multiply-adds than plain HRNet. Of one change alone {dear.partition('+')[2]} costs most, "
        f"{_more(single[dear], plain_macs)}, and {cheap.partition('+')[2]} least, "
        f"{_more(single[cheap], plain_macs)}. The least training loss is that of "
        f"{_NAMES.get(best, best)}, {losses[best]:.2e}."
    )


def _more(ours: float, plain: float) -> str:
    change = round(100 * (ours / plain - 1), 1)
    return f"{abs(change):.1f}% {'fewer' if change < 0 else 'more'}"


def title_switches(aps: Mapping[str, float]) -> str:
    """The finding of `say_switches` in a few words."""
    ours = {name: in_percent(ap) for name, ap in aps.items()}
    best = max(ours, key=ours.get)
    if ours[best] < _LEARNT:
        return "so short a training teaches nothing here"
    lead = ours[best] - min(ours.values())
    return f"one training each: {_NAMES.get(best, best)} is highest, by {lead:.1f} points over the lowest"


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


def title_alphas(aps: Mapping[float, float]) -> str:
    """The finding of `say_alphas` in a few words."""
    (_, first), (scaled, second) = ((alpha, in_percent(ap)) for alpha, ap in aps.items())
    return f"alpha {scaled:g} instead of the report's moves AP by {points(second - first)}"


def say_alphas(aps: Mapping[float, float]) -> str:
    """How the report's alpha and the scaled one ended, of AP, 0..1, by alpha, the report's first."""
    (report, first), (scaled, second) = ((alpha, in_percent(ap)) for alpha, ap in aps.items())
    moved = points(second - first)
    verdict = "the same AP" if moved == "0.0" else f"{moved} points"
    return (
        f"In this run stage 3 with alpha {scaled:g} ends at AP {second:.1f}, with the report's {report:g} at "
        f"{first:.1f}: {verdict}."
    )
