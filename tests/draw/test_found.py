"""Figures of what was found beside the truth, which is white, and of differences."""

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex

from hrnetpp_lib import draw
from hrnetpp_lib.draw import found
from hrnetpp_lib.evaluate.mistakes import Mistake
from hrnetpp_lib.pose.keypoints import COCO17


def pose(x: float) -> np.ndarray:
    return np.column_stack([np.full(17, x), np.arange(17) * 4.0, np.full(17, 2)])


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (96, 72, 3)).astype(np.uint8)


def test_the_truth_is_white_below_the_pose_and_a_keypoint_is_ringed_with_a_line_from_its_label():
    frames = [(0, 0, 72, 96), (10, 20, 30, 40)]
    arguments = [picture(), picture(1)], [pose(9), pose(20)], [pose(12), pose(25)], COCO17, ["one", "two"]
    figure = draw.render_people(*arguments, frames, [9, 0])
    first, second, empty = figure.axes
    assert (first.get_title(), second.get_title()) == ("one", "two") and not empty.axison
    assert second.get_xlim() == (9.5, 39.5) and second.get_ylim() == (59.5, 19.5)
    truth, *_ = first.collections
    assert {to_hex(colour) for colour in truth.get_colors()} == {"#ffffff"}
    assert {point[0] for segment in truth.get_segments() for point in segment} == {9}
    assert truth.get_zorder() < min(one.get_zorder() for one in first.collections[2:])
    dots = first.collections[1]  # white, and ringed in the colour of the person's side: nose, left, right eye
    assert to_hex(dots.get_facecolors()[0]) == "#ffffff"
    sides = [draw.SIDE_COLOURS[side].lower() for side in ("centre", "left", "right")]
    assert [to_hex(colour) for colour in dots.get_edgecolors()[:3]] == sides
    line, ring = first.lines
    assert line.get_xydata().tolist() == [[9, 36], [12, 36]] and ring.get_xydata().tolist() == [[12, 36]]


def test_examples_are_read_from_their_files(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    one = Mistake("miss", tmp_path / "a.png", np.array([5.0, 5, 30, 40]), pose(9), pose(12), 9, 7.25)
    ax = draw.render_examples([one], COCO17).axes[0]
    assert ax.get_title() == "miss\nleft wrist, 7.2 cells" and ax.get_xlim() == (4.5, 34.5)
    assert draw.render_examples([], COCO17).axes[0].texts[0].get_text() == "nobody was found"


def test_a_picture_of_a_widget_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "figures").mkdir()
    cv2.imwrite(str(tmp_path / "figures" / "widget.png"), picture()[:, :, ::-1])
    monkeypatch.setattr(found, "project_root", lambda: tmp_path)
    figure = draw.render_screenshot("widget")
    draw.hide_pictures(figure)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(shown[:, :, :3], picture())
    assert cv2.imdecode(np.frombuffer(figure._repr_png_(), np.uint8), 1).shape[1] == 1430


def test_steps_are_dots_beside_crosses_on_one_axis_that_does_not_magnify():
    steps = {"one": {"AP": (0.3, 0.2), "AP50": (-0.1, -0.3)}, "two": {"AP": (0.0, 0.1), "AP50": (0.2, 0.0)}}
    first, second = draw.render_steps(steps).axes
    marks = {line.get_marker(): line for line in first.lines}
    assert [*marks["o"].get_xdata()] == [0.3, -0.1] and [*marks["x"].get_xdata()] == [0.2, -0.3]
    assert first.yaxis_inverted() and first.get_xlim() == second.get_xlim() == (-1.15, 1.15)
    assert [label.get_text() for label in first.get_yticklabels()] == ["AP", "AP50"]


def test_kinds_have_a_bar_for_each_network_and_good_a_panel_of_its_own():
    values = {"heatmap": (70.0, 20.0, 10.0), "regression": (72.0, 19.0, 9.0)}
    shares = {name: dict(zip(("good", "jitter", "miss"), of, strict=True)) for name, of in values.items()}
    good, wrong = draw.render_kinds(shares, draw.METHOD_COLOURS).axes
    assert [bar.get_height() for bar in good.patches] == [70, 72]
    assert [bar.get_height() for bar in wrong.patches] == [20, 10, 19, 9]
    assert [label.get_text() for label in wrong.get_xticklabels()] == ["jitter", "miss"]
    assert wrong.get_ylim()[0] == 0


def test_precision_is_a_share_and_a_difference_in_points():
    errors = {"heatmap": np.array([0.4, 0.8, 1.2, 9.0]), "regression": np.array([0.2, 0.8])}
    left, right = draw.render_precision(errors, "heatmap", draw.METHOD_COLOURS).axes
    shares = [dict(np.round(line.get_xydata(), 3)) for line in left.lines]
    assert [share[1.0] for share in shares] == [50, 100] and shares[0][3.0] == 75
    flat, ahead = (dict(np.round(line.get_xydata(), 3)) for line in right.lines)
    assert set(flat.values()) == {0} and ahead[0.3] == 50 and ahead[1.0] == 50
    assert right.get_ylim() == pytest.approx((-55, 55))
    alike = draw.render_precision({"heatmap": errors["heatmap"]}, "heatmap", draw.METHOD_COLOURS)
    assert alike.axes[1].get_ylim() == (-5, 5)
    nobody = draw.render_precision({"heatmap": np.zeros(0)}, "heatmap", draw.METHOD_COLOURS)
    assert not nobody.axes[0].lines[0].get_ydata().any()
