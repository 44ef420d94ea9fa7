"""What networks take on this machine, on the TensorFlow and the JAX backend of Keras.

As a program it prints one measurement as JSON. With JAX, TensorFlow need not be installed.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from efficientnet_tf.arch import Variant, files
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.arch.published import TABLES, Reported
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.models.efficientnet import build

PRECISIONS = ("float32", "mixed_bfloat16")
_WARM_UP = 2  # calls, which trace and compile
_FEWEST = 3  # calls that are timed
_BACKWARD = 3  # a training step's multiply-adds over the forward pass'
_SIZES = (512, 1024, 2048, 4096, 8192)  # of the matrices that are multiplied
_LONG = 0.05  # seconds of one product, from which larger ones tell nothing new


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
        inference = _time(_inference(variant, px, batch_size), seconds)
        step = _time(_training(variant, train_px, batch_size), seconds) if training else None
    finally:
        keras.config.set_dtype_policy(before)
    peak = _matmul_peak("bfloat16" if "bfloat16" in precision else "float32")
    device, cores = _device()
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


def _time(call: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call."""
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    while len(times) < _FEWEST or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _inference(variant: Variant, px: int, batch_size: int) -> Callable[[], object]:
    model = build(variant, input_shape=(px, px, 3))
    images, _ = _batch(variant, px, batch_size)
    if keras.backend.backend() == "jax":
        import jax

        state = (
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
        )
        function = jax.jit(lambda state, x: model.stateless_call(*state, x, training=False)[0])
        images = jax.device_put(images)
        return lambda: jax.block_until_ready(function(state, images))
    import tensorflow as tf

    function = tf.function(lambda x: model(x, training=False))
    images = tf.constant(images)
    return lambda: function(images).numpy()


def _training(variant: Variant, px: int, batch_size: int) -> Callable[[], object]:
    model = build(variant, input_shape=(px, px, 3))
    optimizer = keras.optimizers.RMSprop(1e-3, rho=0.9, momentum=0.9, epsilon=1e-3)
    optimizer.build(model.trainable_variables)
    loss_fn = keras.losses.SparseCategoricalCrossentropy()
    images, labels = _batch(variant, px, batch_size)
    if keras.backend.backend() == "jax":
        return _jax_step(model, optimizer, loss_fn, images, labels)
    import tensorflow as tf

    images, labels = tf.constant(images), tf.constant(labels)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = loss_fn(labels, model(images, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return lambda: step().numpy()


def _jax_step(model, optimizer, loss_fn, images, labels) -> Callable[[], object]:
    import jax

    def loss(trainable, others, images, labels):
        outputs, others = model.stateless_call(trainable, others, images, training=True)
        return loss_fn(labels, outputs), others

    def step(state, images, labels):
        trainable, others, slots = state
        gradients = jax.value_and_grad(loss, has_aux=True)
        (value, others), grads = gradients(trainable, others, images, labels)
        trainable, slots = optimizer.stateless_apply(slots, grads, trainable)
        return value, (trainable, others, slots)

    compiled = jax.jit(step, donate_argnums=0)
    groups = model.trainable_variables, model.non_trainable_variables, optimizer.variables
    # Copies, as they are donated.
    state = tuple([jax.numpy.array(variable.value) for variable in group] for group in groups)
    images, labels = jax.device_put(images), jax.device_put(labels)

    def call():
        nonlocal state
        value, state = compiled(state, images, labels)
        return jax.block_until_ready((value, state))

    return call


def _batch(variant: Variant, px: int, batch_size: int):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, px, px, 3)).astype("float32")
    return images, rng.integers(0, variant.classes, batch_size)


def _matmul_peak(dtype: str) -> float:
    """Multiply-adds per second of the best large matrix product."""
    best = 0.0
    for size in _SIZES:
        call = _matmul(size, dtype)
        taken = _time(call, 0.1)
        best = max(best, size**3 / taken)
        if taken > _LONG:
            break
    return best


def _matmul(size: int, dtype: str) -> Callable[[], object]:
    values = np.random.default_rng(0).normal(size=(size, size)).astype("float32")
    if keras.backend.backend() == "jax":
        import jax

        matrix = jax.numpy.array(values, dtype)
        product = jax.jit(lambda a: a @ a)
        return lambda: jax.block_until_ready(product(matrix))
    import tensorflow as tf

    matrix = tf.cast(values, dtype)
    total = tf.function(lambda a: a @ a)
    return lambda: total(matrix)[0, 0].numpy()  # waits for the product


def _device() -> tuple[str, int]:
    """Name of the device, and the cores of a processor; 0 for others."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        if device.platform != "cpu":
            return str(device.device_kind), 0
    elif backend == "tensorflow":
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_device_details(device).get("device_name", "GPU"), 0
    else:
        raise ValueError(f"The backend must be TensorFlow or JAX. Received: {backend!r}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "CPU", cores or 1


def main(argv: list[str]) -> None:
    """Measures what a request in JSON says, and prints the result as JSON."""
    request = json.loads(argv[1])
    if len(argv) > 2:  # before any thread is started
        os.sched_setaffinity(0, {int(argv[2])})
    network = files.from_dict(request.pop("network"))
    print(json.dumps(dataclasses.asdict(measure(network, **request))))


if __name__ == "__main__":
    main(sys.argv)
