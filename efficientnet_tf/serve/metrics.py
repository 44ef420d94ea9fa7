"""Counters and histograms in Prometheus' text format.

Request counts and latencies have TensorFlow Serving's names and labels
(`:tensorflow:serving:request_count`, `:tensorflow:serving:request_latency` in microseconds), so
that a dashboard made here works there; the other names start with `serve_`.
"""

import bisect
import dataclasses
import math
import threading
from collections.abc import Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUESTS = ":tensorflow:serving:request_count"
LATENCY = ":tensorflow:serving:request_latency"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A metric: its type, its help text and, of a histogram, the upper ends of its buckets."""

    type: str
    help: str
    ends: Sequence[float] = ()


_KINDS = {
    REQUESTS: _Kind("counter", "Requests by model and status."),
    LATENCY: _Kind(
        "histogram",
        "Microseconds from a whole request to its answer.",
        tuple(1e6 * s for s in _SECONDS),
    ),
    "serve_queue_length": _Kind("gauge", "Requests that wait for a session."),
    "serve_queue_seconds": _Kind("histogram", "Seconds that requests waited.", _SECONDS),
    "serve_batch_rows": _Kind("histogram", "Rows of the runs.", _ROWS),
    "serve_loads_total": _Kind("counter", "Versions that were loaded, by result."),
    "serve_load_seconds": _Kind("histogram", "Seconds to load and warm up a version.", _SECONDS),
    "serve_version_available": _Kind("gauge", "1 for each version that is served."),
    "serve_rejected_total": _Kind("counter", "What was turned away by a limit, by reason."),
    "serve_connections": _Kind("gauge", "Open connections over HTTP."),
}


class Metrics:
    """The numbers of one server; may be used from any thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple, float]] = {name: {} for name in _KINDS}
        self._histograms: dict[str, dict[tuple, list[float]]] = {name: {} for name in _KINDS}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Adds to a counter or gauge."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            values = self._values[name]
            values[key] = values.get(key, 0) + by

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            self._values[name][tuple(sorted(labels.items()))] = value

    def remove(self, name: str, **labels: str) -> None:
        """Ends a gauge of something that is there no more."""
        with self._lock:
            self._values[name].pop(tuple(sorted(labels.items())), None)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds a value to a histogram."""
        ends = _KINDS[name].ends
        key = tuple(sorted(labels.items()))
        with self._lock:
            # Counts of the buckets and of what is above them, then the sum.
            row = self._histograms[name].setdefault(key, [0] * (len(ends) + 2))
            row[bisect.bisect_left(ends, value)] += 1
            row[-1] += value

    def text(self) -> str:
        """Returns everything in Prometheus' text format, version 0.0.4."""
        lines = []
        with self._lock:
            for name, kind in _KINDS.items():
                lines += [f"# HELP {name} {kind.help}", f"# TYPE {name} {kind.type}"]
                for key, value in sorted(self._values[name].items()):
                    lines.append(f"{name}{_labels(key)} {_number(value)}")
                for key, row in sorted(self._histograms[name].items()):
                    lines += _histogram(name, key, kind.ends, row)
        return "\n".join(lines) + "\n"


def _histogram(name: str, key: tuple, ends: Sequence[float], row: Sequence[float]) -> list[str]:
    lines = []
    below = 0
    for end, count in zip((*ends, math.inf), row[:-1], strict=True):
        below += count
        labels = _labels((*key, ("le", _number(end))))
        lines.append(f"{name}_bucket{labels} {below}")
    lines.append(f"{name}_sum{_labels(key)} {_number(row[-1])}")
    lines.append(f"{name}_count{_labels(key)} {below}")
    return lines


def _labels(pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    escaped = {"\\": r"\\", '"': r"\"", "\n": r"\n"}
    texts = (f'{k}="{"".join(escaped.get(c, c) for c in str(v))}"' for k, v in pairs)
    return "{" + ",".join(texts) + "}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if value == int(value) else repr(float(value))
