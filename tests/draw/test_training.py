"""Figures of trainings: all that is measured is drawn, small differences look small, truth is white."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from hrnetpp_lib import draw
from hrnetpp_lib.pose.keypoints import COCO17

CROP = np.full((32, 24, 3), 99, np.uint8)


def epochs(factor: float, value: float) -> list[dict]:
    made = [{"epoch": e, "loss": factor / e} for e in (1, 2, 3, 4)]
    for one in made[1::2]:
        one |= {"val_loss": 0.5 * factor, "value": value, "metric": "COCO AP", "boxes": "b.json"}
    return made


def test_curves_their_difference_and_a_metric_that_starts_at_zero():
    pair = {"HRNet": epochs(1e-3, 0.003), "HRNet++": epochs(1.02e-3, 0.004)}
    losses, difference, metric = draw.render_training(pair, ("theirs", "ours")).axes
    assert losses.lines[0].get_ydata() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert losses.lines[1].get_ydata() == pytest.approx([0.5, 0.5])
    assert losses.get_ylim()[0] == 0
    assert difference.lines[0].get_ydata() == pytest.approx([2] * 4)
    assert list(difference.lines[1].get_xdata()) == [2, 4]
    assert difference.lines[1].get_ydata() == pytest.approx([2, 2])
    assert difference.get_ylim() == (-10, 10) and metric.get_ylim() == (0, 10)  # noise is not magnified
    assert metric.lines[1].get_ydata() == pytest.approx([0.4, 0.4])
    assert (difference.get_title(), metric.get_title()) == ("theirs", "COCO AP on val:\nours")
    colours = [to_hex(line.get_color()).upper() for line in metric.lines]
    assert colours == [draw.METHOD_COLOURS["hrnet"], draw.METHOD_COLOURS["heatmap"]]
    pair["HRNet++"] = epochs(2e-3, 0.8)
    _, difference, metric = draw.render_training(pair, ("", "")).axes
    assert difference.get_ylim()[1] > 100 and metric.get_ylim()[1] > 80


def kept(epoch: int) -> dict:
    maps = np.random.default_rng(epoch).random((3, 17, 8, 6)).astype(np.float16)
    return {"epoch": epoch, "crops": np.stack([CROP] * 3), "heatmaps": maps}


@pytest.mark.parametrize(("number", "panels", "rows"), [(1, 2, 1), (2, 4, 1), (4, 8, 2), (9, 12, 2)])
def test_sharpening_fills_its_rows_and_marks_the_truth(number, panels, rows):
    truth = np.zeros((3, 17, 3))
    truth[2, 4] = 11, 7, 2  # the other person's is not labelled
    snapshots = [kept(e) for e in range(1, number + 1)]
    axes = draw.render_sharpening(snapshots, 4, {"sharp": 2, "divided": 0}, truth).axes
    assert len(axes) == panels and axes[0].get_gridspec().nrows == rows
    titles = [ax.get_title("left") for ax in axes]
    half = panels // 2
    assert titles[0] == f"sharp\nepoch 1: {snapshots[0]['heatmaps'][2, 4].max():.2f}"
    assert titles[half].startswith("divided\nepoch 1:") and f"epoch {number}:" in titles[-1]
    assert [len(ax.lines) for ax in axes] == [1] * half + [0] * half
    assert axes[0].lines[0].get_xydata().tolist() == [[11, 7]] and axes[0].lines[0].get_color() == "white"


def test_maps_come_after_all_of_them_together():
    maps = np.zeros((3, 8, 6))
    maps[0, 1, 2] = maps[2, 4, 4] = 1
    truth = np.array([[8.0, 4, 2], [0, 0, 0], [16, 16, 1]])
    first, *each = draw.render_maps(CROP, maps, ["a", "b", "c"], truth).axes[:4]
    opacity = [ax.images[1].get_array()[:, :, 3] > 200 * 0.6 for ax in (first, *each)]
    np.testing.assert_array_equal(opacity[0], opacity[1] | opacity[2] | opacity[3])
    assert [len(ax.lines) for ax in (first, *each)] == [0, 1, 0, 1]
    assert [ax.get_title() for ax in (first, *each)] == ["all together", "a", "b", "c"]
    for number, shown, columns in ((17, 18, 6), (12, 12, 6), (14, 15, 5)):
        axes = draw.render_maps(CROP, np.zeros((number, 8, 6)), ["x"] * number, np.zeros((number, 3))).axes
        assert len(axes) == shown and axes[0].get_gridspec().ncols == columns


def test_truth_is_white_under_each_networks_pose():
    truth, pose = np.full((17, 3), 5.0), np.full((17, 3), 9.0)
    truth[3, 2] = 0
    poses = {"HRNet": [pose, pose], "HRNet++": [pose, 0 * pose]}
    titles = {name: ["OKS 90", "OKS 10"] for name in poses}
    axes = draw.render_beside([CROP, CROP], [truth, truth], poses, titles, COCO17).axes
    assert [ax.get_title("left") for ax in axes] == [
        "HRNet\nOKS 90",
        "\nOKS 10",
        "HRNet++\nOKS 90",
        "\nOKS 10",
    ]
    for ax, found in zip(axes, (17, 17, 17, 0), strict=True):
        limbs, dots, *theirs = ax.collections
        assert (limbs.get_colors() == 1).all() and (dots.get_facecolors() == 1).all()
        assert len(dots.get_offsets()) == 16 and len(theirs[1].get_offsets()) == found
