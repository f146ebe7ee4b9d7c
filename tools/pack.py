"""Keeps a network trained on photographs in 16 bits: python tools/pack.py PROFILE SEED, from a checkout.

Writes weights/<profile>_hrnetpp.safetensors and its card, weights/README.md, with AP on the profile's val as
trained and as packed, both measured here.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hrnetpp_lib.app.study import read_results
from hrnetpp_lib.app.verdicts import trainings
from hrnetpp_lib.app.workspace import Workspace, open_workspace
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import predict_boxes
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.evaluate.table import provenance, spread
from hrnetpp_lib.files import project_root, sha256, whole_file
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.recipe import get_profile, table_runs
from hrnetpp_lib.train.loop import checkpoint_path

CARD = """\
# The packaged network

`{name}`: HRNet++ (regression) of profile `{profile}`, seed {seed}, its weights rounded to 16 bits
({mib:.1f} MiB, SHA-256 `{digest}`).
`predict` and `explore` use it where nothing was trained, and say so.

* Trained from random weights, as notebooks 3 to 5 do it, on nothing but Leeds Sports Pose Extended:
  {data}. Run `{run}`, packed at {revision}.
* AP on the profile's validation persons, {boxes}, with the flip test: {trained:.2f} as trained,
  {packed:.2f} as packed (percent, COCO's definition on the 12 labelled keypoints; the median keypoint moved
  by {moved:.3f} px). {others}
* Not good for faces (nose, eyes and ears were never labelled: their points mean nothing), for several people
  in one box, or for anything that must be right. The people are athletes; everyday poses and children are
  rare among them.
* Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011) was collected from a photo-sharing site and
  annotated for research; its authors ask for a citation and name no licence for the pictures. None is
  contained here. Check whether that suits your use; the licence of the code is MIT.
"""


def main() -> None:
    """Pack the network of a finished chain that was trained on photographs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("seed", type=int)
    options = parser.parse_args()
    try:
        if (profile := get_profile(options.profile)).data != "lspet":
            raise HrnetppError(f"profile {profile.name}: only networks of photographs are packed; lspet_cpu")
        print(pack(open_workspace(profile.name, project_root()), options.seed))
    except HrnetppError as error:
        sys.exit(f"error: {error}")


def pack(ws: Workspace, seed: int) -> str:
    """Round the seed's network, measure what that costs, and write both files; returns the card.

    Raises: HrnetppError if the network is not trained, or has a weight that 16 bits cannot hold.
    """
    run, data = table_runs(ws.profile, seed)["regression"], ws.stage_data("coco")
    source = checkpoint_path(ws.runs, run.name)
    before = predict_boxes(*load_checkpoint(source), data.val)
    packed = ws.root / "weights" / f"{ws.profile.name}_hrnetpp.safetensors"
    with whole_file(packed) as part:
        round_weights(source, part)
        after = predict_boxes(*load_checkpoint(part), data.val)
    results = trainings(read_results(ws.root), ws.profile)
    known = [training["HRNet++ (regression)"][0] for training in results]
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
        others=among(known),
    )
    with whole_file(packed.with_name("README.md")) as part:
        part.write_text(card)
    return card


def round_weights(source: Path, target: Path) -> None:
    """Write a checkpoint's floats in 16 bits, with the same header."""
    with safe_open(source, framework="pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in list(file.keys())}, file.metadata()
    save_file({n: t.half() if t.dtype == torch.float32 else t for n, t in tensors.items()}, target, header)


def among(known: list[float]) -> str:
    """What the other trainings of the recipe say about this one."""
    if len(known) < 2:
        return "No other training of the recipe is known: another seed may end far from this one."
    chosen = "It was chosen among them on these same persons, so expect a little less."
    return f"All {len(known)} trainings of the recipe that are known: {spread(known)}. {chosen}"


if __name__ == "__main__":
    main()
