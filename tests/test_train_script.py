"""`scripts/train.py` from the command line to its files."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile

import h5py
import numpy as np
import pytest
import scripting
import sklearn.datasets
from PIL import Image


@pytest.fixture
def train(root, tmp_path):
    """Runs the script in an empty folder; returns its output."""

    def run(*flags, fails=False, timeout=1200):
        process = subprocess.run(
            [sys.executable, str(root / "scripts" / "train.py"), *flags],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert bool(process.returncode) == fails, process.stderr[-3000:]
        return process.stdout + process.stderr

    return run


def _accuracies(output):
    rows = re.findall(r"^(keras|saved_model|model\.tflite) +(\d+\.\d+)%", output, re.MULTILINE)
    assert [name for name, _ in rows] == ["keras", "saved_model", "model.tflite"]
    return [float(value) / 100 for _, value in rows]


def test_two_epochs_leave_everything(train, root, tmp_path):
    output = train("--set=train.epochs=2", "--set=train.warmup_epochs=0", "--workdir=run")
    names = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*")}
    for name in (
        "config.json",
        "metrics.jsonl",
        "metrics.csv",
        "best.keras",
        "best.weights.h5",
        "curves.png",
        "summary.html",
        "best-raw.weights.h5",
        "labels.txt",
        "preprocessing.json",
        "export/saved_model/1/saved_model.pb",
        "export/model.tflite",
        "export/report.json",
    ):
        assert name in names
    accuracies = _accuracies(output)
    reports = json.loads((tmp_path / "run/export/report.json").read_text())
    assert [f"{r['accuracy']:.4f}" for r in reports] == [f"{a:.4f}" for a in accuracies[1:]]
    assert all(report["count"] == 359 for report in reports)
    # What was trained can be asked about a picture file.
    digits = sklearn.datasets.load_digits()
    Image.fromarray((digits.images[0] * 15.9375).astype("uint8")).save(tmp_path / "zero.png")
    process = subprocess.run(
        [sys.executable, root / "scripts/predict.py", "zero.png", "--model=run/best.keras"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    path, best, *_ = process.stdout.splitlines()
    assert (path, best.split()[-1]) == ("zero.png", "0"), process.stdout
    # A second run into the same folder does not touch it.
    before = (tmp_path / "run/best.keras").read_bytes()
    assert "holds a run already" in train("--workdir=run", fails=True)
    assert (tmp_path / "run/best.keras").read_bytes() == before


def test_two_deterministic_runs_have_the_same_weights(train, tmp_path):
    """Through crop, RandAugment, mixup, cutmix, dropout, two stages and the moving average."""
    weights = []
    for name in ("one", "two"):
        train("--recipe=smoke", "--deterministic", f"--workdir={name}")
        settings = json.loads((tmp_path / name / "config.json").read_text())
        assert settings["train"]["deterministic"]
        with h5py.File(tmp_path / name / "best.weights.h5") as file:
            found = {}
            file.visititems(
                lambda path, item, found=found: (
                    found.update({path: item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
        weights.append(found)
    assert set(weights[0]) == set(weights[1])
    for path, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][path])
    assert len(weights[0]) > 20


_DETERMINISM = """
import json, pathlib
import tensorflow as tf
from efficientnet_tf.config import override
from efficientnet_tf.recipes import get
from efficientnet_tf.train import setup

def refused():  # what TensorFlow forbids where operations must be deterministic
    try:
        tf.random.Generator.from_non_deterministic_state()
    except RuntimeError:
        return True
    return False

found = []
for value in ("false", "true"):
    config = override(get("smoke"), f"train.deterministic={value}")
    setup.prepare(config, tf.distribute.get_strategy(), None, pathlib.Path())
    found.append(refused())
