"""How many times as fast: python -m benchmarks.bench [--official DIR] [--only ROW ...] [--quick].

One table of ratios, kept in benchmarks/bench.json by machine. With a checkout of the official HRNet code both
run in turns in this process; without one, the plain way of this package is what the fast one is measured
against, and rows that have no second way are left out. That both sides find the same is checked before
anything is timed. `--quick` tries every row on little work and keeps nothing.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

from benchmarks import measure  # noqa: E402
from benchmarks.official import Official  # noqa: E402
from hrnetpp_lib import create_model  # noqa: E402
from hrnetpp_lib.app.plan import random_batch  # noqa: E402
from hrnetpp_lib.data import annotations, layout  # noqa: E402
from hrnetpp_lib.data.crops import TrainCrops, normalise, usable_workers  # noqa: E402
from hrnetpp_lib.data.persons import CocoTruth, PersonTable  # noqa: E402
from hrnetpp_lib.errors import HrnetppError  # noqa: E402
from hrnetpp_lib.evaluate import infer, metrics, score  # noqa: E402
from hrnetpp_lib.evaluate.table import provenance  # noqa: E402
from hrnetpp_lib.files import write_json  # noqa: E402
from hrnetpp_lib.model.weights import ModelCard  # noqa: E402
from hrnetpp_lib.pose.geometry import bbox_to_center_scale, crop_matrix  # noqa: E402
from hrnetpp_lib.pose.heatmap import draw_gaussians  # noqa: E402
from hrnetpp_lib.pose.keypoints import COCO17  # noqa: E402
from hrnetpp_lib.recipe import HRNET, HRNETPP, LSPET, MINI, STAGE2, Augmentation, Run, resolve  # noqa: E402
from hrnetpp_lib.train import machine  # noqa: E402
from hrnetpp_lib.train.loader import load_batches  # noqa: E402
from hrnetpp_lib.train.loop import Training  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "bench.json"
SIZES = (1_000, 10_000, 100_000)  # boxes, for how cost grows
CORES = usable_workers(os.cpu_count())
REDUCED = resolve(STAGE2, MINI).profile.precision  # bf16 where there are instructions for it


@dataclass
class Setting:
    """What rows are measured with."""

    official: Official | None
    quick: bool
    folder: Path  # for files that both sides read

    def budget(self, seconds: float) -> float:
        return 0.0 if self.quick else seconds

    def real(self, name: str) -> Path | None:
        """A folder of real photographs, if it is at hand."""
        path = Path(os.environ.get("HRNETPP_TEST_DATA", ROOT.parent / "shared" / "data")) / name
        return path if path.is_dir() else None


@dataclass
class Side:
    """One way of ours to do the work of a row."""

    name: str  # of the row that is kept
    what: str
    work: measure.Cost
    equality: str  # what was found before anything was timed


@dataclass
class Comparison:
    """A reference and our ways, to be measured in turns."""

    reference: measure.Cost
    sides: list[Side]
    unit: str
    threads: int
    budget_s: float
    per: float = 1.0  # units in one call
    warm: bool = False  # no first round is needed


def require(equal: bool, found: str) -> str:
    """Say what was found. Raises: HrnetppError if both sides are not equal enough to be compared."""
    if not equal:
        raise HrnetppError(f"the two sides differ ({found}); a ratio would mean nothing")
    return found


def use_threads(number: int) -> None:
    """Of torch and OpenCV."""
    torch.set_num_threads(number)
    cv2.setNumThreads(number)


def lively(name: str, input_hw: tuple[int, int]) -> torch.nn.Module:
    """A network whose heatmaps vary as a trained one's do; new weights would give nearly zeros."""
    torch.manual_seed(0)
    model = create_model(name)
    for layer, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # its statistics become those of the one batch below
            if layer.endswith((".bn2", ".bn3")):  # blocks add little, as trained: else rounding grows
                torch.nn.init.constant_(module.weight, 0.2)
    with torch.no_grad():
        model.train()(torch.randn(2, 3, *input_hw))
    return model.eval()


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> str:
    """Heatmaps' difference in units of their standard deviation; see `require`."""
    error = float((ours - theirs).square().mean().sqrt() / theirs.std())
    return require(error <= tolerance, f"heatmaps differ by {error:.1e} of their standard deviation")


