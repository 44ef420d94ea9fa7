"""Runs a command as several workers on this machine that train together.

python scripts/launch.py --workers=2 -- python scripts/train.py --recipe=small --workdir=run
python scripts/launch.py --workers=2 --restarts=5 -- python scripts/train.py --workdir=run

Each worker finds the others by TF_CONFIG. When one ends, all end, and are started again up to
--restarts times; they go on from their last checkpoint. Exit code: 0 when all ended well, 2 where
nothing could be started, otherwise that of the worker that ended first (75: stopped and saved).
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from absl import app, flags
from command_line import fail, parse_flags

_WORKERS = flags.DEFINE_integer("workers", None, "How many processes.", 1, required=True)
_RESTARTS = flags.DEFINE_integer("restarts", 0, "How often all are started again.", 0)

# The kernel ends a worker with us, so that none is left that holds the run's folder.
_WORKER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
GRACE = 30.0  # seconds in which workers end on their own when one has ended, and say why
_STEP = 0.1  # seconds


def main(argv):
    """Runs the command."""
    if len(argv) < 2:
        return fail("the command is missing; it stands behind --, as in the examples of --help.")
    if _RESTARTS.value and any(part.lstrip("-").partition("=")[0] == "overwrite" for part in argv):
        return fail(
            "--overwrite with --restarts would remove what was trained, each time that all start"
            " again. Remove the earlier run, or choose another workdir."
        )
    try:
        return launch(argv[1:], _WORKERS.value, restarts=_RESTARTS.value)
    except OSError as error:
        return fail(f"the command cannot be started: {error}")


def launch(
    command: Sequence[str],
    workers: int,
    *,
    restarts: int = 0,
    grace: float = GRACE,
    output: TextIO | None = None,
) -> int:
    """Runs a command as several workers, until all of them end well.

    Each gets TF_CONFIG, with ports that are free now, and its lines come with its number before
    them. When one ends with another code than 0, the others get `grace` to end too (they notice
    within 30 s), and are killed then. SIGTERM and SIGINT are passed on (SIGHUP, of a terminal that
    closes, as SIGTERM), and nothing is started again after them; a second one kills. On Linux
    workers are killed when this process is.

    Args:
        command: to run, the same for all.
        workers: how many.
        restarts: how often all are started again after one has failed, or stopped itself with exit
            code 75 ("start me again").
        grace: seconds.
        output: where lines go; None is standard output.

    Returns:
        Exit code: 0 where all ended well; else that of the first worker that did not, 128 + N where
        signal N ended it.

    Raises:
        OSError: the command cannot be started.
    """
    output = output or sys.stdout
    asked: list[int] = []
    with _passed_on(asked):
        for attempt in range(restarts + 1):
            if attempt:
                _tell(output, f"all {workers} workers start again ({attempt} of {restarts})")
            code = _run(command, workers, grace, output, asked)
            if code == 0 or asked:
                break
    return code


def _run(command: Sequence[str], count: int, grace: float, output: TextIO, asked: list[int]) -> int:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"there is no program {command[0]!r}")
    addresses = _free_addresses(count)
    processes: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    try:
        for index in range(count):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            variables = {"TF_CONFIG": json.dumps(config), "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(os.getpid()), *command],
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C comes to us, and is passed on once
            )
            processes.append(process)
            readers.append(threading.Thread(target=_copy, args=(index, process.stdout, output)))
            readers[-1].start()
        return _watch(processes, grace, output, asked)
    finally:
        for process in processes:
            _kill(process)
        for reader in readers:
            reader.join()


def _watch(
    processes: Sequence[subprocess.Popen], grace: float, output: TextIO, asked: list[int]
) -> int:
    """Waits until all have ended; the first exit code that is not 0."""
    passed, deadline, first = 0, None, 0
    while any(process.poll() is None for process in processes):
        for number in asked[passed:]:
            passed += 1
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)
        if passed > 1:
            deadline = 0.0  # whoever asks twice does not want to wait
        codes = [process.poll() for process in processes]
        failed = [index for index, code in enumerate(codes) if code]
        if failed and deadline is None:
            first = _exit_code(codes[failed[0]])
            _tell(output, f"worker {failed[0]} ended with exit code {first}")
            deadline = time.monotonic() + grace
        left = [str(index) for index, code in enumerate(codes) if code is None]
        if left and deadline is not None and time.monotonic() > deadline:
            _tell(output, f"worker {', '.join(left)} is killed")
            for process in processes:
                _kill(process)
        time.sleep(_STEP)
    codes = [_exit_code(process.wait()) for process in processes]
    return first or next((code for code in codes if code), 0)


def _exit_code(code: int | None) -> int:
    return 128 - code if code is not None and code < 0 else code or 0


def _kill(process: subprocess.Popen) -> None:
    """Ends a worker with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has started holds its output open
    process.wait()


def _copy(index: int, lines, output: TextIO) -> None:
    for line in lines:
        text = line.decode("utf-8", "replace").removesuffix("\n")  # the last may not have one
        output.write(f"[{index}] {text}\n")
        output.flush()
    lines.close()


def _tell(output: TextIO, text: str) -> None:
    output.write(f"[launch] {text}\n")
    output.flush()


def _free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


@contextlib.contextmanager
def _passed_on(asked: list[int]) -> Iterator[None]:
    """Collects the signals that ask to stop, where this thread may listen to them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else it is to be ignored (nohup)
        before[signal.SIGHUP] = signal.signal(
            signal.SIGHUP, lambda *_: asked.append(signal.SIGTERM)
        )
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