print("REPORT " + json.dumps(found))
"""


def test_a_deterministic_run_forbids_what_varies(root):
    """Equal weights do not show it, since they are so on processors anyway."""
    assert scripting.reported(root, _DETERMINISM) == [False, True]


def test_fine_tuning_on_a_folder_of_pictures(train, tmp_path):
    """The command of the README, from the weights of a small run of other classes."""
    network = (
        "--set=model.blocks=r1_k3_s22_e1_i8_o8_c1,r1_k3_s22_e2_i8_o16_se0.25",
        "--set=model.stem_filters=8",
        "--set=model.head_filters=32",
        "--set=model.image_size=32",
    )
    short = ("--set=train.epochs=2", "--set=train.warmup_epochs=0")
    train("--recipe=digits", *network, *short, "--workdir=before")
    digits = sklearn.datasets.load_digits()
    for label in (1, 4, 7):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True)
        for number, pixels in enumerate(digits.images[digits.target == label][:40]):
            picture = Image.fromarray((pixels * 15.9375).astype("uint8"))
            picture.save(tmp_path / "pictures" / str(label) / f"{number:02}.png")
    output = train(
        "--recipe=finetune",
        "--data=folder:pictures",
        "--weights=before/best.keras",
        *network,
        "--set=train.epochs=5",
        "--set=train.min_steps=0",
        "--workdir=after",
    )
    assert "1/2    1-3     32  0.2      0.2           -          0      0       head" in output
    assert "data.batch_size                8" in output  # the pictures are few
    page = (tmp_path / "after" / "summary.html").read_text()
    for title in ("Accuracy by class", "Confusions", "Stages", "Configuration"):
        assert f">{title}<" in page
    assert (tmp_path / "after" / "labels.txt").read_text().split() == ["1", "4", "7"]


def test_an_interrupted_run_keeps_its_best_model_and_says_where(root, tmp_path):
    command = [sys.executable, str(root / "scripts" / "train.py"), "--workdir=run"]
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [*command, "--set=train.epochs=1000"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background jobs ignore the signal, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 1/") and "validation_loss" in line:  # all is saved
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert "Interrupted. The same command with --workdir=run goes on." in rest
    assert "Traceback" not in rest
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"best.keras", "best.weights.h5", "metrics.csv"} <= names
    assert not [name for name in names if name.startswith(".")]


@pytest.mark.slow
def test_the_default_run_reaches_98_percent_with_every_artefact(train, tmp_path):
    output = train()
    assert min(_accuracies(output)) >= 0.98
    (workdir,) = (tmp_path / "runs").iterdir()
    assert workdir.name.startswith("digits-")


def test_class_folders_train(train, shared_dir, tmp_path):
    """A tenth of CIFAR-10's pictures; the loss falls and the classes are told apart."""
    with tarfile.open(shared_dir / "data" / "cifar10-jpeg.tar.gz") as archive:
        members = [m for m in archive if m.isfile() and m.name.rsplit("/", 1)[-1] < "0450"]
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python < 3.11.4
        archive.extractall(tmp_path / "cifar10", members)
    output = train(
        "--data=folder:cifar10",
        "--workdir=run",
        "--set=data.batch_size=128",
        "--set=data.flip=true",
        "--set=train.epochs=4",
        "--set=train.steps_per_epoch=30",
    )
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines]
    assert losses[-1] < 0.9 * losses[0]
    assert min(_accuracies(output)) > 0.2  # chance is 0.1
    assert (tmp_path / "run/labels.txt").read_text().split()[:2] == ["airplane", "automobile"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set=data.batch_sise=1"], "No setting 'data.batch_sise'. Did you mean 'batch_size'?"),
        (["--data=folder:nowhere"], "there is no folder 'nowhere'"),
        (["--augment=rand"], """data.augment='rand'"""),
        (["--tpu", "--strategy=cpu"], "--tpu contradicts --strategy=cpu"),
        (["--tpu", "--tpu_name=local"], "No TPU was found"),
        (["--data=tfds:beatles", "--data_dir=tfds"], "has no data set 'beatles'"),
        (["digits"], "Flags start with --. Received: 'digits'"),
        (["--recipe=digit"], "Did you mean 'digits'?"),
        (["--data=npz:nowhere.npz"], "nowhere.npz"),
    ],
)
def test_mistakes_are_explained(train, tmp_path, flags, message):
    output = train(*flags, fails=True)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()
