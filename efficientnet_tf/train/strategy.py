"""Where training runs: a `tf.distribute` strategy, and the precision policy."""

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import keras
import tensorflow as tf
from absl import logging

StrategyName = Literal["auto", "cpu", "mirrored", "tpu"]


def create(name: StrategyName = "auto", tpu_name: str = "") -> tf.distribute.Strategy:
    """Makes the strategy; call it once, before anything else uses TensorFlow's devices.

    Args:
        name: "auto": all GPUs, or the processor where there is none; "cpu": the processor, even
            where there are GPUs; "mirrored": all GPUs, or all logical processor devices, with equal
            copies of the model; "tpu": a TPU (designed for, untested).
        tpu_name: name or address of the TPU; empty for a local one.

    Returns:
        The strategy.

    Raises:
        ValueError: unknown name.
        RuntimeError: there is no TPU, or this TensorFlow cannot use one.
    """
    if name not in get_args(StrategyName):
        raise ValueError(
            f"strategy must be one of {', '.join(get_args(StrategyName))}. Received: {name!r}"
        )
    if name == "tpu":
        strategy = _tpu(tpu_name)
    elif name == "cpu":
        tf.config.set_visible_devices([], "GPU")
        strategy = tf.distribute.get_strategy()
    else:
        for gpu in tf.config.list_physical_devices("GPU"):
            # Otherwise TensorFlow takes all memory at once, and what is free cannot be told.
            tf.config.experimental.set_memory_growth(gpu, True)
        gpus = tf.config.list_logical_devices("GPU")
        devices = gpus or tf.config.list_logical_devices("CPU")
        if name == "mirrored" or len(gpus) > 1:
            strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
        else:
            strategy = tf.distribute.get_strategy()
    logging.info("%s, %d replica(s)", type(strategy).__name__, strategy.num_replicas_in_sync)
    return strategy


@contextlib.contextmanager
def precision(policy: Literal["float32", "mixed_bfloat16"]) -> Iterator[None]:
    """Sets Keras' dtype policy for the layers that are made inside the `with`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _tpu(tpu_name: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu_name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, tf.errors.OpError) as reason:
        # The stock wheel has no TPU kernels ("No OpKernel was registered"); a machine without a
        # TPU cannot resolve its address.
        raise RuntimeError(
            f"No TPU was found (tpu_name={tpu_name!r}). Run on a machine with a TPU whose"
            " TensorFlow supports it (pip install tensorflow-tpu), name a remote one with"
            " --tpu_name, or leave out --tpu. TensorFlow said:"
            f" {str(reason).strip().splitlines()[0][:300]}"
        ) from reason
    return tf.distribute.TPUStrategy(resolver)
