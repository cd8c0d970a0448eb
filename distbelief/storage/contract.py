"""What a run needs of its folder."""

from __future__ import annotations

from typing import Protocol

Part = bytes | bytearray | memoryview
"""A piece of a file's contents."""

ROOM_NBYTES = 64 << 20
"""So much of a log waits in the process for a storage that takes nothing, and no more."""


class Log(Protocol):
    """A file that grows by whole lines. Thread-safe.

    Lines that the storage does not take, as when a disk is full, wait in this process and are tried
    again with the next ones, in their order and each once: who writes them is not who can mend it.
    """

    @property
    def failure(self) -> str:
        """Why lines wait, though they were to be handed on; empty once they have been."""
        ...

    def write(self, text: str) -> None:
        """Adds lines; they may wait in this process.

        Raises:
            OSError: so much waits already that there is no room for them; they are not added.
        """
        ...

    def flush(self) -> None:
        """Hands on what waits, as far as the storage takes small pieces; see :attr:`failure`."""
        ...

    def sync(self) -> None:
        """Returns when all lines will survive a crash of the machine.

        Raises:
            OSError: they may not; those that wait go on waiting.
        """
        ...

    def close(self) -> None:
        """Writes what is left and closes the log.

        Raises:
            OSError: what was left is lost.
        """
        ...


class Storage(Protocol):
    """One folder. Picklable, thread-safe; all calls block, and raise OSError if they fail."""

    @property
    def url(self) -> str:
        """The folder's absolute path or URL."""
        ...

    def write(self, name: str, *parts: Part) -> None:
        """Writes a file so that a reader, or a crash, sees the old one, the new one or none."""
        ...

    def read(self, name: str) -> bytes:
        """A file's contents; FileNotFoundError if there is none."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        ...

    def names(self, name: str = "") -> list[str]:
        """Names of the files and folders in a folder, sorted; none if there is no such folder."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file, a log, or a folder with all that is in it; there may be none."""
        ...

    def open_log(self, name: str, *, new: bool) -> Log:
        """Opens a log to append to it; FileExistsError if it shall be new and is there."""
        ...

    def read_log(self, name: str) -> str:
        """A log's lines; FileNotFoundError if there is none."""
        ...

    def logs(self, name: str) -> list[str]:
        """Names of the logs in a folder, sorted."""
        ...

    def free_nbytes(self) -> int | None:
        """Room that is left, if the storage can tell."""
        ...
