"""The log of a job's process: what it and its libraries say on standard error, fit to be shown."""

from __future__ import annotations

import codecs
import os
import tempfile
from pathlib import Path
from threading import Lock, Thread
from typing import IO, Final

from zenconvert.base.escaping import plain

_MOST: Final = 16 * 1024 * 1024
"""Characters of a log; what follows is not kept."""
_TAIL: Final = 8192
_CHUNK: Final = 65536
_WAIT_S: Final = 10.0
"""For what a child of the process, which may live on, still holds open."""


class JobLog:
    """Copies a pipe to a file until it ends; nothing in the file is obeyed by a terminal."""

    def __init__(self, folder: Path, pipe: IO[bytes]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".txt", prefix="worker-", dir=folder)
        os.close(handle)
        self.path, self.pipe = Path(name), pipe
        self.tail, self.room, self.lock = "", _MOST, Lock()
        self.thread = Thread(target=self._copy, daemon=True)
        self.thread.start()

    def begin(self) -> None:
        """Forget what was said until now."""
        with self.lock:
            os.truncate(self.path, 0)
            self.tail, self.room = "", _MOST

    def last_lines(self, count: int) -> list[str]:
        """The last lines that say something, once the process has ended."""
        self.thread.join(_WAIT_S)
        lines = [line.strip() for line in self.tail.splitlines() if line.strip()]
        return lines[-count:]

    def keep(self, name: str) -> None:
        """Give it another name."""
        self.path = self.path.rename(self.path.with_name(name))

    def remove(self) -> None:
        """Forget it, once the process has ended."""
        self.thread.join(_WAIT_S)
        self.path.unlink(missing_ok=True)

    def _copy(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with self.pipe, self.path.open("a", encoding="utf-8") as file:
            while True:
                data = os.read(self.pipe.fileno(), _CHUNK)
                text = plain(decoder.decode(data, final=not data))
                with self.lock:
                    self.tail = (self.tail + text)[-_TAIL:]
                    self.room -= len(text)
                    if self.room > 0:
                        file.write(text)
                        file.flush()
                if not data:
                    return
