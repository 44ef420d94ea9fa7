"""Calls to time, on the TensorFlow and the JAX backend of Keras: networks and matrix products."""

import os
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np

_WARM_UP = 2  # calls, which trace and compile
_FEWEST = 3  # calls that are timed
_SIZES = (512, 1024, 2048, 4096, 8192)  # of the matrices that are multiplied
_LONG = 0.05  # seconds of one product, from which larger ones tell nothing new


def median_seconds(call: Callable[[], object], seconds: float) -> float:
    """Median of the seconds of a call, which is timed for at least `seconds`, thrice or more."""
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    while len(times) < _FEWEST or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def inference(model: keras.Model, images) -> Callable[[], object]:
    """Compiles a network's inference on one batch, float32 (batch, height, width, 3).

    Returns:
        A function that runs it, on TensorFlow or JAX, and waits for the scores.
    """
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


def training_step(model: keras.Model, images, labels) -> Callable[[], object]:
    """Compiles a training step: forward, backward, RMSProp with momentum.

    Args:
        model: its probabilities (batch, classes) are scored by cross-entropy.
        images: float32 (batch, height, width, 3), as the model takes them.
        labels: integer (batch,).

    Returns:
        A function that takes a step on that batch, on TensorFlow or JAX, and waits for its loss.
    """
    optimizer = keras.optimizers.RMSprop(1e-3, rho=0.9, momentum=0.9, epsilon=1e-3)
    optimizer.build(model.trainable_variables)
    loss_fn = keras.losses.SparseCategoricalCrossentropy()
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


def batch(px: int, batch_size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures, float32 (batch_size, px, px, 3) in 0…255, and labels, (batch_size,)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, px, px, 3)).astype("float32")
    return images, rng.integers(0, classes, batch_size)


def matmul_peak(dtype: str) -> float:
    """Multiply-adds per second of the best large matrix product."""
    best = 0.0
    for size in _SIZES:
        call = _matmul(size, dtype)
        taken = median_seconds(call, 0.1)
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


def device() -> tuple[str, int]:
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
