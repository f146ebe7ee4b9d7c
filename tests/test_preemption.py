"""SIGTERM becomes a note while a run is under way, and ends the process before and after."""

import os
import signal
import threading

from hrnetpp_lib.preemption import SigtermNotice


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
