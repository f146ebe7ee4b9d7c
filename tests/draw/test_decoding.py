"""Figures of a heatmap's way to a coordinate: bars, what is read, and the truth, in their places."""

import numpy as np
import pytest

from hrnetpp_lib import draw


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
