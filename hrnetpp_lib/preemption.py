"""Being asked to end: a scheduler sends SIGTERM some seconds before it kills."""

import signal
import threading
from types import FrameType, TracebackType


class SigtermNotice:
    """While entered, SIGTERM no longer ends the process but sets `received`.

    Python delivers signals to the main thread only; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received = False
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
