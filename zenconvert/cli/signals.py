"""Being asked to end: by Ctrl-C, by SIGTERM (a CI job, a batch system), by SIGHUP (a terminal that
is gone).

The first request ends the work as an error does: what is unfinished goes, or stays hidden for the
next run. Further ones do not disturb that, but for a third Ctrl-C. What was ignored when the
command started stays ignored, as ``nohup`` and a shell's ``&`` want it.

This module loads nothing.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # as typing has it, which need not be loaded
if TYPE_CHECKING:
    from types import FrameType

_ENDS = {
    signal.SIGINT: ("interrupted", 7),
    signal.SIGTERM: ("ended by SIGTERM", 128 + signal.SIGTERM),
    signal.SIGHUP: ("ended by SIGHUP", 128 + signal.SIGHUP),
}
"""Signal → what is said, and the exit code."""
_MORE = "already ending; Ctrl-C once more ends at once, and leaves hidden files to the next run"


class Requests:
    """Requests to end, heard from :meth:`listen` on."""

    def __init__(self) -> None:
        self.first: int | None = None
        """The signal that came first."""
        self.over = False
        """Whether there is no work left to end."""
        self.pressed = 0
        """Ctrl-C since then."""

    def listen(self) -> None:
        """End at once when a signal comes: nothing has begun, whatever is being loaded."""
        for number in _ENDS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._at_once)

    def end_in_order(self) -> None:
        """From now on, the first signal raises KeyboardInterrupt in the main thread."""
        for number in _ENDS:
            if signal.getsignal(number) == self._at_once:
                signal.signal(number, self._in_order)

    @property
    def end(self) -> tuple[str, int]:
        """What to say of the first request, and the exit code; Ctrl-C's where none was heard."""
        said, code = _ENDS[signal.Signals(self.first or signal.SIGINT)]
        return f"{said}; nothing unfinished stands under the output's name", code

    def _at_once(self, number: int, frame: FrameType | None) -> None:
        self.first = number
        said, code = self.end
        _say(said)
        os._exit(code)

    def _in_order(self, number: int, frame: FrameType | None) -> None:
        if self.first is None and not self.over:
            self.first = number
            raise KeyboardInterrupt(number)
        if number == signal.SIGINT:
            self.pressed += 1
            if self.pressed > 1:
                os._exit(self.end[1])
            _say(_MORE)


def _say(text: str) -> None:
    """Write a line past all buffers: whoever was interrupted may be writing himself."""
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:
        return
