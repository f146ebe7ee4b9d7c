"""What explorers accept, and decoding anew what a network has said: equal to the pipeline that predicts."""

import os
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hrnetpp_lib.data.crops import View
from hrnetpp_lib.data.persons import CocoTruth, PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import TTA_VIEWS, predict
from hrnetpp_lib.explore import session
from hrnetpp_lib.explore.session import TRUTH, Answer, Box, PeopleOfImage, ask, compare, open_people
from hrnetpp_lib.model.weights import ModelCard, save_checkpoint
from hrnetpp_lib.pose.geometry import UDP

CARD = ModelCard(input_hw=(96, 64))
BOX = np.array([20.0, 10.0, 60.0, 100.0])
IMAGE = np.random.default_rng(0).integers(0, 255, (130, 150, 3)).astype(np.uint8)


@pytest.fixture
def network(networks):
    return networks["one"][0]


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("views", [(View(),), TTA_VIEWS])
@pytest.mark.parametrize("decoder", ["quarter_offset", "soft_argmax"])
@pytest.mark.parametrize("coordinates", [CARD.coordinates, UDP], ids=lambda c: c.name)
def test_positions_are_those_of_predict(network, flip, views, decoder, coordinates):
    card = replace(CARD, decoder=decoder, coordinates=coordinates, alpha=20.0)
    answer = ask(network, card, IMAGE, BOX, views)
    found = answer.to_image(answer.positions(20.0, flip)[decoder])
    expected = predict(network, IMAGE, BOX[None], flip=flip, tta=views, card=card)[0]
    assert found == pytest.approx(expected[:, :2], abs=1e-3)
    assert answer.scores(flip) == pytest.approx(expected[:, 2], abs=1e-5)


def test_frames_go_both_ways_and_the_plain_view_is_shown(network):
    answer = ask(network, CARD, IMAGE, BOX, TTA_VIEWS)
    points = np.random.default_rng(1).uniform(0, 15, (17, 2))
    assert answer.to_heatmap(answer.to_image(points)) == pytest.approx(points)
    alone = ask(network, CARD, IMAGE, BOX)
    assert np.array_equal(answer.crops[0], alone.crops[0]) and answer.plain.shape == (5, 17, 24, 16)
    # The box of 60x100 px becomes 66.7x100 at 2:3; without padding that is the crop of 64x96.
    for padding, scale in ((1.0, 0.96), (1.25, 0.96 / 1.25), (2.0, 0.48)):
        matrix = ask(network, CARD, IMAGE, BOX, padding=padding).matrices[0]
        assert np.hypot(*matrix[:, 0]) == pytest.approx(scale)


def hill(x: float, y: float) -> Answer:
    """A single Gaussian for each of 17 keypoints on 24x16 cells, over a crop that is the image itself."""
    rows, columns = np.mgrid[:24, :16]
    maps = torch.from_numpy(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8.0))
    maps = maps.float().expand(1, 17, 24, 16)
    crops = np.zeros((1, 96, 64, 3), np.uint8)
    return Answer(CARD, crops, np.array([[[1.0, 0, 0], [0, 1.0, 0]]]), maps, maps)


def test_positions_by_hand():
    answer = hill(7.4, 11.0)
    truth = np.zeros((17, 3))
    truth[9] = (4 * 7.4, 4 * 11.0, 2)
    truth[0] = (4 * 7.4, 4 * 11.0 + 8, 1)
    found = compare(answer, Box(BOX, truth, area=900.0), 9, answer.positions(200.0, flip=False))
    assert [position.source for position in found] == ["arg_max", "quarter_offset", "soft_argmax", TRUTH]
    arg_max, quarter, _, true = found
    assert arg_max.xy_heatmap.tolist() == [7, 11] and quarter.xy_heatmap == pytest.approx([7.25, 11])
    assert arg_max.error_heatmap == pytest.approx(0.4) and arg_max.error_input == pytest.approx(1.6)
    sigma = CARD.skeleton.oks_sigmas
    similarity = np.exp(-(1.6**2) / (2 * sigma[9]) ** 2 / 900 / 2)
    nose = np.exp(-(1.6**2 + 8**2) / (2 * sigma[0]) ** 2 / 900 / 2)
    assert arg_max.similarity == pytest.approx(similarity)
    assert arg_max.oks == pytest.approx((similarity + nose) / 2)
    assert true.xy_heatmap == pytest.approx([7.4, 11.0]) and true.oks == 1


def test_without_truth_there_are_positions_only():
    answer = hill(3.0, 4.0)
    positions = answer.positions(60.0, flip=True)
    for box in (Box(BOX), Box(BOX, np.zeros((17, 3)), 500.0)):
        found = compare(answer, box, 5, positions)
        assert len(found) == 3 and all(np.isnan([p.error_input, p.similarity, p.oks]).all() for p in found)
    unlabelled = np.zeros((17, 3))
    unlabelled[3] = (10, 10, 2)
    found = compare(answer, Box(BOX, unlabelled, 500.0), 5, positions)
    assert len(found) == 3 and np.isnan(found[0].similarity) and 0 < found[0].oks <= 1
    # A small alpha pulls to the middle.
    far = [np.hypot(*(answer.positions(a, False)["soft_argmax"][0] - (3, 4))) for a in (1, 5, 20, 60)]
    assert far == sorted(far, reverse=True) and far[0] > 4 and far[-1] < 0.1


