"""A folder for what is not finished, and the move from there to where it is used.

What is being written lies in `.writing-…` inside the target folder, on the same disk, so that
moving it is renaming it. A process that is killed leaves its folder behind, and the next one sweeps
it away: the folder is locked for as long as its process lives, by the kernel, so that neither the
number of a process nor the age of a folder has to be guessed at.

For a target that is a URL the folder is a local one for temporary files, and what is finished is
copied. Stores can neither be locked nor take a folder in one step: of a SavedModel the file that
servers look for comes last.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from efficientnet_tf import paths, writing
from efficientnet_tf.paths import AnyPath, Remote


@contextlib.contextmanager
def aside(target: AnyPath) -> Iterator[Path]:
    """Makes a folder to write to, which is gone afterwards with all that is still in it.

    Args:
        target: folder, made where it is missing, and removed again where it stays empty; emptied of
            what killed processes left there.

    Raises:
        NotADirectoryError: it is a file, or below one.
        PermissionError: it cannot be written to.
    """
    writing.check_writable(target)
    if isinstance(target, Remote):
        temporary = tempfile.TemporaryDirectory(prefix="efficientnet_tf-")
        with writing.made(target), temporary as folder:
            yield Path(folder)
        return
    with contextlib.ExitStack() as held:
        held.enter_context(writing.made(target))
        with writing.lock(target, wait=True):
            for left in target.glob(f"{writing.ASIDE}*"):
                with writing.lock(left, wait=False) as ours:
                    if ours:
                        shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=writing.ASIDE, dir=target))
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            held.enter_context(writing.lock(folder, wait=False))
        yield folder


def versions(folder: AnyPath) -> list[int]:
    """Versions of a SavedModel that a folder holds, rising."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def check_free(version: AnyPath) -> None:
    """Raises FileExistsError where a version of a SavedModel is there.

    Of a store's, half may have come before a process was killed; the file that comes last tells.
    """
    if (version / "saved_model.pb" if isinstance(version, Remote) else version).exists():
        raise FileExistsError(f"{version} exists already. Give another version or folder.")


def move(files: Mapping[Path, AnyPath], aside: Path) -> None:
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
        if place.name.isdecimal():
            check_free(place)
        if isinstance(place, Remote):
            paths.remove_tree(place)
        elif place.is_dir():
            os.rename(place, aside / f"replaced-{number}")
        writing.put(finished, place)
