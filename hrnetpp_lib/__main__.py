"""Command line: python -m hrnetpp_lib COMMAND; each command has its own --help."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from hrnetpp_lib import commands
from hrnetpp_lib.errors import HrnetppError, Preempted


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m hrnetpp_lib", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)

    def add(name: str, function, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    sub = add("reproduce", commands.reproduce, "run the notebooks headless and write figures and Table 1")
    _add_profile(sub)
    sub.add_argument("--only", action="append", metavar="03", help="notebook by its number; may be repeated")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter")

    sub = add("train", commands.train, "train, or go on with, the stages of one architecture")
    _add_profile(sub)
    _add_architecture(sub)
    sub.set_defaults(profile=None)  # to know what is given beside --recipe
    _add_machine(sub)

    sub = add("evaluate", commands.evaluate, "COCO AP of a checkpoint on the profile's val set")
    _add_profile(sub)
    sub.add_argument("--checkpoint", type=Path, required=True, help="a model.safetensors")
    sub.add_argument("--tta", action="store_true", help="average over the five views")
    sub.add_argument("--no-flip", action="store_true", help="leave the mirrored crop out")

    _add_photograph(add("predict", commands.predict, "poses of one photograph"))

    sub = add("check-data", commands.check_data, "count what is there, decode every picture")
    _add_profile(sub)

    sub = add("convert-lspe", commands.convert_lspe, "Leeds Sports Pose Extended for the profiles lspet*")
    sub.add_argument("joints", type=Path, help="joints.mat")
    sub.add_argument("images", type=Path, help="folder of im00001.jpg ..., or of zip archives of them")
    sub.add_argument("--skip-missing-images", action="store_true", help="count what is not there, and go on")
    sub.add_argument("--output", type=Path, default=None, help="folder that gets data/lspet")

    sub = add("plan", commands.plan, "what training would take: data, measured speed, GPU-hours, disk")
    _add_profile(sub)
    sub.add_argument("--gpus", type=_at_least(1, int), default=1, metavar="N", help="that share each batch")

    add("doctor", commands.doctor, "versions, devices, disk, and what is missing for which profile")
    return parser


def _add_profile(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--profile", default="mini", help="smoke, mini (default), lspet_cpu, lspet or coco")
    sub.add_argument("--output", type=Path, default=None, help="folder for data, runs and figures")


def _add_photograph(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("image", type=Path)
    sub.add_argument("--checkpoint", type=Path, help="a model.safetensors; default: the newest of stage 3")
    sub.add_argument(
        "--boxes",
        metavar='"x,y,w,h ..."',
        help="persons in image px (--boxes=... if it begins with a minus); default: the whole image",
    )
    sub.add_argument(
        "--detector", metavar="MODEL", help="find persons by a transformers model (extra detect)"
    )
    sub.add_argument("--output-dir", type=Path, default=Path("."), help="gets the json and the png")


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
        print(error, file=sys.stderr)
        return Preempted.EXIT_CODE
    except (HrnetppError, OSError) as error:
        # In one write, so that the lines of several processes do not run into one another.
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    exit_status = main()
    if "WORLD_SIZE" in os.environ:
        from hrnetpp_lib.machine import leave

        leave(exit_status)
    sys.exit(exit_status)
