"""A short training for real: measured, stored, killed, gone on with; and the script around it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from scripting import call_all

from efficientnet_tf import config as config_lib
from efficientnet_tf.arch import files
from efficientnet_tf.config import override
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.search import nas, report, trial
from efficientnet_tf.train import run as run_lib
from efficientnet_tf.train import workdir

SETTINGS = (
    "model.blocks=r1_k3_s22_e1_i8_o8_c1,r1_k3_s22_e2_i8_o8",
    "model.stem_filters=8",
    "model.head_filters=16",
    "train.epochs=8",
    "train.steps_per_epoch=4",
    "train.warmup_epochs=1",
    "train.ema_decay=0",
)
CONFIG = override(RECIPES["digits"], *SETTINGS)
METRICS = "metrics.jsonl"


def _search(root, folder, *more):
    pytest.importorskip("optuna")
    settings = [f"--set={setting}" for setting in SETTINGS]
    command = [sys.executable, root / "scripts" / "search.py", "nas", f"--workdir={folder}"]
    command += [*settings, "--trials=1", "--population=2", "--sample=1", *more]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _epochs(run):
    return len((run / METRICS).read_text().splitlines()) if (run / METRICS).exists() else 0


def test_a_search_that_is_killed_within_a_training_goes_on_there(root, tmp_path):
    process = _search(root, tmp_path / "work")
    run = tmp_path / "work" / "trials" / "0000" / "seed0"
    end = time.monotonic() + 300
    try:
        while _epochs(run) < 2:
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert not (run / trial.RESULT).exists()
    assert not (tmp_path / "work" / nas.TRIALS).exists()
    process = _search(root, tmp_path / "work")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert "epoch 1/8" not in output  # the training went on after its checkpoint
    assert "epoch 8/8" in output
    (line,) = (tmp_path / "work" / nas.TRIALS).read_text().splitlines()
    values = json.loads(line)
    history = [json.loads(text) for text in (run / METRICS).read_text().splitlines()]
    assert [row["epoch"] for row in history] == list(range(1, 9))
    # The accuracy is that of the best epoch, of which the metrics tell too.
    assert values["accuracies"] == [max(row["validation_accuracy"] for row in history)]
    assert values["step_seconds"] > 0
    assert files.read(tmp_path / "work" / nas.BEST) == files.read(run.parent / trial.VARIANT)
    for name in (report.PAGE, report.PARETO):
        assert (tmp_path / "work" / name).stat().st_size > 5_000
    left = {path.name for path in run.iterdir()}
    assert not left & {workdir.CHECKPOINTS, workdir.BEST, workdir.BEST_WEIGHTS}


def test_several_seeds_and_failures(tmp_path, monkeypatch):
    base = trial.base_of(CONFIG, 10)
    scores = {0: 0.5, 1: 0.7}
    trained = []

    def train(config, folder, *, strategy, source):
        trained.append((folder.name, config.train.seed, config.model.variant))
        if config.train.learning_rate > 1:
            raise FloatingPointError("The loss is not finite.")
        folder.mkdir(parents=True)
        (folder / workdir.BEST).write_text("weights")
        score = dataclasses.make_dataclass("Scores", ["accuracy"])(scores[config.train.seed])
        return dataclasses.make_dataclass("Result", ["validation", "seconds"])(score, 10.0)

    monkeypatch.setattr(run_lib, "train", train)
    done = trial.run(base, CONFIG, tmp_path / "good", seeds=(0, 1), source=object())
    assert done.accuracies == (0.5, 0.7)
    assert done.accuracy == pytest.approx(0.6)
    assert done.spread == pytest.approx(0.1 * 2**0.5)  # of two, from their mean
    assert done.seconds == 20.0
    assert trained == [("seed0", 0, base), ("seed1", 1, base)]
    assert not list((tmp_path / "good").glob("*/*.keras"))
    # What ended is not trained again, also when one seed of several had ended.
    assert trial.run(base, CONFIG, tmp_path / "good", seeds=(0, 1), source=object()) == done
    (tmp_path / "good" / trial.RESULT).unlink()
    assert trial.run(base, CONFIG, tmp_path / "good", seeds=(0, 1), source=object()) == done
    assert len(trained) == 2
    other = dataclasses.replace(base, head_filters=24)
    with pytest.raises(ValueError, match="the trial of another network"):
        trial.run(other, CONFIG, tmp_path / "good", source=object())
    wild = override(CONFIG, "train.learning_rate=100")
    failed = trial.run(base, wild, tmp_path / "bad", seeds=(0, 1), source=object())
    assert failed.failed == "FloatingPointError: The loss is not finite."
    assert failed.accuracies == ()
    assert failed.accuracy != failed.accuracy
    assert trial.run(base, wild, tmp_path / "bad", seeds=(0, 1), source=object()) == failed


def test_a_failed_trial_that_is_killed_before_its_result_is_written_can_be_run_again(
    tmp_path, monkeypatch
):
    def train(config, folder, *, strategy, source):
        workdir.begun(folder, config, overwrite=False)  # refuses a run without its checkpoints
        (folder / workdir.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        (folder / METRICS).write_text("")
        (folder / workdir.CONFIG).write_text(config_lib.to_json(config))
        raise FloatingPointError("The loss is not finite.")

    def killed(path, _):
        assert path.name == trial.RESULT
        raise KeyboardInterrupt

    monkeypatch.setattr(run_lib, "train", train)
    base = trial.base_of(CONFIG, 10)
    with monkeypatch.context() as patch:
        patch.setattr(workdir, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            trial.run(base, CONFIG, tmp_path, source=object())
    again = trial.run(base, CONFIG, tmp_path, source=object())
    assert again.failed == "FloatingPointError: The loss is not finite."
    assert not (tmp_path / "seed0" / workdir.CHECKPOINTS).exists()


def test_the_test_split_is_not_looked_at():
    source = trial.opened(CONFIG)
    assert source.num_examples["test"] == 1
    (test,) = source.records("test", None).map(source.decode)
    first = next(iter(source.records("validation", None).map(source.decode)))
    assert (test[0].numpy() == first[0].numpy()).all()
    assert source.num_examples["validation"] == 143


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "which search?"),
        (("grid",), "which search?"),
        (("nas", "--phis=1"), "--phis is used by `search.py compound` only"),
        (("compound", "--trials=3"), "--trials is used by `search.py nas` only"),
    ],
)
def test_wrong_usage(root, arguments, expected):
    command = [sys.executable, root / "scripts" / "search.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr


def test_wrong_values_are_wrong_usage(root, tmp_path):
    cases = {
        "A search needs an end: give trials, minutes or both.": ["nas"],
        "trials must be > 0": ["nas", "--trials=0"],
        "minutes must be > 0 and finite": ["nas", "--minutes=nan"],
        "convs must be some of": ["nas", "--trials=1", "--convs=foo"],
        "layers must be integers >= 1": ["nas", "--trials=1", "--layers=0,1"],
        "--layers expects numbers": ["nas", "--trials=1", "--layers=one"],
        "--max_params must be finite": ["nas", "--trials=1", "--max_params=inf"],
        "--max_macs must be finite": ["nas", "--trials=1", "--max_macs=nan"],
        "params must be >= 1": ["nas", "--trials=1", "--max_params=0"],
        "phis must be": ["compound", "--phis=inf"],
        "--seeds expects numbers": ["compound", "--seeds=a"],
    }
    answers = call_all(root, "search", tmp_path, list(cases.values()))
    for expected, (code, output, errors) in zip(cases, answers, strict=True):
        assert (code, output) == (2, "")
        assert errors.startswith("error: ")
        assert expected in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nas", "--trials=1", "--max_params=1000"), "The smallest has"),
        (("nas", "--trials=1", "--set=model.variant=effnet"), "effnet"),
        (("compound", "--grid_step=0.7", "--tolerance=0"), "Take smaller steps"),
        (("compound", "--set=model.weights=imagenet"), "random weights"),
    ],
)
def test_what_cannot_be_searched(root, tmp_path, arguments, expected):
    command = [sys.executable, root / "scripts" / "search.py", *arguments]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'work'}"],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 1
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert expected in line
    assert not (tmp_path / "work").exists()


def test_a_missing_optuna_says_what_to_install(monkeypatch):
    from efficientnet_tf.search import study

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "efficientnet_tf\[search\]"'):
        study.require_optuna()
