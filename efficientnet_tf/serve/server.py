"""Starts and stops the development server."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from efficientnet_tf import paths
from efficientnet_tf.serve import grpc_api
from efficientnet_tf.serve.batching import Batcher, Batching
from efficientnet_tf.serve.http import HttpServer
from efficientnet_tf.serve.limits import Limits
from efficientnet_tf.serve.logs import log
from efficientnet_tf.serve.metrics import Metrics
from efficientnet_tf.serve.repository import Repository
from efficientnet_tf.serve.service import Service
from efficientnet_tf.serve.web import Site


class Server:
    """A running server, made by `start`.

    Attributes:
        port: of REST and the page.
        grpc_port: of gRPC; None where it is off.
        repository: the model's versions.
        metrics: its numbers.
    """

    def __init__(self, repository, batcher, site, http, metrics, limits):
        """See `start`."""
        self.repository = repository
        self.metrics = metrics
        self.port = 0
        self.grpc_port: int | None = None
        self._limits = limits
        self._batcher = batcher
        self._site = site
        self._http = http
        self._grpc = None
        self._stopped = False

    def listen(self, service: Service, host: str, port: int, grpc_port: int | None) -> None:
        """Opens the ports; see `start`."""
        self.port = self._http.start(host, port)
        if grpc_port is not None:
            try:
                self._grpc, self.grpc_port = grpc_api.start(
                    service, host=host, port=grpc_port, limits=self._limits
                )
            except BaseException:
                self._http.stop(0)
                raise

    def wait_ready(self, seconds: float) -> bool:
        """Waits for the first version; False when none is available after that time."""
        end = time.monotonic() + seconds
        while not self.repository.available():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def stop(self, grace: float = 30.0) -> None:
        """Takes no new requests, answers those that were received, and ends.

        Args:
            grace: seconds for the answers; what is not answered then is given up.
        """
        if self._stopped:
            return
        self._stopped = True
        start = time.monotonic()
        log("stopping", grace=grace)
        self._site.stopping()
        ended = self._grpc.stop(grace) if self._grpc else None
        self._http.stop(grace)
        if ended:
            ended.wait(grace + 1.0)
        self._batcher.stop(max(0.0, start + grace - time.monotonic()))
        self.repository.stop()
        log("stopped", seconds=round(time.monotonic() - start, 3))


def start(
    folder: str | os.PathLike,
    *,
    name: str = "default",
    host: str = "127.0.0.1",
    port: int = 8501,
    grpc_port: int | None = None,
    versions: Literal["latest", "all"] = "latest",
    labels: Mapping[str, int] | None = None,
    warm_up: bool = True,
    poll_seconds: float = 2.0,
    batching: Batching | None = None,
    limits: Limits | None = None,
) -> Server:
    """Serves the SavedModels of a folder, for development.

    The ports are open when this returns; the newest version follows when it is loaded, see
    `Server.wait_ready`. Later versions are taken up when they appear.

    Args:
        folder: holds a folder for each version, `FOLDER/<number>/saved_model.pb`; or an export,
            whose versions are in `FOLDER/saved_model`.
        name: of the model in requests.
        host: address. "0.0.0.0" lets everyone in who can reach it: there are no passwords.
        port: of REST and the page; 0 for any free one.
        grpc_port: of gRPC; None for REST alone, 0 for any free one.
        versions: which are served: "latest", or "all". Labelled ones are in any case.
        labels: version by label, such as {"stable": 1, "canary": 2}.
        warm_up: whether the warm-up records of a version are replayed before it is served.
        poll_seconds: between looks into the folder.
        batching: how requests are laid together; by default they are not.
        limits: of requests and clients.

    Returns:
        The server; call its `stop`.

    Raises:
        ImportError: gRPC is wanted and not installed.
        OSError: a port is taken; FileNotFoundError: there is no such folder.
        ValueError: the folder is itself a SavedModel, or an argument is not as described.
    """
    if versions not in ("latest", "all"):
        raise ValueError(f'versions must be "latest" or "all". Received: versions={versions!r}')
    if not name or set(name) & set("/:"):
        raise ValueError(f"name must be without / and :, and not empty. Received: name={name!r}")
    for label, version in (labels or {}).items():
        if not label or set(label) & set("/:") or version < 0:
            raise ValueError(
                "labels must be names without / and :, of versions. Received:"
                f" {label!r}: {version!r}"
            )
    if not poll_seconds > 0:
        raise ValueError(f"poll_seconds must be above 0. Received: {poll_seconds}")
    folder = versions_folder(folder)
    limits = limits or Limits()
    metrics = Metrics()
    batcher = Batcher(batching or Batching(), max_queue=limits.max_queue, metrics=metrics)
    repository = Repository(
        folder,
        name=name,
        versions=versions,
        labels=labels,
        warm_up=warm_up,
        on_close=batcher.forget,
        metrics=metrics,
    )
    service = Service(repository, batcher, limits=limits, metrics=metrics)
    site = Site(service, metrics)
    http = HttpServer(site.handle, site.quick, limits=limits, metrics=metrics)
    server = Server(repository, batcher, site, http, metrics, limits)
    try:
        server.listen(service, host, port, grpc_port)
    except BaseException:
        batcher.stop(0)
        raise
    log(
        "listening",
        level=logging.INFO,
        model=name,
        folder=str(folder),
        rest=f"http://{host}:{server.port}/",
        grpc=None if server.grpc_port is None else f"{host}:{server.grpc_port}",
    )
    repository.start(poll_seconds)
    return server


def versions_folder(folder: str | os.PathLike) -> Path:
    """Finds where the versions are: in the folder itself, or in its `saved_model`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is itself a SavedModel.
    """
    folder = paths.local(folder, "The folder of a server, which is looked into all the time,")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder. Give one that holds versions.")
    if (folder / "saved_model.pb").exists():
        raise ValueError(
            f"{folder} is itself a SavedModel. Its folder's name must be a version, such as 1: give"
            " the folder that holds it."
        )
    inner = folder / "saved_model"
    has_versions = any(child.name.isdecimal() for child in folder.iterdir())
    return inner if inner.is_dir() and not has_versions else folder
