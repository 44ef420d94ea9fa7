"""Where training runs: a `tf.distribute` strategy."""

import dataclasses
import os
import signal
import threading
from typing import Literal, get_args

import tensorflow as tf
from absl import logging

from efficientnet_tf.train import cluster as cluster_lib

StrategyName = Literal["auto", "cpu", "mirrored", "multiworker", "tpu"]


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of the processes that train together.

    Attributes:
        index: from 0, the chief, which alone writes results.
        count: of processes.
    """

    index: int = 0
    count: int = 1


def worker(strategy: tf.distribute.Strategy) -> Worker:
    """Which of the processes of a strategy this one is."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Worker()
    cluster = cluster_lib.find(os.environ)
    return Worker() if cluster is None else Worker(cluster.index, len(cluster.addresses))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes results."""
    return worker(strategy).index == 0


def create(
    name: StrategyName = "auto",
    tpu_name: str = "",
    *,
    tpu_zone: str | None = None,
    tpu_project: str | None = None,
    start_timeout: float = 300.0,
) -> tf.distribute.Strategy:
    """Makes the strategy; call it once, before anything else uses TensorFlow's devices.

    Args:
        name: "auto": "multiworker" where TF_CONFIG names several processes, or else all GPUs, or
            the processor where there is none; "cpu": the processor, even where there are GPUs;
            "mirrored": all GPUs, or all logical processor devices, with equal copies of the model;
            "multiworker": the same on the GPUs, or the processors, of the processes that TF_CONFIG
            or Slurm names; "tpu": a TPU (designed for, untested).
        tpu_name: name or address of the TPU; empty for a local one.
        tpu_zone: of Google Cloud, that a named TPU is in; None for this machine's.
        tpu_project: of Google Cloud, likewise.
        start_timeout: seconds that "multiworker" waits for all processes. After them it says which
            are missing and ends this process, as TensorFlow leaves nothing else to be done.

    Returns:
        The strategy.

    Raises:
        ValueError: unknown name, a TPU is named for another strategy, or TF_CONFIG is wrong.
        RuntimeError: there is no TPU, or this TensorFlow cannot use one; or the workers could not
            be joined.
    """
    if name not in get_args(StrategyName):
        raise ValueError(
            f"strategy must be one of {', '.join(get_args(StrategyName))}. Received: {name!r}"
        )
    if name != "tpu" and (tpu_name or tpu_zone or tpu_project):
        raise ValueError(
            f"--tpu_name, --tpu_zone and --tpu_project are used only with --tpu. Received: {name!r}"
        )
    cluster = cluster_lib.find(os.environ) if name == "multiworker" else None
    if name == "auto" and os.environ.get("TF_CONFIG"):
        cluster = cluster_lib.find(os.environ)
        name = "multiworker" if cluster is not None and len(cluster.addresses) > 1 else name
    if name == "tpu":
        strategy = _tpu(tpu_name, tpu_zone, tpu_project)
    elif name == "cpu":
        tf.config.set_visible_devices([], "GPU")
        strategy = tf.distribute.get_strategy()
    else:
        for gpu in tf.config.list_physical_devices("GPU"):
            # Otherwise TensorFlow takes all memory at once, and what is free cannot be told.
            tf.config.experimental.set_memory_growth(gpu, True)
        strategy = _multiworker(cluster, start_timeout) if name == "multiworker" else _local(name)
    logging.info("%s, %d replica(s)", type(strategy).__name__, strategy.num_replicas_in_sync)
    return strategy


def _local(name: StrategyName) -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    if name == "mirrored" or len(gpus) > 1:
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def _multiworker(
    cluster: cluster_lib.Cluster | None, start_timeout: float
) -> tf.distribute.Strategy:
    if cluster is None:
        raise ValueError(
            "strategy=multiworker needs the variable TF_CONFIG, or those of a Slurm step."
            " scripts/launch.py sets it for processes on this machine."
        )
    os.environ["TF_CONFIG"] = cluster.to_tf_config()
    logging.info(
        "worker %d of %s waits up to %g s for the others",
        cluster.index,
        ", ".join(cluster.addresses),
        start_timeout,
    )
    try:
        with cluster_lib.patience(cluster, start_timeout):
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
            # The first thing that all do together: none hangs behind it.
            tf.function(lambda: strategy.run(_meet))()
    except tf.errors.OpError as error:
        raise RuntimeError(
            f"Worker {cluster.index} of {', '.join(cluster.addresses)} could not join the others."
            f" TensorFlow said: {str(error).strip().splitlines()[0][:300]}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # TensorFlow listens to SIGTERM from now on, and so would keep it from ending the process.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return strategy


def _meet() -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce("SUM", tf.ones(1))


def _tpu(tpu_name: str, zone: str | None, project: str | None) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=tpu_name, zone=zone, project=project
        )
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, RuntimeError, tf.errors.OpError) as reason:
        # The stock wheel has no TPU kernels ("No OpKernel was registered"); a machine without a
        # TPU cannot resolve its address; names are looked up by Google's API client.
        raise RuntimeError(
            f"No TPU was found (tpu_name={tpu_name!r}). Run on a machine with a TPU whose"
            " TensorFlow supports it (pip install tensorflow-tpu), name a remote one with"
            ' --tpu_name (pip install "efficientnet_tf[tpu]"), or leave out --tpu. TensorFlow said:'
            f" {str(reason).strip().splitlines()[0][:300]}"
        ) from reason
    return tf.distribute.TPUStrategy(resolver)
