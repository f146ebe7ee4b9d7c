"""Every picture function: a figure of the one width that can be saved, without pyplot and without state."""

import subprocess
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hrnetpp_lib import create_model, draw
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.draw import plots
from hrnetpp_lib.evaluate.hills import Landing
from hrnetpp_lib.evaluate.inversions import NETWORKS, Inversions
from hrnetpp_lib.evaluate.statistics import Judged, judge
from hrnetpp_lib.evaluate.table import Claim
from hrnetpp_lib.pose.keypoints import AIC14, COCO17


def picture(height: int = 48, width: int = 36, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pose(visibility: float = 2, skeleton=COCO17) -> np.ndarray:
    k = len(skeleton)
    return np.column_stack([np.linspace(2, 30, k), np.linspace(40, 4, k), np.full(k, visibility)])


def table(tmp_path) -> PersonTable:
    keypoints = np.zeros((5, 17, 3), np.float32)
    keypoints[:, :, 2] = np.arange(17) % 3
    boxes = np.array([[0, 0, 10, 20 + i] for i in range(5)], float)
    return PersonTable(
        *("made up", COCO17, tmp_path, np.array([b"a.jpg", b"b.jpg", b"c.jpg"]), np.arange(3)),
        *(np.full((3, 2), 64, np.int32), np.array([0, 0, 1, 1, 1], np.int32), np.arange(5), boxes),
        *(np.ones(5), np.full(5, 200.0), keypoints, {}),
    )


def snapshot(epoch: int) -> dict:
    rng = np.random.default_rng(epoch)
    crops = rng.integers(0, 256, (8, 32, 24, 3), np.uint8)
    return {"epoch": epoch, "crops": crops, "heatmaps": rng.random((8, 17, 8, 6)).astype(np.float16)}


def records(metric: bool) -> list[dict]:
    epochs = [{"epoch": e, "loss": 1.0 / e} for e in (1, 2, 3)]
    return [e | {"metric": "COCO AP", "value": 0.1, "val_loss": 0.5} for e in epochs] if metric else epochs


with torch.device("meta"):
    TINY = create_model(
        "hrnetpp_w8", blocks_per_branch=1, modules=(1, 1, 1), stem_channels=8, layer1_blocks=1
    )
IMAGES = [picture(), picture(30, 60), picture()]
BOXES = [np.array([[1.0, 2, 20, 30]]), np.zeros((0, 4)), np.array([[3.0, 3, 9, 9]])]
STAGES = {"box": (5.0, 6, 10, 20), "larger": (2.0, 3, 16, 26)}
TRUTH = np.ones((8, 17, 3))
POSES = [[pose()], [], [pose(1), pose()]]
PAIRS = [1.0, 2.5, 1.5], []  # of trainings; of the second claim there are none
VERDICTS = judge(PAIRS)
CLAIMS = [
    Claim(*names, 0.2, 1.25, tuple(d), v) for names, d, v in zip(("ba", "cb"), PAIRS, VERDICTS, strict=True)
]
JUDGED = [
    Judged("E1", "b - a", report, [0, 1, 2], {"OKS": d, "AP": d}, {}, None, {"OKS": v, "AP": v})
    for report, d, v in zip((0.2, None), PAIRS, VERDICTS, strict=True)
]
EXAMPLE = Landing(
    *("left wrist", 9, picture(128, 96), np.eye(32, 24, dtype=np.float32), pose(), pose()),
    *(np.array([4.0, 4.0]), (1.0, 0.0), 0.0),
)
ARGUMENTS = {
    "render_images": lambda tmp: (IMAGES, POSES, COCO17, BOXES, ["one", "two", "three"], 2),
    "render_heatmaps": lambda tmp: ([picture()] * 7, [np.eye(12, 9)] * 7, [str(i) for i in range(7)], 3),
    "render_curves": lambda tmp: (records(True), "red", "cells", "it rose"),
    "render_bars": lambda tmp: (["x", "y", "z"], [0.5, 1.25, 0.0], ["red", "green", "blue"], "AP", 2),
    "render_labels": lambda tmp: (table(tmp), "COCO"),
    "render_gallery": lambda tmp: (IMAGES, POSES, COCO17, BOXES, ["one", "two", "three"], 2),
    "render_box_stages": lambda tmp: (picture(), pose(), COCO17, STAGES, picture(), pose()),
    "render_training": lambda tmp: ({"HRNet": records(True), "HRNet++": records(True)}, ("a", "b")),
    "render_maps": lambda tmp: (picture(), np.stack([np.eye(12, 9)] * 5), list("abcde"), np.ones((5, 3))),
    "render_beside": lambda tmp: ([picture()], [pose()], {"a": [pose()]}, {"a": ["OKS 9"]}, COCO17),
    "render_shift": lambda tmp: ([np.eye(8), np.eye(8)], ["before", "after"]),
    "render_sharpening": lambda tmp: ([snapshot(e) for e in (1, 2)], 4, {"a": 1, "b": 0}, TRUTH),
    "render_error_kinds": lambda tmp: (dict.fromkeys(("good", "jitter", "swap"), np.arange(17)), COCO17),
    "render_claims": lambda tmp: (CLAIMS,),
    "render_verdicts": lambda tmp: (JUDGED,),
    "render_panels": lambda tmp: (np.arange(4), {"a": {"x": np.arange(4)}, "b": {}}, "x (px)", ["y (px)"]),
    "render_histograms": lambda tmp: ({"heatmap": np.arange(5) / 5, "b": np.zeros(3)}, "peak", "keypoints"),
    "render_cells": lambda tmp: ({"a": np.arange(3), "b": np.ones(4)}, [1, 1.5], 1.2),
    "render_way": lambda tmp: (picture(40, 24), np.eye(10, 6), np.eye(10, 6) / 6, pose(), COCO17, 3),
    "render_marginals": lambda tmp: (np.eye(3, 4), np.eye(3, 4) / 3, (1, 1), (1.2, 0.8)),
    "render_networks": lambda tmp: ({"tiny": TINY},),
    "render_people": lambda tmp: (IMAGES, [pose()] * 3, [pose()] * 3, COCO17, ["one", "two", "three"]),
    "render_examples": lambda tmp: ([], COCO17),
    "render_inversions": lambda tmp: ([Inversions(name, 0, 70.0, (9.0,) * 17) for name in NETWORKS], COCO17),
    "render_screenshot": lambda tmp: ("explorer",),
    "render_steps": lambda tmp: ({"one": {"AP": (0.3, 0.2)}, "two": {"AP": (0.0, -0.1)}},),
    "render_kinds": lambda tmp: ({"heatmap": {"good": 60.0, "miss": 40.0}}, draw.METHOD_COLOURS),
    "render_precision": lambda tmp: ({"heatmap": np.arange(5) / 4}, "heatmap", draw.METHOD_COLOURS),
    "render_landing": lambda tmp: (EXAMPLE, COCO17, 60.0),
    "render_alphas": lambda tmp: ({"one": {1.0: 0.5, 60.0: 0.1}}, 60.0),
}
RENDERERS = {name: function for name, function in vars(draw).items() if name.startswith("render_")}


@pytest.mark.parametrize("name", sorted(RENDERERS))
def test_every_figure_has_the_one_width_can_be_saved_and_leaves_no_state(name, tmp_path):
    assert name in ARGUMENTS, "write down arguments for the new function"
    before = dict(mpl.rcParams)
    figure = RENDERERS[name](*ARGUMENTS[name](tmp_path))
    if name == "render_curves":
        assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    assert isinstance(figure, Figure) and dict(mpl.rcParams) == before
    assert figure.get_figwidth() == draw.WIDTH_IN == 6.5
    path = tmp_path / "new folder" / "figure.png"
    assert draw.save(figure, path) is figure
    image = read_image(path)
    assert image.shape[1] == 1040  # 6.5 inches at 160 dots
    assert image.std() > 2
    assert figure._repr_png_().startswith(b"\x89PNG")  # a notebook shows it


def test_the_style_holds_for_titles_and_legends_too(tmp_path):
    figure = draw.render_labels(table(tmp_path), "COCO")
    assert figure.get_suptitle() == "COCO"
    (legend,) = figure.legends
    assert not legend.get_frame_on()
    assert legend.get_texts()[0].get_fontsize() == draw.STYLE["legend.fontsize"]


def test_a_figure_shows_itself_its_alternative_text_and_its_caption(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    figure = draw.render_shift([np.eye(8)], ["blob"])
    figure._ipython_display_()
    ((bare, options),) = shown
    assert bare["image/png"].startswith("iVBOR") and options == {"metadata": {}, "raw": True}
    assert draw.describe(figure, "A bright diagonal.", "eight cells lie on it.") is figure
    figure._ipython_display_()
    _, (data, options), (caption, _) = shown
    assert data == {"image/png": bare["image/png"], "text/plain": "A bright diagonal."}
    assert options["metadata"] == {"image/png": {"alt": "A bright diagonal."}}
    assert caption.data == "*Figure: eight cells lie on it.*"
    height = figure.get_figheight()
    draw.describe(figure, "A bright diagonal.", "eight cells lie on it.", "half of them are bright")
    assert figure.get_suptitle() == "half of them are bright" and figure.get_figheight() > height
    draw.render_shift([np.eye(8)], ["another"])._ipython_display_()
    assert len(shown) == 4  # figures share no words


def test_panels_share_an_axis_if_they_show_the_same_and_name_curves_if_there_are_several():
    panels = {"one": {"a": np.zeros(3)}, "two": {"a": np.ones(3), "b": np.full(3, 9.0)}}
    first, second = draw.render_panels(np.arange(3), panels, "x", ["y"], {"b": "red"}).axes
    assert first.get_ylim() == second.get_ylim() and (first.get_ylabel(), second.get_ylabel()) == ("y", "")
    assert first.get_legend() is None and len(second.get_legend().get_texts()) == 2
    assert second.lines[1].get_color() == "red" and second.lines[1].get_ydata().tolist() == [9, 9, 9]
    first, second = draw.render_panels(np.arange(3), panels, "x", ["y", "z"]).axes
    assert first.get_ylim() != second.get_ylim() and second.get_ylabel() == "z"


def test_histograms_hold_every_value_and_mark_the_median():
    samples = {"heatmap": np.array([0.2, 0.3, 0.7]), "regression": np.array([-0.4, 1.6, 1.2, 1.4])}
    for ax, (name, values) in zip(
        draw.render_histograms(samples, "peak", "n").axes, samples.items(), strict=True
    ):
        assert sum(bar.get_height() for bar in ax.patches) == len(values)
        assert ax.get_title("left") == f"{name}: median {np.median(values):.2f} of {len(values)}"
        assert ax.lines[0].get_xdata()[0] == np.median(values)
        assert to_hex(ax.patches[0].get_facecolor()).upper() == draw.METHOD_COLOURS[name]


def test_pyplot_is_not_needed():
    code = "import sys, hrnetpp_lib.draw; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def drawn(keypoints: np.ndarray, skeleton=COCO17, **options):
    figure, axes = draw.new_figure(1, 1, 2.0)
    draw.draw_pose(axes[0, 0], keypoints, skeleton, **options)
    limbs, dots = axes[0, 0].collections
    return limbs, dots


@pytest.mark.parametrize("skeleton", [COCO17, AIC14], ids=lambda s: s.name)
def test_limbs_and_dots_have_the_colours_of_their_sides(skeleton):
    limbs, dots = drawn(pose(skeleton=skeleton), skeleton)
    assert len(limbs.get_segments()) == len(skeleton.limbs) and len(dots.get_offsets()) == len(skeleton)
    for name, edge in zip(skeleton.names, dots.get_edgecolors(), strict=True):
        side = name.split("_")[0] if name.startswith(("left_", "right_")) else "centre"
        assert to_hex(edge).upper() == draw.SIDE_COLOURS[side]
    for (a, b), colour in zip(skeleton.limbs, limbs.get_colors(), strict=True):
        sides = {skeleton.names[k].split("_")[0] for k in (a, b)} & {"left", "right"}
        expected = sides.pop() if len(sides) == 1 else "centre"
        assert to_hex(colour).upper() == draw.SIDE_COLOURS[expected], (a, b)
    assert (draw.SIDE_COLOURS["left"], draw.SIDE_COLOURS["right"]) == ("#0072B2", "#D55E00")
    assert len(set(draw.SIDE_COLOURS.values())) == 3
    assert len(set(draw.METHOD_COLOURS.values())) == len(draw.METHOD_COLOURS)


def test_unlabelled_or_weak_keypoints_are_left_out_and_hidden_ones_hollow():
    keypoints = pose()
    keypoints[5, 2], keypoints[7, 2] = 0, 1  # left shoulder unlabelled, left elbow hidden
    limbs, dots = drawn(keypoints)
    assert len(dots.get_offsets()) == 16
    assert len(limbs.get_segments()) == len(COCO17.limbs) - 3  # shoulders, upper arm, flank
    (hollow,) = np.flatnonzero((dots.get_facecolors() == 1).all(axis=1))
    np.testing.assert_allclose(dots.get_offsets()[hollow], keypoints[7, :2])
    keypoints[:, 2] = np.linspace(0, 1, 17)
    _, dots = drawn(keypoints, threshold=0.5)
    assert len(dots.get_offsets()) == 8  # 9/16 .. 16/16
    assert not (dots.get_facecolors() == 1).all(axis=1).any()  # a score of 1 is no visibility flag


def test_a_heatmap_is_transparent_but_at_its_peak_and_clipped():
    heatmap = np.zeros((10, 8))
    layer = draw.heat_layer(heatmap, (40, 32))
    assert layer.shape == (40, 32, 4) and layer.dtype == np.uint8 and not layer[:, :, 3].any()
    heatmap[2, 6] = 1
    opacity = draw.heat_layer(heatmap, (40, 32), blend=0.5)[:, :, 3]
    row, column = np.unravel_index(opacity.argmax(), opacity.shape)
    assert (row // 4, column // 4) == (2, 6) and 100 < opacity.max() <= 127
    for outside, inside in ((7.0, 1.0), (-1.0, 0.0)):
        layers = [draw.heat_layer(np.full((2, 2), value), (8, 8)) for value in (outside, inside)]
        np.testing.assert_array_equal(*layers)


def test_poses_painted_into_a_picture_are_where_and_as_the_figure_draws_them():
    image = np.full((100, 120, 3), 128, np.uint8)
    person = np.zeros((17, 3))
    person[[5, 7, 6, 11]] = [(20, 30, 0.9), (60, 30, 0.8), (20, 60, 0.7), (50, 90, 0.2)]
    painted = draw.paint_poses(image, person[None], COCO17, np.array([[70.0, 10, 40, 50]]), threshold=0.2)
    assert painted.shape == image.shape and painted.dtype == np.uint8 and (image == 128).all()
    colour = {name: plots._rgb(code) for name, code in draw.SIDE_COLOURS.items()}
    places = {(30, 40): colour["left"], (30, 20): colour["left"], (60, 20): colour["right"]}
    places |= {(45, 20): colour["centre"], (10, 90): (240, 228, 66), (35, 110): (240, 228, 66)}
    for place, expected in places.items():  # elbow, shoulder, other shoulder, between them; the box
        np.testing.assert_allclose(painted[place], expected, atol=25)  # lines have soft edges
    assert (painted[75:] == 128).all()  # the hip's score is not over the threshold
    far = np.full((1, 17, 3), 1e7)
    assert draw.paint_poses(image, far, COCO17).shape == image.shape
    np.testing.assert_array_equal(draw.paint_poses(image, np.zeros((0, 14, 3)), AIC14), image)


def test_plain_ground_hides_pictures_and_nothing_else():
    photograph = picture(96, 72)
    figure = draw.render_images([photograph], [[pose()]], COCO17)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), photograph)
    assert figure.axes[0].get_xlim() == (0, 71) and figure.axes[0].get_ylim() == (95, 0)
    heatmaps = draw.render_heatmaps([photograph], [np.eye(24, 18)], ["one"])
    for drawn in (figure, heatmaps):
        ax = drawn.axes[0]
        layers = [np.array(layer.get_array()) for layer in ax.images[1:]]
        lines = [path.vertices.copy() for c in ax.collections for path in c.get_paths()]
        draw.hide_pictures(drawn)
        hidden = np.asarray(ax.images[0].get_array())
        assert hidden.shape == photograph.shape
        assert hidden.dtype == np.uint8 and hidden.std() == 0
        np.testing.assert_array_equal(layers, [layer.get_array() for layer in ax.images[1:]])
        still = [path.vertices for c in ax.collections for path in c.get_paths()]
        assert lines and all(np.array_equal(a, b) for a, b in zip(lines, still, strict=True))
    # A map is no picture.
    figure = draw.render_shift([np.eye(8)], ["blob"])
    draw.hide_pictures(figure)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), np.eye(8))


