"""The parts of README.md that are generated: Table 1, and the list of choices and departures in the code.

`python -m hrnetpp_lib.readme` rewrites them; a test holds README against the code and the results.
"""

import re
from pathlib import Path

from hrnetpp_lib.errors import HrnetppError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


def list_choices(library: Path = PROJECT_ROOT / "hrnetpp_lib") -> list[str]:
    """Every line marked CHOICE or DEVIATION, as markdown bullets, file by file."""
    bullets = []
    for path in sorted(library.glob("*.py")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if mark := re.match(r"\s*# (CHOICE|DEVIATION): (.*)", line):
                words = [mark[2]]
                for following in lines[number + 1 :]:  # the comment may go on over several lines
                    if not (more := re.match(r"\s*# (?!CHOICE:|DEVIATION:)(.*)", following)):
                        break
                    words.append(more[1])
                bullets.append(f"* {mark[1].lower()}, `{path.name}`: {' '.join(words)}")
    return bullets


def render_readme(text: str, root: Path = PROJECT_ROOT) -> str:
    """README's text with its generated parts made anew.

    Raises:
        HrnetppError: If a marker is missing.
    """
    table = root / "figures" / "mini" / "table_1.md"
    parts = {
        "<!-- table 1: figures/mini/table_1.md -->": ("<!-- end of table 1 -->", table.read_text().strip()),
        "<!-- choices -->": ("<!-- end of choices -->", "\n".join(list_choices())),
    }
    for start, (end, content) in parts.items():
        if start not in text or end not in text:
            raise HrnetppError(f"README.md: markers {start} and {end} are not both there; put them back")
        before, rest = text.split(start)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    readme = PROJECT_ROOT / "README.md"
    readme.write_text(render_readme(readme.read_text()))
