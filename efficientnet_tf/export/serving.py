"""What `tensorflow_model_server` reads beside a SavedModel: warm-up records and configuration.

The first request to a freshly loaded model takes seconds, for optimising the graph and filling
caches; a server that replays recorded requests before it calls a model available takes that time
itself. `warm_up` writes such a record, and `configs` the server's files with a compose file for the
official image `tensorflow/serving`.

Formats: TensorFlow Serving's saved_model_warmup_util.cc, model_server_config.proto,
session_bundle_config.proto (BatchingParameters) and monitoring_config.proto.
"""

from __future__ import annotations

import dataclasses
import importlib
import ipaddress
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2

from efficientnet_tf import writing

WARM_UP = "assets.extra/tf_serving_warmup_requests"  # the only place that the server looks at
MOST_RECORDS = 1000  # kMaxNumRecords: with more, the server refuses the model
CLASSIFY = "tensorflow/serving/classify"
PREDICT = "tensorflow/serving/predict"

MODELS = "models.config"
BATCHING = "batching_parameters.txt"
MONITORING = "monitoring.config"
COMPOSE = "docker-compose.yml"
METRICS = "/monitoring/prometheus/metrics"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,255}")
_GRAY = 127  # of pictures that are sent as pixels


def warm_up(
    path: str | os.PathLike,
    *,
    batch_sizes: Sequence[int] = (1,),
    picture: bytes | None = None,
    size: int | None = None,
) -> Path:
    """Writes the requests that a server replays before it calls a model available.

    There is one record for each signature and each batch size. A batching server only ever runs
    the sizes of `Batching.sizes`, so these are the ones to ask for. The requests are for all
    outputs; one with an output_filter is prepared for anew. The same arguments give the same bytes.

    Args:
        path: folder of the SavedModel, which holds saved_model.pb. A record that is there already
            is replaced.
        batch_sizes: pictures in a request, each at least 1.
        picture: content of a picture file that the model can read, best a small one; it is repeated
            for a batch. None is `example_picture()`.
        size: pixels, side of the pictures for signatures that take pixels of any size. Best that of
            the network, which needs no resizing; None is the height and width of `picture`. Pixels
            are one shade of gray, which a record tells in a few bytes.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: there is no SavedModel.
        ImportError: tensorflow-serving-api is missing.
        ValueError: a batch size is below 1 or twice there, there would be more than 1000 records,
            the picture cannot be read, or a signature asks for something other than pictures.
    """
    prediction_log_pb2 = _api("prediction_log_pb2")
    sizes = _checked_sizes("batch_sizes", batch_sizes)
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel. Received: size={size}")
    picture = example_picture() if picture is None else picture
    pixels = _measure(picture) if size is None else (size, size)
    signatures = _signatures(path)
    if len(signatures) * len(sizes) > MOST_RECORDS:
        raise ValueError(
            f"A server takes at most {MOST_RECORDS} records. {len(signatures)} signatures with"
            f" {len(sizes)} batch sizes are {len(signatures) * len(sizes)}: give fewer batch_sizes."
        )
    records = []
    for name, signature in signatures.items():
        if signature.method_name not in (PREDICT, CLASSIFY):
            raise ValueError(
                f"Signature {name!r} of {os.fspath(path)} must have the method {PREDICT!r} or"
                f" {CLASSIFY!r}. Received: {signature.method_name!r}"
            )
        for batch in sizes:
            log = prediction_log_pb2.PredictionLog()
            if signature.method_name == CLASSIFY:
                _ask_to_classify(log.classify_log.request, name, batch, picture)
            else:
                request = log.predict_log.request
                request.model_spec.signature_name = name
                for key, info in signature.inputs.items():
                    tensor = _tensor(f"{name}:{key}", info, batch, picture, pixels)
                    request.inputs[key].CopyFrom(tensor)
            # Maps have no order of their own.
            records.append(log.SerializeToString(deterministic=True))
    target = Path(path) / WARM_UP
    target.parent.mkdir(exist_ok=True)
    with writing.whole(target) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
        for record in records:
            writer.write(record)
    return target


def example_picture() -> bytes:
    """A JPEG of 160 x 120 pixels that goes from blue to red, the same at every call."""
    red = tf.linspace(0.0, 255.0, 160)[tf.newaxis, :] * tf.ones((120, 1))
    green = tf.linspace(0.0, 255.0, 120)[:, tf.newaxis] * tf.ones((1, 160))
    pixels = tf.cast(tf.stack([red, green, 255.0 - red], axis=-1), tf.uint8)
    return tf.io.encode_jpeg(pixels, quality=80).numpy()


