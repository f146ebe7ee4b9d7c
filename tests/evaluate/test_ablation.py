"""Networks with one change each: their table, and sentences that agree with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hrnetpp_lib.evaluate import ablation

APS = {"hrnet": 0.1834, "hrnet+se": 0.1701, "hrnet+skips": 0.1836, "hrnet+head": 0.2449, "hrnetpp": 0.2031}


def test_the_switches_are_told_from_the_one_that_gives_most_to_the_one_that_takes_most():
    assert ablation.say_switches(APS) == (
        "In this run HRNet++ scores AP 20.3 and plain HRNet 18.3; one change alone moves plain HRNet by: "
        "head +6.2, skips +0.1, se -1.3. The highest is hrnet+head, 7.5 points above the lowest."
    )


@pytest.mark.parametrize(("best", "words"), [("hrnet", "plain HRNet"), ("hrnetpp", "HRNet++")])
def test_the_highest_is_called_by_its_name(best, words):
    assert f"The highest is {words}, 73.0 points" in ablation.say_switches(APS | {best: 0.9})


def test_the_title_has_the_highest_and_its_lead():
    said = "one training each: hrnet+head is highest, by 7.5 points over the lowest"
    assert ablation.title_switches(APS) == said
    assert "plain HRNet is highest, by 73.0" in ablation.title_switches(APS | {"hrnet": 0.9})
    assert "nothing" in ablation.title_switches(dict.fromkeys(APS, 0.004))


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_the_sentence_agrees_with_a_table_of_one_digit(values):
    aps = dict(zip(APS, values, strict=True))
    said, shown = ablation.say_switches(aps), {name: round(100 * ap, 1) for name, ap in aps.items()}
    if max(shown.values()) < 1:
        assert said.startswith("In this run all of them end below 1 point of AP")
        return
    assert f"scores AP {shown['hrnetpp']:.1f} and plain HRNet {shown['hrnet']:.1f};" in said
    assert f"{max(shown.values()) - min(shown.values()):.1f} points above the lowest" in said
    step = shown["hrnet+se"] - shown["hrnet"]
    assert ("se 0.0" if abs(step) < 0.05 else f"se {step:+.1f}") in said


def test_the_table_has_the_cost_of_each_network_by_hand():
    network = nn.Conv2d(3, 5, 3, padding=1, bias=False)  # 135 weights at 240 places
    costs = ablation.count_costs({"one": network}, (20, 12))
    assert costs == {"one": (135, 32400)}
    shown = ablation.in_markdown({"one": 0.1234}, {"one": 0.00217}, costs)
    assert shown.splitlines()[2:] == ["| one | 12.3 | 2.17e-03 | 0.00 | 0.000 |"]
    assert "| 0.14 | 0.032 |" in ablation.in_markdown({"a": 0.5}, {"a": 1.0}, {"a": (135_000, 32_400_000)})


def test_costs_are_told_in_percent_of_plain_hrnet():
    networks = "hrnet", "hrnet+se", "hrnet+avgpool", "hrnetpp"
    costs = dict(zip(networks, ((200, 1000), (202, 1000), (180, 950), (190, 1004)), strict=True))
    losses = dict(zip(networks, (3e-3, 2.9e-3, 2.5e-3, 2.6e-3), strict=True))
    assert ablation.say_costs(losses, costs) == (
        "In this profile HRNet++ has 5.0% fewer parameters and 0.4% more multiply-adds than plain HRNet. Of "
        "one change alone se costs most, 0.0% more, and avgpool least, 5.0% fewer. The least training loss "
        "is that of hrnet+avgpool, 2.50e-03."
    )


@pytest.mark.parametrize(
    ("scaled", "words"), [(0.6179, "+0.2 points"), (0.6161, "the same AP"), (0.6000, "-1.6 points")]
)
def test_alphas_are_compared_as_they_are_printed(scaled, words):
    said = ablation.say_alphas({60.0: 0.6159, 15.0: scaled})
    assert said.startswith(f"In this run stage 3 with alpha 15 ends at AP {100 * scaled:.1f}, with the ")
    assert said.endswith(f"report's 60 at 61.6: {words}.")
    moved = words.removesuffix(" points") if "points" in words else "0.0"
    assert ablation.title_alphas({60.0: 0.6159, 15.0: scaled}).endswith(f"moves AP by {moved}")
