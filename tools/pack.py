"""Keeps a network trained on photographs in 16 bits: python tools/pack.py PROFILE SEED, from a checkout.

Writes weights/<profile>_hrnetpp.safetensors and its card, weights/README.md, with AP on the profile's val as
trained and as packed, both measured here.
"""

import argparse

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hrnetpp_lib.app.study import read_results
from hrnetpp_lib.app.verdicts import trainings
from hrnetpp_lib.app.workspace import open_workspace
from hrnetpp_lib.evaluate.infer import predict_boxes
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.evaluate.table import provenance, spread
from hrnetpp_lib.files import project_root, sha256, whole_file
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.recipe import table_runs
from hrnetpp_lib.train.loop import checkpoint_path

CARD = """\
# The packaged network

`{name}`: HRNet++ (regression) of profile `{profile}`, seed {seed}, its weights rounded to 16 bits
({mib:.1f} MiB, SHA-256 `{digest}`).
`predict` and the explorer use it where nothing was trained, and say so.

* Trained on photographs of Leeds Sports Pose Extended alone, from random weights, as notebooks 3 to 5 do it:
  {data}. Run `{run}`, packed at {revision}.
* AP on the profile's validation persons, {boxes}, with the flip test: {trained:.2f} as trained,
  {packed:.2f} as packed (percent, COCO's definition on the 12 labelled keypoints; the median keypoint moved
  by {moved:.3f} px). All {number} trainings of the recipe that are known: {others}. It was chosen among them
  on these same persons, so expect a little less.
* Not good for faces (nose, eyes and ears were never labelled: their points mean nothing), for several people
  in one box, or for anything that must be right. The people are athletes; everyday poses and children are
  rare among them.
* Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011) was collected from a photo-sharing site and
  annotated for research; its authors ask for a citation and name no licence for the pictures. None is
  contained here. Check whether that suits your use; the licence of the code is MIT.
"""


def main() -> None:
    """Pack the network of a finished chain, and measure what the rounding costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("seed", type=int)
    options = parser.parse_args()
    ws = open_workspace(options.profile, project_root())
    run, data = table_runs(ws.profile, options.seed)["regression"], ws.stage_data("coco")
    source = checkpoint_path(ws.runs, run.name)
    packed = ws.root / "weights" / f"{ws.profile.name}_hrnetpp.safetensors"
    packed.parent.mkdir(exist_ok=True)
    with safe_open(source, framework="pt") as file, whole_file(packed) as part:
        halved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        halved = {name: t.half() if t.dtype == torch.float32 else t for name, t in halved.items()}
        save_file(halved, part, metadata=file.metadata())
    before, after = (predict_boxes(*load_checkpoint(path), data.val) for path in (source, packed))
    known = [training["HRNet++ (regression)"][0] for training in trainings(read_results(ws.root), ws.profile)]
    card = CARD.format(
        name=packed.name,
        profile=ws.profile.name,
        seed=run.seed,
        mib=packed.stat().st_size / 2**20,
        digest=sha256(packed),
        data=ws.describe_data(data),
        run=run.name,
        revision=provenance()["git_revision"],
        boxes=data.boxes,
        trained=100 * score(before, data)["AP"],
        packed=100 * score(after, data)["AP"],
        moved=np.median(np.linalg.norm(after.keypoints - before.keypoints, axis=2)),
        others=spread(known) if known else "none known",
        number=len(known),
    )
    with whole_file(packed.with_name("README.md")) as part:
        part.write_text(card)
    print(card)


if __name__ == "__main__":
    main()
