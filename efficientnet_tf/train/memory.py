"""How many pictures per step fit into memory."""

import contextlib
import dataclasses
import itertools
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from absl import logging

from efficientnet_tf.arch import Variant
from efficientnet_tf.arch.complexity import Layer, count
from efficientnet_tf.config import Config
from efficientnet_tf.data.sources import Source

# Peak memory of training over what the activations take, rounded up: 1.4 to 1.6 was measured for
# B0 and V2-B0 on processors. Weights count five times: gradients, two slots, moving average.
_ACTIVATIONS = 2.0
_WEIGHTS = 5
_FIXED = 512 << 20  # graphs and workspaces; 400 to 450 MiB were measured on processors
_SHARE = 0.5  # of the free memory: pictures on their way and the system need some too
_LARGEST = 64  # per replica; larger batches need other learning rates than small data sets like
_FEWEST_STEPS = 8  # per epoch
_OWN_GROUP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def choose_batch(
    config: Config, variant: Variant, source: Source, strategy: tf.distribute.Strategy
) -> Config:
    """Sets `data.batch_size` to the largest power of two that fits, up to 64 per replica.

    Args:
        config: of the run.
        variant: of the network.
        source: small data sets get smaller batches, so that an epoch has at least 8 steps.
        strategy: that training will run under.

    Returns:
        The configuration with the batch size.

    Raises:
        ValueError: the free memory is unknown (TPUs), or not even one picture fits.
    """
    free = free_memory()
    replicas = strategy.num_replicas_in_sync
    if not tf.config.list_logical_devices("GPU"):
        free //= replicas  # logical processor devices share it
    size, parts = _LARGEST, config.train.accumulate
    fewest = replicas * parts * _FEWEST_STEPS
    while size > 1 and size * fewest > source.num_examples["train"]:
        size //= 2
    while size > 1 and training_memory(config, variant, source.num_classes, size) > _SHARE * free:
        size //= 2
    needed = training_memory(config, variant, source.num_classes, size)
    if needed > _SHARE * free:
        raise ValueError(
            f"Training {variant.name} at {config.train_size} px needs about {needed >> 20} MiB for"
            f" one picture; {free >> 20} MiB are free. Choose smaller pictures"
            " (model.image_size) or a smaller variant."
        )
    batch_size = size * replicas * parts
    logging.info("data.batch_size=%d, about %d MiB per replica", batch_size, needed >> 20)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch_size))


def training_memory(config: Config, variant: Variant, classes: int, batch_size: int) -> int:
    """Estimates the bytes that training takes on one replica.

    Args:
        config: `train_size`, `train.precision` ("auto" is taken for float32) and
            `train.rematerialise` are used.
        variant: of the network.
        classes: of the classifier.
        batch_size: pictures at a time on the replica.
    """
    cost = count(variant, config.train_size, classes=classes)
    dtypes = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}
    dtype = dtypes.get(config.train.precision, "float32")
    activations: float = cost.peak_memory(batch_size, dtype=dtype, training=True)
    if config.train.rematerialise:
        activations *= _rematerialised_share(cost.layers)
    return _FIXED + int(_ACTIVATIONS * activations) + _WEIGHTS * 4 * cost.total.trainable


def _rematerialised_share(layers: Sequence[Layer]) -> float:
    """Of all activations, those between blocks and the most within one; see `rematerialise`."""
    parts = itertools.groupby(
        layers, lambda layer: layer.name.partition("_")[0] if "block" in layer.name else layer.stage
    )
    sizes = [[layer.size for layer in members] for _, members in parts]
    between = sum(part[-1] for part in sizes[:-1])
    return (between + max(map(sum, sizes))) / sum(map(sum, sizes))


def free_memory() -> int:
    """Bytes that are free on the fullest GPU, or on this machine where there is none.

    Raises:
        ValueError: it cannot be found out.
    """
    try:
        if tf.config.get_visible_devices("GPU"):
            command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
            if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
                command.append(f"--id={visible}")
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            return min(int(line) for line in output.split()) << 20
        if not tf.config.list_logical_devices("TPU"):
            lines = Path("/proc/meminfo").read_text().splitlines()
            (kib,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
            return int(min(int(kib) << 10, _left_in_groups()))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise ValueError(f"The free memory is unknown ({error}). Set data.batch_size.") from None
    raise ValueError("The free memory of TPUs is unknown. Set data.batch_size.")


def _left_in_groups() -> float:
    """Bytes that the control groups (version 2) may still take: of a container, of a job."""
    left = math.inf
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:
        return left
    (own, *_) = [line[4:] for line in lines if line.startswith("0::/")] or [""]
    for group in (_GROUPS / own, *(_GROUPS / own).parents):
        with contextlib.suppress(OSError):  # the root has no limit, and those outside are not seen
            most = (group / "memory.max").read_text().strip()
            stat = (group / "memory.stat").read_text().splitlines()
            cached = {key: int(value) for key, value in (line.split() for line in stat)}
            used = int((group / "memory.current").read_text()) - cached.get("inactive_file", 0)
            left = left if most == "max" else min(left, int(most) - used)
        if group == _GROUPS:
            break
    return left
