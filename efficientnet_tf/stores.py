"""What files behind URLs are read and written with: TensorFlow's file systems, or fsspec."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import IO, Any, Protocol

ASIDE = ".writing-"  # how the names of what is not finished begin


class Store(Protocol):
    """Files by their URLs. All methods raise OSError where something fails."""

    def exists(self, url: str) -> bool:
        """Whether there is a file or folder."""

    def is_dir(self, url: str) -> bool:
        """Whether there is a folder."""

    def size(self, url: str) -> int:
        """Bytes of a file."""

    def entries(self, url: str) -> list[tuple[str, bool]]:
        """Names in a folder, and whether each is one."""

    def make_folder(self, url: str) -> None:
        """Makes a folder and those that it is in."""

    def remove(self, url: str) -> None:
        """Removes a file."""

    def remove_tree(self, url: str) -> None:
        """Removes a folder with all that is in it."""

    def rename(self, url: str, to: str) -> None:
        """Renames a file, over the one that is there."""

    def open(self, url: str, mode: str) -> Any:
        """A context manager: the file, to read ("rb") or write ("wb") it."""


@functools.cache
def store(scheme: str) -> Store:
    """What opens the URLs of a scheme.

    Raises:
        ImportError: fsspec, or what it needs for the scheme, is missing.
        ValueError: nothing knows the scheme.
    """
    if read_by_tensorflow(scheme):
        return _TensorFlow(scheme)
    try:
        import fsspec
    except ImportError:
        raise ImportError(
            f"TensorFlow's file systems do not know {scheme}://, and fsspec, which may, is not"
            ' installed: pip install "efficientnet_tf[remote]"'
        ) from None
    if scheme not in fsspec.available_protocols():
        raise ValueError(f"Neither TensorFlow's file systems nor fsspec know {scheme}://.")
    try:
        return _Fsspec(fsspec.filesystem(scheme, use_listings_cache=False))  # others write too
    except ImportError as error:
        raise ImportError(f"{scheme}:// needs another package: {error}") from None


@functools.cache
def read_by_tensorflow(scheme: str) -> bool:
    """Whether TensorFlow's own operations (`tf.io.read_file`, `tf.data`) read URLs of a scheme."""
    import tensorflow as tf

    return scheme in tf.io.gfile.get_registered_schemes()


class _TensorFlow:
    """Files by `tf.io.gfile`."""

    def __init__(self, scheme: str):
        import tensorflow as tf

        self._files, self._errors = tf.io.gfile, tf.errors
        self._marks_folders = scheme == "gs"  # by a slash, so that no one has to ask for each name

    def exists(self, url: str) -> bool:
        with self._told(url):
            return self._files.exists(url)

    def is_dir(self, url: str) -> bool:
        with self._told(url):
            return self._files.isdir(url)

    def size(self, url: str) -> int:
        with self._told(url):
            return self._files.stat(url).length

    def entries(self, url: str) -> list[tuple[str, bool]]:
        with self._told(url):
            return [
                (
                    name.rstrip("/"),
                    name.endswith("/")
                    or (not self._marks_folders and self._files.isdir(f"{url}/{name}")),
                )
                for name in self._files.listdir(url)
            ]

    def make_folder(self, url: str) -> None:
        with self._told(url):
            self._files.makedirs(url)

    def remove(self, url: str) -> None:
        with self._told(url):
            self._files.remove(url)

    def remove_tree(self, url: str) -> None:
        with self._told(url):
            self._files.rmtree(url)

    def rename(self, url: str, to: str) -> None:
        with self._told(url):
            self._files.rename(url, to, overwrite=True)

    @contextlib.contextmanager
    def open(self, url: str, mode: str) -> Iterator[IO[bytes]]:
        with self._told(url), self._files.GFile(url, mode) as file:
            if mode == "wb":
                file.write(b"")  # or an empty file would not be made
            yield file

    @contextlib.contextmanager
    def _told(self, url: str) -> Iterator[None]:
        """Raises Python's errors in place of TensorFlow's."""
        try:
            yield
        except self._errors.OpError as error:
            kind = {
                self._errors.NotFoundError: FileNotFoundError,
                self._errors.PermissionDeniedError: PermissionError,
                self._errors.UnauthenticatedError: PermissionError,
                self._errors.AlreadyExistsError: FileExistsError,
            }.get(type(error), OSError)
            reason = (error.message or type(error).__name__).strip().partition("\n")[0]
            raise kind(f"{url}: {reason}") from error


class _Fsspec:
    """Files by fsspec, whose errors are Python's."""

    def __init__(self, files: Any):
        self._files = files

    def exists(self, url: str) -> bool:
        return self._files.exists(url)

    def is_dir(self, url: str) -> bool:
        return self._files.isdir(url)

    def size(self, url: str) -> int:
        return self._files.size(url)

    def entries(self, url: str) -> list[tuple[str, bool]]:
        found = self._files.ls(url, detail=True)
        names = ((entry["name"].rstrip("/"), entry["type"] == "directory") for entry in found)
        # A folder that was made by hand is an empty object of its own name, and lists itself.
        own = self._files._strip_protocol(url).rstrip("/")
        return [(name.rpartition("/")[2], is_dir) for name, is_dir in names if name != own]

    def make_folder(self, url: str) -> None:
        self._files.makedirs(url, exist_ok=True)

    def remove(self, url: str) -> None:
        self._files.rm_file(url)

    def remove_tree(self, url: str) -> None:
        self._files.rm(url, recursive=True)

    def rename(self, url: str, to: str) -> None:
        self._files.mv(url, to)

    def open(self, url: str, mode: str) -> Any:
        return self._files.open(url, mode)
