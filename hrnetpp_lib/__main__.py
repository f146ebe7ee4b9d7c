"""Command line: python -m hrnetpp_lib COMMAND; each command has its own --help."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.files import project_root
from hrnetpp_lib.recipe import ARCHITECTURES, PROFILES, Profile, Run, get_profile, read_recipe, three_stages

PROJECT_ROOT = project_root()


def _root(options: argparse.Namespace) -> Path:
    return options.output or PROJECT_ROOT


def reproduce(options: argparse.Namespace) -> None:
    """Run the notebooks."""
    get_profile(options.profile)
    from hrnetpp_lib.app.reproduce import parse_parameters, reproduce

    reproduce(options.profile, options.only, parse_parameters(options.set), _root(options))


def train(options: argparse.Namespace) -> None:
    """Train the three stages of one architecture, or one recipe; go on with them, or find them trained."""
    from hrnetpp_lib.train.machine import EngineOptions, preemptible, processes

    profile, runs = _runs_to_train(options)
    root = _root(options)
    engine = EngineOptions(
        options.accumulate, options.compile, options.skip_bad_images, options.tensorboard, options.save_every
    )
    with preemptible(root, runs) as notice:
        from hrnetpp_lib.data.layout import load_stage_data, prepare_data
        from hrnetpp_lib.train.loop import train_stage

        here = processes()
        for run in runs:
            here.print(run.describe())
            # The others find its data made, and its tables cached. All of it can be done again.
            with notice.at_once(), here.main_process_first():
                paths = prepare_data(profile, root / "data")
                data = load_stage_data(run.stage.dataset, profile, paths)
            here.print(train_stage(run, data, root / "runs" / profile.name, paths.root, engine), flush=True)
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
    from hrnetpp_lib.data.layout import load_coco, prepare_data
    from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, TTA_VIEWS, pick_device, predict_boxes
    from hrnetpp_lib.evaluate.score import score
    from hrnetpp_lib.model.weights import load_checkpoint

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
    from hrnetpp_lib.app.photo import parse_boxes, predict

    boxes = None if options.boxes is None else parse_boxes(options.boxes)
    predict(options.image, options.checkpoint, boxes, options.detector, output_dir=options.output_dir)


def check_data(options: argparse.Namespace) -> None:
    """Count persons, images and keypoints of the profile's three sets, and decode every picture."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.data.layout import load_ai_challenger, load_coco, prepare_data
    from hrnetpp_lib.data.persons import check_images

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
    from hrnetpp_lib.data.layout import convert_lspe

    convert_lspe(options.joints, options.images, _root(options) / "data", options.skip_missing_images)


def plan(options: argparse.Namespace) -> None:
    """What training a profile would take: data, speed, hours, disk."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.app.plan import plan

    for line in plan(profile, _root(options), options.gpus):
        print(line, flush=True)


def doctor(options: argparse.Namespace) -> None:
    """Versions, devices, threads, disk, and which profiles could run here."""
    from hrnetpp_lib.data.layout import data_paths, how_to_get, missing_files
    from hrnetpp_lib.evaluate.table import provenance

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


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m hrnetpp_lib", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)

    def add(name: str, function, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    sub = add("reproduce", reproduce, "run the notebooks headless and write figures and Table 1")
    _add_profile(sub)
    sub.add_argument("--only", action="append", metavar="03", help="notebook by its number; may be repeated")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter")

    sub = add("train", train, "train, or go on with, the stages of one architecture")
    _add_profile(sub)
    _add_architecture(sub)
    sub.set_defaults(profile=None)  # to know what is given beside --recipe
    _add_machine(sub)

    sub = add("evaluate", evaluate, "COCO AP of a checkpoint on the profile's val set")
    _add_profile(sub)
    sub.add_argument("--checkpoint", type=Path, required=True, help="a model.safetensors")
    sub.add_argument("--tta", action="store_true", help="average over the five views")
    sub.add_argument("--no-flip", action="store_true", help="leave the mirrored crop out")

    _add_photograph(add("predict", predict, "poses of one photograph"))

    sub = add("check-data", check_data, "count what is there, decode every picture")
    _add_profile(sub)

    sub = add("convert-lspe", convert_lspe, "Leeds Sports Pose Extended for the profiles lspet*")
    sub.add_argument("joints", type=Path, help="joints.mat")
    sub.add_argument("images", type=Path, help="folder of im00001.jpg ..., or of zip archives of them")
    sub.add_argument("--skip-missing-images", action="store_true", help="count what is not there, and go on")
    sub.add_argument("--output", type=Path, default=None, help="folder that gets data/lspet")

    sub = add("plan", plan, "what training would take: data, measured speed, GPU-hours, disk")
    _add_profile(sub)
    sub.add_argument("--gpus", type=_at_least(1, int), default=1, metavar="N", help="that share each batch")

    add("doctor", doctor, "versions, devices, disk, and what is missing for which profile")
    return parser


def _add_profile(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--profile", default="mini", help="smoke, mini (default), lspet_cpu, lspet or coco")
    sub.add_argument("--output", type=Path, default=None, help="folder for data, runs and figures")


def _add_photograph(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("image", type=Path)
    sub.add_argument(
        "--checkpoint", type=Path, help="a model.safetensors; default: the newest HRNet++ of stage 3"
    )
    sub.add_argument(
        "--boxes",
        metavar='"x,y,w,h ..."',
        help="persons in image px (--boxes=... if it begins with a minus); default: the whole image",
    )
    sub.add_argument(
        "--detector", metavar="MODEL", help="find persons by a transformers model (extra detect)"
    )
    sub.add_argument("--output-dir", type=Path, help="gets json and picture; default: nothing is written")


def _add_architecture(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--architecture", help="hrnetpp (default), hrnet, hrnet+se, ...")
    sub.add_argument("--seed", type=_at_least(0, int), help="default 0")


def _add_machine(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--recipe", type=Path, help="train this recipe.json instead of a profile's stages")
    sub.add_argument(
        "--accumulate", type=_at_least(1, int), default=1, metavar="N", help="cut batches into N parts"
    )
    sub.add_argument("--compile", action="store_true", help="try torch.compile")
    sub.add_argument("--skip-bad-images", action="store_true", help="replace persons of unreadable pictures")
    sub.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files (extra watch)")
    sub.add_argument(
        "--save-every", type=_at_least(0, float), default=600, metavar="SECONDS", help="between saved states"
    )


def _at_least(least: int, kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """A type for argparse: finite numbers from `least` on."""

    def parse(text: str) -> int | float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}, and finite")
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no number
    return parse


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input ends in one line on stderr and exit status 2, SIGTERM in 75."""
    options = build_parser().parse_args(arguments)
    try:
        options.function(options)
    except Preempted as error:
        if os.environ.get("RANK", "0") == "0":
            print(error.message, file=sys.stderr)
        return Preempted.EXIT_CODE
    except (HrnetppError, OSError) as error:
        # In one write, so that the lines of several processes do not run into one another.
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    exit_status = main()
    if "WORLD_SIZE" in os.environ:
        from hrnetpp_lib.train.machine import leave

        leave(exit_status)
    sys.exit(exit_status)
