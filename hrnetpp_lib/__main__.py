"""Command line: python -m hrnetpp_lib COMMAND; each command has its own --help."""

import argparse
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.files import project_root
from hrnetpp_lib.recipe import (
    PROFILES,
    STAGES,
    Run,
    change_stage,
    get_architecture,
    get_profile,
    read_recipe,
    three_stages,
)


def reproduce(options: argparse.Namespace) -> None:
    """Run the notebooks headless, and write figures and Table 1."""
    profile = get_profile(options.profile)  # before the heavy imports
    from hrnetpp_lib.app.reproduce import parse_parameters, reproduce

    reproduce(profile, options.output, options.only, parse_parameters(options.set))


def train(options: argparse.Namespace) -> None:
    """Train three stages of an architecture, or a recipe, several side by side; go on, or find it trained."""
    from hrnetpp_lib.train.machine import EngineOptions, end_with_parent, preemptible, processes

    chains, root = _runs_to_train(options), options.output
    runs = tuple(run for chain in chains for run in chain)
    profile = runs[0].profile
    engine = EngineOptions(
        options.accumulate, options.compile, options.skip_bad_images, options.tensorboard, options.save_every
    )
    if "HRNETPP_BESIDE" in os.environ:  # `train_together` began it
        end_with_parent()
    with preemptible(root, runs) as notice:
        if len(chains) > 1:
            from hrnetpp_lib.train.together import train_together

            print(*train_together(runs, root, options=engine), sep="\n")
            return
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


def _runs_to_train(options: argparse.Namespace) -> list[tuple[Run, ...]]:
    """What the options name: a profile's stages, for each architecture and seed, or each recipe.json."""
    chosen = {name: getattr(options, name) for name in ("profile", "architecture", "seed")}
    given = {name: value for name, value in chosen.items() if value is not None}
    given |= {"set": options.stage_field} if options.stage_field else {}
    if options.recipe and given:
        raise HrnetppError(f"--recipe {options.recipe[0]} says it all; leave out --{', --'.join(given)}")
    if options.recipe:
        return [(read_recipe(path),) for path in options.recipe]
    stages = list(STAGES)
    for text in options.stage_field:
        parts = re.fullmatch(r"(?:stage([123])\.)?(\w+)=(.*)", text)
        if not parts:
            raise HrnetppError(f"--set {text}: give NAME=VALUE or, for one stage, stage3.NAME=VALUE")
        for index in [int(parts[1]) - 1] if parts[1] else range(3):
            stages[index] = change_stage(stages[index], parts[2], parts[3])
    profile, seeds = get_profile(given.get("profile", "mini")), given.get("seed", [0])
    architectures = [get_architecture(name) for name in given.get("architecture", ["hrnetpp"])]
    return [three_stages(profile, one, seed, stages) for seed in seeds for one in architectures]


