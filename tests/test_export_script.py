"""`scripts/export.py` from the command line to its files, and what happens when it is stopped."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from exporting import BLOCKS, NAMES, RULE, hashes, images, network, prepared
from PIL import Image

from efficientnet_tf import classifier, config, predict
from efficientnet_tf.export import runtimes
from efficientnet_tf.labels import read_labels
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.recipes import RECIPES

# One process for many command lines: importing TensorFlow takes longer than all of them together.
DRIVER = """
import contextlib, importlib.util, io, json, os, sys
from absl import flags
sys.argv = ["export.py"]
sys.path.insert(0, os.path.dirname(sys.orig_argv[-2]))
spec = importlib.util.spec_from_file_location("script", sys.orig_argv[-2])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
results = []
for argv in json.loads(sys.orig_argv[-1]):
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS.get_key_flags_for_module(script):
        flag.value, flag.present = flag.default, 0
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = script.main(script.parse_flags(["export.py", *argv]))
        except SystemExit as error:
            code = error.code
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def _environment(root):
    return {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}


def _run(root, commands, folder):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, root / "scripts/export.py", json.dumps(commands)],
        cwd=folder,
        env=_environment(root),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _start(root, folder, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, root / "scripts/export.py", *arguments],
        cwd=folder,
        env=_environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run as `scripts/train.py` leaves it, files of other kinds, and pictures."""
    folder = tmp_path_factory.mktemp("sources")
    run = folder / "run"
    run.mkdir()
    model = network()
    model.save(run / "best.keras")
    settings = config.override(
        RECIPES["digits"],
        "model.variant=efficientnet-b0",
        f"model.blocks={','.join(BLOCKS)}",
        "model.stem_filters=8",
        "model.head_filters=32",
        f"model.image_size={RULE.size}",
        f"data.source=folder:{folder / 'classes'}",
        "data.holdout=0.4",
    )
    for i, image in enumerate(images(20)):
        path = folder / "classes" / NAMES[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (run / "config.json").write_text(config.to_json(settings))
    (run / "labels.txt").write_text("\n".join(NAMES) + "\n")
    (run / "preprocessing.json").write_text(json.dumps(RULE.to_dict()))
    model.save_weights(run / "best.weights.h5")
    model.save(folder / "alone.keras")
    model.save_weights(folder / "alone.weights.h5")
    (folder / "names.txt").write_text("\n".join(NAMES).upper() + "\n")
    (folder / "short.txt").write_text("ant\nbee\n")
    (folder / "broken.keras").write_bytes(b"PK\x03\x04 and no more")
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "config.json").write_text("{}")
    (folder / "file").write_text("in the way")
    (folder / "taken/saved_model/3").mkdir(parents=True)
    for i, image in enumerate(images(24)):
        for place in (folder / "photos", folder / "photos-bad"):
            place.mkdir(exist_ok=True)
            Image.fromarray(image).save(place / f"{i:02}.png")
    (folder / "photos-bad" / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    (folder / "few").mkdir()
    Image.fromarray(images(1)[0]).save(folder / "few" / "one.png")
    headless = build("efficientnetv2-b0", include_top=False, input_shape=(32, 32, 3))
    headless.save(folder / "headless.keras")
    return folder


def test_mistakes_are_explained_and_leave_nothing(root, folder):
    before = hashes(folder)
    cases = [
        ([], "one model. Usage"),
        (["run", "other", "--to=x"], "one model. Usage"),
        (["run"], "where to? Give --to=DIR"),
        (["run", "--to=x", "--fromat=onnx"], "fromat"),
        (["run", "--to=x", "--format=onxx"], "formats must be some of saved_model, tflite,"),
        (["run", "--to=x", "--format=tflite", "--frozen"], "--frozen needs --format=saved_model"),
        (["run", "--to=x", "--qat_epochs=2"], "--qat_epochs needs --format=tflite-int8"),
        (["run", "--to=x", "--warmup=1,many"], "Received: 1,many"),
        (["run", "--to=x", "--min_agreement=90"], "min_agreement must be in [0, 1]"),
        (["nowhere", "--to=x"], "Unknown|unknown|No variant|nowhere"),
        (
            ["photos", "--to=x"],
            "photos is no model that can be opened: expected the folder of a run",
        ),
        (["photos/00.png", "--to=x"], "00.png is no model that can be opened"),
        (["photos/99.keras", "--to=x"], "99.keras: no such file"),
        (["missing/folder", "--to=x"], "missing/folder: no such file or folder"),
        (["broken.keras", "--to=x"], "broken.keras"),
        (["headless.keras", "--to=x"], "output"),
        (["unfinished", "--to=x"], "unfinished has no best.keras"),
        (["alone.weights.h5", "--to=x"], "expected config.json, preprocessing.json, labels.txt"),
        (["run", "--to=x", "--weights=imagenet"], "has its own weights"),
        (["run", "--to=x", "--labels=short.txt"], "5 scores and 2 labels"),
        (["run", "--to=x", "--labels=none.txt"], "none.txt"),
        (["run", "--to=file"], "file must be a folder to write to. file is a file"),
        (["run", "--to=file/below"], "is a file"),
        (["run", "--to=taken", "--version=3"], "taken/saved_model/3 exists already"),
        (["run", "--to=x", "--verify=folder:nowhere"], "there is no folder 'nowhere'"),
        (["run", "--to=x", "--verify=folder:photos-bad"], "07.png"),
        (["alone.keras", "--to=x", "--verify=run"], "this source is none"),
        (["run", "--to=x", "--format=tflite-int8"], "needs pictures"),
        (
            ["run", "--to=x", "--format=tflite-int8", "--calibrate=folder:few"],
            "1 pictures are too few, give at least 20",
        ),
        (
            ["run", "--to=x", "--format=tflite-int8", "--calibrate=folder:photos-bad"],
            "1 of 24 pictures cannot be read: photos-bad/07.png",
        ),
    ]
    for (argv, message), (code, out, err) in zip(
        cases, _run(root, [argv for argv, _ in cases], folder), strict=True
    ):
        assert code == 2, (argv, code, err)
        assert any(part in err for part in message.split("|")), (argv, err)
        assert "Traceback" not in err
        assert out == ""
    assert hashes(folder) == before
    assert not (folder / "x").exists()


def test_a_run_is_exported_and_a_failed_gate_keeps_its_report(root, folder, tmp_path):
    good = ["run", f"--to={tmp_path / 'good'}", "--format=saved_model,tflite"]
    bad = ["run", f"--to={tmp_path / 'bad'}", "--format=tflite", "--tolerance=0"]
    pictures = ["--verify=folder:photos", "--verify_count=20", "--labels=names.txt"]
    own = ["run", f"--to={tmp_path / 'own'}", "--format=keras", "--verify=run"]
    results = _run(
        root,
        [[*good, *pictures, "--warmup=1", "--serving_name=tiny"], [*bad, *pictures], own],
        folder,
    )
    code, out, err = results[0]
    assert code == 0, err
    assert "On 20 pictures of folder:photos:" in out
    assert [line.split()[0] for line in out.splitlines()[2:6]] == [
        "artefact",
        "keras",
        "saved_model",
        "model.tflite",
    ]
    served = tmp_path / "good/saved_model/1"
    assert (served / "assets.extra/tf_serving_warmup_requests").is_file()
    assert 'name: "tiny"' in (tmp_path / "good/models.config").read_text()
    labels = (served / "assets/labels.txt").read_text().split()
    assert labels == [name.upper() for name in NAMES]
    found = runtimes.answer("tflite", tmp_path / "good/model.tflite", prepared(4))
    np.testing.assert_allclose(found["probabilities"], network()(prepared(4)), atol=1e-5)
    content = json.loads((served / "manifest.json").read_text())
    assert content["variant"] == "tiny"
    assert content["weights"]["name"] == "best.keras"
    assert content["weights"]["sha256"] == hashes(folder)["run/best.keras"]
    assert content["options"]["warm_up"] == [1]

    code, out, err = results[1]
    assert (code, out) == (1, "")
    assert "model.tflite does not give the model's answers on 20 pictures" in err
    (report,) = (tmp_path / "bad").iterdir()
    assert report.name.startswith("failed-")

    code, out, err = results[2]
    assert code == 0, err
    assert (
        f"On 8 pictures of folder:{folder / 'classes'}, test:" in out
    )  # four of ten, of both classes
    (entry,) = json.loads(report.read_text())
    assert len(entry["rows"]) == 20
    assert entry["limits"]["tolerance"] == 0


def test_a_killed_export_leaves_nothing_in_place_and_the_next_one_sweeps(root, folder, tmp_path):
    flags = (f"--to={tmp_path}", "--format=saved_model,tflite", "--verify=folder:photos")
    process = _start(root, folder, "run", *flags)
    deadline = time.monotonic() + 240
    # The SavedModel is written, and not all is done.
    while not list(tmp_path.glob(".writing-*/saved_model/saved_model.pb")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".writing-")
    ((code, _, err),) = _run(root, [["run", *flags]], folder)
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.tflite",
        "model.tflite.manifest.json",
        "report.json",
        "saved_model",
    ]


def test_a_full_disk_is_told_and_nothing_is_put_in_place(root, folder, tmp_path):
    """No file may grow beyond 20 kB, which is less than the weights."""
    process = _start(
        root,
        folder,
        "run",
        f"--to={tmp_path}",
        "--verify=folder:photos",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert "error: " in output
    assert "Traceback" not in output
    assert "arge" in output.rpartition("error: ")[2]  # "File too large"
    assert list(tmp_path.iterdir()) == []


# ---- what a source is


def test_weights_of_a_run_are_opened_with_its_network(folder):
    opened = classifier.load(folder / "run" / "best.weights.h5")
    assert opened.preprocessing == RULE
    assert [label.name for label in opened.labels] == list(NAMES)
    expected = network()(prepared(3))
    np.testing.assert_allclose(predict.classify(opened.model, prepared(3)), expected, atol=1e-6)
    by_run = classifier.load(folder / "run", labels=folder / "names.txt")
    assert by_run.labels == read_labels(folder / "names.txt")
    np.testing.assert_allclose(predict.classify(by_run.model, prepared(3)), expected, atol=1e-6)


def test_the_origin_of_weights_is_their_file(folder):
    found = hashes(folder)
    for source, name, variant in (
        ("run", "run/best.keras", "tiny"),
        ("run/best.weights.h5", "run/best.weights.h5", "efficientnet-b0-custom"),
        ("alone.keras", "alone.keras", "tiny"),
    ):
        origin = classifier.origin(folder / source)
        assert (origin.variant, origin.sha256) == (variant, found[name])
        assert origin.weights == name.rsplit("/", 1)[-1]
    assert classifier.origin("efficientnet-b0") == classifier.Origin("efficientnet-b0")
    path = str(folder / "alone.weights.h5")
    assert classifier.origin("efficientnet-b0", path).sha256 == found["alone.weights.h5"]
