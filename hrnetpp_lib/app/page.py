"""The two explorers as a page in a browser: voila shows a notebook of one cell, which makes them."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import nbformat

from hrnetpp_lib.app.photo import default_checkpoint
from hrnetpp_lib.app.workspace import open_workspace
from hrnetpp_lib.data.layout import data_paths, missing_files
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.explore.data_explorer import DataExplorer
from hrnetpp_lib.explore.heatmap_explorer import HeatmapExplorer
from hrnetpp_lib.explore.session import network_name
from hrnetpp_lib.recipe import HRNET, STAGE2, Profile, get_profile, resolve, three_stages
from hrnetpp_lib.train.loop import checkpoint_path


def serve_page(
    profile: Profile, root: Path, pictures: Sequence[str | Path] = (), checkpoints: Sequence[Path] = ()
) -> None:
    """Open the page of `build_page` in the browser; serve it, to who has its token, until Ctrl-C or SIGTERM.

    Raises: HrnetppError if voila is missing, or as `build_page`, before anything is served.
    """
    if not importlib.util.find_spec("voila"):
        raise HrnetppError("the page needs voila; pip install 'hrnetpp-lib[explore]'")
    given = [[str(Path(path).expanduser().resolve()) for path in paths] for paths in (pictures, checkpoints)]
    arguments = profile.name, str(root.resolve()), *given
    build_page(*arguments)  # what is wrong is said here, not in the browser
    cell = f"from hrnetpp_lib.app.page import build_page\nbuild_page(*{arguments!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(notebook, path := Path(folder) / "explorers.ipynb")
        command = [sys.executable, "-m", "voila", str(path), "--show_tracebacks=True", "--token"]
        # The kernel of this environment, whatever others are known to the user's Jupyter.
        with subprocess.Popen(command, env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"}) as server:
            # Who ends this command alone, not its terminal, would leave the server behind.
            before = signal.signal(signal.SIGTERM, lambda *_: server.terminate())
            try:
                status = server.wait()
            except KeyboardInterrupt:  # the server got it, too
                return
            finally:
                signal.signal(signal.SIGTERM, before)
    if status not in (0, -signal.SIGTERM):
        raise HrnetppError(f"voila ended with status {status}; what it said is above")


def build_page(
    profile_name: str, root: str | Path, pictures: Sequence[str] = (), checkpoints: Sequence[str] = ()
) -> widgets.Tab:
    """Both explorers, in tabs.

    Args:
        profile_name: Whose networks and data are looked at where none are given.
        root: The folder of data/, runs/ and figures/.
        pictures: Pictures, or a folder of them, to be looked at instead of the profile's validation pictures;
            training data have a tab then if they are there.
        checkpoints: As of `session.open_networks`; by default the profile's finished networks, and without
            one that of `default_checkpoint`.

    Raises: HrnetppError if there is no network or no picture, or a file cannot be used.
    """
    profile, root = get_profile(profile_name), Path(root)
    networks = {network_name(path): path for path in checkpoints} or _networks_of(profile, root)
    tabs = {}
    if pictures:
        tabs["heatmaps"] = HeatmapExplorer(networks, pictures)
    if not pictures or not missing_files(profile, data_paths(profile, root / "data")):
        data = open_workspace(profile_name, root).stage_data("coco")
        if not pictures:
            tabs["heatmaps"] = HeatmapExplorer(networks, data.truth)
        tabs["training data"] = DataExplorer(data.train, resolve(STAGE2, profile))
    return widgets.Tab(list(tabs.values()), titles=list(tabs))


def _networks_of(profile: Profile, root: Path) -> dict[str, Path]:
    """Those of notebook 10 that are finished, else the one that `predict` takes."""
    _, heatmap, regression = three_stages(profile)
    runs = {"regression": regression, "heatmap": heatmap, "plain HRNet": three_stages(profile, HRNET)[1]}
    found = {name: checkpoint_path(root / "runs" / profile.name, run.name) for name, run in runs.items()}
    found = {name: path for name, path in found.items() if path.is_file()}
    return found or {network_name(path := default_checkpoint(root)): path}
