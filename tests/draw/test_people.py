"""Pictures of people: rows of one height, bars that add up, and a box on its way to a crop."""

import numpy as np
import pytest
from data.test_words import people

from hrnetpp_lib import draw
from hrnetpp_lib.pose.keypoints import COCO17


def images(*shapes: tuple[int, int]) -> list[np.ndarray]:
    return [np.full((*shape, 3), 99, np.uint8) for shape in shapes]


def test_pictures_of_a_row_have_one_height_fill_the_width_and_keep_their_shapes():
    shapes = (30, 60), (60, 30), (40, 40), (50, 20), (20, 50)
    box = [np.array([[1.0, 2, 5, 6]])] * 5
    titles = list("abcde")
    figure = draw.render_gallery(images(*shapes), [[]] * 5, COCO17, box, titles, 3, true_boxes=box)
    spans = [ax.get_position() for ax in figure.axes]
    width, height = figure.get_size_inches()
    for row in (spans[:3], spans[3:]):
        assert [s.height for s in row] == pytest.approx([row[0].height] * len(row))
        assert row[0].x0 == 0 and max(s.y1 for s in row) < 1
    assert spans[2].x1 == pytest.approx(1) and spans[3].y1 < spans[0].y0
    for (h, w), span in zip(shapes, spans, strict=True):
        assert span.width * width / (span.height * height) == pytest.approx(w / h)
    assert [ax.get_title() for ax in figure.axes] == titles
    assert all(len(ax.patches) == 2 for ax in figure.axes)


def test_every_keypoint_has_a_bar_of_100_percent_from_the_top():
    table = people([2, 1, 0, *[2] * 14])
    heights, labels = draw.render_labels(table, "a finding").axes
    assert [tick.get_text() for tick in labels.get_yticklabels()][:2] == ["nose", "left eye"]
    assert labels.yaxis_inverted() and labels.get_xlim() == (0, 100)
    widths = np.array([bar.get_width() for bar in labels.patches]).reshape(3, 17)
    assert (
        widths.sum(axis=0).tolist() == [100] * 17
        and widths[:, :3].tolist() == np.diag([100, 100, 100]).tolist()
    )
    assert sum(bar.get_height() for bar in heights.patches) == 3


def test_a_box_grows_panel_by_panel_and_the_crop_comes_last():
    stages = {"box": (5.0, 6, 10, 20), "extended": (2.0, 6, 16, 20), "enlarged": (0.0, 3.5, 20, 25)}
    pose = np.full((17, 3), 2.0)
    figure = draw.render_box_stages(*images((40, 30)), pose, COCO17, stages, *images((16, 12)), pose)
    assert [ax.get_title() for ax in figure.axes] == [*stages, "the crop\n12 x 16 px"]
    assert [len(ax.patches) for ax in figure.axes] == [2, 3, 4, 0]  # a black ground, and the boxes so far
    left, right = figure.axes[0].get_xlim()
    assert left < 0 and right > 20 and figure.axes[3].get_xlim() == (-0.5, 11.5)
