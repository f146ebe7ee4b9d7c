"""The drawing of networks says what is in them: modules, ways, skips, head, and which changes are on."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle

from hrnetpp_lib import create_model, draw

SMALL = {"blocks_per_branch": 1, "modules": (1, 2, 3), "stem_channels": 8, "layer1_blocks": 1}
SE, AVGPOOL, SKIPS, HEAD = draw.CHANGE_COLOURS


@pytest.fixture(scope="module")
def figure() -> Figure:
    names = "hrnet", "hrnet+se", "hrnet+avgpool", "hrnet+skips", "hrnet+head", "hrnetpp"
    with torch.device("meta"):
        return draw.render_networks({name: create_model(f"{name}_w8", 3, **SMALL) for name in names})


def panel(figure: Figure, name: str):
    (ax,) = [ax for ax in figure.axes if ax.get_title("left") == name]
    return ax


def kinds(ax, kind) -> list:
    return [patch for patch in ax.patches if type(patch) is kind]


def colours(ax) -> list[str]:
    return [to_hex(line.get_color()).upper() for line in ax.lines]


def test_every_module_has_a_box_on_each_of_its_branches(figure):
    for ax in figure.axes:
        words = [text.get_text() for text in ax.texts]
        counts = [words.count(f"m{number}") for number in range(1, 8)]
        assert counts == [2, 3, 3, 4, 4, 4, 0]
        assert len(kinds(ax, FancyBboxPatch)) == sum(counts) + 1  # and the stem's


def test_a_change_that_is_on_has_its_colour_and_number_and_the_others_have_not(figure):
    seen = {}
    for ax in figure.axes:
        numbers = {text.get_text() for text in ax.texts} & set("1234")
        drawn = {to_hex(patch.get_edgecolor()).upper() for patch in kinds(ax, PathPatch)} | set(colours(ax))
        drawn |= {to_hex(patch.get_facecolor()).upper() for patch in kinds(ax, Rectangle)}
        drawn |= {to_hex(line.get_markeredgecolor()).upper() for line in ax.lines}
        seen[ax.get_title("left")] = numbers, drawn & set(draw.CHANGE_COLOURS)
    assert seen == {
        "hrnet": (set(), set()),
        "hrnet+se": ({"1"}, {SE}),
        "hrnet+avgpool": ({"2"}, {AVGPOOL}),
        "hrnet+skips": ({"3"}, {SKIPS}),
        "hrnet+head": ({"4"}, {HEAD}),
        "hrnetpp": (set("1234"), set(draw.CHANGE_COLOURS)),
    }


def test_every_gated_box_has_a_strip_and_every_skip_an_arc(figure):
    both = panel(figure, "hrnetpp")
    assert len(kinds(both, Rectangle)) == len(kinds(both, FancyBboxPatch)) == 21
    with torch.device("meta"):
        skips = create_model("hrnetpp_w8", 3, **SMALL).skips
    arcs = kinds(both, PathPatch)
    into_last = sum("_m6_" in key for key in skips)
    assert len(arcs) == len(skips) and sum(arc.get_alpha() == 1 for arc in arcs) == into_last


def test_each_way_down_of_average_pooling_is_coloured(figure):
    # layer1 -> m1: 1; m1 -> m2: 0>1 and the new branch 1>2, 2; m2 -> m3: 3; m3 -> m4: 3 and the new one;
    # m4 -> m5 and m5 -> m6: 6 each.
    ways = [line for line in panel(figure, "hrnet+avgpool").lines if len(line.get_xdata()) == 2]
    down = [line for line in ways if line.get_ydata()[0] > line.get_ydata()[1]]
    assert len(down) == 1 + 2 + 3 + 4 + 6 + 6
    assert {to_hex(line.get_color()).upper() for line in down} == {AVGPOOL}


def test_the_last_sum_is_only_where_the_head_is_not(figure):
    for ax in figure.axes:
        words = [text.get_text() for text in ax.texts]
        head = ax.get_title("left") in ("hrnet+head", "hrnetpp")
        assert (words.count("+"), words.count("c")) == ((0, 3) if head else (1, 0))
