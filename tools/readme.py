"""What is generated in README.md and docs/: the study, Table 1, claims, benchmark, choices, departures.

From a checkout, `python tools/readme.py` rewrites them; a test holds them against the code and the results.
"""

import re
from pathlib import Path

from hrnetpp_lib.app.study import read_results
from hrnetpp_lib.app.verdicts import (
    claims_in_words,
    find_inversions,
    in_markdown,
    say_progress,
    say_rates,
    verdicts,
)
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.inversions import say_inversions
from hrnetpp_lib.evaluate.table import PAPER_TABLE_1, percent, spread
from hrnetpp_lib.files import project_root, read_json
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import PROFILES


def list_choices(library: Path) -> list[str]:
    """Every line marked CHOICE or DEVIATION, as markdown bullets, file by file."""
    bullets = []
    for path in sorted(library.rglob("*.py")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if mark := re.match(r"\s*# (CHOICE|DEVIATION): (.*)", line):
                words = [mark[2]]
                for following in lines[number + 1 :]:  # the comment may go on over several lines
                    if not (more := re.match(r"\s*# (?!CHOICE:|DEVIATION:)(.*)", following)):
                        break
                    words.append(more[1])
                place = path.relative_to(library).as_posix()
                bullets.append(f"* {mark[1].lower()}, `{place}`: {' '.join(words)}")
    return bullets


def table_of_profiles(figures: Path) -> list[str]:
    """The report's AP beside that of every profile with results, as lines of markdown.

    Args:
        figures: The folder of figures/<profile>/results.json.
    """
    names = [name for name in PROFILES if name != "smoke" and (figures / name / "results.json").is_file()]
    results = {name: read_json(figures / name / "results.json", dict) for name in names}
    rows = [["method", "report: AP"], [], *([m, f"{ap:.1f}"] for m, (ap, *_) in PAPER_TABLE_1.items())]
    for name in names:
        ours = [row for row in results[name]["rows"] if row["method"] in PAPER_TABLE_1]
        rows[0] += [f"[`{name}`](figures/{name}/table_1.md): AP"]
        for cells, row in zip(rows[2:], ours, strict=True):
            cells.append(percent(row["metrics"]["AP"], *row["interval"]))
        if (number := len(ours[0].get("trainings", ()))) > 1:  # one alone has no spread
            rows[0] += [f"{number} trainings", "exact shift", "minus first row"]
            for cells, row in zip(rows[2:], ours, strict=True):
                cells += map(spread, zip(*row["trainings"], strict=True))
                cells += [
                    "{:+.1f} [{:+.1f}, {:+.1f}]".format(*row["difference"]) if row["difference"] else ""
                ]
    rows[1] = ["---"] * len(rows[0])
    return (
        [f"* `{name}`: {content['data']}" for name, content in results.items()]
        + [""]
        + [f"| {' | '.join(cells)} |" for cells in rows]
    )


def table_of_benchmarks(kept: Path) -> list[str]:
    """The benchmark's rows, a column a machine, as lines of markdown; none where nothing was measured.

    Args:
        kept: benchmarks/bench.json.
    """
    machines = read_json(kept, dict[str, dict]) if kept.is_file() else {}
    lines, rows, growth = [], {}, []
    for number, (name, content) in enumerate(machines.items()):
        measured = content["rows"]
        pairs = {row: each for row, each in measured.items() if "ratio" in each}
        commits = {each["official"] for each in pairs.values() if each["official"]}
        against = (
            f"official HRNet at {commits.pop()[:7]}" if len(commits) == 1 else "this package's plain way"
        )
        revisions = ", ".join(sorted({each["git_revision"] for each in measured.values()}))
        lines.append(f"* {chr(65 + number)}: {name}; against {against}; ours at {revisions}")
        for row, each in pairs.items():
            low, high = each["quartiles"]
            times = "{reference_ms:.4g} / {ours_ms:.4g} ms a {unit}".format(**each)
            text = f"**{each['ratio']:.1f}** [{low:.1f}, {high:.1f}]: {times}"
            what = f"{each['what']}, {each['threads']} thread{'s' * (each['threads'] > 1)}"
            rows.setdefault(row, [what, *[""] * len(machines)])[number + 1] = text
        for each in (each for each in measured.values() if "ms_per_1000" in each):
            costs = ", ".join(f"{cost:g} ms at {int(size):,}" for size, cost in each["ms_per_1000"].items())
            growth.append(f"* {chr(65 + number)}, a thousand boxes, {each['what']}: {costs} boxes")
    if not lines:
        return []
    head = ["work", *(f"{chr(65 + number)}: times as fast" for number in range(len(machines)))]
    cells = [head, ["---"] * len(head), *rows.values()]
    return [*lines, "", *(f"| {' | '.join(row)} |" for row in cells), "", *growth]


def render_page(page: str, text: str, root: Path) -> str:
    """A page's text with its generated parts made anew.

    Args:
        page: Its name in `PAGES`, which says what parts it has.
        text: The page as it is.
        root: The checkout.

    Raises:
        HrnetppError: If a marker is missing.
    """
    for part in PAGES[page]:
        start, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
        if start not in text or end not in text:
            raise HrnetppError(f"{page}: markers {start} and {end} are not both there; put them back")
        before, rest = text.split(start)
        content = "\n".join(PARTS[part](root))
        text = f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"
    return text


def state_of_the_study(root: Path) -> list[str]:
    """How far the study is, what it says of the report's claims, and what sets trainings apart."""
    results = read_results(root)
    claims = verdicts(results)
    # The report's steps, and what stage 3's needs beside it: the control of as many steps.
    told = (one for one in claims if one.report is not None or "stage 3" in one.claim)
    sides = say_inversions(find_inversions(results), COCO17)
    return [say_progress(claims), "", *(f"* {line}" for line in (*claims_in_words(told), sides))]


def table_of_claims(root: Path) -> list[str]:
    """The verdicts on all claims that have pairs of trainings, and what the learning rate weighs."""
    results = read_results(root)
    paired = [claim for claim in verdicts(results) if len(claim.seeds) > 1]
    return [in_markdown(paired), say_rates(results)]


PARTS = {
    "study": state_of_the_study,
    "claims": table_of_claims,
    "table 1": lambda root: table_of_profiles(root / "figures"),
    "choices": lambda root: list_choices(root / "hrnetpp_lib"),
    "bench": lambda root: table_of_benchmarks(root / "benchmarks" / "bench.json"),
}
PAGES = {
    "README.md": ("study", "table 1", "claims"),
    "docs/choices.md": ("choices",),
    "docs/speed.md": ("bench",),
}


if __name__ == "__main__":
    for page in PAGES:
        path = project_root() / page
        path.write_text(render_page(page, path.read_text(), project_root()))
