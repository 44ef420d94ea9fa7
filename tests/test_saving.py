"""Saved models open, and answer the same, in a process that never imported the package."""

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import efficientnet_tf as et

READER = """
import json, sys
import numpy as np, keras, tensorflow as tf
folder = sys.argv[1]
images = np.load(f"{folder}/images.npy")
for name in json.load(open(f"{folder}/names.json")):
    expected = np.load(f"{folder}/{name}.npy")
    model = keras.models.load_model(f"{folder}/{name}.keras")
    bare = keras.models.model_from_json(open(f"{folder}/{name}.json").read())
    bare.load_weights(f"{folder}/{name}.weights.h5")
    saved_model = tf.saved_model.load(f"{folder}/{name}")
    answers = {
        "keras": model(images),
        "json and weights.h5": bare(images),
        "SavedModel": saved_model.serve(images),
    }
    for kind, answer in answers.items():
        difference = np.abs(np.asarray(answer) - expected).max() / np.abs(expected).max()
        assert difference < 1e-5, (name, kind, difference)
assert not [name for name in sys.modules if name.startswith("efficientnet_tf")]
"""


def _randomise(model: keras.Model) -> None:
    """Weights that keep activations of a sensible size, with moving statistics that matter."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.8, 1.2, variable.shape))
        elif variable.path.endswith(("beta", "moving_mean")):
            variable.assign(rng.normal(0, 0.1, variable.shape))


def test_files_open_without_the_package(tmp_path):
    # qubvel/efficientnet#62, #137, #77, segmentation_models#191: files needed custom_objects.
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3)).astype("float32")
    np.save(tmp_path / "images.npy", images)
    names = ["efficientnet-b0", "efficientnet-lite0", "efficientnet-edgetpu-s", "efficientnetv2-b0"]
    (tmp_path / "names.json").write_text(json.dumps(names))
    for name in names:
        model = et.build(name, classifier_activation=None, classes=7, input_shape=(40, 40, 3))
        _randomise(model)
        np.save(tmp_path / f"{name}.npy", np.asarray(model(images)))
        model.save(tmp_path / f"{name}.keras")
        model.save_weights(tmp_path / f"{name}.weights.h5")
        (tmp_path / f"{name}.json").write_text(model.to_json())
        model.export(tmp_path / name, verbose=False)
    subprocess.run([sys.executable, "-c", READER, str(tmp_path)], check=True, cwd=tmp_path)


def _narrow(name):
    """A variant with all its blocks and few filters."""
    variant = dataclasses.replace(et.VARIANTS[name], name="narrow", width=0.1)
    return et.build(variant, input_shape=(33, 33, 3), classes=3, classifier_activation=None)


def _types(value):
    """Types of all values in nested dictionaries and lists."""
    yield type(value)
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _types(item)


@pytest.mark.parametrize("name", et.VARIANTS)
def test_every_variant_survives_its_json_config(name):
    # keras#17199, #18218, tf-keras#177, tensorflow#58088: arrays in configs could not be saved.
    model = _narrow(name)
    config = keras.saving.serialize_keras_object(model)
    assert set(_types(config)) <= {dict, list, tuple, str, int, float, bool, type(None)}
    copy = keras.models.model_from_json(model.to_json())
    assert {type(layer).__module__.split(".")[0] for layer in copy.layers} == {"keras"}
    for ours, theirs in zip(model.layers, copy.layers, strict=True):
        assert type(ours).__name__ == type(theirs).__name__
        assert ours.get_config() == theirs.get_config()


# One variant of each table of blocks: B1 to B8 and L2 have B0's blocks more often, and so on.
TABLES = {(row.blocks, row.activation): name for name, row in reversed(et.VARIANTS.items())}


@pytest.mark.parametrize("name", sorted(TABLES.values()))
def test_every_table_of_blocks_survives_its_files(tmp_path, name):
    # keras#17199, tensorflow#61366: `.keras` and `.weights.h5`.
    model = _narrow(name)
    _randomise(model)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    again = _narrow(name)
    again.load_weights(tmp_path / "m.weights.h5")
    for copy in (again, keras.models.load_model(tmp_path / "m.keras")):
        for ours, theirs in zip(model.weights, copy.weights, strict=True):
            assert ours.path.split("/")[-2:] == theirs.path.split("/")[-2:]
            np.testing.assert_array_equal(ours, theirs)


def test_a_reloaded_model_trains_alike(tmp_path):
    # It has Keras' own batch normalization, convolution and rescaling.
    model = et.build(
        "efficientnetv2-b0", input_shape=(96, 96, 3), classes=4, drop_connect_rate=0.0,
        dropout_rate=0.0,
    )  # fmt: skip
    _randomise(model)
    model.save(tmp_path / "m.keras")
    reloaded = keras.models.load_model(tmp_path / "m.keras")
    images = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3)).astype("float32")
    before = [variable.numpy() for variable in model.variables]
    for network in (model, reloaded):
        network.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
        network.train_on_batch(images, np.arange(8) % 4)
    change, difference = 0.0, 0.0
    for old, ours, theirs in zip(before, model.variables, reloaded.variables, strict=True):
        change += np.sum((theirs.numpy() - old) ** 2)
        difference += np.sum((theirs.numpy() - ours.numpy()) ** 2)
    assert change > 0
    assert difference < 1e-4 * change  # 1 % of the step: rounding, amplified by 90 layers
