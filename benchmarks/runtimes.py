"""What runtimes and precisions do to keypoints and AP: python benchmarks/runtimes.py ROOT [PHOTOGRAPHS].

Of mini's networks below ROOT, as `reproduce` leaves them (HRNet and HRNet++ after stage 2, HRNet++ after
stage 3), on mini's validation boxes and on the persons of a COCO folder (annotations/, train2017/) if given.
"""

import sys
from pathlib import Path

import numpy as np

from hrnetpp_lib.data import annotations, layout
from hrnetpp_lib.evaluate import infer
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.evaluate.table import provenance
from hrnetpp_lib.files import write_json
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.recipe import HRNET, MINI, three_stages
from hrnetpp_lib.train.loop import checkpoint_path

WAYS = (
    ("torch", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
    ("openvino", "bf16"),
    ("torch", "bf16"),
)


def moved(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """How many keypoints are further than 0.01 px away, and how far the median and the last one."""
    away = np.linalg.norm(after - before, axis=-1)
    far = {"median_px": float(np.median(away)), "most_px": float(away.max())}
    return {"keypoints": away.size, "moved": int((away > 0.01).sum())} | far


def main() -> None:
    """Measure, print, and write benchmarks/runtimes.json."""
    if not sys.argv[1:]:
        sys.exit(__doc__)
    origin, (root, *photographs) = provenance(), map(Path, sys.argv[1:])
    data = layout.load_coco(MINI, layout.data_paths(MINI, root / "data"))
    tables, found = {"mini": data.val}, {}
    for folder in photographs:
        paths = folder / "annotations" / "person_keypoints_train2017.json", folder / "train2017"
        tables["photographs"] = annotations.read_coco(*paths)
    for run in (three_stages(MINI, HRNET)[1], *three_stages(MINI)[1:]):
        model, card = load_checkpoint(checkpoint_path(root / "runs" / "mini", run.name))
        before = {name: infer.predict_boxes(model, card, table) for name, table in tables.items()}
        figures = {"decoder": card.decoder, "AP": 100 * score(before["mini"], data)["AP"], "ways": {}}
        for way in WAYS:
            network = infer.prepare(model, card, *way)
            after = {name: infer.predict_boxes(network, card, table) for name, table in tables.items()}
            change = 100 * score(after["mini"], data)["AP"] - figures["AP"]
            away = {name: moved(before[name].keypoints, after[name].keypoints) for name in tables}
            figures["ways"][" ".join(way)] = {"AP_change": change} | away
            print(run.name, *way, f"AP {figures['AP']:.2f} {change:+.3f}", away, flush=True)
        found[run.name] = figures
    write_json(Path(__file__).with_suffix(".json"), {"networks": found, "provenance": origin})


if __name__ == "__main__":
    main()