def evaluate(options: argparse.Namespace) -> None:
    """COCO metrics of a checkpoint on the profile's val set, with what they were measured on."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.data.layout import load_coco, prepare_data
    from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, TTA_VIEWS, open_network, predict_boxes
    from hrnetpp_lib.evaluate.score import score
    from hrnetpp_lib.evaluate.table import beside_published

    how = (options.runtime, options.precision, _input_hw(options))
    data = load_coco(profile, prepare_data(profile, options.output / "data", val_only=True), val_only=True)
    network, card = open_network(options.checkpoint, *how)  # after the data, since it may take a while
    if (mine := len(card.skeleton)) != (wanted := len(data.val.skeleton)):
        what = f"predicts {mine} keypoints ({card.skeleton.name}), COCO has {wanted}"
        raise HrnetppError(f"{options.checkpoint}: {what}; give a checkpoint of stage 2 or 3")
    flip, views = not options.no_flip, TTA_VIEWS if options.tta else SINGLE_VIEW
    metrics = score(predict_boxes(network, card, data.val, flip, views), data)
    print(f"checkpoint {options.checkpoint}" + (f" ({card.run})" if card.run else ""))
    number = f"{len(data.val)} in {len(data.truth.image_files)} pictures"
    print(f"profile {profile.name}, data {profile.data}, boxes {data.boxes} ({number}), ", end="")
    print(f"flip {flip}, TTA {options.tta}, decoder {card.decoder}, ", end="")
    print(f"coordinates {card.coordinates.name} (flip shift {card.coordinates.flip_shift:g}), ", end="")
    print(f"input {card.input_hw[0]}x{card.input_hw[1]}, {network.described}")
    differs = ["no flip test"] * (not flip) + ["TTA"] * options.tta
    differs += [network.precision] * (network.precision != "fp32")
    differs += [f"{profile.data} data"] * (profile.data != "public")
    print(*beside_published(options.checkpoint.name, metrics, data, card, differs), sep="\n")


def _input_hw(options: argparse.Namespace) -> tuple[int, int] | None:
    """What --input says."""
    from hrnetpp_lib.model.published import parse_size

    return None if options.input is None else parse_size(options.input)


def predict(options: argparse.Namespace) -> None:
    """Poses in photographs, folders of them and clips."""
    from hrnetpp_lib.app.photo import parse_boxes, predict_files

    boxes = None if options.boxes is None else parse_boxes(options.boxes)
    where = (boxes, options.detections, options.detector, options.output_dir)
    how = (options.runtime, options.precision, _input_hw(options))
    # What ends a batch early, kill or Ctrl-C, keeps what is done.
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        predict_files(options.inputs, options.checkpoint, *where, *how)
    finally:
        signal.signal(signal.SIGTERM, before)


def explore(options: argparse.Namespace) -> None:
    """Heatmaps and training data in a browser, of a profile's pictures or your own (extra explore)."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.app.page import serve_page

    serve_page(profile, options.output, options.inputs, options.checkpoint)


def detect(options: argparse.Namespace) -> None:
    """Find persons in photographs, and write their boxes as a COCO json."""
    from hrnetpp_lib.app.detector import DETECTOR, detect

    detect(options.inputs, options.output, options.detector or DETECTOR, options.annotations)


def export(options: argparse.Namespace) -> None:
    """Write a checkpoint's network as a graph for other programs, its model card in it."""
    from hrnetpp_lib.evaluate.runtime import export
    from hrnetpp_lib.model.weights import load_checkpoint

    model, card = load_checkpoint(options.checkpoint, _input_hw(options))
    export(model, card, options.format, options.output)
    print(f"written: {options.output} ({options.format}, {card.run or options.checkpoint.name})")


