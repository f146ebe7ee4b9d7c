"""What each command of the command line does; heavy imports wait until a command needs them."""

import argparse
import os
import shutil
from pathlib import Path

from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.preemption import SigtermNotice
from hrnetpp_lib.recipe import ARCHITECTURES, PROFILES, Profile, Run, get_profile, three_stages
from hrnetpp_lib.recipe_file import read_recipe

PROJECT_ROOT = Path(__file__).resolve().parent.parent


def _root(options: argparse.Namespace) -> Path:
    return options.output or PROJECT_ROOT


def reproduce(options: argparse.Namespace) -> None:
    """Run the notebooks."""
    get_profile(options.profile)
    from hrnetpp_lib.reproduce import parse_parameters, reproduce

    reproduce(options.profile, options.only, parse_parameters(options.set), _root(options))


def train(options: argparse.Namespace) -> None:
    """Train the three stages of one architecture, or one recipe; go on with them, or find them trained."""
    profile, runs = _runs_to_train(options)
    mark = _root(options) / "runs" / profile.name / "PREEMPTED"  # launchers do not pass our exit status on
    is_first_process = int(os.environ.get("RANK", "0")) == 0
    if is_first_process:
        mark.unlink(missing_ok=True)
    try:
        # What comes before and between the stages can be done again; a stage takes its own notice.
        with SigtermNotice(at_once=True):
            _train(runs, profile, options)
    except Preempted:
        if is_first_process:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        raise


def _train(runs: tuple[Run, ...], profile: Profile, options: argparse.Namespace) -> None:
    from hrnetpp_lib.datasets import load_stage_data, prepare_data
    from hrnetpp_lib.machine import Machine, processes
    from hrnetpp_lib.train import train_stage

    root, here = _root(options), processes()
    machine = Machine(
        options.accumulate, options.compile, options.skip_bad_images, options.tensorboard, options.save_every
    )
    for run in runs:
        here.print(run.describe())
        with here.main_process_first():  # the others find its data made, and its tables cached
            paths = prepare_data(profile, root / "data")
            data = load_stage_data(run.stage.dataset, profile, paths)
        here.print(train_stage(run, data, root / "runs" / profile.name, paths.root, machine), flush=True)
    here.destroy_process_group()


def _runs_to_train(options: argparse.Namespace) -> tuple[Profile, tuple[Run, ...]]:
    """What the options name: the stages of a profile, or the run of a recipe.json."""
    chosen = {name: getattr(options, name) for name in ("profile", "architecture", "seed")}
    given = [f"--{name}" for name, value in chosen.items() if value is not None]
    if options.recipe:
        if given:
            raise HrnetppError(f"--recipe {options.recipe} says it all; leave out {', '.join(given)}")
        run = read_recipe(options.recipe)
        return run.profile, (run,)
    profile, name = get_profile(options.profile or "mini"), options.architecture or "hrnetpp"
    if name not in ARCHITECTURES:
        raise HrnetppError(f"unknown architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    return profile, three_stages(profile, ARCHITECTURES[name], options.seed or 0)


def evaluate(options: argparse.Namespace) -> None:
    """COCO figures of a checkpoint, with what they were measured on."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.checkpoint import load_checkpoint
    from hrnetpp_lib.datasets import load_coco, prepare_data
    from hrnetpp_lib.infer import SINGLE_VIEW, TTA_VIEWS, pick_device, predict_boxes
    from hrnetpp_lib.validate import score

    model, card = load_checkpoint(options.checkpoint)
    data = load_coco(profile, prepare_data(profile, _root(options) / "data"))
    if len(card.skeleton) != len(data.val.skeleton):
        raise HrnetppError(
            f"{options.checkpoint}: predicts {len(card.skeleton)} keypoints ({card.skeleton.name}), COCO has "
            f"{len(data.val.skeleton)}; give a checkpoint of stage 2 or 3"
        )
    views = TTA_VIEWS if options.tta else SINGLE_VIEW
    model = model.to(pick_device())
    metrics = score(predict_boxes(model, card, data.val, not options.no_flip, views), data)
    print(
        f"checkpoint {options.checkpoint} ({card.run})\nprofile {profile.name}, data {profile.data}, boxes "
        f"{data.boxes}, flip {not options.no_flip}, TTA {options.tta}, decoder {card.decoder}"
    )
    print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def predict(options: argparse.Namespace) -> None:
    """Poses of one photograph as json and picture."""
    from hrnetpp_lib.photo import parse_boxes, predict

    boxes = None if options.boxes is None else parse_boxes(options.boxes)
    predict(options.image, options.checkpoint, boxes, options.detector, output_dir=options.output_dir)


def check_data(options: argparse.Namespace) -> None:
    """Count persons, images and keypoints of the profile's three sets, and decode every picture."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.datasets import load_ai_challenger, load_coco, prepare_data
    from hrnetpp_lib.persons import check_images

    paths = prepare_data(profile, _root(options) / "data")
    for load in (load_ai_challenger, load_coco):
        data = load(profile, paths)
        for role, table in (("train", data.train), ("val", data.val)):
            check_images(table, decode=True)
            labelled = int((table.keypoints[:, :, 2] > 0).sum())
            dropped = ", ".join(f"{count} {reason}" for reason, count in table.dropped.items() if count)
            print(
                f"{table.skeleton.name} {role}: {len(table)} boxes in {len(set(table.image_index))} images, "
                f"{labelled} labelled keypoints; left out: {dropped or 'nothing'}"
            )
        print(f"  val boxes: {data.boxes}")


def convert_lspe(options: argparse.Namespace) -> None:
    """Leeds Sports Pose Extended into the layout of the profiles on real photographs."""
    from hrnetpp_lib.datasets import convert_lspe

    convert_lspe(options.joints, options.images, _root(options) / "data", options.skip_missing_images)


def plan(options: argparse.Namespace) -> None:
    """What training a profile would take: data, speed, hours, disk."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.plan import plan

    for line in plan(profile, _root(options), options.gpus):
        print(line, flush=True)


def doctor(options: argparse.Namespace) -> None:
    """Versions, devices, threads, disk, and which profiles could run here."""
    from hrnetpp_lib.datasets import data_paths, how_to_get, missing_files
    from hrnetpp_lib.report import provenance

    facts = provenance()
    for package, number in facts["versions"].items():
        print(f"{package:16s} {number}")
    print(f"{'device':16s} {facts['device']}")
    print(f"{'git revision':16s} {facts['git_revision']}")
    print(f"{'free disk':16s} {shutil.disk_usage(PROJECT_ROOT).free / 2**30:.0f} GiB")
    for profile in PROFILES.values():
        paths = data_paths(profile, PROJECT_ROOT / "data")
        missing = missing_files(profile, paths)
        if profile.data == "synthetic":
            print(f"profile {profile.name:9s} ready (makes its own data)")
        else:
            state = "ready"
            if missing:
                state = f"lacks {len(missing)} files or folders, first {missing[0]}; {how_to_get(profile)}"
            print(f"profile {profile.name:9s} {state}")
