"""Paths: local ones, and URLs such as gs://bucket/run, of which pathlib makes a folder "gs:".

`of` turns text into a `pathlib.Path` or a `Remote`, which has the part of pathlib's interface that
is used here. A URL is opened by TensorFlow's file systems where they know its scheme (gs:// and
ram://, which is memory of this process), and by fsspec where they do not (s3://, az://, …, with the
packages that it needs for them). A `Remote` is no `os.PathLike`: what needs a local file fails on
it at once, or takes it from `fetched`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import io
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from efficientnet_tf import stores

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_SHORTENED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_LAST = "saved_model.pb"  # of a folder: servers look for it


@functools.total_ordering
@dataclasses.dataclass(frozen=True)
class Remote:
    """A file or folder that a URL names, with pathlib's names for what can be done to it.

    Attributes:
        scheme: e.g. "gs".
        path: behind "://", without a slash at its end; its first part is the bucket or the host.

    Raises:
        OSError: from its methods, as from pathlib's.
        ImportError: from its methods, where fsspec or a package that it needs is missing.
    """

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __lt__(self, other: Remote) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str | os.PathLike) -> Remote:
        """What a folder holds at a relative path.

        Raises:
            ValueError: the path is absolute, or ".." leads out of the bucket.
        """
        name = os.fspath(name)
        below = _remote(self.scheme, posixpath.join(self.path, name))
        if name.startswith("/") or below.parts[1] != self.parts[1]:
            raise ValueError(f"Expected a path that stays in the bucket of {self}: {name!r}")
        return below

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Its ending, with the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """The scheme, and what slashes separate."""
        return (f"{self.scheme}://", *self.path.split("/"))

    @property
    def parent(self) -> Remote:
        """The folder that it is in; of a bucket, itself."""
        return Remote(self.scheme, self.path.rpartition("/")[0] or self.path)

    @property
    def parents(self) -> tuple[Remote, ...]:
        """The folders that it is in, from the innermost to the bucket."""
        parts = self.path.split("/")
        return tuple(
            Remote(self.scheme, "/".join(parts[:count])) for count in range(len(parts) - 1, 0, -1)
        )

    def absolute(self) -> Remote:
        """Itself."""
        return self

    def with_name(self, name: str) -> Remote:
        """Its neighbour of another name."""
        return self.parent / name

    def relative_to(self, folder: Remote) -> PurePosixPath:
        """The way from a folder that it is in."""
        return PurePosixPath(self.path).relative_to(folder.path)

    def exists(self) -> bool:
        """Whether it is there."""
        return self._store.exists(str(self))

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self._store.is_dir(str(self))

    def is_file(self) -> bool:
        """Whether it is a file."""
        return self.exists() and not self.is_dir()

    def size(self) -> int:
        """Bytes of the file."""
        return self._store.size(str(self))

    def entries(self) -> list[tuple[Remote, bool]]:
        """What a folder holds, by name, and whether each is a folder."""
        found = {}
        for name, is_folder in self._store.entries(str(self)):
            if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"{self} holds {name!r}, which is no name of a file: rename it.")
            found[name] = is_folder
        return [(Remote(self.scheme, f"{self.path}/{name}"), found[name]) for name in sorted(found)]

    def iterdir(self) -> Iterator[Remote]:
        """What a folder holds."""
        return (path for path, _ in self.entries())

    def glob(self, pattern: str) -> Iterator[Remote]:
        """What a folder holds of these names; the pattern has no slashes."""
        if not self.is_dir():
            return iter(())
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def walk(self) -> Iterator[tuple[Remote, list[str], list[str]]]:
        """As `os.walk`: folders, the names of those in them, and of the files in them.

        Names of folders that are taken out of the list are not gone into.
        """
        entries = self.entries()
        folders = [path.name for path, is_folder in entries if is_folder]
        yield self, folders, [path.name for path, is_folder in entries if not is_folder]
        for name in folders:
            yield from (self / name).walk()

    def rglob(self, pattern: str) -> Iterator[Remote]:
        """The files of these names at any depth."""
        for folder, _, files in self.walk():
            yield from (folder / name for name in fnmatch.filter(files, pattern))

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes the folder, and those it is in (`parents` has to be True: stores know no less)."""
        if not exist_ok and self.exists():
            raise FileExistsError(f"{self} exists already")
        if self.is_file():
            raise FileExistsError(f"{self} is a file")
        self._store.make_folder(str(self))

    def rmdir(self) -> None:
        """Removes a folder that is empty."""
        if self.entries():
            raise OSError(f"{self} is not empty")
        self.rmtree()

    def rmtree(self) -> None:
        """Removes a folder and all that is in it."""
        self._store.remove_tree(str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes a file."""
        try:
            self._store.remove(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: Remote) -> None:
        """Renames a file, over the one that is there."""
        self._store.rename(str(self), str(target))

    def read_bytes(self) -> bytes:
        """The content of the file."""
        with self._store.open(str(self), "rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """The content of the file, as text."""
        return self.read_bytes().decode(encoding)

    @contextlib.contextmanager
    def open(self, mode: str = "rb") -> Iterator[IO[bytes]]:
        """Opens the file to read ("rb") or to write it anew ("wb")."""
        with self._store.open(str(self), mode) as file:
            yield file

    def upload(self, source: Path) -> None:
        """Becomes a copy of a local file or folder; files appear whole."""
        if source.is_dir():
            self.mkdir(parents=True, exist_ok=True)
            for path in sorted(source.iterdir(), key=lambda path: (path.name == _LAST, path)):
                (self / path.name).upload(path)
            return
        # Stores show a file when it is closed; what is no store, such as hdfs://, while it grows.
        temporary = self.with_name(f"{stores.ASIDE}{uuid.uuid4().hex}-{self.name}")
        try:
            with open(source, "rb") as content, temporary.open("wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            temporary.replace(self)
        finally:
            temporary.unlink(missing_ok=True)

    def download(self, target: Path) -> None:
        """Copies a file, a folder, or the files whose names begin like it, to a local path."""
        if self.is_dir():
            target.mkdir()
            for path in self.iterdir():
                path.download(target / path.name)
        elif self.exists():
            with open(target, "wb") as file, self.open("rb") as content:
                shutil.copyfileobj(content, file, 1 << 20)
        else:  # the prefix of a TensorFlow checkpoint
            found = [path for path in self.parent.glob("*") if path.name.startswith(self.name)]
            if not found:
                raise FileNotFoundError(f"{self}: no such file or folder")
            for path in found:
                path.download(target.with_name(path.name))

    @property
    def _store(self) -> stores.Store:
        return stores.store(self.scheme)


AnyPath = Path | Remote


def of(text: str | os.PathLike | Remote) -> AnyPath:
    """The path that a text means: a URL, or a local path, in which ~ is the home folder.

    Args:
        text: e.g. "runs/flowers", "gs://bucket/flowers", "file:///runs/flowers"; a path is taken
            as it is.

    Raises:
        ValueError: a `pathlib.Path` was made of a URL before, or ".." leads out of the bucket.
    """
    if isinstance(text, Remote):
        return text
    text = os.fspath(text)
    if match := _URL.fullmatch(text):
        scheme, rest = match.groups()
        return Path(f"/{rest.lstrip('/')}") if scheme.lower() == "file" else _remote(scheme, rest)
    path = Path(text).expanduser()
    if path.parts and _SHORTENED.fullmatch(path.parts[0]) and not path.exists():
        raise ValueError(
            f"{path} looks like a URL that lost a slash, as in pathlib.Path('gs://bucket'). Give"
            f" the URL as text, or an absolute path for a folder called {path.parts[0]}"
        )
    return path


def local(text: str | os.PathLike | Remote, what: str) -> Path:
    """The path that a text means, where it has to be local.

    Args:
        text: as for `of`.
        what: it is for, to begin the message with.

    Raises:
        ValueError: it is a URL.
    """
    path = of(text)
    if isinstance(path, Remote):
        raise ValueError(f"{what} must be local. Received: {path}")
    return path


def joined(folder: AnyPath, name: str) -> AnyPath:
    """The path that a text from a file means.

    Args:
        folder: of the file, from where on a relative path counts.
        name: relative; beside a local file also absolute, in a store also a URL of its kind.

    Raises:
        ValueError: it leads to another store, or out of the bucket.
    """
    match = _URL.fullmatch(name)
    if match is None:
        return folder / name
    if not isinstance(folder, Remote) or match[1].lower() != folder.scheme:
        raise ValueError(f"Expected a path in the store of {folder}. Received: {name!r}")
    return _remote(*match.groups())


def remove_tree(path: AnyPath) -> None:
    """Removes a folder and all that is in it, if it is there."""
    if isinstance(path, Remote):
        if path.is_dir():
            path.rmtree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def size(path: AnyPath) -> int:
    """Bytes of a file."""
    return path.size() if isinstance(path, Remote) else path.stat().st_size


def open_text(path: AnyPath, encoding: str = "utf-8", errors: str = "strict") -> IO[str]:
    """Opens a file to read it as the csv module wants it: line breaks as they are."""
    if isinstance(path, Remote):
        return io.StringIO(path.read_bytes().decode(encoding, errors), newline="")
    return open(path, encoding=encoding, errors=errors, newline="")


def walk(folder: AnyPath) -> Iterator[tuple[Any, list[str], list[str]]]:
    """`os.walk`, which follows links, for both kinds of paths."""
    if isinstance(folder, Remote):
        return folder.walk()
    return os.walk(folder, followlinks=True)


@contextlib.contextmanager
def fetched(path: str | os.PathLike | Remote) -> Iterator[Path]:
    """Gives what can only be read locally: of a URL a copy of its file, folder or checkpoint.

    Args:
        path: as for `of`; for a checkpoint, what the names of its files begin with.

    Yields:
        A local path, of the same name. A copy is removed afterwards.
    """
    path = of(path)
    if not isinstance(path, Remote):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="efficientnet_tf-") as folder:
        copy = Path(folder) / path.name
        path.download(copy)
        yield copy


def _remote(scheme: str, rest: str) -> Remote:
    path = posixpath.normpath(rest.strip("/"))
    if path == "." or path.startswith("..") or "\0" in path:
        raise ValueError(f"{scheme}://{rest} names no file or folder in a bucket.")
    return Remote(scheme.lower(), path)
