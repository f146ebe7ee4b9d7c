"""Figures of a heatmap's way to a coordinate: bars, what is read, and the truth, in their places."""

import numpy as np
import pytest

from hrnetpp_lib import draw
from hrnetpp_lib.pose.keypoints import AIC14


def heights(ax) -> list[float]:
    return [bar.get_height() for bar in ax.patches]


def lines(ax) -> dict[str, float]:
    """Where the dashed and the solid vertical line are."""
    return {line.get_linestyle(): line.get_xdata()[0] for line in ax.lines}


def test_a_row_of_cells_has_a_bar_each_and_two_lines():
    rows = {"first": np.array([0.1, 0.7, 0.2]), "second": np.array([0.0, 0.5, 0.5, 0.0])}
    figure = draw.render_cells(rows, [1.1, 1.5], true_x=1.3, ylabel="share")
    assert [ax.get_title() for ax in figure.axes] == list(rows)
    for ax, values, found in zip(figure.axes, rows.values(), (1.1, 1.5), strict=True):
        assert heights(ax) == values.tolist()
        assert lines(ax) == {"--": 1.3, "-": found}
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim() and figure.axes[0].get_ylabel() == "share"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["truth 1.3", "what is read"]


def test_rows_of_different_kinds_share_no_axis():
    first, second = draw.render_cells(
        {"a": np.array([9.0, 1.0]), "b": np.array([0.5, 0.5])}, [0, 0.5], 0
    ).axes
    assert first.get_ylim()[1] > 9 > 1 > second.get_ylim()[1]


def test_marginals_are_sums_of_columns_and_rows():
    mass = np.array([[0.1, 0.2, 0.0], [0.3, 0.4, 0.0]])  # 2 rows, 3 columns
    figure = draw.render_marginals(np.sqrt(mass), mass, found_xy=(0.6, 0.7), true_xy=(0.5, 0.9))
    left, right, columns, rows = figure.axes
    np.testing.assert_array_equal(left.images[0].get_array(), np.sqrt(mass))
    np.testing.assert_array_equal(right.images[0].get_array(), mass)
    for ax in (left, right):
        assert ax.lines[0].get_xydata().tolist() == [[0.5, 0.9]] and ax.lines[0].get_color() == "white"
    assert heights(columns) == pytest.approx([0.4, 0.6, 0]) and heights(rows) == pytest.approx([0.3, 0.7])
    assert lines(columns) == {"--": 0.5, "-": 0.6} and lines(rows) == {"--": 0.9, "-": 0.7}
    assert columns.get_title().endswith("x = 0.60") and rows.get_title().endswith("y = 0.70")


def test_the_way_of_a_keypoint_ends_in_a_pose_in_the_crop():
    crop = np.full((40, 24, 3), 9, np.uint8)  # 4 px a cell
    heatmap, mass = np.zeros((10, 6)), np.zeros((10, 6))
    heatmap[5, 2], mass[5, 2], mass[5, 3] = 0.8, 0.75, 0.25
    keypoints = np.column_stack([np.linspace(0, 5, 14), np.linspace(1, 8, 14), np.ones(14)])
    keypoints[3, :2] = 2.25, 5
    seen, hot, soft, at, pose = draw.render_way(crop, heatmap, mass, keypoints, AIC14, shown=3).axes
    assert all(np.array_equal(ax.images[0].get_array(), crop) for ax in (seen, hot, at, pose))
    assert hot.images[1].get_array().shape == (40, 24, 4)
    np.testing.assert_array_equal(soft.images[0].get_array(), mass)
    assert soft.get_xlim() == (-1.75, 6.25) and soft.get_ylim() == pytest.approx((5 + 20 / 3, 5 - 20 / 3))
    assert soft.lines[0].get_xydata().tolist() == [[2.25, 5]]
    assert at.lines[0].get_xydata().tolist() == [[9, 20]] and "(2.25, 5.00)" in at.get_title()
    dots = pose.collections[-1].get_offsets()
    np.testing.assert_allclose(dots, 4 * keypoints[:, :2])
    assert AIC14.names[3].replace("_", " ") in hot.get_title()
