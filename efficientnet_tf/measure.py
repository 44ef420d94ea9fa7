"""What networks take on this machine, on the TensorFlow and the JAX backend of Keras.

As a program it prints one measurement as JSON. With JAX, TensorFlow need not be installed.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import keras

from efficientnet_tf import timed
from efficientnet_tf.arch import Variant, files
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.arch.published import TABLES, Reported
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.models.efficientnet import build

PRECISIONS = ("float32", "mixed_bfloat16")
_BACKWARD = 3  # a training step's multiply-adds over the forward pass'


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a network took.

    Attributes:
        network: its name.
        backend: of Keras.
        device: what it ran on.
        precision: as for `measure`.
        threads: cores that it might use; 0 on other devices than processors.
        batch: pictures at a time.
        px: side of the pictures in inference, pixels.
        inference_ms: median milliseconds of a batch.
        train_px: side of the pictures in training.
        training_ms: median milliseconds of a training step; None where none was measured.
        inference_share: of the multiply-adds per second that a large matrix multiplication reaches
            in the same precision on the same cores.
        training_share: the same; a step counts three times the forward pass.
        peak: multiply-adds per second of that matrix multiplication.
    """

    network: str
    backend: str
    device: str
    precision: str
    threads: int
    batch: int
    px: int
    inference_ms: float
    train_px: int
    training_ms: float | None
    inference_share: float
    training_share: float | None
    peak: float

    def row(self) -> dict[str, Any]:
        """For `arch.profile.to_text`."""
        row: dict[str, Any] = {
            "network": self.network,
            "threads": self.threads,
            "batch": self.batch,
            "px": self.px,
            "inference, ms": round(self.inference_ms, 2),
            "pictures/s": round(1e3 * self.batch / self.inference_ms, 2),
            "share of peak": round(self.inference_share, 4),
        }
        if self.training_ms is not None and self.training_share is not None:
            row |= {
                "training px": self.train_px,
                "training step, ms": round(self.training_ms, 1),
                "trained pictures/s": round(1e3 * self.batch / self.training_ms, 2),
                "training, share of peak": round(self.training_share, 4),
            }
        return row


