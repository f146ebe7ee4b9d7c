"""JupyterLab in a headless Chromium: python tests/explore/browser.py takes the screenshot of README.

The notebook runs in a copy, so that nothing of the project is written to.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOKEN, NOTEBOOK = "explore", "10_heatmap_explorer.ipynb"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_S = 90


def copy_notebook(folder: Path, profile: str) -> None:
    """Notebook 10 with another profile, to be run on folder/runs and folder/data."""
    content = json.loads((ROOT / "notebooks" / NOTEBOOK).read_text())
    for cell in content["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = [line.replace('"mini"', f'"{profile}"') for line in cell["source"]]
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / NOTEBOOK).write_text(json.dumps(content))


@contextlib.contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    """A server on a free port of this machine alone; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    own = {name: str(folder / "jupyter" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    kernel = {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(ROOT), "HRNETPP_TEST_DATA": "/nowhere"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
    with open(folder / "jupyter.log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | own | kernel, stdout=log, stderr=log)
    limit = time.monotonic() + PATIENCE_S
    try:
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=2).close()
                break
            assert time.monotonic() < limit and server.poll() is None, "JupyterLab did not start"
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)


@contextlib.contextmanager
def explorers_page(folder: Path, *arguments: str) -> Iterator[str]:
    """The command `explore` on folder/runs and folder/data; gives the address that it tells a browser."""
    own = {name: str(folder / "jupyter" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    own |= {"PYTHONPATH": str(ROOT), "BROWSER": "true"}  # a program that does nothing
    command = [sys.executable, "-m", "hrnetpp_lib", "explore", "--output", str(folder), *arguments]
    log = folder / "voila.log"
    with open(log, "w") as file:
        server = subprocess.Popen(command, env=os.environ | own, stdout=file, stderr=file, cwd=folder)
    limit = time.monotonic() + PATIENCE_S
    try:
        while not (address := re.search(r"http://(localhost|127.0.0.1):\d+/\S*", log.read_text())):
            assert time.monotonic() < limit and server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield address[0]
    finally:
        served = _children(server.pid)
        server.terminate()
        assert server.wait(timeout=20) == 0 or served == [], log.read_text()
        assert not [one for one in served if Path(f"/proc/{one}").exists()]


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def open_explorer(folder: Path) -> Iterator[object]:
    """Notebook 10 of `copy_notebook`, run in a browser until its widget is there; gives playwright's page."""
    from playwright.sync_api import sync_playwright

    with jupyter_lab(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1500})
        page.set_default_timeout(1000 * PATIENCE_S)
        # "doc" is JupyterLab with one document; the notebook is opened by its address.
        page.goto(f"{address}/doc/tree/notebooks/{NOTEBOOK}?token={TOKEN}")
        page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
        page.get_by_text("Python 3", exact=False).first.wait_for()
        page.locator(".lm-MenuBar-item", has_text="Run").first.click()
        page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
        slider_handle(page, "alpha").wait_for()
        yield page
        browser.close()


def slider_handle(page: object, label: str) -> object:
    """What the keyboard moves, of the slider of that name."""
    return page.locator(f".widget-hslider:has(.widget-label:text-is('{label}')) .noUi-handle").first


def main() -> None:
    """Take figures/explorer.png of the mini profile's networks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_notebook(folder, "mini")
        for part in ("runs", "data"):
            (folder / part).symlink_to(ROOT / part)
        with open_explorer(folder) as page:
            widget = page.locator(".jp-OutputArea-child:has(.noUi-handle)").first
            widget.scroll_into_view_if_needed()
            page.get_by_role("button", name="No", exact=True).click()  # to news of Jupyter
            page.wait_for_timeout(1500)
            widget.screenshot(path=str(ROOT / "figures" / "explorer.png"))


if __name__ == "__main__":
    main()
