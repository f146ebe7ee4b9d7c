"""Inference with a network that is known to be right: it lights up where the picture is bright."""

import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hrnetpp_lib.data.annotations import read_coco_detections
from hrnetpp_lib.data.crops import BoxCrops
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.evaluate import infer
from hrnetpp_lib.evaluate.infer import TTA_VIEWS, Predictions, predict
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.geometry import EXACT_SHIFT, UDP
from hrnetpp_lib.pose.keypoints import COCO17

HW = (128, 96)
CARD = ModelCard(COCO17, HW)
SMALL = replace(CARD, input_hw=(64, 32))


class BrightnessNetwork(torch.nn.Module):
    """Heatmaps of red brightness for keypoint 0, and of green and blue for the pair (1, 2)."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        lowest = images.amin(dim=(2, 3), keepdim=True)
        # Cell i answers for input px 4*i, so take every fourth pixel of the smoothed picture.
        smooth = F.avg_pool2d(F.pad(images - lowest, (3, 3, 3, 3)), 7, stride=1)[:, :, ::4, ::4]
        maps = torch.zeros(len(images), 17, images.shape[2] // 4, images.shape[3] // 4)
        maps[:, :3] = smooth / 4
        return maps


def dotted_image(dots: dict[int, tuple[float, float]]) -> np.ndarray:
    y, x = np.mgrid[:240, :320]
    image = np.zeros((240, 320, 3))
    for channel, (px, py) in dots.items():
        image[..., channel] = 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 15.0**2))
    return image.astype(np.uint8)


BOX = np.array([[100.0, 40.0, 120.0, 160.0]])
DOT = (150.0, 100.0)


@pytest.mark.parametrize("tta", [None, TTA_VIEWS], ids=["single", "tta"])
@pytest.mark.parametrize("decoder", ["quarter_offset", "soft_argmax"])
@pytest.mark.parametrize("coordinates", [CARD.coordinates, EXACT_SHIFT, UDP], ids=lambda c: c.name)
def test_a_dot_is_found_where_it_is(tta, decoder, coordinates):
    card = replace(CARD, decoder=decoder, coordinates=coordinates, alpha=12.0)
    poses = predict(BrightnessNetwork(), dotted_image({0: DOT}), BOX, flip=False, tta=tta, card=card)
    assert poses.shape == (1, 17, 3)
    # A cell is 4 * 150 / 96 = 6.25 image px; the quarter offset is good to an eighth of a cell at best.
    # UDP's cells are 4.04 input px, which this stride-4 network does not know: up to half a px a cell.
    tolerance = {"quarter_offset": 1.6, "soft_argmax": 0.7}[decoder] + (2.5 if coordinates is UDP else 0)
    assert np.hypot(*(poses[0, 0, :2] - DOT)) < tolerance
    assert 0.1 < poses[0, 0, 2] < 2


def test_the_official_flip_test_is_an_eighth_of_a_cell_off_and_the_exact_shift_is_not():
    card = replace(CARD, decoder="soft_argmax", alpha=12.0)
    network, found = BrightnessNetwork(), {}
    for convention in (CARD.coordinates, EXACT_SHIFT):
        pose = predict(network, dotted_image({0: DOT}), BOX, card=replace(card, coordinates=convention))
        found[convention.name] = pose[0, 0, 0] - DOT[0]
    cell = 4 * 150 / 96
    assert found["official"] - found["exact_shift"] == pytest.approx(cell / 8, abs=0.15)
    assert abs(found["exact_shift"]) < 0.3


def test_the_flip_test_swaps_pairs():
    crops = torch.zeros(2, 128, 96, 3, dtype=torch.uint8)
    crops[:, 60:68, 20:28, 1] = 255  # green: keypoint 1, left of the middle
    maps = infer.forward(BrightnessNetwork(), crops, CARD)
    # The mirrored picture shows green as keypoint 1 again, which comes back as keypoint 2.
    assert maps[0, 1].max() == pytest.approx(maps[0, 2].max().item(), rel=0.1)
    single = infer.forward(BrightnessNetwork(), crops, CARD, flip=False)
    assert single[0, 2].max() < 0.01 and maps.shape == (2, 17, 32, 24)


def test_tta_returns_the_mean_of_its_views():
    network, image = BrightnessNetwork(), dotted_image({0: DOT, 1: (120, 80), 2: (180, 150)})
    parts = [predict(network, image, BOX, tta=(view,), card=CARD) for view in TTA_VIEWS]
    assert predict(network, image, BOX, tta=TTA_VIEWS, card=CARD) == pytest.approx(np.mean(parts, axis=0))


class RowsNetwork(BrightnessNetwork):
    """Notes how many crops it sees at once, and whether half of them mirror the other half."""

    def __init__(self):
        super().__init__()
        self.seen, self.mirrored = [], []

    def forward(self, images):
        half = len(images) // 2
        self.seen.append(len(images))
        self.mirrored.append(torch.equal(images[:half], images[half:].flip(-1)))
        return super().forward(images)


def table_of(folder, images: int, boxes: int) -> PersonTable:
    """That many boxes on pictures with a dot each, the pictures in turn, so that no two rows share one."""
    for i in range(images):
        picture = dotted_image({0: (120 + 20 * i, 100)})
        cv2.imwrite(str(folder / f"{i}.png"), picture[..., ::-1])
    files, index = (
        np.array([f"{i}.png".encode() for i in range(images)]),
        np.arange(boxes, dtype=np.int32) % images,
    )
    image = files, np.arange(images), np.full((images, 2), [240, 320], np.int32), index
    bboxes = BOX + np.arange(boxes)[:, None] * [1.0, 0.5, 0.25, 0.75]
    person = np.arange(boxes), bboxes, np.ones(boxes), np.ones(boxes), np.zeros((boxes, 17, 3), np.float32)
    return PersonTable("dots", COCO17, folder, *image, *person, {})


@pytest.mark.parametrize("views", [infer.SINGLE_VIEW, TTA_VIEWS], ids=["single", "tta"])
def test_boxes_in_any_order_threads_and_batches_give_what_one_crop_alone_gives(tmp_path, monkeypatch, views):
    table, read = table_of(tmp_path, 3, 11), []

    def count(path):
        read.append(path.name)
        return read_image(path)

    monkeypatch.setattr("hrnetpp_lib.data.crops.read_image", count)
    network = RowsNetwork()
    for batch_size, workers in ((32, 0), (7, 3)):
        found = infer.predict_boxes(network, SMALL, table, True, views, batch_size, workers)
        assert sorted(read) == ["0.png", "1.png", "2.png"] and all(network.mirrored)
        assert max(network.seen) <= max(batch_size, 2 * len(views)) and sum(network.seen) == 11 * 2 * len(
            views
        )
        for row in (0, 1, 10):
            picture = read_image(table.image_path(row))
            alone = predict(BrightnessNetwork(), picture, table.bboxes_xywh[[row]], tta=views, card=SMALL)[0]
            assert np.array_equal(found.keypoints[row], alone[:, :2])
            assert np.array_equal(found.scores[row], alone[:, 2].astype(np.float32))
        read.clear(), network.seen.clear()


def test_boxes_of_an_image_and_of_several_go_through_the_network_together():
    network, boxes, image = RowsNetwork(), BOX + np.arange(20)[:, None], dotted_image({0: DOT})
    together = predict(network, image, boxes, card=SMALL)
    assert network.seen == [32, 8] and all(network.mirrored)
    alone = [predict(network, image, boxes[[i]], card=SMALL)[0] for i in range(20)]
    assert np.array_equal(together, alone)
    network.seen.clear()
    rows = [[0], [], [1, 2], [3, 4, 5, 6, 7], [], [8], list(range(9, 20)), []]
    images = iter([(image, boxes[chosen]) for chosen in rows])
    found = list(infer.predict_images(network, images, card=SMALL, batch_size=8))
    assert network.seen == [8] * 5 and [len(poses) for poses in found] == [len(chosen) for chosen in rows]
    for poses, chosen in zip(found, rows, strict=True):
        assert np.array_equal(poses, together[chosen])


def test_images_are_let_go_as_soon_as_their_poses_are_there(monkeypatch):
    image, asked = dotted_image({0: DOT}), []

    def images(boxes):
        for number in range(12):
            asked.append(number)
            yield image, np.repeat(BOX, boxes, axis=0)

    # Batches of four boxes; and of many, which as many images cannot wait for.
    for boxes, batch, most, ahead in ((3, 8, 2**30, 2), (0, 8, 2**30, 1), (1, 1000, 3 * image.nbytes, 4)):
        asked.clear()
        monkeypatch.setattr(infer, "_MOST_HELD_BYTES", most)
        found = infer.predict_images(BrightnessNetwork(), images(boxes), card=SMALL, batch_size=batch)
        for number, poses in enumerate(found):
            assert len(poses) == boxes and len(asked) <= number + ahead
        assert len(asked) == 12


def test_no_thread_outlives_an_error_of_a_picture_or_of_the_network(tmp_path):
    table, threads = table_of(tmp_path, 9, 60), threading.active_count()
    network = BrightnessNetwork()
    network.forward = lambda images: torch.full((len(images), 17, 16, 8), torch.nan)
    with pytest.raises(HrnetppError, match="heatmaps are not finite"):
        infer.predict_boxes(network, SMALL, table, batch_size=4, workers=3)
    (tmp_path / "5.png").write_bytes(b"torn")
    with pytest.raises(HrnetppError) as caught:
        infer.predict_boxes(BrightnessNetwork(), SMALL, table, batch_size=4, workers=3)
    assert str(caught.value).startswith(str(tmp_path / "5.png")) and "\n" not in str(caught.value)
    batches = BoxCrops(table_of(tmp_path, 9, 60), HW).batches(2, workers=2)
    next(batches)
    batches.close()
    assert threading.active_count() == threads


def test_a_long_prediction_says_how_far_it_is_and_a_short_one_nothing(tmp_path, monkeypatch, capsys):
    table = table_of(tmp_path, 2, 5)
    infer.predict_boxes(BrightnessNetwork(), SMALL, table)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(infer, "_SECONDS_BETWEEN_LINES", 1e-9)
    infer.predict_boxes(BrightnessNetwork(), SMALL, table, batch_size=4)
    said = capsys.readouterr().out
    assert "predicted 2/5 boxes, " in said and "box/s, 00:0" in said and " to go\n" in said


def test_a_network_without_parameters_says_where_it_is():
    network = BrightnessNetwork()
    crops = torch.randint(0, 256, (3, *HW, 3), dtype=torch.uint8)
    expected = infer.forward(network, crops, CARD)
    del network.weight
    network.device = torch.device("cpu")
    assert torch.equal(infer.forward(network, crops, CARD), expected)


def test_average_by_hand_and_of_other_boxes():
    a = Predictions(np.zeros((2, 17, 2)), np.ones((2, 17)), HW)
    b = Predictions(np.full((2, 17, 2), 4.0), np.full((2, 17), 0.5), HW)
    mean = infer.average([a, b])
    assert (mean.keypoints == 2).all() and (mean.scores == 0.75).all() and mean.input_hw == HW
    for other in (Predictions(np.zeros((3, 17, 2)), np.ones((3, 17)), HW), replace(b, input_hw=(64, 64))):
        with pytest.raises(ValueError, match="same boxes"):
            infer.average([a, other])


def test_predictions_round_trip_and_an_end_asked_for_is_no_damage(tmp_path, monkeypatch):
    saved = Predictions(np.random.rand(3, 17, 2), np.random.rand(3, 17).astype(np.float32), HW)
    saved.save(tmp_path / "new" / "p.npz")
    loaded = Predictions.load(tmp_path / "new" / "p.npz")
    assert np.array_equal(loaded.keypoints, saved.keypoints) and np.array_equal(loaded.scores, saved.scores)
    assert loaded.input_hw == HW and loaded.scores.dtype == np.float32

    def interrupted(path):
        raise Preempted("SIGTERM")

    monkeypatch.setattr(np, "load", interrupted)
    with pytest.raises(Preempted):
        Predictions.load(tmp_path / "new" / "p.npz")


def test_other_arrays_are_no_predictions(tmp_path):
    arrays = {"keypoints": np.ones((3, 17, 2)), "scores": np.ones((3, 17)), "input_hw": np.array(HW)}
    text, objects, nan = np.full((3, 17, 2), "text"), np.array([{}]), np.full((3, 17, 2), np.nan)
    wrong = [{"keypoints": array} for array in (np.ones((3, 17, 3)), text, objects, nan)]
    wrong += [{"scores": array} for array in (np.ones((3, 14)), np.ones((3, 17), int))]
    wrong += [{"input_hw": np.array(sizes)} for sizes in ([96.0, 64.0], [96, 64, 32], [0, 64])]
    for change in wrong:
        np.savez(tmp_path / "p.npz", **arrays | change)
        with pytest.raises(HrnetppError, match=r"p\.npz.*delete it to predict anew"):
            Predictions.load(tmp_path / "p.npz")


def test_torn_flipped_foreign_and_missing_files_are_no_predictions(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(HrnetppError, match=r"p\.npz.*no such file"):
        Predictions.load(path)
    Predictions(np.random.rand(99, 17, 2), np.random.rand(99, 17), HW).save(path)
    content = path.read_bytes()
    fewer = content.replace(b"(99, 17", b"( 1, 17")  # arrays of one person, which numpy alone would take
    for damaged in (content[:500], b"", b"[1]", fewer):
        path.write_bytes(damaged)
        with pytest.raises(HrnetppError, match="delete it to predict anew"):
            Predictions.load(path)
    zeros = {"keypoints": np.zeros((10**5, 17, 2)), "scores": np.zeros((10**5, 17)), "input_hw": np.array(HW)}
    np.savez_compressed(path, **zeros)  # 40 MB in 40 KB
    with pytest.raises(HrnetppError, match="other parts"):
        Predictions.load(path)


def test_no_box_gives_no_pose_and_bad_input_is_refused():
    image, model = dotted_image({0: DOT}), BrightnessNetwork()
    assert predict(model, image, np.zeros((0, 4)), card=CARD).shape == (0, 17, 3)
    bad = [(image.astype(np.float32), BOX, "uint8 RGB")]
    no_boxes = (BOX[0], "1,2,3,4", [[1, 2, 3, 4], [5]], [[None] * 4, [{}] * 4], 7)
    bad += [(image, boxes, r"\(N, 4\)") for boxes in no_boxes]
    empty = [[-30, 5, 20, 40], [0, 0, 0, 9], [5, 5, 9, -3], [np.nan, 1, 2, 3], [0, 0, np.inf, 9]]
    empty += [[0, 0, 1e300, 1e300], [0, 0, 1e-200, 9], [-1e7, 0, 1e8, 9]]
    wrong = r"box \[.*has no area in the image of 320x240 px"
    bad += [(image, np.array([[9, 9, 60, 80], box], float), wrong) for box in empty]
    for picture, boxes, message in bad:
        with pytest.raises(HrnetppError, match=message):
            predict(model, picture, boxes, card=CARD)
    with pytest.raises(HrnetppError, match="decoder 'other' is unknown"):
        predict(model, image, BOX, card=replace(CARD, decoder="other"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_named_in_one_line(tmp_path, workers):
    (tmp_path / "dots.png").write_bytes(b"torn")
    image = np.array([b"dots.png"]), np.array([1]), np.array([[240, 320]], np.int32), np.zeros(1, np.int32)
    person = np.array([1]), BOX, np.ones(1), np.ones(1), np.zeros((1, 17, 3), np.float32)
    table = PersonTable("dots", COCO17, tmp_path, *image, *person, {})
    with pytest.raises(HrnetppError) as caught:
        infer.predict_boxes(BrightnessNetwork(), CARD, table, workers=workers)
    assert str(caught.value).startswith(str(tmp_path / "dots.png")) and "\n" not in str(caught.value)


def test_real_detections_go_through_the_whole_path(real_data):
    folder = real_data / "coco_test"
    boxes = read_coco_detections(folder / "test_coco_det_AP_H_56.json", folder / "test_coco.json", folder)
    network = BrightnessNetwork()
    found = infer.predict_boxes(network, replace(CARD, input_hw=(64, 64)), boxes)
    assert found.keypoints.shape == (118, 17, 2) and np.isfinite(found.keypoints).all()
    assert found.input_hw == (64, 64)
    nobody = infer.predict_boxes(network, CARD, boxes.select([]))
    assert nobody.keypoints.shape == (0, 17, 2) and nobody.scores.shape == (0, 17)