# ------------------------------------------------------------------------------------------------ the rows


def forward(setting: Setting) -> Iterator[Comparison]:
    """HRNet-W48, one crop of 384x288."""
    use_threads(CORES)
    hw = (128, 96) if setting.quick else (384, 288)
    model, image = lively("hrnet_w48", hw), torch.randn(1, 3, *hw)
    plain = model
    if setting.official:
        plain = setting.official.network(setting.official.config("w48_384x288"), model.state_dict())
    with torch.inference_mode():
        wanted = plain(image)
    card, sides = ModelCard(input_hw=hw), []
    for precision, tolerance in {REDUCED: 0.1, "fp32": 1e-4}.items():
        ready = infer.prepare(model, card, precision=precision)
        with torch.inference_mode():
            equality = close(ready(image), wanted, tolerance)
        name = "forward_exact" if precision == "fp32" else "forward_reduced"
        what = f"HRNet-W48 forward, one crop {hw[0]}x{hw[1]}, {ready.runtime} {precision}"
        sides.append(Side(name, what, torch.inference_mode()(lambda n=ready: timed(n, image)), equality))
    reference = torch.inference_mode()(lambda: timed(plain, image))
    yield Comparison(reference, sides, "crop", CORES, setting.budget(45))


def timed(network: Callable, image: torch.Tensor) -> float:
    """Seconds of one forward."""
    started = time.perf_counter()
    network(image)
    return time.perf_counter() - started


def detected_boxes(setting: Setting) -> tuple[CocoTruth, PersonTable]:
    """118 boxes of a real detector in 4 images of COCO val2017, or a simulated one's on synthetic people."""
    if real := setting.real("coco_test"):
        truth = annotations.read_coco_truth(real / "test_coco.json", next(real.glob("**/*.jpg")).parent)
        boxes = real / "test_coco_det_AP_H_56.json"
        return truth, annotations.read_coco_detections(boxes, truth, truth.image_dir)
    data = small_set(setting)
    return data.truth, data.val


def small_set(setting: Setting) -> layout.StageData:
    """Some synthetic people, rendered once for all rows."""
    profile = replace(MINI, synthetic_persons=(64, 10, 64))
    return layout.load_coco(profile, layout.prepare_data(profile, setting.folder / "data"))


def boxes(setting: Setting) -> Iterator[Comparison]:
    """Boxes in, poses out: HRNet-W32, 256x192, flip test, every fourth box of the detector's."""
    use_threads(CORES)
    truth, table = detected_boxes(setting)
    table = table.select(np.arange(0, min(len(table), 120), 40 if setting.quick else 4))
    model, card = lively("hrnet_w32", (256, 192)), ModelCard(input_hw=(256, 192))
    theirs = official_boxes(setting, truth, table, model) if setting.official else None
    reference = theirs or (lambda: infer.predict_boxes(model, card, table).keypoints)
    wanted, sides = reference(), []
    for precision in dict.fromkeys(("fp32", REDUCED)):
        ready = infer.prepare(model, card, precision=precision)
        away = np.linalg.norm(infer.predict_boxes(ready, card, table).keypoints - wanted, axis=-1)
        # Heatmaps of random weights have many maxima of nearly one height, so a few may change places.
        near = (away < 0.01).mean()
        found = f"{100 * near:.1f}% of keypoints within 0.01 px, median {np.median(away):.1e} px"
        equality = require(near > (0.97 if precision == "fp32" else 0.75), found)
        name = "boxes_exact" if precision == "fp32" else "boxes_reduced"
        what = f"boxes in, poses out, W32 256x192, flip test, {ready.runtime} {precision}"
        sides.append(Side(name, what, lambda n=ready: no_cost(infer.predict_boxes(n, card, table)), equality))
    yield Comparison(
        lambda: no_cost(reference()), sides, "person", CORES, setting.budget(60), len(table), warm=True
    )


def no_cost(result: object) -> None:
    """Drop a result, so that the clock decides."""


