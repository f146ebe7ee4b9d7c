"""Bars for people, lines for logs."""

import pytest

import hrnetpp_lib.train.journal as module
from hrnetpp_lib.train.journal import EpochBar


@pytest.fixture
def logged(monkeypatch):
    monkeypatch.setenv("HRNETPP_HEADLESS", "1")
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", -1)


def test_lines_say_how_far_how_fast_and_how_long(logged, capsys):
    bar = EpochBar("stage2 epoch 3/8", crops=100, done=40)
    bar.advance(20, loss=0.0125, lr=5e-4)
    bar.close()
    line = capsys.readouterr().out
    assert line.startswith("stage2 epoch 3/8: 60/100 crops, ")
    assert "loss 1.250e-02, lr 5.0e-04" in line and line.endswith("min to go\n")


def test_other_processes_and_quick_epochs_say_nothing(monkeypatch, logged, capsys):
    EpochBar("x", 10, 0, silent=True).advance(5, 0.1, 1e-3)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 300)
    EpochBar("x", 10, 0).advance(5, 0.1, 1e-3)
    assert capsys.readouterr() == ("", "")


def test_people_see_a_bar_that_starts_where_the_epoch_does(monkeypatch, capsys):
    monkeypatch.setattr(module, "headless", lambda: False)
    bar = EpochBar("stage2 epoch 3/8", crops=100, done=40)
    bar.advance(20, loss=0.0125, lr=5e-4)
    bar._bar.refresh()
    bar.close()
    shown = capsys.readouterr().err
    assert "stage2 epoch 3/8" in shown and "60/100" in shown and "loss 1.25e-02, lr 5.0e-04" in shown
