"""Files of keras.applications' models, in every layout, give the same logits here."""

import h5py
import keras
import numpy as np
import pytest

from efficientnet_tf.arch import resolve
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.preprocessing import NORMALIZATIONS, Preprocessing
from efficientnet_tf.weights import load
from efficientnet_tf.weights.source import WeightsError

SIZE = 64  # pixels
# Coarse patches: fine noise looks the same everywhere to a network of random weights.
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3)).astype("float32")
IMAGES = IMAGES.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
CASES = [
    ("efficientnet-b0", "EfficientNetB0"),
    ("efficientnetv2-b0", "EfficientNetV2B0"),
    pytest.param("efficientnet-b3", "EfficientNetB3", marks=pytest.mark.slow),
    pytest.param("efficientnetv2-b3", "EfficientNetV2B3", marks=pytest.mark.slow),
    pytest.param("efficientnetv2-s", "EfficientNetV2S", marks=pytest.mark.slow),
]


def _randomise(model, seed=1):
    """Values that show when any two variables are mixed up, with activations of moderate size.

    The initial kernels of the projections amplify. Their normalisation has to make up for it, or
    activations and rounding errors grow from block to block until nothing can be compared.
    """
    rng = np.random.default_rng(seed)
    # A squeeze-excite gate halves its input at first; V1 has one in every block.
    in_every_block = any(layer.name == "block1a_se_reduce" for layer in model.layers)
    gain = (0.7, 1.8) if in_every_block else (0.35, 1.05)
    for layer in model.layers:
        low, high = gain if layer.name.endswith("project_bn") else (0.5, 1.5)
        for variable in layer.weights:
            if variable.name == "gamma":
                variable.assign(rng.uniform(low, high, variable.shape))
            elif variable.name == "moving_variance":
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
            elif variable.name in ("beta", "moving_mean", "bias"):
                variable.assign(rng.normal(0, 0.1, variable.shape))
            elif layer.name.startswith("normalization") and variable.name != "count":
                mean, std = (np.array(values) / 255 for values in NORMALIZATIONS["torch"])
                values = mean if variable.name == "mean" else np.square(std)
                variable.assign(np.reshape(values, variable.shape))
        if layer.name.startswith("normalization"):
            layer.finalize_state()  # the layer computes with copies of its variables


