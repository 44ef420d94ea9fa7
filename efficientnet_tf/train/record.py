"""The record of a run: what it takes to repeat it, for every time that it was started."""

import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf.data.fingerprint import fingerprint
from efficientnet_tf.labels import printable
from efficientnet_tf.page import document
from efficientnet_tf.paths import AnyPath
from efficientnet_tf.train import workdir
from efficientnet_tf.train.setup import Run

_VERSION = 1
# Variables that change what TensorFlow computes, or where.
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "KERAS_BACKEND",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "TF_CONFIG",
    "TF_CUDNN_DETERMINISTIC",
    "TF_DETERMINISTIC_OPS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)


def begin(run: Run, folder: AnyPath, after: Mapping[str, int] | None) -> None:
    """Adds a start of a run to the record in its folder, and warns where it is not like the last.

    It has the time, the command, the settings, the pictures' fingerprint, the code, the versions
    and the hardware.

    Args:
        run: that starts.
        folder: of the run.
        after: "epoch" and "step" of the checkpoint that it goes on from; None for a new run.
    """
    sessions = _read(folder) if after else []
    session = {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "after": after and dict(after),
        "command": sys.argv,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "code": code(),
        "data": {"source": run.source.name, **fingerprint(run.source)},
        "taught": run.taught,
        "strategy": type(run.strategy).__name__,
        "environment": hardware(run.strategy.num_replicas_in_sync),
        "config": dataclasses.asdict(run.config),
    }
    if sessions:
        _compare(sessions[-1], session)
    text = json.dumps({"version": _VERSION, "sessions": [*sessions, session]}, indent=2)
    workdir.write_text(folder / workdir.RECORD, text + "\n")


def shown(folder: AnyPath) -> dict[str, object]:
    """Names and values of a run's last start, for its page; the settings are elsewhere on it."""
    sessions = _read(folder)
    if not sessions:
        return {}
    session = sessions[-1]
    after, revision, data = session["after"], session["code"], session["data"]
    splits = [f"{split} {part['hash']}" for split, part in data.items() if isinstance(part, dict)]
    return {
        "starts": len(sessions),
        "last start": session["started"],
        "went on after": after and f"step {after['step']} of epoch {after['epoch']}",
        "command": printable(" ".join(session["command"])),
        "variables": " ".join(f"{k}={v}" for k, v in session["variables"].items()) or None,
        "code": revision and revision["revision"] + (", changed" if revision["changed"] else ""),
        "pictures": printable(f"{data['source']}: {', '.join(splits)}"),
        "taught by": session.get("taught"),
        "strategy": session["strategy"],
        **session["environment"],
    }


def code() -> dict[str, Any] | None:
    """The git revision of this package, and whether its files differ from it.

    Returns:
        "revision" and "changed"; None where it is not in a checkout, or git is not there.
    """
    package = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.fspath(package), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else the checkout is another project's
        return {"revision": git("rev-parse", "HEAD"), "changed": bool(git("status", "-s", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(replicas: int) -> dict[str, Any]:
    """Versions, machine and devices, for the record and the page of a run."""
    build = tf.sysconfig.get_build_info()
    found = document.environment(replicas) | {
        "NumPy": np.__version__,
        "CUDA": build.get("cuda_version"),
        "cuDNN": build.get("cudnn_version"),
        "host": platform.node(),
        "processor": _line("/proc/cpuinfo", "model name"),
        "memory": _line("/proc/meminfo", "MemTotal"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _line(path: str, name: str) -> str | None:
    """What a file of the Linux kernel says about something; None on other systems."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith(name)), None)
    return line and line.partition(":")[2].strip()


def _read(folder: AnyPath) -> list[dict[str, Any]]:
    path = folder / workdir.RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["sessions"]) if content["version"] == _VERSION else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.warning("%s cannot be read, and begins anew: %s", path, error)
        return []


def _compare(last: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warns where a run that goes on will not come to the bits that it would have come to."""
    old, new = last["environment"], now["environment"]
    names = ("TensorFlow", "Keras", "processor", "processor cores", "devices")
    changed = [
        f"{name} {new.get(name)} ({old.get(name)})"
        for name in names
        if new.get(name) != old.get(name)
    ]
    if last["code"] != now["code"]:
        changed.append("the code")
    if last["data"] != now["data"]:
        changed.append("the pictures' names, sizes or content")
    if changed:
        logging.warning(
            "The run goes on, but perhaps not to the same bits: others than before are %s.",
            ", ".join(changed),
        )
