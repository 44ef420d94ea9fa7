"""Writing: files that are always whole, and folders that only one process writes to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

ASIDE = ".writing-"  # how the names of what is not finished begin


def check_writable(folder: Path) -> None:
    """Refuses, before anything is done, a folder that cannot be written to.

    Args:
        folder: need not be there yet.

    Raises:
        NotADirectoryError: it is a file, or below one.
        PermissionError: it, or what it would be made in, is read-only.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{folder} must be a folder to write to. {nearest} is a file.")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{folder} must be a folder to write to. {nearest} is read-only.")


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Makes a file appear whole or not at all, also when the process is killed or the power goes.

    Args:
        path: of the file; what is there is replaced.

    Yields:
        The path to write to, with the same ending, beside it. A killed process leaves it behind.
    """
    path = Path(path)
    temporary = path.with_name(f"{ASIDE}{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # or a power cut could leave an empty file of the final name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what killed processes left of `whole`, from a folder that no other one writes to."""
    for left in folder.glob(f"{ASIDE}*"):
        if left.is_file():
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Makes a folder; it and those it lies in are removed again where they stay empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # what is not empty stays
            for path in new:
                path.rmdir()


@contextlib.contextmanager
def lock(folder: Path, *, wait: bool) -> Iterator[bool | None]:
    """Locks a folder among processes that ask; the kernel unlocks it when its process ends.

    Args:
        folder: to lock.
        wait: whether to wait for another process.

    Yields:
        True where it is locked by us now, False where another process has it, None where it is not
        there or where the system or the file system has no such locks.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows; it went away
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            ours = False
        except OSError:
            ours = None
        else:
            ours = True
        yield ours
    finally:
        os.close(descriptor)
