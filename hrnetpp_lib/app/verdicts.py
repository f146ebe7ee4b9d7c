"""What the study's results say: a verdict on every claim, and Table 1's rows over trainings."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from hrnetpp_lib import draw
from hrnetpp_lib.app.experiments import (
    CLAIMS,
    EXPERIMENTS,
    IN_WORDS,
    LONG,
    LONG_RATES,
    PAIR,
    RATES,
    REPORTED,
    TRIED_RATES,
    all_runs,
    heatmap_run,
    long_grown_run,
    long_run,
    refined_runs,
)
from hrnetpp_lib.app.study import Result, read_results, results_path
from hrnetpp_lib.evaluate.inversions import NETWORKS, Inversions, say_inversions
from hrnetpp_lib.evaluate.measure import Measure
from hrnetpp_lib.evaluate.statistics import (
    LEVEL,
    Judged,
    Verdict,
    judge,
    paired_interval,
    two_level_interval,
)
from hrnetpp_lib.evaluate.table import PARTS, Training
from hrnetpp_lib.files import whole_file, write_json
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import HRNET, HRNETPP, Architecture, Profile, Run, table_runs

FIGURES = {  # of a `Measure`, as they are compared
    "OKS": lambda m: 100 * m.oks,
    "AP": lambda m: 100 * m.metrics["AP"],
    "PCK 0.5": lambda m: 100 * m.pck[0],
    "PCK 4": lambda m: 100 * m.pck[1],
    "near error": lambda m: m.near_error_cells,
    "missed": lambda m: 100 * m.miss_share,
    "loss": lambda m: None if m.loss is None else 1e3 * m.loss,
}
# How those are printed that stand behind OKS and AP.
_ERRORS = {"PCK 0.5": "+.2f", "PCK 4": "+.2f", "missed": "+.2f", "near error": "+.3f", "loss": "+.3f"}
# The rows of Table 1: the network that each is measured with, by its name in `table_runs`, and the way.
_ROWS = (
    *(("hrnet", "quarter"), ("heatmap", "quarter"), ("regression", "soft")),
    *(("regression", way) for way in ("tta", "ensemble", "ensemble_tta")),
)


def verdicts(results: dict[str, Result]) -> list[Judged]:
    """Every claim with its differences by seed, their intervals, and the verdicts on OKS and on AP."""
    seeds, pairs = _known(results), []
    for claim in CLAIMS:
        of_claim = {seed: [_measured(results, *arm) for arm in claim.arms(seed)] for seed in seeds}
        pairs.append({seed: pair for seed, pair in of_claim.items() if None not in pair})
    differences = [
        {name: _differences(figure, of.values()) for name, figure in FIGURES.items()} for of in pairs
    ]
    units = {"OKS": "point of OKS", "AP": "AP"}
    planned = [EXPERIMENTS[claim.experiment].seeds for claim in CLAIMS]
    judged = {name: judge([each[name] for each in differences], unit) for name, unit in units.items()}
    return [
        Judged(
            experiment=claim.experiment,
            claim=claim.text,
            report=claim.report,
            seeds=list(of_claim),
            differences=by_name,
            intervals={
                name: tuple(float(end) for end in paired_interval(values))
                for name, values in by_name.items()
                if len(values) > 1
            },
            two_level=_over_persons(of_claim.values()) if len(of_claim) > 1 else None,
            verdicts={name: as_planned(of[row], planned[row]) for name, of in judged.items()},
        )
        for row, (claim, of_claim, by_name) in enumerate(zip(CLAIMS, pairs, differences, strict=True))
    ]


def as_planned(verdict: Verdict, planned: int) -> Verdict:
    """No verdict before the number of trainings that was fixed beforehand: looks on the way find too much."""
    missing = planned - verdict.pairs
    if missing <= 0 or verdict.pairs < 2:
        return verdict
    so_far = f"{verdict.words} so far, " if verdict.more_pairs == 0 else ""
    return replace(verdict, more_pairs=missing, words=f"not decided; {so_far}{missing} more are planned")


def _known(results: dict[str, Result]) -> list[int]:
    """The seeds of all trainings there are."""
    return sorted({result.recipe.seed for result in results.values()})


def _differences(figure: Callable[[Measure], float | None], pairs: Iterable[list[Measure]]) -> list[float]:
    """Better minus worse of those pairs that both have the figure."""
    both = [(figure(better), figure(worse)) for better, worse in pairs]
    return [better - worse for better, worse in both if None not in (better, worse)]


def _over_persons(pairs: Iterable[list[Measure]]) -> tuple[float, float]:
    return two_level_interval(np.array([100 * (better.persons - worse.persons) for better, worse in pairs]))


def _measured(results: dict[str, Result], run: Run, way: str) -> Measure | None:
    return results[run.name].sets.get("test", {}).get(way) if run.name in results else None


def find_inversions(results: dict[str, Result]) -> list[Inversions]:
    """E1's, E5's, E11's and E12's, as far as it was measured what they invert."""
    found = []
    for seed in _known(results):
        runs = dict(zip(("regression", "control"), refined_runs(seed), strict=True))
        runs |= {"hrnet": long_run(HRNET, seed), "heatmap": long_run(HRNETPP, seed)}
        runs |= {"reported": long_run(HRNETPP, seed, REPORTED)}
        runs |= {"grown_hrnet": long_grown_run(HRNET, seed), "grown": long_grown_run(HRNETPP, seed)}
        for name in NETWORKS:
            measured = _measured(results, runs[name], "soft" if name == "regression" else "quarter")
            if measured and measured.inversions:
                percent = tuple(100 * share for share in measured.inversions)
                found.append(Inversions(name, seed, 100 * measured.metrics["AP"], percent))
    return found


def in_markdown(claims: Iterable[Judged]) -> str:
    """The verdicts as a table."""
    lines = [
        "Differences in points of mean OKS on true boxes, the primary measure, and of AP on detected ones;",
        "in brackets 95% over seeds, for OKS also over seeds and persons, of each claim alone. The verdicts",
        "of a column hold for all its claims together, so that an interval may leave zero out undecided, and",
        "once there are as many seeds as were fixed beforehand. More pairs would decide, about as often as",
        "not, if mean and spread stay what they are.",
        "",
        "| | claim | report, AP | seeds | OKS | verdict | AP | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in claims:
        report = "" if one.report is None else f"{one.report:+.1f}"
        planned = EXPERIMENTS[one.experiment].seeds
        cells = [one.experiment, one.claim, report, f"{len(one.seeds)} of {planned}"]
        for name, verdict in one.verdicts.items():
            cells += [_in_brackets(verdict, one.two_level if name == "OKS" else None), _words(verdict)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def errors_in_markdown(claims: Iterable[Judged]) -> str:
    """What lies behind OKS and AP where there are two pairs: precision, and how many keypoints are missed."""
    lines = [
        "Of the same pairs: keypoints within 0.5 and within 4 cells, and those not recognised (points);",
        "median error of those recognised (cells); heatmap MSE without augmentation (thousandths).",
        "",
        f"| | claim | {' | '.join(_ERRORS)} |",
        "|---|---|" + "---|" * len(_ERRORS),
    ]
    for one in claims:
        cells = [
            "{} [{}, {}]".format(*(format(x, form) for x in (np.mean(one.differences[name]), *ends)))
            if (ends := one.intervals.get(name))
            else ""
            for name, form in _ERRORS.items()
        ]
        if any(cells):
            lines.append(f"| {one.experiment} | {one.claim} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def say_given_up(results: dict[str, Result]) -> str:
    """How many of the networks measured count for nothing any more."""
    known = {run.name for run in all_runs(EXPERIMENTS.values())}
    given_up = len(results.keys() - known)
    return (
        f"Of {len(results)} networks measured {given_up} are of recipes and experiments that were given up."
    )


def rates_in_markdown(results: dict[str, Result]) -> str:
    """What the learning rates are chosen by, and those in use."""
    lines = ["Mean OKS on a dev set, seed by seed, by the factor on the report's learning rates:", ""]
    for name, networks, tried in (("E3", PAIR, _tried), ("E10, E1's length", PAIR[1:], _tried_long)):
        for one in networks:
            found = tried(one, results)
            cells = [
                f"{rate:g}: {', '.join(f'{oks:.2f}' for oks in of) or '-'}" for rate, of in found.items()
            ]
            cells.append(f"in use: {RATES[one.name]:g}")
            lines.append(f"- {name}, {one.name}: {'; '.join(cells)}")
    return "\n".join(lines) + "\n"


def say_progress(claims: Iterable[Judged]) -> str:
    """How far the study is, in a sentence."""
    claims = list(claims)
    reported = [one for one in claims if one.report is not None]
    found = [one.verdicts["OKS"].words for one in _decided(reported)]
    larger, smaller = found.count("larger"), found.count("smaller")
    equal = len(found) - larger - smaller
    without = sum(not one.seeds for one in claims)
    return (
        f"Of {len(claims)} claims {len(_decided(claims))} are decided, and {without} have no pair of "
        f"trainings yet. {len(reported)} claims try a step of the report's, each in a way of its own: "
        f"{larger} came out larger, {smaller} smaller, {equal} equal."
    )


def say_rates(results: dict[str, Result]) -> str:
    """What the learning rate weighs, a sentence for each trial that is whole."""
    lines = []
    for one in PAIR:
        tried = {rate: found for rate, found in _tried(one, results).items() if found}
        means = {rate: float(np.mean(found)) for rate, found in tried.items()}
        if len(means) == len(TRIED_RATES[one.name]):
            best = max(means, key=means.get)
            lines.append(
                f"Of the learning rates tried over two epochs {IN_WORDS[one]} is best at {best:g} times the "
                f"report's: mean OKS {means[best]:.1f} on the dev set ({_seeds(tried[best])}), "
                f"{means[1.0]:.1f} at the report's ({_seeds(tried[1.0])})."
            )
    tried = _tried_long(HRNETPP, results)
    if all(tried.values()):
        means = [f"{np.mean(oks):.1f} at {rate:g} times ({_seeds(oks)})" for rate, oks in tried.items()]
        used, other = RATES[HRNETPP.name], REPORTED
        lines.append(
            f"Over E1's {LONG} epochs HRNet++ has {' and '.join(means)}; E1 keeps the {used:g} that was "
            f"chosen before, E11 takes {other:g}. HRNet was not tried again."
        )
    return " ".join(lines)


def claims_in_words(claims: Iterable[Judged]) -> list[str]:
    """A line for each claim that has two pairs of trainings, decided or not, by mean OKS."""
    return [
        f"{one.claim}: **{_words(one.verdicts['OKS'])}**, OKS {_in_brackets(one.verdicts['OKS'], None)}, "
        f"AP {_in_brackets(one.verdicts['AP'], None)}"
        + (f" (report {one.report:+.1f})" if one.report is not None else "")
        + f"; {len(one.seeds)} pairs"
        for one in claims
        if len(one.seeds) > 1
    ]


def _decided(claims: Iterable[Judged]) -> list[Judged]:
    return [one for one in claims if one.verdicts["OKS"].more_pairs == 0]


def _words(verdict: Verdict) -> str:
    """The verdict, and whether what differs is next to nothing for all that."""
    both = verdict.more_pairs == 0 and max(verdict.p_different, verdict.p_equal) <= LEVEL
    return f"{verdict.words}, by less than a point" if both else verdict.words


def _seeds(found: list[float]) -> str:
    return f"{len(found)} seed" + "s" * (len(found) > 1)


def _on_dev(
    run: Callable[[int, float], Run], rates: Iterable[float], results: dict[str, Result]
) -> dict[float, list[float]]:
    """Mean OKS on dev, in percent, of a seed's run by its rate: of all seeds that are known."""
    found = {}
    for rate in rates:
        names = [run(seed, rate).name for seed in _known(results)]
        measured = [results[name].sets.get("dev", {}) for name in names if name in results]
        found[rate] = [100 * ways["quarter"].oks for ways in measured if ways]
    return found


