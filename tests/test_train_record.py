"""The record of a run, and the fingerprint of its pictures."""

import hashlib
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest

from efficientnet_tf.config import Config, override, to_json
from efficientnet_tf.data import arrays, fingerprint, folder, sources
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.train import checkpoint, interruption, record, run, workdir

SETTINGS = (
    "model.blocks=r1_k3_s22_e1_i8_o8_c1",
    "model.stem_filters=8",
    "model.head_filters=16",
    "train.precision=auto",
    "train.epochs=2",
    "train.steps_per_epoch=2",
    "train.warmup_epochs=1",
)
CONFIG = override(RECIPES["digits"], *SETTINGS)


def _sha(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


@pytest.fixture(scope="module")
def stopped_and_gone_on(tmp_path_factory):
    """The folder of a run that SIGTERM stopped after its first epoch, and that then went on."""
    workfolder = tmp_path_factory.mktemp("run")
    saved, calls = checkpoint.save, []

    def save(*args, **kwargs):
        calls.append(None)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return saved(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(interruption.Interrupted):
            run.train(CONFIG, workfolder)
    result = run.train(CONFIG, workfolder)
    return workfolder, result


def test_every_start_is_recorded(stopped_and_gone_on):
    workfolder, result = stopped_and_gone_on
    first, second = json.loads((workfolder / workdir.RECORD).read_text())["sessions"]
    assert first["after"] is None
    assert second["after"] == {"epoch": 1, "step": 2}
    for session in (first, second):
        assert session["config"] == json.loads(to_json(result.config))
        assert session["config"]["train"]["precision"] != "auto"
        assert session["config"]["train"]["seed"] == 0
        assert session["data"]["train"]["examples"] == 1295
        assert session["environment"]["replicas"] == 1
        assert session["environment"]["NumPy"] == np.__version__
    assert first["data"] == second["data"]
    assert first["code"] == second["code"]


def test_the_page_shows_the_record(stopped_and_gone_on):
    workfolder, _ = stopped_and_gone_on
    page = (workfolder / workdir.SUMMARY).read_text()
    session = json.loads((workfolder / workdir.RECORD).read_text())["sessions"][-1]
    assert session["data"]["train"]["hash"] in page
    assert "step 2 of epoch 1" in page
    if session["code"]:
        assert session["code"]["revision"] in page


def test_a_start_elsewhere_is_warned_of(stopped_and_gone_on, monkeypatch, caplog):
    """Also the precision stays, whatever this hardware would be given."""
    workfolder, result = stopped_and_gone_on
    path = workfolder / workdir.RECORD
    content = json.loads(path.read_text())
    content["sessions"][-1]["environment"]["processor"] = "Babbage"
    content["sessions"][-1]["data"]["train"]["hash"] = "0"
    path.write_text(json.dumps(content))
    other = "float32" if result.config.train.precision != "float32" else "mixed_bfloat16"
    monkeypatch.setattr("efficientnet_tf.train.precision.resolve", lambda _: (other, "it is new"))
    again = run.train(CONFIG, workfolder)
    assert again.config == result.config
    assert "(Babbage), the pictures' names, sizes or content" in caplog.text
    assert len(json.loads(path.read_text())["sessions"]) == 3
    path.write_text("{")
    run.train(CONFIG, workfolder)
    assert "record.json cannot be read" in caplog.text
    assert len(json.loads(path.read_text())["sessions"]) == 1


def test_the_code_is_that_of_git(root):
    if not (root / ".git").exists():
        pytest.skip("the tests do not run in a checkout")
    command = ["git", "-C", str(root), "log", "-1", "--format=%H"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert record.code()["revision"] == done.stdout.strip()


def test_without_git_there_is_no_revision(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert record.code() is None


def test_arrays_are_fingerprinted_whole():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    labels = np.arange(40) % 2
    source = arrays.from_arrays(images, labels, test=(images[:9], labels[:9]))
    found = fingerprint.fingerprint(source)
    assert found["classes"] == _sha(b"0\n1")
    rows = labels[:9].astype(np.int64).tobytes(), np.arange(9).tobytes()
    assert found["test"] == {"examples": 9, "hash": _sha(images[:9].tobytes(), *rows)}
    changed = images.copy()
    changed[8, 7, 7, 2] ^= 1
    other = arrays.from_arrays(images, labels, test=(changed[:9], labels[:9]))
    assert fingerprint.fingerprint(other)["test"] != found["test"]


def _folder(path, rename=None):
    import tensorflow as tf

    for index in range(12):
        file = path / "ab"[index % 2] / f"{rename or index}{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4, 3), index, np.uint8)
        file.write_bytes(tf.io.encode_png(pixels).numpy())
    return path


def _of(path):
    config = override(Config(), f"data.source=folder:{path}", "data.holdout=0.2")
    return fingerprint.fingerprint(folder.open_folder(config.data))


def test_folders_are_the_same_wherever_they_are_and_whenever_they_were_written(tmp_path):
    first, second = _folder(tmp_path / "here"), _folder(tmp_path / "there" / "below")
    for file in second.rglob("*.png"):
        os.utime(file, (time.time() - 1e6,) * 2)
    assert _of(first) == _of(second)


def test_folders_with_other_names_sizes_or_contents_differ(tmp_path):
    expected = _of(_folder(tmp_path / "first"))
    assert _of(_folder(tmp_path / "second", rename="x")) != expected
    third = _folder(tmp_path / "third")
    for file in third.rglob("*.png"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    config = override(Config(), f"data.source=folder:{third}", "data.check_pictures=false")
    changed = fingerprint.fingerprint(folder.open_folder(config.data))
    assert changed["train"]["hash"] != expected["train"]["hash"]


def test_generated_pictures_have_a_fingerprint():
    source = sources.open_source(override(Config(), "data.source=fake:4x8x100").data)
    assert fingerprint.fingerprint(source)["train"]["examples"] == 100