@dataclasses.dataclass(frozen=True)
class Batching:
    """How a server joins requests that wait at the same time; BatchingParameters in its sources.

    Attributes:
        sizes: of the batches that are run, rising; a batch is filled up to the next one. The last
            is also the most pictures that one request may have.
        timeout_micros: microseconds for which the first request of a batch waits for more.
        threads: batches that run at the same time.
        max_enqueued: batches that wait before further requests are refused.
    """

    sizes: tuple[int, ...] = (1, 2, 4, 8)
    timeout_micros: int = 1000
    threads: int = 2
    max_enqueued: int = 100

    def __post_init__(self) -> None:
        if list(self.sizes) != _checked_sizes("sizes", self.sizes):
            raise ValueError(f"sizes must rise. Received: sizes={self.sizes}")
        for name, low in (("timeout_micros", 0), ("threads", 1), ("max_enqueued", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(
                    f"{name} must be a whole number, at least {low}. Received: {name}={value!r}"
                )


def configs(
    folder: str | os.PathLike,
    name: str,
    *,
    saved_model: str = "saved_model",
    batching: Batching | None = None,
    image: str = "tensorflow/serving:latest",
    host: str = "127.0.0.1",
    ports: tuple[int, int] = (8500, 8501),
) -> tuple[Path, ...]:
    """Writes configuration for TensorFlow Serving, and a compose file that starts it.

    The files are models.config, batching_parameters.txt, monitoring.config and docker-compose.yml;
    `docker compose up` in the folder serves the newest version of the model and takes up versions
    that appear later.

    The server joins requests only where `batching` is given, since that has a price: pictures from
    different clients share a run, and one that cannot be read fails the run for all of them; and
    requests with pixels of different sizes cannot be joined, and are refused.

    Args:
        folder: that holds the folder `saved_model` with a folder for each version. It is made where
            it is missing.
        name: of the model in requests: letters, digits, ".", "_" and "-", the first a letter or a
            digit.
        saved_model: name of the folder, of the same letters.
        batching: see `Batching`. None writes its defaults, and leaves them unused.
        image: of Docker.
        host: address of this machine that the ports are opened on. The server knows no passwords:
            "0.0.0.0" lets everyone in who can reach it.
        ports: of gRPC and of REST, on this machine.

    Returns:
        The paths of the four files.

    Raises:
        FileExistsError: one of the files is there with other content, such as your changes.
        ImportError: tensorflow-serving-api is missing.
        ValueError: a name, the address or a port is not as described.
    """
    for what, value in (("name", name), ("saved_model", saved_model)):
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise ValueError(
                f"{what} must be letters, digits, '.', '_' and '-', at most 100, and start with a"
                f" letter or a digit. Received: {what}={value!r}"
            )
    if not _IMAGE.fullmatch(image):
        raise ValueError(f"image must be the name of a Docker image. Received: image={image!r}")
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError(f"host must be an IPv4 address. Received: host={host!r}") from None
    if len(set(ports)) != 2 or not all(1 <= port <= 65535 for port in ports):
        raise ValueError(
            f"ports must be two different numbers from 1 to 65535. Received: ports={ports}"
        )
    contents = {
        MODELS: _models(name, f"/models/{saved_model}"),
        BATCHING: _batching(batching or Batching()),
        MONITORING: f'prometheus_config {{\n  enable: true\n  path: "{METRICS}"\n}}\n',
        COMPOSE: _compose(name, image, host, ports, batching is not None),
    }
    paths = {Path(folder) / file: text for file, text in contents.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, text in paths.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise FileExistsError(
                f"{path} is there with other content. Delete it to have it written anew."
            )
    for path, text in paths.items():
        with writing.whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return tuple(paths)


def _api(module: str):
    """A module of tensorflow-serving-api."""
    package = "config" if module == "model_server_config_pb2" else "apis"
    try:
        return importlib.import_module(f"tensorflow_serving.{package}.{module}")
    except ImportError as error:
        raise ImportError(
            "Files for TensorFlow Serving need the package tensorflow-serving-api:"
            ' pip install "efficientnet_tf[serving]"'
        ) from error


def _checked_sizes(name: str, sizes: Sequence[int]) -> list[int]:
    """Batch sizes in rising order."""
    wrong = [s for s in sizes if isinstance(s, bool) or not isinstance(s, int) or s < 1]
    if not sizes or wrong or len(set(sizes)) != len(sizes):
        raise ValueError(
            f"{name} must be different whole numbers, at least 1. Received: {name}={tuple(sizes)}"
        )
    return sorted(sizes)


def _measure(picture: bytes) -> tuple[int, int]:
    """Height and width of a picture file."""
    try:
        pixels = tf.io.decode_image(picture, channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"picture must be the content of a picture file. Received: {len(picture)} bytes,"
            f" {error.message}"
        ) from None
    return int(pixels.shape[0]), int(pixels.shape[1])


def _signatures(path: str | os.PathLike) -> dict:
    """The signatures of a SavedModel by name, in alphabetical order."""
    file = Path(path) / "saved_model.pb"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. Give the folder of a SavedModel.")
    (graph,) = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs
    # The loader's own entries begin with underscores.
    return {k: v for k, v in sorted(graph.signature_def.items()) if not k.startswith("__")}


def _ask_to_classify(request, name: str, batch: int, picture: bytes) -> None:
    """Fills a ClassificationRequest with examples of the picture."""
    request.model_spec.signature_name = name
    for _ in range(batch):
        example = request.input.example_list.examples.add()
        example.features.feature["image/encoded"].bytes_list.value.append(picture)


def _tensor(name: str, info, batch: int, picture: bytes, pixels: tuple[int, int]):
    """One input of a request, as a TensorProto.

    Where it holds fewer values than its shape has places, TensorFlow repeats the last one.
    """
    dims = [dim.size for dim in info.tensor_shape.dim]
    shape = [batch] if len(dims) == 1 else [batch, *pixels, 3]
    if len(dims) != len(shape) or any(d not in (-1, s) for d, s in zip(dims, shape, strict=True)):
        raise ValueError(
            f"{name} of the SavedModel must take a batch of {batch} pictures, or of numbers, one"
            f" for each; pixels of shape {tuple(shape)}. Received: a signature of shape"
            f" {tuple(dims)}"
        )
    proto = tensor_pb2.TensorProto(dtype=info.dtype)
    for value in shape:
        proto.tensor_shape.dim.add().size = value
    kind = tf.as_dtype(info.dtype)
    if kind == tf.string and len(dims) == 1:
        proto.string_val.append(picture)
    elif kind == tf.int32 and len(dims) == 1:
        proto.int_val.append(-1)  # the most likely class
    elif kind == tf.float32 and len(dims) == 4:
        proto.float_val.append(_GRAY)
    elif kind == tf.uint8 and len(dims) == 4:
        proto.int_val.append(_GRAY)
    else:
        raise ValueError(
            f"{name} of the SavedModel must be the content of picture files (string), pixels"
            f" (float32, uint8) or numbers of classes (int32). Received: {kind.name} of shape"
            f" {tuple(dims)}"
        )
    return proto


def _models(name: str, base_path: str) -> str:
    """A ModelServerConfig as text."""
    config = _api("model_server_config_pb2").ModelServerConfig()
    model = config.model_config_list.config.add()
    model.name = name
    model.base_path = base_path
    model.model_platform = "tensorflow"
    model.model_version_policy.latest.num_versions = 1
    return text_format.MessageToString(config)


def _batching(batching: Batching) -> str:
    """BatchingParameters as text; the message itself is in no Python package."""
    lines = [
        "# Pictures of different sizes, sent as pixels, are refused, not padded: padding would",
        "# change what the network sees.",
        f"max_batch_size {{ value: {batching.sizes[-1]} }}",
        f"batch_timeout_micros {{ value: {batching.timeout_micros} }}",
        f"max_enqueued_batches {{ value: {batching.max_enqueued} }}",
        f"num_batch_threads {{ value: {batching.threads} }}",
        *(f"allowed_batch_sizes: {size}" for size in batching.sizes),
        "pad_variable_length_inputs: false",
    ]
    return "\n".join(lines) + "\n"


def _compose(name: str, image: str, host: str, ports: tuple[int, int], batching: bool) -> str:
    """The compose file. The image has neither curl nor Python, so bash itself asks for health."""
    ask = (
        "exec 3<>/dev/tcp/127.0.0.1/8501"
        f" && printf 'GET /v1/models/{name} HTTP/1.1\\r\\nHost: localhost\\r\\n"
        "Connection: close\\r\\n\\r\\n' >&3"
        " && grep -q '\"AVAILABLE\"' <&3"
    )
    flags = [
        f"--model_config_file=/models/{MODELS}",
        f"--monitoring_config_file=/models/{MONITORING}",
    ]
    flags += ["--enable_model_warmup=true"]
    if batching:
        flags += ["--enable_batching=true", f"--batching_parameters_file=/models/{BATCHING}"]
    commands = "\n".join(f"      - {flag}" for flag in flags)
    if not batching:
        commands += f"""
      # To join requests, add --enable_batching=true and
      # --batching_parameters_file=/models/{BATCHING}.
      # A picture that cannot be read then also fails the requests that it was joined with."""
    return f"""services:
  tensorflow-serving:
    image: {image}
    command:
{commands}
    volumes:
      - type: bind
        source: .
        target: /models
        read_only: true
    ports:
      - "{host}:{ports[0]}:8500"  # gRPC
      - "{host}:{ports[1]}:8501"  # REST, and metrics at {METRICS}
    healthcheck:
      test:
        - CMD
        - bash
        - -c
        - {json.dumps(ask)}
      interval: 10s
      timeout: 5s
      retries: 3
      start_period: 60s
    restart: unless-stopped
"""
