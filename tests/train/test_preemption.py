"""SIGTERM becomes a note while a run is under way, and ends the process before and after."""

import os
import signal
import threading

import pytest

from hrnetpp_lib.errors import Preempted
from hrnetpp_lib.train.machine import SigtermNotice


def test_a_notice_is_noted_and_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with SigtermNotice() as notice:
        assert not notice.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.received
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_it_does_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with SigtermNotice() as notice:
            seen.append((notice.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_where_nothing_can_be_lost_it_raises():
    with SigtermNotice(at_once=True), pytest.raises(Preempted, match="the same command goes on"):
        os.kill(os.getpid(), signal.SIGTERM)
    with SigtermNotice() as notice:
        with pytest.raises(Preempted), notice.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # noted only
        with pytest.raises(Preempted), notice.at_once():  # one that came before
            raise AssertionError


def test_an_inner_notice_takes_over_and_hands_back():
    with SigtermNotice(at_once=True):
        with SigtermNotice() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.received
        with pytest.raises(Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
