"""Serves exported models for development, by TensorFlow Serving's API.

python scripts/serve.py export/
python scripts/serve.py export/saved_model --name=flowers --port=8501 --grpc_port=8500
python scripts/serve.py export/ --versions=all --labels=stable:1,canary:2 --max_batch_size=8

In production run tensorflow/serving on the same folder. Exit code: 0 after SIGTERM or Ctrl-C, when
every request that was received is answered; 2 when the server could not be started.
"""

import dataclasses
import os
import signal
import threading
from collections.abc import Sequence

from absl import app, flags
from command_line import fail

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported

_NAME = flags.DEFINE_string("name", "default", "Name of the model in requests.")
_HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "Address to listen on. 0.0.0.0 lets everyone in who can reach it: there are no passwords.",
)
_PORT = flags.DEFINE_integer("port", 8501, "Port of REST and the page; 0 for any free one.")
_GRPC_PORT = flags.DEFINE_integer(
    "grpc_port", None, "Port of gRPC, e.g. 8500; 0 for any free one. REST alone if not given."
)
_VERSIONS = flags.DEFINE_enum(
    "versions", "latest", ["latest", "all"], "Which versions are served; labelled ones always are."
)
_LABELS = flags.DEFINE_list("labels", [], "Versions by label, e.g. --labels=stable:1,canary:2.")
_WARM_UP = flags.DEFINE_boolean(
    "warm_up", True, "Whether a version's warm-up records are replayed before it is served."
)
_POLL = flags.DEFINE_float("poll_seconds", 2.0, "Seconds between looks for new versions.")
_GRACE = flags.DEFINE_float("grace", 30.0, "Seconds for answers after SIGTERM.", lower_bound=0)
_BATCH = flags.DEFINE_integer(
    "max_batch_size",
    1,
    "Rows of requests that are run together. 1 merges nothing, which is right for any model; the"
    " models of this package may be merged, e.g. 8.",
    lower_bound=1,
)
_BATCH_TIMEOUT = flags.DEFINE_float(
    "batch_timeout", 0.005, "Seconds that a request waits for others.", lower_bound=0
)
_RUNS = flags.DEFINE_integer("runs", 2, "Runs that go on at once.", lower_bound=1)
_LIMITS = flags.DEFINE_list(
    "limits",
    [],
    "Limits of requests and clients, e.g. --limits=max_body=1000000,request_timeout=5. All are in"
    " efficientnet_tf/serve/limits.py.",
)


def main(argv: Sequence[str]) -> int:
    """Serves until SIGTERM or SIGINT."""
    if len(argv) != 2:
        return fail(f"give one folder. Usage: serve.py DIR. Received: {argv[1:]}")
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    try:
        labels = dict(_label(text) for text in _LABELS.value)
        from efficientnet_tf.serve import logs, server  # takes seconds: after the flags are right
        from efficientnet_tf.serve.batching import Batching
        from efficientnet_tf.serve.limits import Limits

        limits = dataclasses.replace(Limits(), **_numbers(_LIMITS.value, Limits))
        logs.to_stderr()
        running = server.start(
            argv[1],
            name=_NAME.value,
            host=_HOST.value,
            port=_PORT.value,
            grpc_port=_GRPC_PORT.value,
            versions=_VERSIONS.value,
            labels=labels,
            warm_up=_WARM_UP.value,
            poll_seconds=_POLL.value,
            batching=Batching(_BATCH.value, _BATCH_TIMEOUT.value, _RUNS.value),
            limits=limits,
        )
    except (ValueError, ImportError, OSError) as error:
        return fail(error)
    print(f"Development server: http://{_HOST.value}:{running.port}/", flush=True)
    if running.grpc_port is not None:
        print(f"gRPC: {_HOST.value}:{running.grpc_port}", flush=True)
    end.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the next one ends at once
    running.stop(_GRACE.value)
    return 0


def _label(text: str) -> tuple[str, int]:
    label, colon, version = text.rpartition(":")
    if not colon or not version.isdecimal():
        raise ValueError(f"--labels expects label:version, e.g. stable:1. Received: {text!r}")
    return label, int(version)


def _numbers(texts: Sequence[str], limits) -> dict[str, float]:
    """Limits from the command line."""
    types = {field.name: type(field.default) for field in dataclasses.fields(limits)}
    values = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or name not in types:
            raise ValueError(f"--limits knows {', '.join(types)}. Received: {text!r}")
        try:
            values[name] = types[name](number)
        except ValueError:
            expected = types[name].__name__
            raise ValueError(f"{name} expects {expected}. Received: {number!r}") from None
    return values


if __name__ == "__main__":
    app.run(main)
