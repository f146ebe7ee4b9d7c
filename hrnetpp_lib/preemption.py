"""Being asked to end: a scheduler sends SIGTERM some seconds before it kills."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from hrnetpp_lib.errors import Preempted


class SigtermNotice:
    """While entered, SIGTERM does not end the process: it sets `received`, and may raise `Preempted`.

    Python delivers signals to the main thread only; elsewhere this does nothing.

    Args:
        at_once: Whether to raise, too: where nothing can be lost that is not made again.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received = False
        self._at_once = at_once
        self._before = None

    def __enter__(self) -> "SigtermNotice":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Around work that may be broken off anywhere.

        Raises:
            Preempted: If SIGTERM came before, or comes now.
        """
        before, self._at_once = self._at_once, True
        try:
            if self.received:
                self._leave()
            yield
        finally:
            self._at_once = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self._at_once:
            self._leave()

    def _leave(self) -> None:
        raise Preempted("SIGTERM; what is saved is whole, the same command goes on from it")
