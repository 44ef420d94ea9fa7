"""Runs that are stopped and go on: to the same bits, whatever stopped them."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from resuming import CONFIG, SETTINGS, assert_same, end, end_after, finish, start, state, stop

from efficientnet_tf.config import override
from efficientnet_tf.data import arrays
from efficientnet_tf.train import average, checkpoint, epochs, report, run, setup, workdir
from efficientnet_tf.train.interruption import Interrupted


def _stop_at(monkeypatch, target, name, count):
    """Sends SIGTERM when a function is called for the `count`-th time."""
    function, calls = getattr(target, name), []

    def counted(*args, **kwargs):
        calls.append(None)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    monkeypatch.setattr(target, name, counted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    result = run.train(CONFIG, folder)
    return folder, result


@pytest.mark.parametrize(
    ("target", "name", "count"),
    [
        (report.Progress, "update", 4),  # within the second epoch
        (epochs, "_named", 3),  # between an epoch's two evaluations
    ],
)
def test_a_run_that_is_asked_to_stop_goes_on(whole, tmp_path, monkeypatch, target, name, count):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        _stop_at(patch, target, name, count)
        with pytest.raises(Interrupted):
            run.train(CONFIG, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    result = run.train(CONFIG, tmp_path)
    assert_same(tmp_path, whole[0])
    assert result.test.top1 == whole[1].test.top1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_each_stage_says_how_soon_a_run_can_stop(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(epochs, "_PATIENCE", -1.0)  # all that is longer is a warning
    run.train(CONFIG, tmp_path)
    assert len(re.findall(r"answered within \d+ s, after the 2 steps of a call", caplog.text)) == 2


@pytest.mark.parametrize(("target", "name"), [(setup, "open_source"), (run, "evaluate")])
def test_before_and_after_training_a_run_stops_at_once(whole, tmp_path, monkeypatch, target, name):
    """While pictures are looked through, and while the best model is tested."""
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        _stop_at(patch, target, name, 1)
        with pytest.raises(Interrupted):
            run.train(CONFIG, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
    run.train(CONFIG, tmp_path)
    assert_same(tmp_path, whole[0])


def test_the_script_stops_in_training_and_in_export_and_goes_on(root, tmp_path):
    """SIGTERM to it twice: exit code 75 each time, and then all is there."""
    settings = [f"--set={setting}" for setting in SETTINGS]
    script = [sys.executable, str(root / "scripts/train.py"), "--workdir=run", *settings]

    def until(wanted):
        with subprocess.Popen(
            script,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if wanted and wanted in line:
                    process.send_signal(signal.SIGTERM)
                    wanted = ""
        return process.returncode, "".join(lines)

    for wanted in ("epoch 1/4", "Writing saved_model"):
        code, output = until(wanted)
        assert code == 75, output[-3000:]
        assert "Stopped and saved. The same command with --workdir=run goes on." in output
        assert not (tmp_path / "run/export/report.json").exists()
    code, output = until("")
    assert code == 0, output[-3000:]
    assert (tmp_path / "run/export/report.json").exists()


@pytest.mark.parametrize("written", [1, 2])
def test_a_run_that_ends_while_its_folder_is_claimed_can_begin_again(
    written, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        calls = end_after(patch, workdir, "write_text", written)
        with pytest.raises(KeyboardInterrupt):
            run.train(CONFIG, tmp_path)
    assert sorted(path.name for path, _ in calls) == sorted(
        path.name for path in tmp_path.iterdir()
    )
    assert workdir.begun(tmp_path, CONFIG, overwrite=False) is None


def test_damaged_checkpoints_are_passed_over(whole, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    last = max((folder / workdir.CHECKPOINTS).glob("*.npz"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # a single bit
    last.write_bytes(content)
    (folder / workdir.CHECKPOINTS / ".writing-x.npz").write_bytes(b"half")
    run.train(CONFIG, folder)
    assert f"{last.name} is damaged" in caplog.text
    assert_same(folder, whole[0])
    assert not list((folder / workdir.CHECKPOINTS).glob(".writing-*"))
    for path in (folder / workdir.CHECKPOINTS).glob("*.npz"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"All checkpoints .* are damaged .*2 have all.*--over"):
        run.train(CONFIG, folder)


def test_a_finished_run_is_not_trained_again(whole, monkeypatch):
    folder, result = whole
    best = (folder / workdir.BEST).read_bytes()

    def no_step(*_, **__):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(epochs.loop, "training_steps", lambda *_: no_step)
    again = run.train(CONFIG, folder)
    assert again.test.top1 == result.test.top1
    assert again.best_epoch == result.best_epoch
    if result.best_epoch < CONFIG.train.epochs:
        assert (folder / workdir.BEST).read_bytes() == best


def test_what_does_not_fit_the_checkpoint_is_refused(whole, tmp_path):
    folder = whole[0]
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(FileExistsError, match=r"train\.epochs=4 \(5\).*--overwrite"):
        run.train(override(CONFIG, "train.epochs=5"), folder)
    images = np.zeros((60, 8, 8, 3), np.uint8)
    source = arrays.from_arrays(images, np.arange(60) % 3)
    given = override(CONFIG, "train.epochs=2", "train.steps_per_epoch=2")
    run.train(given, tmp_path, source=source)
    other = arrays.from_arrays(images[:50], np.arange(50) % 3)
    with pytest.raises(ValueError, match=r"not those that the run in .* began with"):
        run.train(given, tmp_path, source=other)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before


def test_two_runs_do_not_share_a_folder(whole, tmp_path):
    """Two processes: the second one ends at once, and the first one does not notice."""
    first = start(tmp_path)
    try:
        while not (tmp_path / workdir.CONFIG).exists() and first.poll() is None:
            time.sleep(0.01)
        code, errors = end(start(tmp_path))
        assert code == 1
        assert "Another process is running in" in errors
        finish(first)
    finally:
        stop([first])
    assert_same(tmp_path, whole[0])


def test_a_step_that_is_not_finite_is_told_with_its_pictures(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 32, 32, 3), np.uint8)
    source = arrays.from_arrays(images, np.arange(64) % 2, class_names=["a", "b"])
    config = override(
        CONFIG,
        "data.batch_size=16",
        "data.mixup=0",
        "data.augment=none",
        "progressive.stages=1",
        "progressive.image_size=128",
        "train.epochs=2",
        "train.steps_per_call=1",
        "train.checkpoint_steps=1",
        "train.warmup_epochs=0",
        "train.optimizer=sgd",
        "train.learning_rate=1e30",
    )
    with pytest.raises(FloatingPointError, match=r"not finite in step [23] \(epoch 1\)") as caught:
        run.train(config, tmp_path, source=source)
    text = str(caught.value)
    assert "at the learning rate" in text
    before = int(text.split("in step ")[1].split()[0]) - 1
    records = source.records("train", config.train.seed, 16 * before).take(16)
    names = [source.describe(*record).numpy().decode() for record in records]
    assert len(set(names)) == 16
    assert ", ".join(names[:10]) + " and 6 more" in text
    assert (tmp_path / workdir.BROKEN_BATCH).read_text().splitlines() == names
    last = tmp_path / workdir.CHECKPOINTS / f"000001-{before:09d}.npz"
    assert f"The last good checkpoint is {last};" in text
    with np.load(last) as file:
        assert all(np.isfinite(file[name]).all() for name in file.files)


@pytest.fixture
def small(tmp_path):
    """A folder that holds 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("A small file system can be mounted by root only.")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _fill(folder, left):
    """Takes all but some bytes of a file system."""
    found = os.statvfs(folder)
    (folder / "other").write_bytes(b"x" * (found.f_bavail * found.f_frsize - left))


