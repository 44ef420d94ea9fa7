"""Runs of two workers: what each writes, how they stop, and that they go on to the same bits."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from resuming import (
    CONFIG,
    SETTINGS,
    assert_same,
    end,
    finish,
    start,
    start_workers,
    state,
    stop,
    tf_configs,
)

from efficientnet_tf.config import override
from efficientnet_tf.train import checkpoint, run, workdir

LOST = "Another of the 2 workers has ended or cannot be reached"


def _wait_for(folder, processes, more_than=0):
    """Waits until the chief has written so many checkpoints."""
    deadline = time.monotonic() + 300
    while len(list(folder.rglob("*.worker-0-*.npz"))) <= more_than:
        assert all(process.poll() is None for process in processes), end(processes[0])[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two workers that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    finish(*start_workers(folder))
    return folder


def test_results_are_written_once_by_the_chief(whole):
    names = {path.name for path in whole.iterdir()}
    failed = {workdir.BAD_PICTURES, workdir.BROKEN_BATCH}  # where there is something to name
    results = {*workdir._FILES, workdir.CHECKPOINTS} - failed
    assert names == results
    assert [row["step"] for row in _history(whole)] == [6, 12, 18, 24]
    _, arrays, _ = state(whole)
    # Seeds of dropout, and sums of what each has seen; batch statistics were not averaged yet.
    assert any(_differs(arrays, name) for name in arrays)
    lines = (whole / "metrics.csv").read_text().splitlines()
    assert len(lines) == 5
    assert len(json.loads((whole / workdir.RECORD).read_text())["sessions"]) == 1
    parts = sorted(path.name for path in (whole / workdir.CHECKPOINTS).iterdir())
    assert parts == [
        f"000004-{done:09d}.worker-{index}-of-2.npz" for done in (4, 6) for index in (0, 1)
    ]


def _history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _differs(arrays, name):
    replica, _, rest = name.partition("/")
    return replica == "0" and not np.array_equal(arrays[name], arrays[f"1/{rest}"])


@pytest.mark.slow
def test_one_worker_that_is_killed_ends_the_other_and_both_go_on(whole, tmp_path):
    processes = start_workers(tmp_path)
    try:
        _wait_for(tmp_path, processes)
        processes[1].kill()
        code, errors = end(processes[0], timeout=30)  # as is promised
        assert code == 1
        assert LOST in errors.splitlines()[-1], errors[-2000:]
    finally:
        stop(processes)
    # A part without its other half does not count.
    last = max((tmp_path / workdir.CHECKPOINTS).glob("*.worker-0-*"))
    shutil.copy(last, last.with_name("000001-000000005.worker-0-of-2.npz"))
    finish(*start_workers(tmp_path))
    assert_same(tmp_path, whole)


def test_parts_of_a_checkpoint_alone_do_not_count(tmp_path):
    strategy = tf.distribute.get_strategy()
    trainee = run.prepare(CONFIG, strategy, None, tmp_path).trainee
    part = tmp_path / "000001-000000004.worker-0-of-2.npz"
    part.write_bytes(b"")
    assert checkpoint.restore(tmp_path, strategy, trainee) is None  # the first one
    part.rename(tmp_path / "000002-000000004.worker-0-of-2.npz")
    with pytest.raises(ValueError, match=r"lack parts \(0 have all\)"):
        checkpoint.restore(tmp_path, strategy, trainee)
    path = checkpoint.save(tmp_path, checkpoint.Progress(2, 2), strategy, trainee, keep=2)
    assert checkpoint.restore(tmp_path, strategy, trainee).done == 2
    assert list(tmp_path.iterdir()) == [path]


def test_one_worker_that_is_asked_to_stop_stops_both_and_one_goes_on_alone(tmp_path, caplog):
    """With synchronised batch normalization, whose statistics are then those of all workers."""
    setting = "model.sync_batch_norm=true"
    processes = start_workers(tmp_path, setting)
    try:
        _wait_for(tmp_path, processes)
        processes[1].send_signal(signal.SIGTERM)
        assert [end(process)[0] for process in processes] == [75, 75]
    finally:
        stop(processes)
    _, arrays, _ = state(tmp_path)
    own = {name.partition("/")[2] for name in arrays if _differs(arrays, name)}
    assert own
    assert not [
        name for name in own if arrays[f"0/{name}"].dtype == "float32" and "sums" not in name
    ]
    result = run.train(override(CONFIG, setting), tmp_path)
    assert "another number of replicas" in caplog.text
    assert [row["step"] for row in result.history] == [6, 12, 18, 24]
    assert not list(tmp_path.rglob("*.worker-*"))  # the last two are of one worker


def test_a_worker_that_never_comes_is_named(tmp_path):
    first, _ = tf_configs(2)
    missing = json.loads(first)["cluster"]["worker"][1]
    process = start(tmp_path, "multiworker", timeout=20, variables={"TF_CONFIG": first})
    code, errors = end(process, timeout=300)
    assert code == -signal.SIGKILL
    assert f"not all 2 workers came within 20 s (no answer from {missing})" in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_workers_killed_at_random_moments_go_on_to_the_same_bits(whole, tmp_path):
    """SIGKILL to one of two, 20 times; the other one ends, and both are started again."""
    folder, rng, killed = tmp_path / "run", random.Random(0), 0
    while killed < 20:
        processes = start_workers(folder)
        try:
            written, deadline = set(folder.rglob("*.npz")), time.monotonic() + 240
            while set(folder.rglob("*.npz")) <= written and processes[0].poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(rng.choice([0, rng.uniform(0, 0.3), rng.uniform(0, 3)]))
            victim = rng.randrange(2)
            processes[victim].kill()
            code, errors = end(processes[1 - victim], timeout=30)
            assert code == 0 or LOST in errors, errors[-2000:]
            processes[victim].communicate()
            killed += processes[victim].returncode == -signal.SIGKILL
        finally:
            stop(processes)
        if all(process.returncode == 0 for process in processes):  # it had finished: begin again
            assert_same(folder, whole)
            shutil.rmtree(folder)
    finish(*start_workers(folder))
    assert_same(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["cpu", "mirrored"])
def test_two_workers_go_on_with_what_one_process_began(before, tmp_path):
    process = start(tmp_path, before)
    while not list(tmp_path.rglob("*.npz")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 75
    processes = start_workers(tmp_path)
    found = [end(process) for process in processes]
    assert [code for code, _ in found] == [0, 0], found[0][1][-2000:]
    assert "to the same bits" in found[0][1]
    assert [row["step"] for row in _history(tmp_path)] == [6, 12, 18, 24]


@pytest.mark.slow
def test_workers_that_do_not_fit_together_say_so(tmp_path):
    first, second = tf_configs(2)
    processes = [
        start(tmp_path, "multiworker", variables={"TF_CONFIG": first}),
        start(tmp_path, "multiworker", "train.seed=1", variables={"TF_CONFIG": second}),
    ]
    for code, errors in [end(process) for process in processes]:
        assert code == 1
        assert "All workers must have the same settings." in errors
    first, second = tf_configs(2)
    processes = [
        start(tmp_path / "one", "multiworker", variables={"TF_CONFIG": first}),
        start(tmp_path / "other", "multiworker", variables={"TF_CONFIG": second}),
    ]
    for code, errors in [end(process) for process in processes]:
        assert code == 1
        assert "Worker 1 does not see config.json" in errors


@pytest.mark.slow
def test_a_damaged_part_sends_all_workers_to_the_checkpoint_before(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    last = max((folder / workdir.CHECKPOINTS).glob("*.worker-1-*"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    finish(*start_workers(folder))
    assert_same(folder, whole)


@pytest.mark.slow
def test_the_launcher_trains_and_the_chief_exports(root, tmp_path):
    settings = [f"--set={setting}" for setting in SETTINGS]
    scripts = [str(root / "scripts" / name) for name in ("launch.py", "train.py")]
    launch = [sys.executable, scripts[0], "--workers=2", "--", sys.executable, scripts[1]]
    done = subprocess.run(
        [*launch, "--workdir=run", *settings],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "[0] Everything is in run" in done.stdout
    assert "[1] Everything" not in done.stdout
    assert "Strategy, 2 replica(s)" in done.stdout
    reports = json.loads((tmp_path / "run/export/report.json").read_text())
    assert all(report["count"] == 359 for report in reports)