def test_a_heatmap_lies_over_its_crop_in_grey_with_a_line_at_half_of_its_peak():
    heatmap, crop = np.zeros((4, 6)), picture(16, 24)
    heatmap[1, 4] = 0.2
    ax = draw.render_heatmaps([crop], [heatmap], ["low"]).axes[0]
    grey, layer = (np.asarray(image.get_array()) for image in ax.images)
    assert np.ptp(grey.astype(int), axis=2).max() == 0 and abs(grey.mean() - crop.mean()) < 1
    assert layer.shape == (16, 24, 4)
    ((x, y),) = [path.vertices.mean(axis=0) for path in ax.collections[0].get_paths()]
    assert abs(x - 17.5) < 0.5 and abs(y - 5.5) < 0.5  # the middle of that cell in px of the crop
    assert not draw.render_heatmaps([crop], [0 * heatmap], ["none"]).axes[0].collections


def test_a_flat_curve_of_the_metric_lies_below_the_frame():
    flat = [{"epoch": e, "loss": 1.0 / e, "metric": "AP", "value": 0.3} for e in (10, 20)]
    loss_ax, metric_ax = draw.render_curves(flat, "red", "cells", "it stayed").axes
    assert metric_ax.get_ylim() == pytest.approx((0, 34.5)) and loss_ax.get_ylim() == pytest.approx(
        (0, 0.115)
    )
    assert all(tick == int(tick) for tick in metric_ax.get_xticks())
    low = [epoch | {"value": 0.001} for epoch in flat]  # small differences shall look small
    assert draw.render_curves(low, "red", "cells", "").axes[1].get_ylim() == (0, 10)


