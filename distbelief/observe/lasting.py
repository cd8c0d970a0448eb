"""A stream that outlives whoever reads it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import IO, Any


class Lasting:
    """Writes to a text stream for as long as that can be written to, and then to nowhere.

    A terminal that is closed, or a pipe whose reader has ended, shall not end what goes on: from
    then on the stream's descriptor leads to the null device, so that nothing fails at the end of
    the process either. Everything else is the stream's own.

    Args:
        stream: Whose it stays.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of a text stream; it never raises OSError."""
        if not self._lost:
            try:
                return self._stream.write(text)
            except OSError:
                self._lose()
        return len(text)

    def flush(self) -> None:
        """As of a text stream; it never raises OSError."""
        if not self._lost:
            try:
                self._stream.flush()
            except OSError:
                self._lose()

    def say(self, line: str) -> None:
        """Writes a line, which is there when the call returns."""
        self.write(f"{line}\n")
        self.flush()

    def _lose(self) -> None:
        self._lost = True
        with suppress(OSError):  # a stream without a descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)