def check_data(options: argparse.Namespace) -> None:
    """Count persons, images and keypoints of the profile's sets, and decode every image."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.data.layout import load_ai_challenger, load_coco, prepare_data
    from hrnetpp_lib.data.persons import check_images

    paths = prepare_data(profile, options.output / "data")
    for load in (load_ai_challenger, load_coco):
        data = load(profile, paths)
        for role, table in (("train", data.train), ("val", data.val)):
            check_images(table, decode=True)
            counts = f"{len(table)} boxes in {len(set(table.image_index))} images"
            labelled = f"{(table.keypoints[:, :, 2] > 0).sum()} labelled keypoints"
            dropped = ", ".join(f"{count} {reason}" for reason, count in table.dropped.items() if count)
            print(f"{table.skeleton.name} {role}: {counts}, {labelled}; left out: {dropped or 'nothing'}")
        print(f"  val boxes: {data.boxes}")
    if profile.data == "public":
        row = "has a row of it" if paths.published.is_file() else "would have a row of it, were it there"
        print(f"published network: {paths.published}; Table 1 {row}")


def convert_lspe(options: argparse.Namespace) -> None:
    """Lay Leeds Sports Pose Extended out for the profiles on photographs, lspet*."""
    from hrnetpp_lib.data.layout import convert_lspe

    convert_lspe(options.joints, options.images, options.output / "data", options.skip_missing_images)


def plan(options: argparse.Namespace) -> None:
    """What training a profile would take: data, measured speed, hours, disk."""
    profile = get_profile(options.profile)
    from hrnetpp_lib.app.plan import plan

    for line in plan(profile, options.output, options.gpus):
        print(line, flush=True)


def study(options: argparse.Namespace) -> None:
    """List the trainings that the claims rest on, run experiments of them, or judge the claims."""
    from hrnetpp_lib.app.study import EXPERIMENTS, describe_study, run_study
    from hrnetpp_lib.app.verdicts import write_verdicts

    if unknown := [name for name in options.run if name not in EXPERIMENTS]:
        raise HrnetppError(f"no experiment is called {unknown[0]!r}; choose one of {', '.join(EXPERIMENTS)}")
    if options.run:
        run_study(options.run, options.output, options.hours, options.seeds)
    if options.run or options.verdicts:
        print(write_verdicts(options.output))
    else:
        for line in describe_study(options.output, options.seeds):
            print(line, flush=True)


def doctor(options: argparse.Namespace) -> None:
    """Versions, device, disk, and what is missing for which profile."""
    from hrnetpp_lib.data.layout import data_paths, how_to_get, missing_files
    from hrnetpp_lib.evaluate.table import provenance

    root = options.output
    disk = shutil.disk_usage(next(folder for folder in (root, *root.absolute().parents) if folder.exists()))
    facts = provenance() | {"folder": root, "free disk": f"{disk.free / 2**30:.0f} GiB"}
    for name, fact in (facts.pop("versions") | facts).items():
        print(f"{name.replace('_', ' '):17s} {fact}")
    for profile in PROFILES.values():
        state = "ready"
        if profile.data == "synthetic":
            state = "ready (makes its own data)"
        elif missing := missing_files(profile, data_paths(profile, root / "data")):
            state = f"lacks {len(missing)} files or folders, first {missing[0]}; {how_to_get(profile)}"
        print(f"profile {profile.name:9s} {state}")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m hrnetpp_lib", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    commands = {}
    listed = (reproduce, train, evaluate, predict, explore, detect, export)
    listed += (check_data, convert_lspe, plan, study, doctor)
    for command in listed:
        name, text = command.__name__.replace("_", "-"), command.__doc__
        commands[command] = subparsers.add_parser(name, help=text, description=text)
        commands[command].set_defaults(function=command)

    def option(name: str, help: str, *takers: Callable, **settings: object) -> None:
        for command in takers:
            commands[command].add_argument(name, help=help, **settings)

    data = (reproduce, train, evaluate, explore, check_data, plan)
    option("--profile", "smoke, mini (default), lspet_cpu, lspet or coco", *data, default="mini")
    commands[train].set_defaults(profile=None)  # to know what is given beside --recipe
    text = "folder of data, runs and figures; default: the checkout, else the current folder"
    option("--output", text, *data, convert_lspe, study, doctor, type=Path, default=project_root())
    repeated = {"action": "append", "default": []}
    option("--only", "notebook by its number; may be repeated", reproduce, metavar="03", **repeated)
    option("--set", "a notebook parameter", reproduce, metavar="NAME=VALUE", **repeated)
    _add_train_options(option)
    text = "a model.safetensors, or a published pose checkpoint of HRNet (official, mmpose)"
    option("--checkpoint", text, export, type=Path, required=True)
    option("--checkpoint", f"{text}, or what `export` wrote", evaluate, type=Path, required=True)
    text = "height x width of a published network's input; default: its name's, or the usual one"
    option("--input", text, evaluate, predict, export, metavar="384x288")
    text = "auto (default: the fastest here), torch, openvino or onnxruntime (extra fast)"
    option("--runtime", text, evaluate, predict, default="auto")
    option("--precision", "fp32 (default) or bf16", evaluate, predict, default="fp32")
    option("--format", "onnx or openvino (extra export)", export, required=True)
    option("--output", "a new file (onnx) or folder (openvino)", export, type=Path, required=True)
    option("--tta", "average over the five views", evaluate, action="store_true")
    option("--no-flip", "leave the mirrored crop out", evaluate, action="store_true")
    _add_picture_options(option)
    option("joints", "joints.mat", convert_lspe, type=Path)
    option("images", "folder of im00001.jpg ..., or of zip archives of them", convert_lspe, type=Path)
    option("--skip-missing-images", "count what lacks, and go on", convert_lspe, action="store_true")
    option("--gpus", "that share each batch", plan, type=int, default=1, metavar="N")
    _add_study_options(option)
    return parser


def _add_picture_options(option: Callable) -> None:
    option("inputs", "photographs, clips, folders, 'patterns*'", predict, nargs="+", metavar="INPUT")
    option("inputs", "photographs, folders, 'patterns*'", detect, nargs="+", metavar="IMAGES")
    option("--output", "a json; goes on where one has ended", detect, type=Path, required=True)
    option("--annotations", "COCO ground truth of them, for ids and box AP", detect, type=Path)
    option("inputs", "pictures or folders; default: the profile's", explore, nargs="*", metavar="PICTURES")
    text = "default: the last finished stage 3 of HRNet++ below runs/, else the one in the package"
    option("--checkpoint", text, predict, type=Path)
    text = "ours, a published one, or a graph that `export` wrote; may be repeated; default: the profile's"
    option("--checkpoint", text, explore, type=Path, action="append", default=[])
    text = "of one picture, in px (= before a minus); default: the whole image"
    option("--boxes", text, predict, metavar='"x,y,w,h ..."')
    option("--detections", "boxes of many pictures: a COCO json, as `detect` writes", predict, type=Path)
    text = "a transformers model (extra detect) or its folder; for detect, D-FINE-L unless another is given"
    option("--detector", text, predict, detect, metavar="MODEL")
    option("--output-dir", "gets poses.json and all drawn; default: neither", predict, type=Path)


def _add_train_options(option: Callable) -> None:
    text = "hrnetpp (default), hrnet, hrnet+se, hrnetpp-head, hrnetpp+conv3x3, ...; may be repeated"
    option("--architecture", text, train, action="append")
    text = "a field of the training stages, as in rotation_bound_deg=45 or stage3.loss=heatmap_mse"
    option("--set", text, train, dest="stage_field", metavar="NAME=VALUE", action="append", default=[])
    option("--seed", "default 0; may be repeated", train, type=int, action="append")
    text = "train this recipe.json instead of a profile's stages; may be repeated"
    option("--recipe", text, train, type=Path, action="append")
    option("--accumulate", "cut batches into N parts", train, type=int, default=1, metavar="N")
    option("--compile", "try torch.compile", train, action="store_true")
    option("--skip-bad-images", "replace persons of unreadable images", train, action="store_true")
    option("--tensorboard", "write TensorBoard's files (extra watch)", train, action="store_true")
    option("--save-every", "between saved states", train, type=float, default=600, metavar="SECONDS")


def _add_study_options(option: Callable) -> None:
    text = "train and measure what this experiment lacks; may be repeated"
    option("--run", text, study, metavar="E1", action="append", default=[])
    option("--hours", "begin nothing that would end later; default 1", study, type=float, default=1.0)
    option("--seeds", "at least so many; default: each experiment's own number", study, type=int, default=0)
    option("--verdicts", "write every verdict anew from the committed results", study, action="store_true")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 2 for bad input, 75 after SIGTERM, 130 after Ctrl-C, 141 for `| head`."""
    try:
        options = build_parser().parse_args(arguments)
        options.function(options)
        sys.stdout.flush()
    except Preempted as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        return Preempted.EXIT_CODE
    except KeyboardInterrupt as error:
        usual = "interrupted; what is saved is whole, and the same command goes on from it or begins anew"
        print(str(error) or usual, file=sys.stderr)
        return 130
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
