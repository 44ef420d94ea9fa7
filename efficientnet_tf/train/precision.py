"""Precision by hardware, and the loss scale that float16 needs."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import keras
import tensorflow as tf
from absl import logging

from efficientnet_tf.config import Config

Policy = Literal["float32", "mixed_bfloat16", "mixed_float16"]

_HIGHEST = 2.0**24  # float16 ends at 2**16, and its smallest number is 2**-24
_CPU_FLAGS = ("avx512_bf16", "amx_bf16")  # what oneDNN multiplies bfloat16 with


def resolve(strategy: tf.distribute.Strategy) -> tuple[Policy, str]:
    """Chooses the precision that a strategy's devices compute fastest in without losing accuracy.

    bfloat16 has the range of float32 and needs no loss scale; GPUs of compute capability 8.0 and
    later multiply it as fast as float16 (NVIDIA A100 white paper: 312 TFLOPS either way), those of
    7.x have tensor cores for float16 only.

    Args:
        strategy: where training will run.

    Returns:
        The precision and the reason, in words for the log.
    """
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "mixed_bfloat16", "TPUs multiply bfloat16"
    capabilities = _compute_capabilities()
    if capabilities:
        lowest = min(capabilities)
        name = f"compute capability {lowest[0]}.{lowest[1]}"
        if lowest >= (8, 0):
            return "mixed_bfloat16", f"GPUs of {name} multiply bfloat16 as fast as float16"
        if lowest >= (7, 0):
            return "mixed_float16", f"GPUs of {name} have tensor cores for float16, not bfloat16"
        return "float32", f"GPUs of {name} have no tensor cores"
    found = [flag for flag in _CPU_FLAGS if flag in _processor_flags()]
    if found:
        return "mixed_bfloat16", f"the processor has {found[0].upper()}"
    return "float32", f"the processor has none of {', '.join(_CPU_FLAGS).upper()}"


def resolved(config: Config, strategy: tf.distribute.Strategy) -> Config:
    """Replaces "auto" in `train.precision`, and says in the log what is used."""
    precision, reason = config.train.precision, "as given"
    if precision == "auto":
        precision, reason = resolve(strategy)
        train = dataclasses.replace(config.train, precision=precision)
        config = dataclasses.replace(config, train=train)
    logging.info("train.precision=%s: %s", precision, reason)
    return config


@contextlib.contextmanager
def policy(name: Policy) -> Iterator[None]:
    """Sets Keras' dtype policy for the layers that are made inside the `with`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class LossScale(tf.Module):
    """Factor of the loss that keeps float16 gradients from vanishing (arXiv:1710.03740, Sec. 3.2).

    It starts high. A step whose gradients overflow is not learnt from and halves it; after
    `growth_steps` others in succession it doubles, up to 2**24. Keras' `LossScaleOptimizer` looks
    at each replica's own gradients, and so replicas can come to differ; here they decide together
    (`agreed`). Make it in the strategy's scope, and call its methods in the replica context.

    Args:
        initial: value to begin with.
        growth_steps: good steps in succession after which it doubles.
        lowest: value below which it does not fall. An overflow there is no matter of the scale.

    Attributes:
        value: the scale, a float32 variable.
        good_steps: since it last changed, a float32 variable.
    """

    def __init__(self, initial: float = 2.0**15, growth_steps: int = 2000, lowest: float = 1.0):
        super().__init__(name="loss_scale")
        self.growth_steps, self.lowest = growth_steps, lowest
        # Every replica has its own, and all change alike.
        self.value, self.good_steps = (
            tf.Variable(
                start,
                trainable=False,
                dtype=tf.float32,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for start in (initial, 0.0)
        )

    def update(self, finite: tf.Tensor) -> None:
        """Takes note of a step.

        Args:
            finite: bool (), whether the gradients of all replicas were.
        """
        good = tf.where(finite, self.good_steps + 1, 0.0)
        grows = good >= self.growth_steps
        grown = tf.where(grows, tf.minimum(self.value * 2, _HIGHEST), self.value)
        self.value.assign(tf.where(finite, grown, tf.maximum(self.value / 2, self.lowest)))
        self.good_steps.assign(tf.where(grows, 0.0, good))


def agreed(*conditions: tf.Tensor) -> list[tf.Tensor]:
    """Whether each condition, bool (), holds on any replica; call it in the replica context."""
    counts = tf.stack([tf.cast(condition, tf.float32) for condition in conditions])
    sums = tf.distribute.get_replica_context().all_reduce("SUM", counts)
    return tf.unstack(sums > 0)


def _compute_capabilities() -> list[tuple[int, int]]:
    """Of the GPUs that are used."""
    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    return [detail.get("compute_capability", (0, 0)) for detail in details]


def _processor_flags() -> frozenset[str]:
    """What the processor can do; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
