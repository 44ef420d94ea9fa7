"""What an artefact is, beside it as JSON: where it comes from, what it takes, and how it did.

There is no time in it: the same input gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientnet_tf.classifier import Origin, sha256
from efficientnet_tf.export import onnx_file
from efficientnet_tf.export.runtimes import Specs
from efficientnet_tf.export.verify import Report
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.version import __version__

NAME = "manifest.json"
FORMAT = 1  # counts changes that break readers
_PACKAGES = ("tensorflow", "keras", "numpy", "ai-edge-litert", "tf2onnx", "onnxruntime", "openvino")


def make(
    path: Path,
    *,
    artefact: str,
    origin: Origin,
    rule: Preprocessing,
    labels: Sequence[tuple[str, str]],
    options: Mapping[str, Any],
    signatures: Specs,
    report: Report,
    pictures: str,
) -> dict[str, Any]:
    """Describes an artefact.

    Args:
        path: of the finished file or folder.
        artefact: its format.
        origin: of the weights.
        rule: how pictures are prepared for it.
        labels: (wnid, name) of its classes.
        options: how it was written.
        signatures: inputs and outputs, as its runtime tells them.
        report: of the gate.
        pictures: what it was checked on.

    Returns:
        What `write` writes, ready for JSON.
    """
    folder = path if path.is_dir() else path.parent
    files = [path, onnx_file.data_of(path)] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in files if file.is_file()]
    return {
        "format": FORMAT,
        "artefact": artefact,
        "variant": origin.variant,
        "weights": {"name": origin.weights, "sha256": origin.sha256},
        "preprocessing": rule.to_dict(),
        "labels": [f"{wnid}\t{name}" if wnid else name for wnid, name in labels],
        "options": dict(options),
        "versions": versions(),
        "signatures": {
            name: {
                side: {
                    key: {"dtype": dtype, "shape": list(shape)}
                    for key, (dtype, shape) in tensors.items()
                }
                for side, tensors in both.items()
            }
            for name, both in signatures.items()
        },
        "files": {
            file.relative_to(folder).as_posix(): {
                "bytes": file.stat().st_size,
                "sha256": sha256(file),
            }
            for file in files
            if file.name != NAME
        },
        "gate": {"pictures": pictures, **summary(report)},
    }


def summary(report: Report) -> dict[str, Any]:
    """A report without its pictures, ready for JSON."""
    fields = dataclasses.asdict(report)
    del fields["rows"]
    return plain(fields)


def full(report: Report) -> dict[str, Any]:
    """A report with its pictures, ready for JSON."""
    return plain(dataclasses.asdict(report))


def plain(value: Any) -> Any:
    """Makes what JSON can say: it has no infinity and no nan."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions() -> dict[str, str]:
    """Versions of what takes part in writing and checking, where it is installed."""
    found = {"python": platform.python_version(), "efficientnet_tf": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(path: Path, content: Any) -> None:
    """Writes JSON for people."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
