"""The versions of one model: found in a folder, loaded, served and unloaded.

The folder has TensorFlow Serving's form, `FOLDER/<version>/saved_model.pb`, where a version is a
number. The newest is served by default. A version that cannot be loaded is reported and not served,
the one before it serves on, and it is tried again when its files change, as when copying them was
not finished. A version that is not wanted any more is closed when its last request is answered.
"""

import contextlib
import dataclasses
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from efficientnet_tf.serve import warmup
from efficientnet_tf.serve.errors import ServingError, invalid
from efficientnet_tf.serve.logs import log
from efficientnet_tf.serve.metrics import Metrics
from efficientnet_tf.serve.session import Session

# TensorFlow Serving's ModelVersionStatus.State.
STATES = {"START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}
_VERSION = re.compile(r"[0-9]{1,18}")


@dataclasses.dataclass(frozen=True)
class Status:
    """State of a version, as TensorFlow Serving tells it.

    Attributes:
        version: its number.
        state: a key of `STATES`.
        error: why it is not served; None where nothing went wrong.
    """

    version: int
    state: str
    error: ServingError | None = None


class Loaded:
    """A version that can be used: `with repository.use(...) as loaded`, or acquire and release.

    Attributes:
        version: its number.
        session: its session.
    """

    def __init__(self, version: int, session: Session):
        self.version = version
        self.session = session
        self._users = 1  # the repository itself
        self._lock = threading.Lock()
        self._on_close: Callable[[], None] = lambda: None

    def acquire(self) -> bool:
        """Counts one more user; False when it is closed."""
        with self._lock:
            if not self._users:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """Counts one user less; the last one closes the session."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.session.close()
            self._on_close()

    def release_and_close(self, on_close: Callable[[], None]) -> None:
        """The repository's own release; `on_close` is called when the session is closed."""
        self._on_close = on_close
        self.release()


class Repository:
    """What is in the folder, what is loaded, and what a name in a request means.

    Attributes:
        name: of the model.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        name: str,
        versions: Literal["latest", "all"] = "latest",
        labels: Mapping[str, int] | None = None,
        load: Callable[[Path], Session] = Session,
        warm_up: bool = True,
        on_close: Callable[[Session], None] = lambda session: None,
        metrics: Metrics,
    ):
        """Loads nothing yet.

        Args:
            folder: holds the versions; it need not exist yet.
            name: of the model.
            versions: which are served: the newest that can be loaded, or all. Those with a label
                are served in any case.
            labels: version by label, such as {"stable": 1, "canary": 2}.
            load: makes a session of a folder, or raises a ServingError.
            warm_up: whether a version's own warm-up records are replayed before it is served.
            on_close: is told each session that was closed.
            metrics: is told loads and versions.
        """
        self.name = name
        self._folder = Path(folder)
        self._versions = versions
        self._labels = dict(labels or {})
        self._load = load
        self._warm_up = warm_up
        self._closed = on_close
        self._metrics = metrics
        self._lock = threading.Lock()
        self._polling = threading.Lock()
        self._loaded: dict[int, Loaded] = {}
        self._states: dict[int, Status] = {}
        self._refused: dict[int, object] = {}  # files of the versions that could not be loaded
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._found_any = True

    def start(self, seconds: float) -> None:
        """Looks into the folder now and then, in a thread of its own."""

        def watch():
            while not self._stop.is_set():
                try:
                    self.poll()
                except Exception:
                    log("poll failed", level=logging.ERROR, exc_info=True, model=self.name)
                self._stop.wait(seconds)

        self._thread = threading.Thread(target=watch, name="serve-poll", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch and closes every version when its requests are answered."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._polling:
            for version in self.available():
                self._unload(version)

    def poll(self) -> None:
        """Brings what is loaded in line with the folder, once."""
        with self._polling:
            found = self._find()
            if found is None:
                return
            keep = {version for version in self._labels.values() if version in found}
            keep = {version for version in keep if self._ensure(version, found[version])}
            for version in sorted(found, reverse=True):
                if self._stop.is_set():
                    return
                if self._ensure(version, found[version]):
                    keep.add(version)
                    if self._versions == "latest":
                        break
            for version in self.available():
                if version not in keep:
                    self._unload(version)
            with self._lock:
                for version in list(self._refused):
                    if version not in found:
                        del self._refused[version]
                        del self._states[version]

    def available(self) -> tuple[int, ...]:
        """Versions that are served, oldest first."""
        with self._lock:
            return tuple(sorted(self._loaded))

    def acquire(self, version: int | None = None, label: str | None = None) -> Loaded:
        """Finds the version that a request means; the caller has to release it.

        Args:
            version: its number. 0 is the newest where no version has that number, as clients of
                OpenVINO Model Server mean it; None is the newest.
            label: instead of a number.

        Raises:
            ServingError: NOT_FOUND, it is not served; INVALID_ARGUMENT, there is no such label.
        """
        version = self._number(version, label)
        with self._lock:
            number = max(self._loaded, default=None) if version is None else version
            loaded = self._loaded.get(number)
            if loaded is not None and loaded.acquire():
                return loaded
        asked = f"Latest({self.name})" if version is None else f"Specific({self.name}, {version})"
        raise ServingError("NOT_FOUND", f"Servable not found for request: {asked}")

    @contextlib.contextmanager
    def use(self, version: int | None = None, label: str | None = None) -> Iterator[Loaded]:
        """`acquire`, and release at the end."""
        loaded = self.acquire(version, label)
        try:
            yield loaded
        finally:
            loaded.release()

    def statuses(self, version: int | None = None, label: str | None = None) -> tuple[Status, ...]:
        """Tells the states of one version or of all, newest first.

        Raises:
            ServingError: NOT_FOUND, nothing is known of it; INVALID_ARGUMENT, no such label.
        """
        version = self._number(version, label)
        with self._lock:
            states = dict(self._states)
        if version is not None:
            if version not in states:
                raise ServingError(
                    "NOT_FOUND", f"Could not find version {version} of model {self.name}"
                )
            return (states[version],)
        if not states:
            raise ServingError("NOT_FOUND", f"Could not find any versions of model {self.name}")
        return tuple(states[number] for number in sorted(states, reverse=True))

    def _number(self, version: int | None, label: str | None) -> int | None:
        if label is not None:
            if label not in self._labels:
                raise invalid(f"Unrecognized servable version label: {label}")
            return self._labels[label]
        with self._lock:
            return None if version == 0 and 0 not in self._states else version

    def _find(self) -> dict[int, Path] | None:
        """Version folders by number; None when the folder cannot be read now."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._folder) if entry.is_dir())
        except OSError as error:
            if self._found_any:
                log("folder unreadable", level=logging.WARNING, model=self.name, error=str(error))
            self._found_any = False
            return None
        found = {}
        for name in names:
            if _VERSION.fullmatch(name):
                found.setdefault(int(name), self._folder / name)
        if not found and self._found_any:
            log("no versions", level=logging.WARNING, model=self.name, folder=str(self._folder))
        self._found_any = bool(found)
        return found

    def _ensure(self, version: int, path: Path) -> bool:
        """Whether a version is served, after trying to."""
        if version in self._loaded:
            return True
        files = _fingerprint(path)
        if version in self._refused and self._refused[version] == files:
            return False
        self._set(Status(version, "LOADING"))
        start = time.monotonic()
        try:
            session = self._load(path)
            try:
                replayed = warmup.replay(session) if self._warm_up else 0
            except BaseException:
                session.close()
                raise
        except Exception as error:
            if not isinstance(error, ServingError):
                error = ServingError("INTERNAL", f"{type(error).__name__}: {error}")
            self._refused[version] = files
            self._set(Status(version, "END", error))
            self._metrics.count("serve_loads_total", result="refused")
            log("refused", level=logging.ERROR, model=self.name, version=version, error=str(error))
            return False
        seconds = time.monotonic() - start
        with self._lock:
            self._refused.pop(version, None)
            self._loaded[version] = Loaded(version, session)
            self._states[version] = Status(version, "AVAILABLE")
        self._metrics.count("serve_loads_total", result="loaded")
        self._metrics.observe("serve_load_seconds", seconds)
        self._metrics.set("serve_version_available", 1, version=str(version))
        log(
            "loaded",
            model=self.name,
            version=version,
            seconds=round(seconds, 3),
            warm_up_records=replayed,
            signatures=list(session.signatures),
        )
        return True

    def _unload(self, version: int) -> None:
        with self._lock:
            loaded = self._loaded.pop(version)
            self._states[version] = Status(version, "UNLOADING")

        def closed():
            with self._lock:
                if self._states.get(version) == Status(version, "UNLOADING"):
                    self._states[version] = Status(version, "END")
            self._closed(loaded.session)
            log("unloaded", model=self.name, version=version)

        self._metrics.remove("serve_version_available", version=str(version))
        loaded.release_and_close(closed)

    def _set(self, status: Status) -> None:
        with self._lock:
            self._states[status.version] = status


def _fingerprint(path: Path) -> object:
    """Names, sizes and times of a version's files; it changes when one of them is written."""
    files = []
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # it was removed in this moment
                stat = os.stat(os.path.join(folder, name))
                files.append((folder, name, stat.st_size, stat.st_mtime_ns))
    return sorted(files)