def official_boxes(setting: Setting, truth: CocoTruth, table: PersonTable, model) -> Callable:
    """The official way from a table's boxes to keypoints."""
    official, root = setting.official, setting.folder / "boxes"
    lay_out(root, truth, "val2017")
    ids = table.image_ids[table.image_index].tolist()
    rows = zip(ids, table.bboxes_xywh.tolist(), table.bbox_scores.tolist(), strict=True)
    write_json(
        root / "boxes.json", [{"image_id": i, "category_id": 1, "bbox": b, "score": s} for i, b, s in rows]
    )
    test = {"USE_GT_BBOX": False, "COCO_BBOX_FILE": str(root / "boxes.json")}
    config = official.config("w32_256x192", TEST=test)
    network, dataset = official.network(config, model.state_dict()), None
    dataset = official.dataset(config, root, "val2017", train=False)
    return lambda: official.predict(config, network, dataset, len(table))


def lay_out(root: Path, truth: CocoTruth, split: str) -> None:
    """Annotations and images where the official code looks for them."""
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "annotations" / f"person_keypoints_{split}.json").symlink_to(Path(truth.name).resolve())
    (root / "images" / split).symlink_to(truth.image_dir.resolve())


def sample(setting: Setting) -> Iterator[Comparison]:
    """A training sample of 384x288 from a JPEG: read, augment, crop, encode."""
    use_threads(1)
    if setting.official is None:
        return
    if real := setting.real("coco_mini"):
        paths = real / "annotations" / "person_keypoints_train2017.json", real / "train2017"
        truth = annotations.read_coco_truth(*paths)
    else:
        truth = small_set(setting).truth
    table, root = annotations.labelled_persons(truth), setting.folder / "sample"
    lay_out(root, truth, "train2017")
    dataset = setting.official.dataset(setting.official.config("w48_384x288"), root, "train2017", True)
    crops, count = TrainCrops(table, (384, 288), 3.0, Augmentation()), min(len(table), len(dataset))
    equality = same_crops(setting.official, root, table)
    ours = Side("sample", "training sample 384x288 from a JPEG", lambda: take(crops, count), equality)
    yield Comparison(lambda: take(dataset, count), [ours], "sample", 1, setting.budget(12), per=count)


def take(dataset: torch.utils.data.Dataset, count: int) -> None:
    """The first samples."""
    for index in range(count):
        dataset[index]


def same_crops(official: Official, root: Path, table: PersonTable) -> str:
    """Compare crops and targets where chance is left out, and the official boxes are set to ours."""
    still = {"FLIP": False, "SCALE_FACTOR": 0, "ROT_FACTOR": 0, "PROB_HALF_BODY": 0.0}
    config = official.config("w48_384x288", DATASET=still)
    dataset = official.dataset(config, root, "train2017", train=True, transform=None)
    ours = TrainCrops(table, (384, 288), 3.0, Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0))

    def same_person(person: int) -> int:
        """The official row of a person of ours: in the same image, with keypoints at the same places."""
        name, mine = table.image_path(person).name, table.keypoints[person]

        def away(record: dict) -> float:
            seen = record["joints_3d_vis"][:, :2] > 0
            return float(np.abs(np.where(seen, record["joints_3d"][:, :2] - mine[:, :2], 0)).max())

        near = [i for i, record in enumerate(dataset.db) if Path(record["image"]).name == name]
        best = min(near, key=lambda index: away(dataset.db[index]))
        require(away(dataset.db[best]) < 0.1, f"person {person} is not among the official rows")
        return best

    grey, targets, compared = 0.0, 0.0, 0
    for person in range(min(len(table), 20)):
        index = same_person(person)
        center, scale = bbox_to_center_scale(table.bboxes_xywh[person], (384, 288))
        dataset.db[index] |= {"center": np.float32(center), "scale": np.float32(scale / 200)}
        image, target, weight, _ = dataset[index]
        mine = ours[person]
        drawn = draw_gaussians(
            torch.tensor(mine.peaks[None]), torch.tensor(mine.target_weight[None]), (96, 72), 3.0
        )
        grey = max(grey, float(np.abs(image.astype(float) - mine.image).mean()))
        targets, compared = max(targets, float((drawn[0] - target).abs().max())), compared + 1
    found = (
        f"{compared} crops without chance: mean grey levels within {grey:.2g}, targets within {targets:.2g}"
    )
    return require(grey < 0.1 and targets < 1e-6, found)


