"""The site: the guide names every module; what `make book` built, in a real browser."""

import functools
import http.server
import importlib.util
import re
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from explore.browser import CHROMIUM

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "build" / "book"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "hrnetpp_lib").rglob("[a-z]*.py")
    if path.name != "__init__.py"
}
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs a browser: apt-get install chromium, pip install playwright",
)


def book(test: Callable) -> Callable:
    """A test of the built site."""
    missing = importlib.util.find_spec("myst_nb") is None
    return pytest.mark.book(pytest.mark.skipif(missing, reason="needs the extra book: make book")(test))


# What a reader would stumble over, each as a sentence; run in the page.
PROBLEMS = """() => {
  const problems = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) problems.push(`${root.scrollWidth} px wide`);
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) problems.push(`not shown: ${image.src}`);
    if (/\\.(png|svg|jpe?g)$/.test(image.alt)) problems.push(`described by a file's name: ${image.src}`);
  }
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = rgb => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const share = rgb[i] / 255;
    return sum + weight * (share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4);
  }, 0);
  const ground = element => {
    const color = numbers(getComputedStyle(element).backgroundColor);
    const opaque = color.length < 4 || color[3] === 1 || !element.parentElement;
    return opaque ? color : ground(element.parentElement);
  };
  const texts = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const raw = /[|][-\\u2013\\u2014]+[|]/.test(texts.currentNode.data) && !element.closest("pre, code");
    if (raw) problems.push(`a table that is none: ${texts.currentNode.data.slice(0, 60)}`);
    const read = /[\\p{L}\\p{N}]/u.test(texts.currentNode.data);
    if (!read || !element.checkVisibility({visibilityProperty: true})) continue;
    const two = [numbers(getComputedStyle(element).color), ground(element)].map(luminance);
    const contrast = (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
    if (contrast < 4.5) problems.push(`contrast ${contrast.toFixed(1)}: ${texts.currentNode.data.trim()}`);
  }
  return [...new Set(problems)].slice(0, 5);
}"""
GROUND = "numbers => getComputedStyle(document.body).backgroundColor"


def addresses() -> list[str]:
    """Every page of the site but its door, which leads on; of the library's files, all alike, two."""
    pages = [path.relative_to(BOOK).as_posix() for path in sorted(BOOK.rglob("*.html"))]
    pages.remove("index.html")
    sources = [page for page in pages if page.startswith("_modules/")]
    return [page for page in pages if page not in sources] + sources[:2]


@pytest.mark.parametrize("page", ["docs/library.md", "docs/api"])
def test_the_guide_and_the_reference_name_every_module_in_its_room(page):
    if page.endswith("api"):
        texts = [path.read_text() for path in sorted((ROOT / page).glob("*.md"))]
        assert sorted(re.findall(r"automodule:: (\S+)", "".join(texts))) == sorted(
            MODULES - {"hrnetpp_lib.__main__"}
        )
        return
    rows, room = {}, ""
    for line in re.findall(r"^\|.*", (ROOT / page).read_text(), flags=re.MULTILINE):
        room = match[1] if (match := re.match(r"\| \[(\w+)\]", line)) else room
        rows[room] = rows.get(room, "") + line
    for module in MODULES - {"hrnetpp_lib.__main__"}:
        *_, parent, name = module.split(".")
        room = parent if parent in rows else name if name in rows else "ground"
        assert f"`{name}`" in rows[room], module


class Targets(HTMLParser):
    """What a page links to and loads, and what in it can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            elif name in ("href", "src") and not (tag == "use" and value.startswith("#")):
                self.links.append(value)


@functools.cache
def targets(path: Path) -> Targets:
    return Targets(path.read_text())


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the site is served, on this machine alone."""
    assert (BOOK / "docs" / "index.html").is_file(), "make book builds the site"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(BOOK))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium.new_page()
        chromium.close()


@book
def test_every_link_within_the_site_leads_somewhere():
    problems = []
    for page in addresses():
        for link in targets(BOOK / page).links:
            parts = urlsplit(urljoin(page, link))
            if parts.scheme:
                continue
            path, place = BOOK / unquote(parts.path), unquote(parts.fragment)
            if not path.is_file():
                problems.append(f"{page}: {link} is not there")
            elif place and path.suffix == ".html" and place not in targets(path).ids:
                problems.append(f"{page}: {link} has no such place")
    assert not problems, "\n".join(problems)


@book
def test_every_notebook_and_page_is_there():
    for source in (*ROOT.glob("notebooks/executed/*/*.ipynb"), *ROOT.glob("docs/**/*.md")):
        if source.parent.name in ("mini", "lspet_cpu", "docs", "api"):
            assert (BOOK / source.relative_to(ROOT)).with_suffix(".html").is_file(), source


@book
@browser
def test_pages_can_be_read_on_a_phone_in_both_themes(address, page):
    problems = []
    page.on("console", lambda each: problems.append(f"{page.url}: {each.text}"))
    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
    page.on("request", lambda each: each.url.startswith((address, "data:")) or problems.append(each.url))
    page.set_viewport_size(PHONE)
    grounds = set()
    for each in addresses():
        assert page.goto(address + each, wait_until="load").ok, each
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            grounds.add((theme, page.evaluate(GROUND)))
            problems += [f"{each}, {theme}: {problem}" for problem in page.evaluate(PROBLEMS)]
    assert not problems, "\n".join(problems)
    assert len(grounds) == 2


@book
@browser
def test_pages_fit_a_desktop_and_the_theme_can_be_chosen(address, page):
    page.set_viewport_size(DESKTOP)
    page.emulate_media(color_scheme="light")
    for each in addresses():
        page.goto(address + each, wait_until="load")
        assert not page.evaluate(PROBLEMS), each
    page.goto(address)  # without a page's name
    page.wait_for_url("**/docs/index.html")
    before = page.evaluate(GROUND)
    page.locator(".theme-toggle-content .theme-toggle").click()  # the first gives what the system's is not
    assert page.evaluate(GROUND) != before


@book
@browser
def test_the_search_finds_a_function(address, page):
    page.goto(f"{address}search.html?q=soft_argmax")
    page.locator("ul.search a", has_text="soft_argmax").first.wait_for()
