"""Memory of this process, for the benchmarks."""

import pathlib
from typing import Literal


def read(name: Literal["VmHWM", "VmRSS"]) -> int:
    """Reads how much memory is resident in this process.

    Not by `resource.getrusage`: on Linux a child starts with its parent's peak.

    Args:
        name: "VmHWM" is the most that it ever was, "VmRSS" what it is now.

    Returns:
        Bytes.

    Raises:
        OSError: the system does not have Linux' /proc/self/status.
    """
    path = pathlib.Path("/proc/self/status")
    if not path.is_file():
        raise OSError(f"Memory is read from {path}, which this system does not have.")
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024
