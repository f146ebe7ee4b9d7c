"""Where a keypoint lands, in figures: the truth, the positions and the sums are where they should be."""

import numpy as np
import pytest

from hrnetpp_lib import draw
from hrnetpp_lib.evaluate.hills import Landing, two_highest
from hrnetpp_lib.pose.keypoints import COCO17


@pytest.fixture
def wrist() -> Landing:
    """A hill at (9.2, 16) on 24 x 32 cells, the label a cell to the right."""
    y, x = np.mgrid[:32, :24]
    heatmap = (0.8 * np.exp(-((x - 9.2) ** 2 + (y - 16) ** 2) / 4.5)).astype(np.float32)
    pose = np.column_stack([np.full(17, 36.8), np.linspace(8, 120, 17), np.ones(17)])
    truth = pose.copy()
    pose[9, :2], truth[9, :2] = (36.8, 64), (40.8, 64)
    seen = np.zeros((128, 96, 3), np.uint8), heatmap, truth, pose, np.array([4.0, 4.0])
    return Landing("left wrist", 9, *seen, *two_highest(heatmap))


def test_the_zoom_is_four_cells_around_the_top_and_holds_truth_and_positions(wrist):
    figure = draw.render_landing(wrist, COCO17, 60)
    crop, above, near, *_ = figure.axes
    assert near.get_xlim() == (4.5, 13.5) and near.get_ylim() == (20.5, 11.5)
    assert above.get_xlim() == (-0.5, 23.5) and above.get_ylim() == (31.5, -0.5)
    (square,) = above.patches
    assert (*square.get_xy(), square.get_width(), square.get_height()) == (4.5, 11.5, 9, 9)
    for ax in (above, near):
        marks = {line.get_label(): line for line in ax.lines}
        assert list(marks) == ["truth", "arg max", "quarter offset", "soft argmax"]
        assert marks["truth"].get_xydata().tolist() == pytest.approx(np.array([[10.2, 16]]))
        assert marks["truth"].get_markerfacecolor() == "white"
        for name, place in wrist.places(60).items():
            assert marks[name.replace("_", " ")].get_xydata()[0] == pytest.approx(place)
    (ring,) = crop.lines
    assert ring.get_xydata().tolist() == [[36.8, 64]]
    assert set(map(tuple, crop.collections[0].get_colors()[:, :3])) == {(1, 1, 1)}  # the true limbs


def test_sums_are_shares_of_columns_and_rows_with_lines_at_the_positions(wrist):
    *_, columns, rows = draw.render_landing(wrist, COCO17, 60).axes
    places = wrist.places(60)
    for axis, ax in enumerate((columns, rows)):
        heights = np.array([bar.get_height() for bar in ax.patches])
        assert len(heights) == (24, 32)[axis] and heights.sum() == pytest.approx(1)
        centre = heights @ np.arange(len(heights))
        assert centre == pytest.approx(places["soft_argmax"][axis], abs=1e-4)
        dashed, *solid = (line.get_xdata()[0] for line in ax.lines)
        assert dashed == pytest.approx((10.2, 16)[axis])
        assert solid == [place[axis] for place in places.values()]
        assert ax.get_ylim() == (0, 1) and np.diff(ax.get_xlim()) < 12  # wide enough to be read


def test_a_flat_map_and_a_label_outside_it_can_be_drawn(wrist):
    wrist.heatmap[:] = 0
    wrist.truth[9, :2] = -40, 900
    figure = draw.render_landing(wrist, COCO17, 60)
    assert figure.axes[1].get_xlim() == (-0.5, 23.5)


def test_errors_over_alpha_share_an_axis_that_begins_at_zero():
    panels = {"sharp": {1: 7.0, 60: 0.1}, "two": {1: 3.0, 60: 0.2}}
    first, second = draw.render_alphas(panels, 60).axes
    assert first.get_xscale() == "log" and first.get_ylim() == second.get_ylim() == pytest.approx((0, 7.7))
    curve, own = first.lines
    assert curve.get_xydata().tolist() == [[1, 7], [60, 0.1]] and own.get_xdata() == [60, 60]
    assert draw.render_alphas({"flat": {1: 0.1, 60: 0.1}}, 60).axes[0].get_ylim() == pytest.approx((0, 2.2))