def test_networks_come_as_file_as_pair_or_by_name(tmp_path, network):
    checkpoint = tmp_path / "stage3_x" / "model.safetensors"
    save_checkpoint(network, ModelCard(input_hw=(64, 64), run="stage3_x"), checkpoint)
    assert [*session.open_networks(checkpoint)] == [*session.open_networks(str(checkpoint))] == ["stage3_x"]
    pair = session.open_networks(checkpoint)["stage3_x"]
    assert not pair[0].training and list(session.open_networks(pair)) == ["stage3_x"]
    assert list(session.open_networks({"a": checkpoint, "b": pair})) == ["a", "b"]
    for nothing in ({}, None, []):
        with pytest.raises(HrnetppError, match="train --profile smoke"):
            session.open_networks(nothing)


def test_people_of_a_table_keep_rows_order_and_truth(table):
    table = table.select(np.array([0, 1, 0]))
    table.bbox_scores[:] = (0.2, 0.9, 0.5)
    table.keypoints[2] = 0
    (picture,) = open_people(table)
    assert [box.row for box in picture.boxes] == [1, 2, 0] and picture.name == "dots.png"
    assert [box.truth is None for box in picture.boxes] == [False, True, False]
    assert picture.boxes[0].area == 13000 and picture.boxes[1].area is None


def test_crowds_and_boxes_without_area_are_nobody_to_look_at(table):
    own = {field.name: getattr(table, field.name) for field in fields(PersonTable)}
    truth = CocoTruth(**own, num_keypoints=np.array([4, 4]), crowd=np.zeros(2, bool))
    truth = truth.select(np.array([0, 1, 1]))
    truth.crowd[0], truth.bboxes_xywh[1, 2] = True, 0.0
    (picture,) = open_people(truth)
    assert [box.row for box in picture.boxes] == [2]
    with pytest.raises(HrnetppError, match="dots: has no person with a box"):
        open_people(truth.select(np.array([0, 1])))


def test_pictures_come_one_by_one_or_by_the_folder(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((8, 9, 3), np.uint8))
        (tmp_path / f"{name}.png").rename(tmp_path / name)
    assert [p.name for p in open_people(tmp_path)] == ["a.jpg", "b.png"]
    assert [p.name for p in open_people([tmp_path / "b.png", str(tmp_path / "a.jpg")])] == ["b.png", "a.jpg"]
    with pytest.raises(HrnetppError, match="c.png: no picture there"):
        open_people(tmp_path / "c.png")


def test_what_is_no_file_is_left_out_of_a_folder_and_refused_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nothing.png").touch()
    for path in (tmp_path, *tmp_path.iterdir(), "/dev/zero"):
        with pytest.raises(HrnetppError, match="no picture there"):
            open_people(path)
    for path in ("~nobody-of-this-name/x.jpg", "x" * 5000, "x\0y.jpg"):
        with pytest.raises(HrnetppError):
            open_people(path)
    cv2.imwrite(str(tmp_path / "me.png"), np.zeros((8, 9, 3), np.uint8))
    assert [p.name for p in open_people(tmp_path)] == ["me.png"]
    for path in (tmp_path / "nothing.png", Path("/proc/self/status")):  # it may never end
        with pytest.raises(HrnetppError, match="is empty"):
            PeopleOfImage("a.png", path).read()


def test_an_image_is_read_from_its_file_or_its_bytes_and_must_be_one(tmp_path):
    pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    data = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    (tmp_path / "me.png").write_bytes(data)
    for source in (data, tmp_path / "me.png"):
        assert np.array_equal(PeopleOfImage("me.png", source).read(), pixels)
    with pytest.raises(HrnetppError, match=r"^no.jpg"):
        PeopleOfImage("no.jpg", b"no picture").read()
    # It is turned upright only where no label refers to it.
    jpeg = cv2.imencode(".jpg", np.zeros((8, 24, 3), np.uint8))[1].tobytes()
    orientation_6 = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = jpeg[:2] + b"\xff\xe1" + (len(orientation_6) + 2).to_bytes(2, "big") + orientation_6 + jpeg[2:]
    assert PeopleOfImage("phone.jpg", turned).read().shape == (24, 8, 3)
    assert PeopleOfImage("phone.jpg", turned, (Box(BOX),)).read().shape == (8, 24, 3)


def test_the_best_labelled_person_is_the_first_of_equals_in_the_table():
    def box(labelled: int, row: int | None = None) -> Box:
        truth = np.repeat([[1.0, 1, 2], [0, 0, 0]], (labelled, 5 - labelled), axis=0)
        return Box(np.array([0.0, 0, 9, 9]), truth, 81.0, row)

    assert session.best_labelled([box(2, 7), box(4, 5), box(4, 3), box(4, 6)]) == 2
    assert session.best_labelled([box(1, 1), box(1, 0)]) == 1
    assert session.best_labelled([box(3), box(3)]) == session.best_labelled([]) == 0
    assert session.best_labelled([Box(np.ones(4)), box(1)]) == 1


def test_the_box_that_overlaps_most_by_hand_and_the_chosen_ones_frame():
    boxes = [Box(np.array(b, float)) for b in ([0, 0, 10, 10], [20, 0, 10, 10], [22, 0, 10, 10])]
    assert session.best_match(np.array([0.0, 0, 10, 5]), boxes) == 0  # 50 / 100
    assert session.best_match(np.array([23.0, 0, 10, 10]), boxes) == 2
    assert session.best_match(np.array([0.0, 6, 10, 10]), boxes) is None  # 40 / 160, less than 0.3
    assert session.best_match(np.array([0.0, 5, 10, 10]), boxes) == 0  # 50 / 150
    strip = session.thumbnails(
        np.full((50, 80, 3), 99, np.uint8), [Box(np.array([0.0, 0, 80, 50]))] * 3, chosen=1
    )
    assert strip.shape == (96, 216, 3)
    assert (strip[0, 72:144] == (240, 228, 66)).all() and not (strip[0, :72] == (240, 228, 66)).any()
