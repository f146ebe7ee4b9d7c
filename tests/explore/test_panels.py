"""The explorers' pictures: they show what they are given, and read well in colour and in grey."""

import cv2
import numpy as np
import pytest

from hrnetpp_lib.explore import panels
from hrnetpp_lib.explore.panels import MARKS, encode_png, render_contour, render_marginals, render_surface
from hrnetpp_lib.explore.session import TRUTH, Position
from hrnetpp_lib.pose.keypoints import COCO17

RNG = np.random.default_rng(0)
HEATMAP = np.exp(-((np.mgrid[:24, :16][1] - 6.0) ** 2 + (np.mgrid[:24, :16][0] - 9.0) ** 2) / 8)
POSE = np.column_stack([RNG.uniform(5, 55, (17, 2)), np.ones(17)])
KNOWN = [
    Position("arg_max", np.array([6.0, 9.0]), 0.5, 2.0, 0.9, 0.8),
    Position("quarter_offset", np.array([6.25, 9.25]), 0.3, 1.2, 0.95, 0.82),
    Position("soft_argmax", np.array([6.1, 9.3]), 0.2, 0.8, 0.97, 0.84),
    Position(TRUTH, np.array([6.2, 9.4]), 0.0, 0.0, 1.0, 1.0),
]
UNKNOWN = [Position("arg_max", np.array([6.0, 9.0]))]


def pixels(figure) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(encode_png(figure), np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("render", [render_contour, render_surface])
@pytest.mark.parametrize("positions", [KNOWN, UNKNOWN], ids=["truth", "no truth"])
def test_maps_show_their_positions(render, positions):
    drawn = pixels(render(HEATMAP, positions, "left wrist"))
    assert drawn.shape == (280, 280, 3) and drawn.std() > 20
    moved = [Position(p.source, p.xy_heatmap + 3, 0.0, 0.0, 1.0, 1.0) for p in positions]
    assert (pixels(render(HEATMAP, moved, "left wrist")) != drawn).any()


@pytest.mark.parametrize("value", [0.0, 0.7, -0.3])
def test_flat_maps_are_drawn_without_complaint(value):
    flat = np.full((24, 16), value)
    figures = [render(flat, KNOWN, "nose") for render in (render_contour, render_surface)]
    assert all(pixels(figure).std() > 0 for figure in (*figures, render_marginals(flat, 60.0, KNOWN)))


def test_marginals_are_those_of_the_softmax():
    figure = render_marginals(HEATMAP, 30.0, KNOWN)
    mass = np.exp(30 * HEATMAP) / np.exp(30 * HEATMAP).sum()
    for ax, axis in zip(figure.axes, (0, 1), strict=True):
        (steps,) = ax.patches
        assert steps.get_data().values == pytest.approx(mass.sum(axis=axis), abs=1e-6)
        lines = [segment[0][0] for segment in ax.collections[0].get_segments()]
        assert lines == pytest.approx([p.xy_heatmap[axis] for p in KNOWN])
    assert figure.axes[0].get_xlim() == (-0.5, 15.5) and figure.axes[1].get_xlim() == (-0.5, 23.5)
    assert np.isfinite(pixels(render_marginals(1e4 * HEATMAP, 200.0, KNOWN))).all()


def test_pictures_keep_their_aspect_and_show_blend_and_truth():
    crop = RNG.integers(0, 255, (96, 64, 3)).astype(np.uint8)
    drawn = [pixels(panels.render_crop(crop, HEATMAP, b, POSE, COCO17, 9, POSE)) for b in (0.0, 0.9)]
    assert drawn[0].shape[0] / drawn[0].shape[1] == pytest.approx(96 / 64, rel=0.02)
    assert np.abs(drawn[0].astype(int) - drawn[1]).mean() > 1
    image, box = np.full((60, 90, 3), 120, np.uint8), np.array([10.0, 5.0, 40.0, 50.0])
    with_truth, without = (pixels(panels.render_box(image, box, POSE, COCO17, t)) for t in (POSE + 3, None))
    assert with_truth.shape == without.shape and (with_truth != without).any()
    assert with_truth.shape[1] / with_truth.shape[0] == pytest.approx(90 / 60, rel=0.02)


def test_a_truth_far_outside_does_not_shrink_the_map():
    """Without it and with it, the panel's lower part alone differs: the legend has an entry more."""
    far = [*KNOWN[:3], Position(TRUTH, np.array([-81.0, -465.0]), 9.0, 36.0, 0.0, 0.1)]
    for render, rows in ((render_contour, slice(0, 190)), (render_surface, slice(0, 280))):
        with_truth, without = (pixels(render(HEATMAP, r, "left wrist"))[rows] for r in (far, KNOWN[:3]))
        assert (with_truth == without).all(), render.__name__


@pytest.mark.parametrize("positions", [KNOWN, UNKNOWN], ids=["truth", "no truth"])
def test_moved_positions_are_drawn_as_if_all_were_drawn_anew(positions):
    panel = panels.ContourPanel(HEATMAP, positions, "left wrist")
    for shift in (0, 3, 0):
        moved = [Position(p.source, p.xy_heatmap + shift) for p in positions]
        assert panel.draw(moved) == encode_png(render_contour(HEATMAP, moved, "left wrist"))


@pytest.mark.parametrize("hw", [(1400, 60), (60, 1400), (90, 60), (480, 1), (1, 480)])
def test_towers_and_ribbons_stay_small(hw):
    figure = panels.render_box(np.zeros((*hw, 3), np.uint8), np.array([1, 1, 40, 40]), POSE, COCO17, None)
    drawn = pixels(figure)
    assert drawn.shape[0] <= 420 and drawn.shape[1] <= 280


def test_the_table_has_numbers_or_dashes_and_marks_differ():
    html = panels.table_html(KNOWN)
    assert all(mark.label in html for mark in MARKS.values())
    assert html.count("<tr>") == 5
    assert all(cells in html for cells in ("6.25, 9.25", "<td>1.20</td>", "<td>0.970</td><td>0.840</td>"))
    unknown = panels.table_html(UNKNOWN)
    assert unknown.count("–") == 8 and "not labelled" in unknown and "not labelled" not in html
    labels, markers, sizes, colours = (set(column) for column in zip(*MARKS.values(), strict=True))
    assert len(labels) == len(markers) == len(colours) == 4 and len(sizes) == 3
    image = RNG.integers(0, 255, (5, 7, 3)).astype(np.uint8)
    decoded = cv2.imdecode(np.frombuffer(panels.encode_image(image), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded[..., ::-1], image)
