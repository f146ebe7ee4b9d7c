"""Annotations at the size of the report's: python benchmarks/person_table.py.

Writes json files of COCO's and AI Challenger's shape with random numbers (150,000 and 450,000 persons), and
measures how long reading them takes and how much memory at most, the size of the tables, and what loader
processes add to memory. A proportional set size (PSS) divides each page among the processes that share it.
"""

import json
import os
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from hrnetpp_lib.data.annotations import read_ai_challenger, read_coco
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.evaluate.table import provenance
from hrnetpp_lib.files import write_json
from hrnetpp_lib.pose.keypoints import COCO17

COCO_PERSONS, AIC_PERSONS, AIC_PER_IMAGE, COCO_PER_IMAGE, WORKERS = 150_000, 450_000, 2, 2, 4
MIB = 2**20


def write_coco(path: Path, rng: np.random.Generator) -> None:
    """A person_keypoints file; every number has the digits that the real one has."""
    images = COCO_PERSONS // COCO_PER_IMAGE
    boxes = np.round(rng.uniform(1, 300, (COCO_PERSONS, 4)), 2).tolist()
    points = rng.integers(1, 600, (COCO_PERSONS, 17, 3))
    points[..., 2] = rng.integers(1, 3, (COCO_PERSONS, 17))
    outline = np.round(rng.uniform(1, 600, 40), 2).tolist()
    annotations = [
        {
            "segmentation": [outline],
            "num_keypoints": 17,
            "area": boxes[i][2] * boxes[i][3],
            "iscrowd": 0,
            "keypoints": points[i].ravel().tolist(),
            "image_id": i // COCO_PER_IMAGE + 1,
            "bbox": boxes[i],
            "category_id": 1,
            "id": i + 1,
        }
        for i in range(COCO_PERSONS)
    ]
    listed = [
        {"file_name": f"{i + 1:012d}.jpg", "height": 640, "width": 640, "id": i + 1} for i in range(images)
    ]
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.names), "skeleton": []}
    document = {"images": listed, "annotations": annotations, "categories": [category]}
    path.write_text(json.dumps(document))


def write_ai_challenger(path: Path, rng: np.random.Generator) -> None:
    """A keypoint_train_annotations file."""
    corners = rng.integers(1, 300, (AIC_PERSONS, 4))
    corners[:, 2:] += corners[:, :2]
    points = rng.integers(1, 600, (AIC_PERSONS, 14, 3))
    points[..., 2] = rng.integers(1, 4, (AIC_PERSONS, 14))
    records = []
    for first in range(0, AIC_PERSONS, AIC_PER_IMAGE):
        humans = range(first, first + AIC_PER_IMAGE)
        records.append(
            {
                "url": "",
                "image_id": f"{first:040x}",
                "human_annotations": {f"human{k + 1}": corners[i].tolist() for k, i in enumerate(humans)},
                "keypoint_annotations": {
                    f"human{k + 1}": points[i].ravel().tolist() for k, i in enumerate(humans)
                },
            }
        )
    path.write_text(json.dumps(records))


def write_files(coco: Path, ai_challenger: Path) -> None:
    """Both files."""
    rng = np.random.default_rng(0)
    write_coco(coco, rng)
    write_ai_challenger(ai_challenger, rng)


def size_mib(table: PersonTable) -> float:
    """Bytes of all arrays."""
    return sum(v.nbytes for v in vars(table).values() if isinstance(v, np.ndarray)) / MIB


def memory_mib(kind: str, account: str = "smaps_rollup") -> float:
    """This process's Pss, Rss or highest Rss from one of the kernel's accounts."""
    for line in Path("/proc/self", account).read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {kind} in {account}")


class Reader(Dataset):
    """What a loader touches of the tables, without the pictures; tells the worker's memory at the end."""

    def __init__(self, tables: list[PersonTable]):
        self.tables = tables

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables)

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        for table in self.tables:
            if index < len(table):
                touched = float(table.keypoints[index].sum() + table.bboxes_xywh[index].sum())
                touched += len(str(table.image_path(index)))
                break
            index -= len(table)
        asked = index % 1000 == 0
        memory = (memory_mib("Pss"), memory_mib("Rss")) if asked else (0.0, 0.0)
        return os.getpid(), touched, *memory


def worker_memory(tables: list[PersonTable]) -> dict[str, float]:
    """Highest PSS and RSS of any worker, and the main process's PSS while they are alive."""
    highest = {"worker_pss_mib": 0.0, "worker_rss_mib": 0.0, "main_pss_mib": 0.0}
    for _, _, pss, rss in DataLoader(Reader(tables), batch_size=1000, num_workers=WORKERS):
        highest["worker_pss_mib"] = max(highest["worker_pss_mib"], pss.max().item())
        highest["worker_rss_mib"] = max(highest["worker_rss_mib"], rss.max().item())
        highest["main_pss_mib"] = max(highest["main_pss_mib"], memory_mib("Pss"))
    return highest


def main() -> None:
    """Measure, print and keep benchmarks/person_table.json."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = {read_coco: root / "coco.json", read_ai_challenger: root / "aic.json"}
        # A process of its own, so that what writing leaves in memory does not count as reading's.
        writer = get_context("spawn").Process(target=write_files, args=(*files.values(),))
        writer.start()
        writer.join()
        results["json_mib"] = sum(path.stat().st_size for path in files.values()) / MIB
        started, worked = time.perf_counter(), time.process_time()
        tables = [read(path, root) for read, path in files.items()]
        # On a machine that does other work, too, the processor's time says more than the clock's.
        results["seconds"], results["cpu_seconds"] = (
            time.perf_counter() - started,
            time.process_time() - worked,
        )
        results["highest_rss_mib"] = memory_mib("VmHWM", "status")
        results["persons"] = sum(len(table) for table in tables)
        results["tables_mib"] = sum(size_mib(table) for table in tables)
        before = memory_mib("Pss")
        results["main_pss_alone_mib"] = before
        results |= worker_memory(tables)
    for name, value in results.items():
        print(f"{name:22s} {value:10.1f}")
    results = {name: round(value, 2) for name, value in results.items()} | {"workers": WORKERS}
    write_json(Path(__file__).with_suffix(".json"), results | {"provenance": provenance()})


if __name__ == "__main__":
    main()