def measure(
    network: str | os.PathLike | Variant,
    *,
    batch_size: int = 1,
    resolution: int | None = None,
    train_resolution: int | None = None,
    precision: str = "float32",
    training: bool = True,
    seconds: float = 2.0,
) -> Measured:
    """Measures a network with random weights in this process.

    Args:
        network: name or path of a variant, or a `Variant`.
        batch_size: pictures at a time.
        resolution: pixels in inference; None is the variant's.
        train_resolution: pixels in training; None is `resolution`, or else the variant's.
        precision: "float32" or "mixed_bfloat16".
        training: whether a training step (forward, backward, RMSProp with momentum) is measured.
        seconds: each of the two is timed for at least, after it is compiled; and three calls.

    Returns:
        What it took.

    Raises:
        ValueError: unknown network or precision, or another backend than TensorFlow or JAX.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}. Received: {precision!r}")
    variant = find(network)
    px = resolution or variant.resolution
    train_px = train_resolution or resolution or variant.train_resolution
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        images, _ = timed.batch(px, batch_size, variant.classes)
        model = build(variant, input_shape=images.shape[1:])
        inference = timed.median_seconds(timed.inference(model, images), seconds)
        step = None
        if training:
            images, labels = timed.batch(train_px, batch_size, variant.classes)
            model = build(variant, input_shape=images.shape[1:])
            step = timed.median_seconds(timed.training_step(model, images, labels), seconds)
    finally:
        keras.config.set_dtype_policy(before)
    peak = timed.matmul_peak("bfloat16" if "bfloat16" in precision else "float32")
    device, cores = timed.device()
    work = batch_size * count(variant, px).total.macs
    train_work = _BACKWARD * batch_size * count(variant, train_px).total.macs
    return Measured(
        network=variant.name,
        backend=keras.backend.backend(),
        device=device,
        precision=precision,
        threads=cores,
        batch=batch_size,
        px=px,
        inference_ms=1e3 * inference,
        train_px=train_px,
        training_ms=None if step is None else 1e3 * step,
        inference_share=work / inference / peak,
        training_share=None if step is None else train_work / step / peak,
        peak=peak,
    )


def latency(network: str | os.PathLike | Variant) -> float:
    """Seconds in which one picture is classified here, for `arch.compound.scale`."""
    return measure(network, training=False).inference_ms / 1e3


def in_process(
    network: str | os.PathLike | Variant,
    *,
    one_thread: bool = False,
    timeout: float = 3600,
    **options: Any,
) -> Measured:
    """Measures a network in a process of its own, on one core or all.

    Args:
        network: as for `measure`.
        one_thread: whether the process may use one core only.
        timeout: seconds after which it is given up.
        **options: of `measure`.

    Raises:
        OSError: this system cannot keep a process on one core.
        RuntimeError: the process failed; its last line says why.
    """
    request = {"network": files.to_dict(find(network)), **options}
    command = [sys.executable, "-m", "efficientnet_tf.measure", json.dumps(request)]
    if one_thread:
        if not hasattr(os, "sched_getaffinity"):
            raise OSError("Only on Linux can a process be kept on one core.")
        command.append(str(min(os.sched_getaffinity(0))))
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"Measuring {find(network).name} failed: {lines[-1]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def profile(
    network: str | os.PathLike | Variant, *, batch_size: int = 1, **options: Any
) -> list[Measured]:
    """Measures one picture and a batch, on one core and on all, each in a process of its own.

    Args:
        network: as for `measure`.
        batch_size: of the batch, with which training is measured too.
        **options: of `measure`.

    Returns:
        The measurements; on other devices than processors, and on one core, those on all only.
    """
    found: list[Measured] = []
    for size in sorted({1, batch_size}):
        trains = {"batch_size": size, "training": size == batch_size, **options}
        found.append(in_process(network, **trains))
        if found[-1].threads > 1:
            found.append(in_process(network, one_thread=True, **trains))
    return found


def beside(
    table: str, only: Sequence[str] = (), *, batch_size: int = 16, **options: Any
) -> list[dict[str, Any]]:
    """Measures the networks of a table of V2 and puts them beside what the paper measured.

    Args:
        table: "v2-3", "v2-7" or "v2-10".
        only: some of its networks; empty for all.
        batch_size: pictures at a time.
        **options: of `measure`.

    Returns:
        The rows: milliseconds of a batch, trained pictures per second, and what the paper has;
        each also as a multiple of the first row's. The paper's hours are those of whole trainings.

    Raises:
        ValueError: a table without measurements, or none of its networks.
    """
    if table not in ("v2-3", "v2-7", "v2-10"):
        raise ValueError(f"Measured are v2-3, v2-7 and v2-10. Received: table={table!r}")
    reported = [row for row in TABLES[table] if isinstance(row, Reported)]
    timed = [row for row in reported if not only or row.network in only]
    if not timed:
        raise ValueError(f"No network of {table}: {', '.join(only)}.")
    found: list[dict[str, Any]] = []
    for row in timed:
        here = in_process(row.network, batch_size=batch_size, **options)
        columns = {
            "inference, ms": here.inference_ms,
            "paper's ms": row.milliseconds,
            "training step, ms": here.training_ms,
            "paper's hours": row.hours,
            "trained pictures/s": 1e3 * batch_size / here.training_ms if here.training_ms else None,
            "paper's TPU": row.tpu,
            "paper's V100": row.v100,
        }
        values: dict[str, Any] = {"network": row.network, "px": here.px, "train px": here.train_px}
        for name, value in columns.items():
            if value is not None:
                first = found[0][name] if found else value
                values |= {name: round(value, 2), f"{name}, times": round(value / first, 2)}
        found.append(values)
    return found


def main(argv: list[str]) -> None:
    """Measures what a request in JSON says, and prints the result as JSON."""
    request = json.loads(argv[1])
    if len(argv) > 2:  # before any thread is started
        os.sched_setaffinity(0, {int(argv[2])})
    network = files.from_dict(request.pop("network"))
    print(json.dumps(dataclasses.asdict(measure(network, **request))))


if __name__ == "__main__":
    main(sys.argv)