class Replay(torch.nn.Module):
    """A network that has the heatmaps ready: of the crops, then of the mirrored crops."""

    def __init__(self, heatmaps: torch.Tensor):
        super().__init__()
        self.heatmaps, self.at = torch.nn.Parameter(heatmaps, requires_grad=False), 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, self.at = self.at, (self.at + len(images)) % len(self.heatmaps)
        return self.heatmaps[first : first + len(images)]


def people(number: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Heatmaps (2N, 17, 96, 72) of N crops and of their mirror images, and centers and scales of N boxes."""
    torch.manual_seed(0)
    rng, ones = np.random.default_rng(0), torch.ones(2 * number, 17)
    peaks = torch.stack([torch.randint(0, size, (2 * number, 17)) for size in (72, 96)], dim=-1)
    heatmaps = draw_gaussians(peaks, ones, (96, 72), 3.0) + 0.1 * torch.rand(2 * number, 17, 96, 72)
    corners, sizes = rng.uniform(0, 400, (number, 2)), rng.uniform(40, 300, (number, 2))
    return heatmaps, *bbox_to_center_scale(np.hstack([corners, sizes]), (384, 288))


def postprocess(setting: Setting) -> Iterator[Comparison | tuple[str, dict]]:
    """Flip back, shift, average, decode and back to the image, in batches of 50."""
    use_threads(1)
    heatmaps, centers, scales = people(50)
    matrices = np.stack([crop_matrix(*box, 0.0, (384, 288)) for box in zip(centers, scales, strict=True)])
    replay, crops, card = Replay(heatmaps), torch.zeros(50, 4, 4, 3, dtype=torch.uint8), ModelCard()

    def ours(batches: int) -> np.ndarray:
        return [infer.poses_of_crops(replay, card, crops, matrices).keypoints for _ in range(batches)][-1]

    what, batches = "flip, shift, average, decode, back; 17x96x72", 1 if setting.quick else 4
    if setting.official:
        config, halves = (
            setting.official.config("w48_384x288"),
            (heatmaps[:50], heatmaps[50:].clone().numpy()),
        )
        boxes = np.float32(centers), np.float32(scales / 200)
        found, wanted = ours(1), setting.official.postprocess(config, halves[0], halves[1].copy(), *boxes)
        away = np.abs(found - wanted).max()
        side = Side(
            "postprocess",
            what,
            lambda: no_cost(ours(batches)),
            require(away < 1e-2, f"keypoints within {away:.1e} px"),
        )

        def theirs() -> None:
            for _ in range(batches):
                setting.official.postprocess(config, *halves, *boxes)

        yield Comparison(theirs, [side], "1000 persons", 1, setting.budget(15), per=batches * 50 / 1000)
    yield scaling(setting, "postprocess_scaling", what, lambda boxes: ours(boxes // 50))


def scaling(setting: Setting, name: str, what: str, work: Callable[[int], object]) -> tuple[str, dict]:
    """Milliseconds per 1000 boxes at three sizes, once each."""
    work(SIZES[0] // 10)
    sizes = SIZES[:1] if setting.quick else SIZES
    cost = {
        str(size): measure.seconds_of(lambda size=size: no_cost(work(size))) * 1e6 / size for size in sizes
    }
    return name, {"what": what, "ms_per_1000": {size: round(value, 1) for size, value in cost.items()}}


def crowd(
    images: int, per_image: int = 20, true_per_image: int = 2
) -> tuple[layout.StageData, infer.Predictions]:
    """Random persons, and detections of them with poses: near ones, repeated ones, and some of nobody."""
    rng, K = np.random.default_rng(0), len(COCO17)

    def table(kind: type, keypoints: np.ndarray, per: int, **more: object) -> PersonTable:
        n, start = len(keypoints), keypoints[..., :2].min(axis=1)
        boxes = np.hstack([start, keypoints[..., :2].max(axis=1) - start])
        index, ids = np.repeat(np.arange(images, dtype=np.int32), per), np.arange(1, images + 1)
        files, hw = np.array([b"none.jpg"] * images), np.full((images, 2), 1000, np.int32)
        source = ("random", COCO17, Path("."), files, ids, hw, index, np.arange(1, n + 1), boxes)
        return kind(*source, rng.uniform(size=n), boxes[:, 2:].prod(axis=1) * 0.6, keypoints, {}, **more)

    centers, size = (
        rng.uniform(100, 800, (images, true_per_image, 1, 2)),
        rng.uniform(30, 300, (images, true_per_image, 1, 1)),
    )
    true = centers + size * rng.normal(0, 0.5, (images, true_per_image, K, 2))
    chosen = rng.integers(true_per_image, size=(images, per_image))
    noise = rng.choice([0.01, 0.05, 0.2, 1.0], (images, per_image, 1, 1)) * rng.normal(
        size=(images, per_image, K, 2)
    )
    rows = np.arange(images)[:, None]
    found = (true[rows, chosen] + size[rows, chosen] * noise).reshape(-1, K, 2)
    true = np.dstack([true.reshape(-1, K, 2), rng.integers(0, 3, (images * true_per_image, K))])
    counts = {"num_keypoints": (true[..., 2] > 0).sum(axis=1), "crowd": rng.random(len(true)) < 0.02}
    truth = table(CocoTruth, true, true_per_image, **counts)
    val = table(PersonTable, np.dstack([found, np.ones(found.shape[:2])]), per_image)
    data = layout.StageData(truth, val, truth, layout.Metric.COCO_AP, "random")
    return data, infer.Predictions(found, rng.uniform(0.1, 1, found.shape[:2]), (256, 192))


def nms(setting: Setting) -> Iterator[Comparison | tuple[str, dict]]:
    """OKS-NMS, 500 images of 20 poses, and what scoring costs for more and more boxes."""
    use_threads(1)
    images = 20 if setting.quick else 500
    data, predictions = crowd(images)
    poses = np.dstack([predictions.keypoints, predictions.scores])
    columns, rows = (poses, data.val.areas, data.val.bbox_scores), np.arange(images * 20).reshape(images, 20)

    def ours() -> list[int]:
        return metrics.suppress(rows, *columns).tolist()

    def theirs() -> list[int]:
        found = zip(rows, (setting.official.nms.oks_nms(image, 0.9) for image in records), strict=True)
        return [int(image[index]) for image, kept in found for index in kept]

    if setting.official:
        keys = ("keypoints", "area", "score")
        persons = [dict(zip(keys, pose, strict=True)) for pose in zip(*columns, strict=True)]
        records, kept = [[persons[row] for row in image] for image in rows], ours()
        same = f"the same {len(kept)} of {rows.size} poses kept, in order"
        equality = require(kept == theirs(), same)
        side = Side("nms", f"OKS-NMS, {images} images of 20 poses", lambda: no_cost(ours()), equality)
        yield Comparison(lambda: no_cost(theirs()), [side], "run", 1, setting.budget(10))
    sets = {size: crowd(size // 20) for size in (SIZES[0] // 10, *SIZES)}
    what = "scoring: rescoring, OKS-NMS and the ten COCO figures"
    yield scaling(setting, "scoring_scaling", what, lambda boxes: score.score(sets[boxes][1], sets[boxes][0]))


def figures(setting: Setting) -> Iterator[Comparison]:
    """The ten COCO figures of 100,000 poses in 5,000 images."""
    use_threads(1)
    images = 50 if setting.quick else 5000
    data, found = crowd(images)
    poses = metrics.ScoredPoses(
        data.val.image_ids[data.val.image_index], found.keypoints, found.scores, data.val.bbox_scores
    )

    def ours() -> dict[str, float]:
        return metrics.coco_metrics(metrics.match_coco(data.truth, poses))

    wanted = pycocotools_figures(data.truth, poses)
    values = wanted()
    equality = require(list(ours().values()) == values, f"all ten equal to the bit, AP {values[0]:.4f}")
    side = Side(
        "figures",
        f"ten COCO figures, {images} images, {20 * images} poses",
        lambda: no_cost(ours()),
        equality,
    )
    yield Comparison(lambda: no_cost(wanted()), [side], "run", 1, setting.budget(40), warm=True)


def pycocotools_figures(truth: CocoTruth, poses: metrics.ScoredPoses) -> Callable[[], list[float]]:
    """pycocotools as the official code calls it, on records that are ready."""
    fields = (truth.image_ids[truth.image_index], truth.bboxes_xywh, truth.areas, truth.crowd.astype(int))
    names = ("image_id", "bbox", "area", "iscrowd", "num_keypoints", "keypoints")
    columns = (*fields, truth.num_keypoints, truth.keypoints.reshape(len(truth), -1))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    persons = [
        {"id": i, "category_id": 1} | dict(zip(names, row, strict=True)) for i, row in enumerate(rows, 1)
    ]
    triples = np.dstack([poses.keypoints, poses.keypoint_scores]).reshape(len(poses.scores), -1)
    rows = zip(poses.image_ids.tolist(), triples.tolist(), poses.scores.tolist(), strict=True)
    results = [{"image_id": i, "category_id": 1, "keypoints": k, "score": s} for i, k, s in rows]
    coco = COCO()
    images = [{"id": image} for image in truth.image_ids.tolist()]
    coco.dataset = {"images": images, "annotations": persons, "categories": [{"id": 1}]}

    def run() -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation.stats.tolist()

    return run


def make_training(run: Run, data: layout.StageData, folder: Path) -> Training:
    """A training ready to step, without the files that `prepare` reads and writes."""
    options = machine.EngineOptions()
    training = Training(
        run, data, folder, options, machine.make_accelerator(run, options, folder), machine.SigtermNotice()
    )
    training.network = training.accelerator.prepare(training.network).train()
    return training


def train_step(setting: Setting) -> Iterator[Comparison]:
    """A training step of W32, 256x192, batch 8."""
    use_threads(CORES)
    small = replace(LSPET, batch_size=2, input_hw=(64, 64), workers=0)
    budget = small if setting.quick else replace(LSPET, batch_size=8, workers=0)
    batch, (data, _) = random_batch(budget, budget.batch_size), crowd(8)
    weights = lively("hrnet_w32", budget.input_hw).state_dict()

    def ours(precision: str, architecture=HRNET) -> Training:
        run = resolve(STAGE2, replace(budget, precision=precision), architecture)
        training = make_training(run, data, setting.folder)
        if architecture is HRNET:
            training.model.load_state_dict(weights)
        return training

    def step(training: Training) -> float:
        return training._optimise(batch, 0.0)[0]

    exact, reduced, improved = ours("fp32"), ours(REDUCED), ours(REDUCED, HRNETPP)
    loss, first, found = step(exact), step(reduced), step(exact)
    reference, named = lambda: no_cost(step(exact)), "our fp32"
    if setting.official:
        config = setting.official.config("w32_256x192")
        network = setting.official.network(config, weights).train()
        adam = torch.optim.Adam(network.parameters(), lr=0.0)
        target = draw_gaussians(batch.peaks, batch.target_weight, budget.heatmap_hw, budget.heatmap_sigma)
        theirs = normalise(batch.image).contiguous(), target, batch.target_weight[..., None]
        found, named = setting.official.train_step(network, adam, theirs), "the official"
        reference = lambda: no_cost(setting.official.train_step(network, adam, theirs))  # noqa: E731
    near = abs(loss / found - 1) < 1e-4 and abs(first / found - 1) < 0.02
    equality = require(near, f"loss {named} {found:.6g}, fp32 {loss:.6g}, {REDUCED} {first:.6g}")
    what = (
        f"training step, W32 {budget.input_hw[0]}x{budget.input_hw[1]}, batch {budget.batch_size}, {REDUCED}"
    )
    sides = [
        Side("train_step", what, lambda: no_cost(step(reduced)), equality),
        Side("train_step_pp", f"{what}, HRNet++", lambda: no_cost(step(improved)), "another network"),
    ]
    yield Comparison(reference, sides, "step", CORES, setting.budget(45))


def side_by_side(setting: Setting) -> Iterator[Comparison]:
    """Crops of HRNet++ of mini: as many one-thread processes as cores, against one with a thread per core."""
    small_set(setting)
    seconds = 1 if setting.quick else 5

    def several(number: int, precision: str) -> Callable[[], float]:
        environment = os.environ | machine.KEEP_FREED_MEMORY | {"OMP_NUM_THREADS": str(CORES // number)}
        command = [
            sys.executable,
            "-m",
            "benchmarks.bench",
            "--child",
            precision,
            str(setting.folder),
            str(seconds),
        ]
        streams = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment}

        def run() -> float:
            children = [subprocess.Popen(command, **streams) for _ in range(number)]
            answers = [child.communicate()[0] for child in children]
            return 1 / sum(float(answer.splitlines()[-1]) for answer in answers)

        return run

    equality = "processes share nothing; a test holds that a run's weights do not depend on its neighbours"
    sides = [
        Side(
            f"side_by_side_{p}",
            f"HRNet++ of mini, {CORES} processes of one thread, {p}",
            several(CORES, p),
            equality,
        )
        for p in dict.fromkeys(("fp32", REDUCED))
    ]
    yield Comparison(several(1, "fp32"), sides, "crop", CORES, setting.budget(60), warm=True)


def child(precision: str, folder: Path, seconds: float) -> None:
    """Train mini's HRNet++ for some seconds, crops from their JPEGs, and print crops per second."""
    run = resolve(STAGE2, replace(MINI, precision=precision), HRNETPP)
    profile = replace(MINI, synthetic_persons=(64, 10, 64))
    data = layout.load_coco(profile, layout.data_paths(profile, folder / "data"))
    training, done, started = make_training(run, data, folder), 0, None
    while started is None or time.perf_counter() - started < seconds:
        with load_batches(training.crops, replace(training.batches, epoch=done), 0) as loader:
            for batch in loader:
                training._optimise(batch, 1e-5)
                done += 1
                started = started or time.perf_counter()
    print((done - 1) * profile.batch_size / (time.perf_counter() - started))


ROWS = (forward, boxes, sample, postprocess, nms, figures, train_step, side_by_side)


def run_row(row: Callable, setting: Setting) -> Iterator[tuple[str, dict]]:
    """The records of a row, printed as they are found."""
    named = setting.official.commit[:12] if setting.official else None
    for found in row(setting):
        if isinstance(found, tuple):
            print(f"{found[1]['what']}: ms per 1000 boxes {found[1]['ms_per_1000']}", flush=True)
            yield found
            continue
        works = {"": found.reference} | {side.name: side.work for side in found.sides}
        seconds = measure.alternate(works, found.budget_s, warm=found.warm)
        for side in found.sides:
            record = {"what": side.what, "unit": found.unit, "threads": found.threads, "official": named}
            record |= measure.compare(seconds[""], seconds[side.name], found.per) | {
                "equality": side.equality
            }
            low, high = record["quartiles"]
            print(f"{side.what}: {record['reference_ms']} -> {record['ours_ms']} ms a {found.unit}", end=", ")
            print(
                f"{record['ratio']} [{low}, {high}] of {record['pairs']} pairs; {side.equality}", flush=True
            )
            yield side.name, record


def main() -> None:
    """Measure, print, and keep benchmarks/bench.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--official", type=Path, metavar="DIR", help="a checkout of the official HRNet code")
    parser.add_argument("--only", nargs="+", choices=[row.__name__ for row in ROWS], default=[])
    parser.add_argument("--quick", action="store_true", help="little work, nothing kept")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child[0], Path(options.child[1]), float(options.child[2]))
    started, official = time.perf_counter(), Official(options.official) if options.official else None
    origin = provenance()  # before the first row is kept, which changes the checkout
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(official, options.quick, Path(folder))
        for row in [row for row in ROWS if row.__name__ in options.only or not options.only]:
            try:
                found = dict(run_row(row, setting))
            except HrnetppError as error:  # a library that is not installed, two sides that differ
                print(f"{row.__name__}: not measured: {error}", flush=True)
                continue
            if not options.quick:  # each row as soon as it is there
                measure.keep(KEPT, measure.machine(CORES), found, origin)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
