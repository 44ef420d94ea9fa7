"""Which processes train together, from TF_CONFIG or Slurm, and the wait until all have come."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

_FORM = (
    'a text such as {"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type":'
    ' "worker", "index": 0}}'
)
# TensorFlow waits without end for processes that do not come, and lets nothing else of its own
# process run meanwhile: a second process keeps the time.
_WATCH = """
import os, select, signal, socket, sys
seconds, parent, *addresses = sys.argv[1:]
if select.select([sys.stdin], [], [], float(seconds))[0]:
    sys.exit()  # all have come, or the parent has ended
missing = []
for address in addresses:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError:
        missing.append(address)
print(
    f"error: not all {len(addresses)} workers came within {seconds} s ("
    + (f"no answer from {', '.join(missing)}" if missing else "all can be reached, but hang")
    + "). Start them all again, or give them longer (--start_timeout).",
    file=sys.stderr,
    flush=True,
)
os.kill(int(parent), signal.SIGKILL)
"""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train together.

    Attributes:
        addresses: "host:port" of every process, the chief's first.
        index: of this process among them.
    """

    addresses: tuple[str, ...]
    index: int

    def to_tf_config(self) -> str:
        """The content of TF_CONFIG that says this."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": list(self.addresses)}, "task": task})


def find(environment: Mapping[str, str]) -> Cluster | None:
    """Finds the processes that train together.

    Args:
        environment: variables. TF_CONFIG counts, or else those of a Slurm step (`srun`).

    Returns:
        They; None where neither is set.

    Raises:
        ValueError: what is set cannot be used.
    """
    if environment.get("TF_CONFIG"):
        return _of_tf_config(environment["TF_CONFIG"])
    if "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
        return _of_slurm(environment)
    return None


def _of_tf_config(text: str) -> Cluster:
    try:
        content: Any = json.loads(text)
        hosts, task = content["cluster"], content["task"]
        kind, index = task["type"], int(task["index"])
        others = set(hosts) - {"chief", "worker"}
        if others or kind not in hosts:
            raise ValueError(f"{sorted(others) or kind} among chief and worker")
        chiefs, workers = list(hosts.get("chief", [])), list(hosts.get("worker", []))
        if not 0 <= index < len(hosts[kind]):
            raise ValueError(f"index {index} of {len(hosts[kind])}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"TF_CONFIG must be {_FORM}. Received: {text!r} ({error})") from None
    return Cluster((*chiefs, *workers), index + (len(chiefs) if kind == "worker" else 0))


def _of_slurm(environment: Mapping[str, str]) -> Cluster:
    """The tasks of a step, on ports that follow from the job's number."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=20_000 + int(environment.get("SLURM_JOB_ID", 0)) % 10_000,
            # What Slurm gave each task is visible to it already: one "GPU" per task is no claim.
            gpus_per_node=int(tasks),
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        hosts = resolver.cluster_spec().as_dict()["worker"]
    except (ValueError, RuntimeError) as error:
        found = {name: environment[name] for name in sorted(environment) if "SLURM_STEP" in name}
        raise ValueError(f"The variables of Slurm cannot be used: {error}. {found}") from error
    return Cluster(tuple(hosts), int(environment["SLURM_PROCID"]))


@contextlib.contextmanager
def patience(cluster: Cluster, seconds: float) -> Iterator[None]:
    """Ends this process, and says who is missing, where what is inside takes longer.

    Args:
        cluster: that is waited for.
        seconds: of patience.
    """
    command = [sys.executable, "-c", _WATCH, f"{seconds:g}", str(os.getpid()), *cluster.addresses]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watch:
        try:
            yield
        finally:
            watch.communicate()  # closes its input, by which it ends
