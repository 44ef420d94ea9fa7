"""A folder for what is not finished, and the move from there to where it is used.

What is being written lies in `.writing-…` inside the target folder, on the same disk, so that
moving it is renaming it. A process that is killed leaves its folder behind, and the next one sweeps
it away: the folder is locked for as long as its process lives, by the kernel, so that neither the
number of a process nor the age of a folder has to be guessed at.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

PREFIX = ".writing-"


@contextlib.contextmanager
def aside(target: Path) -> Iterator[Path]:
    """Makes a folder to write to, which is gone afterwards with all that is still in it.

    Args:
        target: folder, made where it is missing, and removed again where it stays empty; emptied of
            what killed processes left there.

    Raises:
        NotADirectoryError: it is a file, or below one.
        PermissionError: it cannot be written to.
    """
    check_writable(target)
    made = [path for path in (target, *target.parents) if not path.exists()]
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        for left in target.glob(f"{PREFIX}*"):
            with _lock(left, wait=False) as ours:
                if ours:
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target))
        held = contextlib.ExitStack()
        held.enter_context(_lock(folder, wait=False))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        held.close()
        with contextlib.suppress(OSError):  # what is not empty stays
            for path in made:
                path.rmdir()


def check_writable(target: Path) -> None:
    """Refuses a folder that cannot be written to, before anything is done.

    Raises:
        NotADirectoryError: it is a file, or below one.
        PermissionError: it, or what it would be made in, is read-only.
    """
    nearest = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{target} must be a folder to write to. {nearest} is a file.")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{target} must be a folder to write to. {nearest} is read-only.")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the same block for the same folder."""
    with _lock(folder, wait=True):
        yield


@contextlib.contextmanager
def _lock(folder: Path, wait: bool) -> Iterator[bool]:
    """Gives whether the folder is locked now, by us alone; never where there are no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # it went away
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # held by another process, or not supported by the file system
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def versions(folder: Path) -> list[int]:
    """Versions of a SavedModel that a folder holds, rising."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def move(files: Mapping[Path, Path], aside: Path) -> None:
    """Renames finished files and folders to their places.

    A file and its manifest cannot be replaced in one step. The manifest that is there goes first
    and the new one comes last, so that a manifest never stands beside another file.

    Args:
        files: what is finished, in order, to its place. What is there is replaced.
        aside: takes folders that are replaced.

    Raises:
        FileExistsError: a SavedModel of that version is there.
    """
    for place in files.values():
        if place.name.endswith("manifest.json"):
            place.unlink(missing_ok=True)
    for number, (finished, place) in enumerate(files.items()):
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and place.name.isdecimal():
            raise FileExistsError(f"{place} exists already. Give another version or folder.")
        if place.is_dir():
            os.rename(place, aside / f"replaced-{number}")
        os.replace(finished, place)
