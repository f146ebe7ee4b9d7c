"""Sentences about stage 3: they agree with their numbers, whatever these are."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.evaluate import decoders
from hrnetpp_lib.model.weights import ModelCard

APS = {
    "heatmap": {"quarter_offset": 0.612, "soft_argmax": 0.597},
    "regression": {"quarter_offset": 0.634, "soft_argmax": 0.635},
}


def test_a_network_is_read_both_ways_and_its_card_stays(monkeypatch):
    card = ModelCard(decoder="soft_argmax")
    monkeypatch.setattr(decoders, "predict_boxes", lambda model, card, boxes: (model, card, boxes))
    ap = {"quarter_offset": 0.25, "soft_argmax": 0.5}
    monkeypatch.setattr(decoders, "score", lambda found, data: {"AP": ap[found[1].decoder]})
    assert decoders.score_decoders(None, card, SimpleNamespace(val=None)) == ap
    assert card.decoder == "soft_argmax"


def test_the_step_is_split_into_training_and_decoding():
    said = decoders.say_decoders(APS)
    assert re.findall(r"[+-]?\d+\.\d", said) == ["+2.3", "+2.2", "+0.1", "-1.5"]


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_parts_add_up_and_agree_with_bars_of_one_digit(values):
    names = list(APS["heatmap"])
    aps = {"heatmap": dict(zip(names, values[:2], strict=True))}
    aps["regression"] = dict(zip(names, values[2:], strict=True))
    said = re.findall(r"[+-]?\d+\.\d", decoders.say_decoders(aps))
    assert "-0.0" not in said and "+0.0" not in said
    whole, training, decoding, other = map(float, said)
    assert whole == pytest.approx(training + decoding)
    shown = [float(f"{100 * value:.1f}") for value in values]
    assert [whole, other] == pytest.approx([shown[3] - shown[0], shown[1] - shown[0]])


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ([0.1, 0.3, 0.5], "fell, 0.40 -> 0.30"),
        ([0.4, 0.45, 0.1], "stayed, 0.40 -> 0.40"),
        ([0.1, 0.5, 0.6], "rose, 0.40 -> 0.50"),
    ],
)
def test_peaks_fall_rise_or_stay(after, words):
    said = decoders.say_peaks(np.array([0.4, 0.4, 0.19, 0.8]), np.array(after))
    assert f"the median peak {words};" in said
    assert "were 25% of all, and now are 33%." in said


@pytest.mark.parametrize(
    ("own", "swapped", "words"),
    [
        (0.635, 0.632, "better than"),
        (0.3, 0.31, "worse than"),
        (0.30001, 0.30004, "as well as"),
        (0.0, 0.0, "as well as"),
    ],
)
def test_scores_rank_better_worse_or_as_well(own, swapped, words):
    said = decoders.say_scores(own, swapped)
    assert f"rank people {words}" in said
    assert f"AP {100 * own:.1f} against {100 * swapped:.1f}." in said