@pytest.fixture(scope="module")
def theirs():
    """keras.applications' model of a name, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = getattr(keras.applications, name)(
                weights=None, input_shape=(SIZE, SIZE, 3), classifier_activation=None
            )
            _randomise(made[name])
        return made[name]

    return get


def _write_published(path, model, root="", skip=()):
    """The layout of the published files: by layer name, `:0`, and `depthwise_kernel`."""
    with h5py.File(path, "w") as file:
        layers = [layer for layer in model.layers if layer.name not in skip]
        top = file.create_group(root) if root else file
        top.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = top.create_group(layer.name)
            names = []
            for variable in layer.weights:
                name = variable.name
                if isinstance(layer, keras.layers.DepthwiseConv2D):
                    name = "depthwise_kernel"
                names.append(f"{layer.name}/{name}:0")
                group[names[-1]] = keras.ops.convert_to_numpy(variable.value)
            group.attrs["weight_names"] = [name.encode() for name in names]


def _logits(variant, path, **kwargs):
    kwargs = {"classifier_activation": None, **kwargs}
    model = build(variant, weights=str(path), input_shape=(SIZE, SIZE, 3), **kwargs)
    return np.array(model(IMAGES, training=False))


def _assert_equal(found, wanted):
    assert np.ptp(wanted) > 0.1
    assert np.abs(found - wanted).max() <= 1e-5 * max(1, np.ptp(wanted))


@pytest.mark.parametrize(("variant", "name"), CASES)
def test_logits_equal_keras_applications(theirs, tmp_path, variant, name):
    # keras-team/keras#21529: loading these files broke on the stem's shape.
    model = theirs(name)
    wanted = np.array(model(IMAGES, training=False))
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3
    _write_published(tmp_path / "published.h5", model)
    _write_published(tmp_path / "nested.h5", model, root="model_weights")
    model.save_weights(tmp_path / "new.weights.h5")
    for file in ("published.h5", "nested.h5", "new.weights.h5"):
        _assert_equal(_logits(variant, tmp_path / file), wanted)


def test_long_lists_of_layers_are_read(theirs, tmp_path):
    # Keras splits attributes of more than 64 kB.
    path = tmp_path / "split.h5"
    _write_published(path, theirs("EfficientNetV2B0"))
    wanted = load.read(path, resolve("efficientnetv2-b0"))
    with h5py.File(path, "r+") as file:
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:100], names[100:]
    found = load.read(path, resolve("efficientnetv2-b0"))
    assert found.keys() == wanted.keys()


def test_keras_own_h5_and_archive_are_read(theirs, tmp_path):
    model = theirs("EfficientNetB0")
    wanted = np.array(model(IMAGES, training=False))
    for file in ("whole.h5", "whole.keras"):
        model.save(tmp_path / file)
        _assert_equal(_logits("efficientnet-b0", tmp_path / file), wanted)


def test_file_without_classifier(theirs, tmp_path):
    model = theirs("EfficientNetV2B0")
    _write_published(tmp_path / "notop.h5", model, skip=("predictions",))
    features = keras.Model(model.input, model.get_layer("avg_pool").output)
    wanted = np.array(features(IMAGES, training=False))
    kwargs = {"include_top": False, "pooling": "avg", "classifier_activation": "softmax"}
    _assert_equal(_logits("efficientnetv2-b0", tmp_path / "notop.h5", **kwargs), wanted)
    with pytest.raises(WeightsError, match="Only the classifier is missing"):
        _logits("efficientnetv2-b0", tmp_path / "notop.h5")
    # A file that has the classifier serves a model without one, too.
    _write_published(tmp_path / "top.h5", model)
    _assert_equal(_logits("efficientnetv2-b0", tmp_path / "top.h5", **kwargs), wanted)


def test_file_without_normalization_layer(theirs, tmp_path):
    model = theirs("EfficientNetB0")
    _write_published(tmp_path / "none.h5", model, skip=("normalization",))
    wanted = np.array(model(IMAGES, training=False))
    _assert_equal(_logits("efficientnet-b0", tmp_path / "none.h5"), wanted)


def test_published_normalization_with_std_for_its_square(theirs, tmp_path):
    # tensorflow#49930, #47182, keras#16392: the standard deviation stood for its square.
    # The published V1 files: variance holds std, and keras.applications divides by sqrt(std) again.
    path = tmp_path / "published.h5"
    model = theirs("EfficientNetB0")
    _write_published(path, model)
    with h5py.File(path, "r+") as file:
        variance = file["normalization/normalization/variance:0"]
        variance[...] = np.sqrt(variance[...])
    wanted = np.array(model(IMAGES, training=False))
    _assert_equal(_logits("efficientnet-b0", path), wanted)


def test_another_normalization_is_an_error_that_says_which(theirs, tmp_path):
    path = tmp_path / "scaled.h5"
    _write_published(path, theirs("EfficientNetB0"))
    with h5py.File(path, "r+") as file:
        file["normalization/normalization/mean:0"][...] = 0.0
        file["normalization/normalization/variance:0"][...] = 1.0
    with pytest.raises(WeightsError, match=r"mean=\(0\.0, 0\.0, 0\.0\), std=\(255\.0"):
        _logits("efficientnet-b0", path, preprocessing="torch")
    own = Preprocessing("scaled", (0, 0, 0), (255, 255, 255), 224)
    inside = _logits("efficientnet-b0", path, preprocessing=own)
    _assert_equal(_logits("efficientnet-b0", path), inside)
    model = build(
        "efficientnet-b0",
        weights=str(path),
        include_preprocessing=False,
        classifier_activation=None,
        input_shape=(SIZE, SIZE, 3),
    )
    _assert_equal(np.array(model(IMAGES / 255, training=False)), inside)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5"])
def test_our_own_files_are_read(tmp_path, suffix):
    model = build("efficientnet-lite0", input_shape=(SIZE, SIZE, 3), classifier_activation=None)
    _randomise(model, seed=2)
    path = tmp_path / f"own{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    _assert_equal(_logits("efficientnet-lite0", path), np.array(model(IMAGES, training=False)))


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_normalization_of_a_saved_model_counts(tmp_path, file):
    # google/automl: V2-B0 was trained with other constants on ImageNet than on ImageNet-21k.
    kwargs = {"input_shape": (SIZE, SIZE, 3), "classifier_activation": None}
    model = build("efficientnetv2-b0", preprocessing="v2", **kwargs)
    _randomise(model)
    model.save(tmp_path / file)
    with pytest.raises(WeightsError, match=r"mean=\(128\.0, .*the model has another, mean=\(123\."):
        _logits("efficientnetv2-b0", tmp_path / file, preprocessing="torch")
    for preprocessing in (None, "v2"):
        found = _logits("efficientnetv2-b0", tmp_path / file, preprocessing=preprocessing)
        _assert_equal(found, np.array(model(IMAGES, training=False)))


@pytest.mark.parametrize("how", ["external", "virtual", "link"])
def test_arrays_outside_the_file_are_refused(tmp_path, how):
    # HDF5 can point at any file of the machine that opens it.
    secret = np.arange(4, dtype="float32")
    (tmp_path / "secret").write_bytes(secret.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = secret
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file.attrs["layer_names"] = [b"predictions"]
        group = file.create_group("predictions")
        group.attrs["weight_names"] = [b"bias"]
        if how == "external":
            group.create_dataset("bias", (4,), "float32", external=[(tmp_path / "secret", 0, 16)])
        elif how == "virtual":
            layout = h5py.VirtualLayout((4,), "float32")
            layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "secret", (4,))
            group.create_virtual_dataset("bias", layout)
        else:
            group["bias"] = h5py.ExternalLink(tmp_path / "secret.h5", "secret")
    with pytest.raises(WeightsError, match=r"another file.*refused"):
        load.read(tmp_path / "evil.h5", resolve("efficientnet-b0"))


def test_what_does_not_fit_is_named(theirs, tmp_path):
    path = tmp_path / "bad.weights.h5"
    theirs("EfficientNetB0").save_weights(path)
    with h5py.File(path, "r+") as file:
        names = {group.attrs.get("name"): group for group in _groups(file)}
        del names["block3b_bn"]["2"]
        del names["stem_conv"]["0"]
        names["stem_conv"]["0"] = np.zeros((3, 3, 3, 40), "float32")
        names["top_bn"].attrs["name"] = "upper_bn"
    with pytest.raises(WeightsError, match=r"missing: .*top_bn/gamma") as error:
        load.read(path, resolve("efficientnet-b0"))
    for name in ("block3b_bn", "upper_bn/gamma", "stem_conv/kernel (expected (3, 3, 'any', 32)"):
        assert name in str(error.value)


def _groups(file):
    found = []
    file.visititems(lambda _, item: found.append(item) if "name" in item.attrs else None)
    return found


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + b"x" * 200, b"PK\x03\x04xxxx"])
def test_damaged_files_are_an_error(tmp_path, content):
    path = tmp_path / "bad.h5"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"bad\.h5"):
        load.read(path, resolve("efficientnet-b0"))


def test_a_damaged_archive_is_an_error(theirs, tmp_path):
    path = tmp_path / "damaged.keras"
    theirs("EfficientNetB0").save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of the weights
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        load.read(path, resolve("efficientnet-b0"))


def test_other_hdf5_files_are_an_error(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = [1.0]
    with pytest.raises(WeightsError, match="not a Keras one"):
        load.read(tmp_path / "other.h5", resolve("efficientnet-b0"))
