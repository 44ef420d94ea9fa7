"""Writing: files that are always whole, and folders that only one process writes to.

Folders may be URLs, see `paths`. Files are then made locally and copied there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from efficientnet_tf import paths, stores
from efficientnet_tf.paths import AnyPath, Remote

ASIDE = stores.ASIDE


def check_writable(folder: AnyPath) -> None:
    """Refuses, before anything is done, a folder that cannot be written to.

    Args:
        folder: need not be there yet.

    Raises:
        NotADirectoryError: it is a file, or below one.
        PermissionError: it, or what it would be made in, is read-only.
        OSError: it is a URL that cannot be written to.
        ImportError: it is a URL for which a package is missing.
    """
    if isinstance(folder, Remote):
        _try_to_write(folder)
        return
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{folder} must be a folder to write to. {nearest} is a file.")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{folder} must be a folder to write to. {nearest} is read-only.")


def _try_to_write(folder: Remote) -> None:
    """Writes a small file and removes it: nothing less tells what a store allows."""
    if folder.is_file():
        raise NotADirectoryError(f"{folder} must be a folder to write to. It is a file.")
    try:
        with made(folder):
            tried = folder / f"{ASIDE}{uuid.uuid4().hex}"
            with tried.open("wb") as file:
                file.write(b"")
            tried.unlink()
    except OSError as error:
        raise type(error)(f"{folder} must be a folder to write to. {error}") from error


@contextlib.contextmanager
def whole(path: str | os.PathLike | Remote) -> Iterator[Path]:
    """Makes a file appear whole or not at all, also when the process is killed or the power goes.

    Args:
        path: of the file; what is there is replaced.

    Yields:
        The local path to write to, with the same ending: beside it, where a killed process leaves
        it behind; for a URL, in a folder for temporary files.
    """
    path = paths.of(path)
    if isinstance(path, Remote):
        with tempfile.TemporaryDirectory(prefix="efficientnet_tf-") as folder:
            yield Path(folder) / path.name
            path.upload(Path(folder) / path.name)
        return
    temporary = path.with_name(f"{ASIDE}{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # or a power cut could leave an empty file of the final name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: AnyPath, content: str) -> None:
    """Adds to a text file, which is made where it is missing; line breaks stay as they are.

    Stores cannot add to a file: there it is written anew, and whole at all times.
    """
    if isinstance(path, Remote):
        before = path.read_bytes() if path.exists() else b""
        with whole(path) as temporary:
            temporary.write_bytes(before + content.encode("utf-8"))
    else:
        with open(path, "a", encoding="utf-8", newline="") as file:
            file.write(content)


def put(finished: Path, place: AnyPath) -> None:
    """Moves a file or a folder from beside its place, or to a store, which has no such folders.

    What is there is replaced. A folder comes to a store file by file.
    """
    if isinstance(place, Remote):
        place.upload(finished)
        shutil.rmtree(finished) if finished.is_dir() else finished.unlink()
    else:
        os.replace(finished, place)


def sweep(folder: AnyPath) -> None:
    """Removes what killed processes left of `whole`, from a folder that no other one writes to."""
    for left in folder.glob(f"{ASIDE}*"):
        if left.is_file():
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def made(folder: AnyPath) -> Iterator[None]:
    """Makes a folder; it and those it lies in are removed again where they stay empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        _remove_empty(new)


def _remove_empty(folders: list[AnyPath]) -> None:
    """Removes folders, the innermost first, up to one that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def lock(folder: AnyPath, *, wait: bool) -> Iterator[bool | None]:
    """Locks a folder among processes that ask; the kernel unlocks it when its process ends.

    Args:
        folder: to lock.
        wait: whether to wait for another process.

    Yields:
        True where it is locked by us now, False where another process has it, None where it is not
        there or where the system or the file system has no such locks, as no store behind a URL.
    """
    if isinstance(folder, Remote):
        yield None
        return
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