def test_bars_are_in_the_given_order_from_the_top():
    ax = draw.render_bars(["first", "second"], [1.0, 2.0], ["red", "blue"], "AP", 1).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert ax.yaxis_inverted() and ax.get_xlabel() == "AP" and ax.get_xlim()[1] > 2.0
    assert [text.get_text() for text in ax.texts] == ["1.0", "2.0"]
    assert draw.render_bars(["a"], [0.2], ["red"], "AP", least=10).axes[0].get_xlim()[1] == 11


def test_a_forest_has_claims_from_the_top_dots_of_trainings_and_their_mean():
    figure = draw.render_verdicts(JUDGED)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["E1  b - a"] * 2
    assert (
        left.get_xscale() == right.get_xscale() == "symlog"
    )  # tenths and tens of points are both to be seen
    none = replace(JUDGED[1], seeds=[])
    assert draw.render_verdicts([JUDGED[0], none]).axes[0].get_yticks().tolist() == [0]
    assert draw.render_verdicts([none]).axes[0].get_yticks().tolist() == []  # as of a study that begins
    assert left.yaxis_inverted() and right.yaxis_inverted()
    dots = [line for line in right.lines if line.get_marker() == "."]
    assert [line.get_xdata().tolist() for line in dots] == [PAIRS[0], []]
    crosses = [
        [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "x"] for ax in (left, right)
    ]
    assert crosses == [[], [[0.2]]]
    (mean,) = [line for line in right.lines if line.get_marker() == "o"]
    assert mean.get_xdata() == [np.mean(PAIRS[0])] and mean.get_markerfacecolor() == "white"  # not decided


def test_error_kinds_are_shares_that_fill_the_bar_of_each_keypoint_that_occurs():
    counts = {"good": [5, 0, 1], "swap": [2, 0, 1], "miss": [1, 0, 2]}
    counts = {kind: np.array(numbers + [1] * 14) for kind, numbers in counts.items()}
    ax = draw.render_error_kinds(counts, COCO17).axes[0]
    bars, names = ax.containers, [label.get_text() for label in ax.get_xticklabels()]
    assert len(names) == 16 and names[:2] == ["nose", "right eye"]  # the left eye has no label
    heights = [[bar.get_height() for bar in kind][:2] for kind in bars]
    np.testing.assert_allclose(heights, [[0.625, 0.25], [0.25, 0.25], [0.125, 0.5]])
    np.testing.assert_allclose([bar.get_y() for bar in bars[2]][:2], [0.875, 0.5])
