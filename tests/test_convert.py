"""Conversion between formats, and inspection."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from efficientnet_tf import convert as convert_lib
from efficientnet_tf.arch import resolve
from efficientnet_tf.convert import TARGETS, convert, describe
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.weights import load
from efficientnet_tf.weights.source import Normalization, WeightsError


@pytest.fixture(scope="module")
def lite(shared_dir):
    """Archive and arrays of the smallest fixture."""
    path = shared_dir / "fixtures/efficientnet-lite0.tar.gz"
    return path, load.read(path, resolve("efficientnet-lite0"))


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5", ".safetensors"])
def test_every_format_holds_the_same_arrays(lite, tmp_path, suffix):
    path, wanted = lite
    convert(path, tmp_path / f"lite0{suffix}")
    found = load.read(tmp_path / f"lite0{suffix}", resolve("efficientnet-lite0"))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
    # And from there into the others, bit by bit.
    convert(tmp_path / f"lite0{suffix}", tmp_path / "again.safetensors")
    again = load.read(tmp_path / "again.safetensors", resolve("efficientnet-lite0"))
    assert all(np.array_equal(again[key], wanted[key]) for key in wanted)
    assert sorted(os.listdir(tmp_path)) == sorted(["again.safetensors", f"lite0{suffix}"])


@pytest.mark.parametrize(
    ("name", "file", "constructor", "preprocessing"),
    [
        ("efficientnet-b0", "efficientnet-b0.tar.gz", "EfficientNetB0", "torch"),
        ("efficientnetv2-b0", "efficientnetv2-b0.tgz", "EfficientNetV2B0", "torch"),
    ],
)
def test_keras_applications_loads_our_h5(
    shared_dir, tmp_path, name, file, constructor, preprocessing
):
    source, path = shared_dir / "fixtures" / file, tmp_path / "converted.h5"
    convert(source, path, preprocessing=preprocessing)
    theirs = getattr(keras.applications, constructor)(
        weights=str(path), input_shape=(64, 64, 3), classifier_activation=None
    )
    ours = build(name, weights=str(source), input_shape=(64, 64, 3), classifier_activation=None)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    wanted = np.array(ours(images, training=False))
    found = np.array(theirs(images, training=False))
    # These random networks amplify rounding (see the spread of their golden logits).
    assert np.abs(found - wanted).max() <= 1e-3 * np.ptp(wanted)


def test_keras_archive_normalises_as_asked(lite, tmp_path):
    path, _ = lite
    convert(path, tmp_path / "inception.keras", preprocessing="inception")
    model = keras.models.load_model(tmp_path / "inception.keras")
    scaled = keras.Model(model.input, model.get_layer("rescaling").output)
    found = np.array(scaled(np.full((1, 224, 224, 3), 255.0, "float32")))
    np.testing.assert_allclose(found, 1.0, atol=1e-6)


@pytest.mark.parametrize("suffix", TARGETS)
def test_normalization_travels_with_the_file(lite, tmp_path, suffix):
    path, _ = lite
    convert(path, tmp_path / f"a{suffix}", preprocessing="inception")
    convert(tmp_path / f"a{suffix}", tmp_path / "b.safetensors")
    with load.open_weights(tmp_path / "b.safetensors") as found:
        np.testing.assert_allclose(found.normalization.mean, 127.5, rtol=1e-6)
        np.testing.assert_allclose(found.normalization.std, 127.5, rtol=1e-6)
    with pytest.raises(WeightsError, match=r"mean=\(127\.5, .*has another, mean=\(127\.0,"):
        build("efficientnet-lite0", weights=tmp_path / f"a{suffix}", preprocessing="lite")


@pytest.mark.parametrize("file", ["efficientnetv2-b0.h5", "efficientnetv2-b0.weights.h5"])
def test_normalization_travels_where_keras_has_no_place_for_it(shared_dir, tmp_path, file):
    convert(shared_dir / "fixtures/efficientnetv2-b0.tgz", tmp_path / file, preprocessing="v2")
    with load.open_weights(tmp_path / file) as found:
        assert found.normalization == Normalization((128.0,) * 3, (128.0,) * 3)


def test_without_classifier(lite, tmp_path):
    path, wanted = lite
    convert(path, tmp_path / "notop.keras", include_top=False)
    assert keras.models.load_model(tmp_path / "notop.keras").output_shape[-1] == 1280
    found = load.read(tmp_path / "notop.keras", resolve("efficientnet-lite0"), include_top=False)
    assert wanted.keys() - found.keys() == {"predictions/kernel", "predictions/bias"}


def test_last_values_on_request(lite, tmp_path):
    path, averages = lite
    convert(path, tmp_path / "raw.safetensors", ema=False)
    found = load.read(tmp_path / "raw.safetensors", resolve("efficientnet-lite0"))
    assert not np.array_equal(found["stem_conv/kernel"], averages["stem_conv/kernel"])


def test_inspection_names_format_variant_and_arrays(lite):
    path, _ = lite
    with load.open_weights(path) as found:
        lines = describe(found)
    assert lines[:4] == [
        "format      TensorFlow checkpoint, names as in official",
        "variant     efficientnet-lite0",
        "arrays      247 with 4,694,024 numbers",
        "classes     1000",
    ]
    assert "note        247 moving averages and 247 last values stored" in lines
    assert "stem/conv2d/kernel  (3, 3, 3, 32)" in lines


def test_what_can_not_be_converted_is_an_error(lite, tmp_path):
    path, _ = lite
    with pytest.raises(ValueError, match=r"dst must end in one of \.weights\.h5"):
        convert(path, tmp_path / "lite0.onnx")
    with pytest.raises(WeightsError, match="The file fits efficientnet-lite0"):
        convert(path, tmp_path / "lite0.keras", variant="efficientnet-lite1")
    with pytest.raises(ValueError, match="efficientnet-lite0"):
        convert(path, tmp_path / "lite0.keras", variant="efficientnet-lite")
    with pytest.raises(ValueError, match="is a tag of published weights: say of which variant"):
        convert("noisy-student", tmp_path / "b0.keras")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to write lite0\.keras"):
        convert(path, tmp_path / "nowhere/lite0.keras")
    assert os.listdir(tmp_path) == []


def test_last_values_of_a_file_without_any_are_an_error(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="ema=False does not apply"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.keras", ema=False)


def test_an_interrupted_write_leaves_nothing(lite, tmp_path, monkeypatch):
    def broken(path, *args):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(convert_lib, "_write", broken)
    with pytest.raises(OSError, match="disk full"):
        convert(lite[0], tmp_path / "lite0.keras")
    assert os.listdir(tmp_path) == []


def test_command_line(lite, tmp_path, root):
    def run(*args):
        command = [sys.executable, str(root / "scripts/convert.py"), *map(str, args)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    done = run(lite[0], tmp_path / "lite0.safetensors")
    assert (done.returncode, done.stdout) == (0, f"Wrote {tmp_path / 'lite0.safetensors'}\n")
    done = run("--inspect", tmp_path / "lite0.safetensors")
    assert done.returncode == 0
    assert "variant     efficientnet-lite0\n" in done.stdout
    done = run("--inspect", tmp_path / "lite0.safetensors", "--variant=efficientnet-lite0")
    assert done.returncode == 1
    assert "--inspect SRC does not take --variant." in done.stdout + done.stderr
    done = run(tmp_path / "missing.h5", tmp_path / "x.keras")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"error: There are no weights at {tmp_path}/missing.h5.")
