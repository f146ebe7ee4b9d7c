"""Which trainings take left for right: the pair by hand, and sentences that agree with the counts."""

import pytest

from hrnetpp_lib.evaluate.inversions import Inversions, plural, say_inversions, title_inversions, widest_pair
from hrnetpp_lib.pose.keypoints import AIC14, COCO17

LEFT_ANKLE, RIGHT_ANKLE = 15, 16


def training(network: str, ap: float, ankles: tuple[float, float], seed: int = 0) -> Inversions:
    """Knees are inverted as often in every training, and more often than some ankles."""
    inversions = [0.0] * 13 + [20.0, 20.0, *ankles]
    return Inversions(network, seed, ap, tuple(inversions))


TRAININGS = [
    training("hrnet", 73.0, (12, 14)),
    training("heatmap", 61.7, (40, 50)),
    training("heatmap", 71.4, (10, 12), seed=1),
]


def test_the_pair_is_the_one_in_which_trainings_differ_most():
    assert TRAININGS[1].share((15, 16)) == 45
    assert widest_pair(TRAININGS, COCO17) == (LEFT_ANKLE, RIGHT_ANKLE)
    assert plural((15, 16), COCO17) == "ankles" and plural((0, 3), AIC14) == "shoulders"


def test_trainings_are_counted_by_network_and_their_ap_beside_the_others():
    assert say_inversions(TRAININGS, COCO17) == (
        "Trainings that take more than 25% of the ankles for those of the other side: 0 of 1 of HRNet, 1 of "
        "2 of HRNet++. In AP these end at 61.7, the others at 71.4 to 73.0."
    )
    assert title_inversions(TRAININGS, COCO17) == "trainings differ most in ankles: 11 to 45% inverted"
    assert title_inversions([], COCO17) == "" and widest_pair([], COCO17) == (1, 2)
    assert say_inversions([], COCO17) == "No training was measured for this yet."


@pytest.mark.parametrize(("ankles", "words"), [((0, 0), "the others"), ((90, 90), "these end")])
def test_a_group_without_trainings_is_not_told(ankles, words):
    said = say_inversions([training("hrnet", 60.0, ankles)], COCO17)
    assert said.endswith(f"In AP {words} at 60.0.")


def test_what_stage_3_adds_is_told_by_what_its_start_had_unlearnt():
    third = [training("heatmap", 60.0, (30, 30), seed=2), training("regression", 68.0, (10, 10), seed=2)]
    after = [training("regression", 68.2, (12, 12)), training("regression", 72.0, (11, 11), seed=1)]
    alone = training("regression", 70.0, (11, 11), seed=3)  # its start was not measured
    control = [training("control", 62.7 + seed, (12, 12), seed) for seed in range(4)]
    assert say_inversions([*TRAININGS, *after, *third, alone, *control], COCO17).endswith(
        " Stage 3 moves AP by +6.5 to +8.0, its control by +1.0 to +4.7, where the start is among these "
        "(2 of 3), and by +0.6, its control by -7.7, where the start is not among these (1 of 3)."
    )
