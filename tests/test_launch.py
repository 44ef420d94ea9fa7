"""The launcher, with small programs; and who trains together, from TF_CONFIG and from Slurm."""

import io
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import threading
import time

import pytest
from absl import flags
from resuming import end

from efficientnet_tf.train import cluster
from efficientnet_tf.train import strategy as strategy_lib

_SCRIPT = [sys.executable, str(pathlib.Path(__file__).resolve().parents[1] / "scripts/launch.py")]

# What a program knows of itself, and how often it was started before.
HEAD = """
import json, os, pathlib, signal, sys, time
cluster = json.loads(os.environ["TF_CONFIG"])
index = cluster["task"]["index"]
def started():
    mark = pathlib.Path(sys.argv[1]) / str(index)
    number = int(mark.read_text()) if mark.exists() else 0
    mark.write_text(str(number + 1))
    return number
def both():
    while not all((pathlib.Path(sys.argv[1]) / name).exists() for name in "01"):
        time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def launch(root):
    """The function of the script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "scripts")
        content = runpy.run_path(str(root / "scripts/launch.py"))
    yield content["launch"]
    for name in ("workers", "restarts"):
        delattr(flags.FLAGS, name)


@pytest.fixture
def run(launch, tmp_path):
    """Runs a program as workers; returns the exit code and what it printed."""

    def run(program, workers=2, **kwargs):
        output = io.StringIO()
        command = [sys.executable, "-c", HEAD + program, str(tmp_path)]
        return launch(command, workers, output=output, **kwargs), output.getvalue()

    return run


def test_workers_know_each_other_and_their_lines_are_told_apart(run):
    code, output = run("print(json.dumps(cluster)); print('two')", workers=3)
    assert code == 0
    lines = output.splitlines()
    assert sorted(line for line in lines if line.endswith("two")) == [
        "[0] two",
        "[1] two",
        "[2] two",
    ]
    told = [json.loads(line[4:]) for line in sorted(lines) if "cluster" in line]
    (addresses,) = {tuple(each["cluster"]["worker"]) for each in told}
    assert len(set(addresses)) == 3
    assert [each["task"] for each in told] == [
        {"type": "worker", "index": index} for index in range(3)
    ]


def test_a_last_line_without_an_end_stays_a_line_of_its_own(run):
    _, output = run("started(); both(); print(index, end='')")
    assert sorted(output.splitlines()) == ["[0] 0", "[1] 1"]


@pytest.mark.parametrize("code", [1, 75])
def test_all_start_again_when_one_fails(run, tmp_path, code):
    program = f"""
number = started()
both()
if number < 2:
    sys.exit({code} if index == 1 else 0)
print("well")
"""
    assert run(program, restarts=1)[0] == code
    assert {path.read_text() for path in tmp_path.iterdir()} == {"2"}
    found, output = run(program, restarts=1)
    assert found == 0
    assert "[0] well" in output
    assert "start again" not in output  # the third start went well


def test_those_that_do_not_end_on_their_own_are_killed(run):
    program = """
if index:
    started(); both()
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()  # it must not stay behind either
if child:
    print(child, flush=True)
    started()
time.sleep(1000)
"""
    code, output = run(program, grace=0.5)
    assert code == 128 + signal.SIGKILL
    assert "[launch] worker 1 ended with exit code 137" in output
    assert "[launch] worker 0 is killed" in output
    (child,) = [int(line[4:]) for line in output.splitlines() if line.startswith("[0] ")]
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and "zombie" not in _status(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _status(process):
    try:
        with open(f"/proc/{process}/status") as file:
            return file.read()
    except OSError:
        return "zombie"


def test_a_worker_that_ends_well_before_the_others_is_no_failure(run):
    program = "started(); both()\nif index == 0: time.sleep(0.5); print('late')"
    code, output = run(program, grace=0.1)
    assert code == 0
    assert "[0] late" in output


def test_the_script_passes_sigterm_on_and_does_not_start_again(tmp_path):
    program = HEAD + (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "started(); both(); print('up', flush=True)\ntime.sleep(1000)"
    )
    process = subprocess.Popen(
        [*_SCRIPT, "--workers=2", "--restarts=3", "--", *_SCRIPT[:1], "-c", program, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    guard = threading.Timer(200, process.kill)
    guard.start()
    try:
        up = [process.stdout.readline() for _ in range(2)]
        assert sorted(up) == [b"[0] up\n", b"[1] up\n"]
        process.send_signal(signal.SIGTERM)
        code, errors = end(process, timeout=60)
    finally:
        guard.cancel()
        process.kill()
    assert code == 75, errors
    assert {path.read_text() for path in tmp_path.iterdir()} == {"1"}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends them")
def test_workers_end_with_a_launcher_that_is_killed(tmp_path):
    program = HEAD + "started(); both(); print(os.getpid(), flush=True)\ntime.sleep(1000)"
    process = subprocess.Popen(
        [*_SCRIPT, "--workers=2", "--", *_SCRIPT[:1], "-c", program, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        workers = [int(process.stdout.readline()[4:]) for _ in range(2)]
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while any("zombie" not in _status(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers=2"], "the command is missing"),
        (["--workers=2", "--restarts=1", "--", "true", "--overwrite"], "--overwrite with"),
        (["--", "true"], "--workers"),
        (["--workers=2", "--", "no-such-program"], "no-such-program"),
    ],
)
def test_mistakes_are_explained(flags, message):
    done = subprocess.run(
        [*_SCRIPT, *flags],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def _tf_config(**changes):
    hosts = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}
    return json.dumps({"cluster": hosts, "task": {"type": "worker", "index": 1}} | changes)


def test_tf_config_says_who_trains_together():
    found = cluster.find({"TF_CONFIG": _tf_config()})
    assert found == cluster.Cluster(("a:1", "b:2", "c:3"), 2)
    found = cluster.find({"TF_CONFIG": _tf_config(task={"type": "chief", "index": 0})})
    assert found.index == 0
    assert cluster.find({"TF_CONFIG": found.to_tf_config()}) == found
    assert cluster.find({}) is None


@pytest.mark.parametrize(
    "text",
    [
        "worker",
        "{}",
        _tf_config(task={"type": "worker", "index": 2}),
        _tf_config(task={"type": "evaluator", "index": 0}),
        _tf_config(cluster={"worker": ["a:1"], "ps": ["b:2"]}),
    ],
)
def test_a_wrong_tf_config_is_explained(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r"TF_CONFIG must be a text such as .*Received"):
        strategy_lib.create("multiworker")


def test_slurm_says_who_trains_together(monkeypatch):
    """A step of four tasks on three nodes, as `srun` describes it to the third one."""
    variables = {
        "SLURM_JOB_ID": "31234",
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "gpu[07-08],login1",
        "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    hosts = ("gpu07:21234", "gpu07:21235", "gpu08:21234", "login1:21234")
    assert cluster.find(os.environ) == cluster.Cluster(hosts, 2)
    monkeypatch.delenv("SLURM_STEP_TASKS_PER_NODE")
    with pytest.raises(ValueError, match="The variables of Slurm cannot be used"):
        cluster.find(os.environ)


def test_several_workers_need_to_be_named(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(ValueError, match=r"needs the variable TF_CONFIG.*scripts/launch.py"):
        strategy_lib.create("multiworker")