def _tried(architecture: Architecture, results: dict[str, Result]) -> dict[float, list[float]]:
    """By E3's rates."""
    rates = TRIED_RATES[architecture.name]
    return _on_dev(lambda seed, rate: heatmap_run(architecture, seed, rate=rate), rates, results)


def _tried_long(architecture: Architecture, results: dict[str, Result]) -> dict[float, list[float]]:
    """By E10's rates."""
    return _on_dev(partial(long_run, architecture), LONG_RATES, results)


def _in_brackets(verdict: Verdict, two_level: tuple[float, float] | None) -> str:
    if verdict.mean is None:
        return ""
    intervals = [(verdict.low, verdict.high), *([two_level] if two_level else [])]
    return " ".join([f"{verdict.mean:+.2f}", *(f"[{low:+.2f}, {high:+.2f}]" for low, high in intervals)])


def write_verdicts(root: Path) -> str:
    """Draw and write every verdict, and the inversions, anew from the committed results; gives the text."""
    results, folder = read_results(root), results_path(root).parent
    claims, inverted = verdicts(results), find_inversions(results)
    write_json(folder / "verdicts.json", [asdict(one) for one in claims])
    sides = say_inversions(inverted, COCO17)
    sentences = say_progress(claims), say_rates(results), sides, say_given_up(results)
    said = "\n\n".join(text for text in sentences if text)
    parts = f"{said}\n", in_markdown(claims), errors_in_markdown(claims), rates_in_markdown(results)
    with whole_file(folder / "verdicts.md") as part:
        part.write_text(table := "\n".join(parts))
    draw.save(draw.render_verdicts(claims), folder / "verdicts.png")
    draw.save(draw.render_inversions(inverted, COCO17), folder / "inversions.png")
    return table


def planned_seeds(profile: Profile) -> int:
    """Of how many seeds an experiment wants trainings of a profile's recipe for Table 1; 0 without one."""
    tables = [all_runs([one]) for one in EXPERIMENTS.values() if one.measured == "table"]
    return len({run.seed for runs in tables for run in runs if run.profile.name == profile.name})


def trainings(results: dict[str, Result], profile: Profile) -> list[Training]:
    """Table 1's rows in every known training of a profile's recipe, of whatever seed and precision."""
    found = []
    for seed in _known(results):
        for precision in ("fp32", "bf16"):
            runs = table_runs(replace(profile, precision=precision), seed)
            measured = {
                method: [_measured(results, runs[network], way + shift) for shift in ("", "_exact")]
                for method, (network, way) in zip(PARTS, _ROWS, strict=True)
            }
            if not any(None in both for both in measured.values()):
                aps = {m: tuple(one.metrics["AP"] for one in both) for m, both in measured.items()}
                found.append(Training(seed, aps))
    return found
