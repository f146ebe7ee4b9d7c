"""Files of others: what their names and tensors say, and fetching them from a server that may break off."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from official_hrnet import official_shapes
from torch import empty

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.metrics import COCO_METRICS
from hrnetpp_lib.model import published, weights
from hrnetpp_lib.model.published import FILES, PublishedFile, download

CONTENT = bytes(range(256)) * 5000  # more than one chunk
NAME, URL = "net-0123abcd.pth", "/folder/net-0123abcd.pth"


def test_every_file_is_listed_with_its_address_and_digest():
    for name, file in FILES.items():
        # mmpose's digests are in the names; of the zoo's only two are known.
        assert file.digest[:8] in name or len(file.digest) in (0, 64)
        assert file.source.endswith("/") == ("-" in name)
        assert set(file.figures) <= set(COCO_METRICS)
    assert tuple(COCO_METRICS) == published.METRICS
    measured = FILES["pose_hrnet_w48_384x288.pth"].figures
    assert list(measured) == list(COCO_METRICS) and (measured["AP"], measured["ARL"]) == (76.3, 87.6)
    assert FILES["hrnet_w48_coco_384x288-314c8528_20200708.pth"].figures["AR50"] == 94.6
    aps = {name: file.figures.get("AP") for name, file in FILES.items() if name.startswith("pose_")}
    assert list(aps.values()) == [74.4, 75.8, 75.1, 76.3]
    assert sum(bool(file.figures) for file in FILES.values()) == 12
    assert weights.download is download


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("td-hm_hrnet-w48_8xb32-210e_coco-384x288-c161b7de_20220915.pth", "c161b7de"),
        ("mine-0123abcd.pth", "0123abcd"),
        ("mine-0123abcd_2022.pth", ""),
        ("mine_0123abcd.pth", ""),
        ("mine-0123abcd.safetensors", ""),
        ("pose_hrnet_w48_256x192.pth", ""),
    ],
)
def test_the_digest_that_a_name_tells(name, digest):
    assert published.known_digest(name) == digest


def test_names_of_tensors_become_official():
    for name, official in (
        ("module.conv1.weight", "conv1.weight"),
        ("backbone.stage2.0.branches.0.0.bn1.bias", "stage2.0.branches.0.0.bn1.bias"),
        ("module.backbone.bn1.bias", "bn1.bias"),
        ("keypoint_head.final_layer.bias", "final_layer.bias"),
        ("head.final_layer.weight", "final_layer.weight"),
        ("head.up.0.0.weight", "head.up.0.0.weight"),  # HRNet++'s own
        ("keypoint_head.loss.weight", "keypoint_head.loss.weight"),
    ):
        assert published.official_name(name) == official


def test_the_official_network_is_recognised():
    found = published.network_of({name: empty(shape) for name, shape in official_shapes(12, 17)})
    expected = {"base_channels": 12, "num_keypoints": 17, "stem_channels": 64, "layer1_blocks": 4}
    expected |= {"blocks_per_branch": 4, "modules": (1, 4, 3)}
    assert found == expected | {"skips": False, "subpixel_head": False, "avgpool_down": False}


def test_sizes_of_the_input():
    assert published.parse_size("384x288") == (384, 288)
    for text in ("384", "384x", "0x0", "100x64", "4096x64", "-64x64", "64x64x64", "64X64"):
        with pytest.raises(HrnetppError, match="multiples of 32, as in 384x288"):
            published.parse_size(text)
    for name, size in (
        ("td-hm_hrnet-w48_8xb32-210e_coco-384x288-c161b7de_20220915", (384, 288)),
        ("64x64_then_256x192", (256, 192)),
    ):
        assert published.input_of(Path(f"{name}.pth"), 48) == (size, "by its name")
    assert published.input_of(Path("a8x8.pth"), 32) == ((256, 192), "as usual for W32")


# ----------------------------------------------------------------------------------------------- download


class Server(BaseHTTPRequestHandler):
    """Sends CONTENT, from where it is asked to where it breaks off; keeps what it was asked for."""

    asked, breaks_after, knows_ranges = [], None, True

    def do_GET(self):
        type(self).asked.append((self.path, self.headers.get("Range")))
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.knows_ranges else 0
        if "net" not in self.path or start >= len(CONTENT):
            self.send_error(404 if "net" not in self.path else 416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.breaks_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A local server of `NAME`, and of a name that it does not have."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (Server,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        source = f"http://127.0.0.1:{running.server_port}/folder/"
        digest = hashlib.sha256(CONTENT).hexdigest()[:8]
        monkeypatch.setitem(FILES, NAME, PublishedFile("us", source, digest))
        monkeypatch.setitem(FILES, "none.pth", PublishedFile("us", source, digest))
        yield handler
        running.shutdown()


@contextmanager
def refused(*words: str):
    with pytest.raises(HrnetppError) as caught:
        yield
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_file_is_fetched_once_shows_how_far_it_is_and_is_checked(tmp_path, server, capsys):
    for _ in range(2):
        path = download(NAME, str(tmp_path / "new"))
        assert path == tmp_path / "new" / NAME and path.read_bytes() == CONTENT
    assert server.asked == [(URL, None)]
    assert "100%" in (shown := capsys.readouterr().err) and "1.28M" in shown
    assert [each.name for each in path.parent.iterdir()] == [NAME]
    path.write_bytes(b"weights!")
    with refused(f"{NAME}: SHA-256 is", "delete the file and get"):
        download(NAME, path.parent)


def test_a_broken_download_goes_on_where_it_broke(tmp_path, server):
    server.breaks_after = 700_001
    with refused(
        f"{NAME}: cannot be downloaded (the connection broke after 700001 of 1280000 bytes", "go on"
    ):
        download(NAME, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.part"]
    server.breaks_after = None
    assert download(NAME, tmp_path).read_bytes() == CONTENT
    assert server.asked == [(URL, None), (URL, "bytes=700001-")]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_whole_part_and_a_server_without_ranges(tmp_path, server, knows_ranges):
    server.knows_ranges = knows_ranges
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT if knows_ranges else CONTENT[:999])
    assert download(NAME, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 1 and server.asked[0][1]


def test_what_is_not_the_file_is_deleted_and_what_cannot_be_fetched_is_named(tmp_path, server, monkeypatch):
    (tmp_path / f"{NAME}.part").write_bytes(b"another file")
    with refused(f"{NAME}: what came has SHA-256", "was deleted; try again"):
        download(NAME, tmp_path)
    assert not list(tmp_path.iterdir())
    with refused("none.pth: cannot be downloaded (HTTP Error 404", f"by hand and put it at {tmp_path}"):
        download("none.pth", tmp_path)
    with refused("pose_hrnet_w48_384x288.pth: not there", "no stable address; get", "from the model zoo"):
        download("pose_hrnet_w48_384x288.pth", tmp_path)
    with refused("hrnet_w18.pth: unknown weight file; choose one of hrnet_w48-8ef0771d.pth"):
        download("hrnet_w18.pth", tmp_path)
    monkeypatch.setitem(FILES, NAME, PublishedFile("us", "http://127.0.0.1:1/", "00"))
    with refused("refused"):
        download(NAME, tmp_path)
