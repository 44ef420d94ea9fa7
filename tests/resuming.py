"""Runs in processes of their own that are stopped and go on, for tests of whether bits stay."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np

from efficientnet_tf.config import override
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.train import workdir

# Every part that has a state of its own: dropout, stochastic depth, momentum, moving average,
# batch statistics, augmentation, mixup, two stages.
SETTINGS = (
    "model.blocks=r1_k3_s22_e1_i8_o8_c1,r2_k3_s22_e2_i8_o16_se0.25",
    "model.stem_filters=8",
    "model.head_filters=32",
    "model.drop_connect_rate=0.2",
    "data.augment=randaugment",
    "data.mixup=0.2",
    "progressive.stages=2",
    "progressive.image_size=24",
    "train.epochs=4",
    "train.steps_per_epoch=6",
    "train.steps_per_call=2",
    "train.checkpoint_steps=4",
    "train.warmup_epochs=1",
)
CONFIG = override(RECIPES["digits"], *SETTINGS)
TIMED = ("seconds", "images_per_second")

PROGRAM = """
import sys
import tensorflow as tf
from efficientnet_tf.config import override
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.train import run, strategy
from efficientnet_tf.train.interruption import Interrupted
folder, name, timeout, *settings = sys.argv[1:]
if name == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
try:
    chosen = strategy.create(name, start_timeout=float(timeout))
    run.train(override(RECIPES["digits"], *settings), folder, strategy=chosen)
except Interrupted:
    sys.exit(75)
except (RuntimeError, ValueError, OSError) as error:
    sys.exit(f"error: {error}")
"""


def start(folder, name="cpu", *settings, timeout=300, variables=None) -> subprocess.Popen:
    """Starts or continues a run.

    Args:
        folder: of the run.
        name: of the strategy; "mirrored" is two logical devices.
        *settings: beside `SETTINGS`.
        timeout: seconds that workers wait for each other.
        variables: of the environment.
    """
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("TF_CONFIG", None)
    command = [sys.executable, "-c", PROGRAM, str(folder), name, str(timeout), *SETTINGS, *settings]
    return subprocess.Popen(
        command,
        env=environment | (variables or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def start_workers(folder, *settings) -> list[subprocess.Popen]:
    """Starts or continues a run of two workers."""
    configs = tf_configs(2)
    return [
        start(folder, "multiworker", *settings, variables={"TF_CONFIG": text}) for text in configs
    ]


def tf_configs(count: int) -> list[str]:
    """TF_CONFIG of workers on this machine, on ports that are free."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


def end(process: subprocess.Popen, timeout: float = 600) -> tuple[int, str]:
    """Waits for a process; its exit code and its errors. One that does not end is killed."""
    try:
        _, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, errors.decode()


def finish(*processes: subprocess.Popen) -> None:
    """Waits for processes that must end well."""
    try:
        for process in processes:
            code, errors = end(process)
            assert code == 0, errors[-3000:]
    finally:
        stop(processes)


def stop(processes) -> None:
    """Kills what is left of processes, at once."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    for process in processes:
        if process.returncode is None:
            process.communicate()


def state(folder):
    """Everything that the last checkpoint holds, and the metrics that do not tell the time."""
    last = max(path.name.split(".")[0] for path in (folder / workdir.CHECKPOINTS).glob("*.npz"))
    arrays = {}
    for path in sorted((folder / workdir.CHECKPOINTS).glob(f"{last}*.npz")):
        with np.load(path) as file:
            arrays |= {name: file[name] for name in file.files if name != "progress"}
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    history = [
        {name: value for name, value in json.loads(line).items() if name not in TIMED}
        for line in lines
    ]
    return last, arrays, history


def assert_same(folder, other):
    """Checks that two runs have come to the same bits, in every replica's values."""
    (name, arrays, history), (other_name, others, other_history) = state(folder), state(other)
    assert name == other_name
    assert arrays.keys() == others.keys()
    different = [key for key in arrays if not np.array_equal(arrays[key], others[key])]
    assert not different
    assert history == other_history


def end_after(patch, target, name: str, count: int) -> list[tuple]:
    """Lets a function be called `count` times, and then ends what calls it.

    Args:
        patch: a `MonkeyPatch`.
        target: module of the function.
        name: of the function.
        count: calls.

    Returns:
        The arguments of the calls, as they come.
    """
    function, calls = getattr(target, name), []

    def ended(*args):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(args)
        return function(*args)

    patch.setattr(target, name, ended)
    return calls
