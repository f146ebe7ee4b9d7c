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


def _root(options: argparse.Namespace) -> Path:
    return options.output or project_root()


def reproduce(options: argparse.Namespace) -> None:
    """Run the notebooks headless, and write figures and Table 1."""
    get_profile(options.profile)  # before the heavy imports
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
    profile = get_profile("mini" if options.profile is None else options.profile)
    name = "hrnetpp" if options.architecture is None else options.architecture
    if name not in ARCHITECTURES:
        raise HrnetppError(f"unknown architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    return profile, three_stages(profile, ARCHITECTURES[name], options.seed or 0)


def evaluate(options: argparse.Namespace) -> None:
    """COCO metrics of a checkpoint on the profile's val set, with what they were measured on."""
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
    """Poses of one photograph."""
    from hrnetpp_lib.app.photo import parse_boxes, predict

    boxes = None if options.boxes is None else parse_boxes(options.boxes)
    predict(options.image, options.checkpoint, boxes, options.detector, output_dir=options.output_dir)


def check_data(options: argparse.Namespace) -> None:
    """Count persons, images and keypoints of the profile's sets, and decode every image."""
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
    """Lay Leeds Sports Pose Extended out for the profiles on photographs, lspet*."""
    from hrnetpp_lib.data.layout import convert_lspe

    convert_lspe(options.joints, options.images, _root(options) / "data", options.skip_missing_images)


def plan(options: argparse.Namespace) -> None:
    """What training a profile would take: data, measured speed, hours, disk."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.app.plan import plan

    for line in plan(profile, _root(options), options.gpus):
        print(line, flush=True)


def doctor(options: argparse.Namespace) -> None:
    """Versions, device, disk, and what is missing for which profile."""
    from hrnetpp_lib.data.layout import data_paths, how_to_get, missing_files
    from hrnetpp_lib.evaluate.table import provenance

    root, facts = _root(options), provenance()
    disk = shutil.disk_usage(next(folder for folder in (root, *root.absolute().parents) if folder.exists()))
    facts = facts["versions"] | {
        "device": facts["device"],
        "git revision": facts["git_revision"],
        "folder": root,
        "free disk": f"{disk.free / 2**30:.0f} GiB",
    }
    for name, fact in facts.items():
        print(f"{name:17s} {fact}")
    for profile in PROFILES.values():
        state = "ready"
        if profile.data == "synthetic":
            state = "ready (makes its own data)"
        elif missing := missing_files(profile, data_paths(profile, root / "data")):
            state = f"lacks {len(missing)} files or folders, first {missing[0]}; {how_to_get(profile)}"
        print(f"profile {profile.name:9s} {state}")


def _number(kind: type, least: float, below: float = float("inf")) -> Callable[[str], float]:
    """A type for argparse: whole or float numbers from `least` on that are less than `below`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value < below:
            most = "finite" if below == float("inf") else f"less than {below:,}"
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}, and {most}")
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no number
    return parse


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m hrnetpp_lib", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    commands = {}
    for command in (reproduce, train, evaluate, predict, check_data, convert_lspe, plan, doctor):
        name, text = command.__name__.replace("_", "-"), command.__doc__
        commands[command] = subparsers.add_parser(name, help=text, description=text)
        commands[command].set_defaults(function=command)

    def option(name: str, *takers: Callable, **settings: object) -> None:
        for command in takers:
            commands[command].add_argument(name, **settings)

    data = (reproduce, train, evaluate, check_data, plan)
    text = "smoke, mini (default), lspet_cpu, lspet or coco"
    option("--profile", *data, default="mini", help=text)
    commands[train].set_defaults(profile=None)  # to know what is given beside --recipe
    text = "folder of data, runs and figures; default: the checkout, else the current folder"
    option("--output", *data, convert_lspe, doctor, type=Path, help=text)
    option("--only", reproduce, action="append", metavar="03", help="notebook by its number; may be repeated")
    option("--set", reproduce, action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter")
    _add_training(option)
    option("--checkpoint", evaluate, type=Path, required=True, help="a model.safetensors")
    option("--tta", evaluate, action="store_true", help="average over the five views")
    option("--no-flip", evaluate, action="store_true", help="leave the mirrored crop out")
    option("image", predict, type=Path)
    text = "a model.safetensors; default: a finished stage 3 of HRNet++ below runs/"
    option("--checkpoint", predict, type=Path, help=text)
    text = "persons in image px (--boxes=... if it begins with a minus); default: the whole image"
    option("--boxes", predict, metavar='"x,y,w,h ..."', help=text)
    option("--detector", predict, metavar="MODEL", help="find persons by a transformers model (extra detect)")
    text = "gets the poses as json and drawn; by default nothing is written"
    option("--output-dir", predict, type=Path, help=text)
    option("joints", convert_lspe, type=Path, help="joints.mat")
    option("images", convert_lspe, type=Path, help="folder of im00001.jpg ..., or of zip archives of them")
    option("--skip-missing-images", convert_lspe, action="store_true", help="count what lacks, and go on")
    option("--gpus", plan, type=_number(int, 1), default=1, metavar="N", help="that share each batch")
    return parser


def _add_training(option: Callable[..., None]) -> None:
    option("--architecture", train, help="hrnetpp (default), hrnet, hrnet+se, ...")
    option("--seed", train, type=_number(int, 0, 2**64), help="default 0")
    option("--recipe", train, type=Path, help="train this recipe.json instead of a profile's stages")
    text = "cut batches into N parts"
    option("--accumulate", train, type=_number(int, 1), default=1, metavar="N", help=text)
    option("--compile", train, action="store_true", help="try torch.compile")
    option("--skip-bad-images", train, action="store_true", help="replace persons of unreadable images")
    option("--tensorboard", train, action="store_true", help="write TensorBoard's files (extra watch)")
    text = "between saved states"
    option("--save-every", train, type=_number(float, 0), default=600, metavar="SECONDS", help=text)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 2 for bad input, told in one line on stderr; 75 after SIGTERM; 141 where nobody reads
        on, as in `| head`.
    """
    options = build_parser().parse_args(arguments)
    try:
        options.function(options)
        sys.stdout.flush()
    except Preempted as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        return Preempted.EXIT_CODE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what the interpreter flushes at its end
        return 141
    except (HrnetppError, OSError) as error:
        # One line (names may hold line breaks), in one write: several processes may have something to say.
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    exit_status = main()
    if "WORLD_SIZE" in os.environ:
        from hrnetpp_lib.train.machine import leave

        leave(exit_status)
    sys.exit(exit_status)