def test_a_full_disk_leaves_what_was_saved(small):
    strategy = tf.distribute.get_strategy()
    trainee = run.prepare(CONFIG, strategy, None, small).trainee
    checkpoint.save(small, checkpoint.Progress(1, 2), strategy, trainee, keep=2)
    _fill(small, 50_000)
    with pytest.raises(OSError, match=r"No space left on device.*those before it are whole"):
        checkpoint.save(small, checkpoint.Progress(1, 4), strategy, trainee, keep=2)
    assert sorted(path.name for path in small.iterdir()) == ["000001-000000002.npz", "other"]
    found = checkpoint.restore(small, strategy, trainee)
    assert (found.epoch, found.done) == (1, 2)


def test_a_run_whose_disk_is_full_ends_and_goes_on_when_there_is_room(whole, small):
    folder = small / "run"
    process = start(folder)
    while not list(folder.rglob("*.npz")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # or it could end before the disk is full
    _fill(small, 20_000)
    process.send_signal(signal.SIGCONT)
    code, errors = end(process)
    assert code == 1
    assert "No space left on device" in errors
    (small / "other").unlink()
    finish(start(folder))
    assert_same(folder, whole[0])


@pytest.mark.parametrize(
    ("strategy", "kills"),
    [
        ("cpu", 2),
        pytest.param("cpu", 20, marks=pytest.mark.slow),
        pytest.param("mirrored", 20, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(strategy, kills, whole, tmp_path):
    """SIGKILL at random moments: while steps are taken, pictures scored, files written."""
    expected = whole[0]
    if strategy == "mirrored":
        expected = tmp_path / "expected"
        finish(start(expected, strategy))
    folder, rng, killed = tmp_path / "run", random.Random(0), 0
    while killed < kills:
        process = start(folder, strategy)
        try:
            written = set(folder.rglob("*.npz"))
            deadline = time.monotonic() + 600
            # Most of a process' time is its start: wait until it has come further, then a moment.
            while set(folder.rglob("*.npz")) <= written and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(rng.choice([0, rng.uniform(0, 0.3), rng.uniform(0, 3)]))
        finally:
            stop([process])
        if process.returncode == 0:  # it had finished: begin again
            assert_same(folder, expected)
            shutil.rmtree(folder)
        else:
            assert process.returncode == -signal.SIGKILL
            killed += 1
    finish(start(folder, strategy))
    assert_same(folder, expected)


def test_a_run_of_two_replicas_goes_on_with_one(tmp_path, caplog):
    process = start(tmp_path, "mirrored")
    while not list(tmp_path.rglob("*.npz")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 75
    _, arrays, _ = state(tmp_path)
    strategy = tf.distribute.get_strategy()
    trainee = run.prepare(CONFIG, strategy, None, tmp_path).trainee
    checkpoint.restore(tmp_path / workdir.CHECKPOINTS, strategy, trainee)
    statistics = {id(variable) for variable in average.moving_statistics(trainee.model)}
    differing = 0
    for index, variable in enumerate(average.averaged_variables(trainee.model)):
        both = [arrays[f"{replica}/average/{index}"] for replica in (0, 1)]
        np.testing.assert_array_equal(trainee.average.averages[index], np.mean(both, 0))
        differing += not np.array_equal(*both)
        assert id(variable) in statistics or np.array_equal(*both)
    assert differing
    result = run.train(CONFIG, tmp_path)
    assert "another number of replicas" in caplog.text
    assert [row["step"] for row in result.history] == [6, 12, 18, 24]
