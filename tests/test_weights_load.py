"""Weights into models: all or nothing, other channels, other heads, and tags offline."""

import shutil
import sys
import types
import warnings

import h5py
import keras
import numpy as np
import pytest

from efficientnet_tf.arch import BlockArgs, Variant, resolve
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.weights import fetch, load, registry
from efficientnet_tf.weights.keras_h5 import write_keras_h5
from efficientnet_tf.weights.pytorch import write_safetensors
from efficientnet_tf.weights.source import Normalization, WeightsError

SIZE = 40  # pixels
TINY = Variant(
    "tiny",
    (
        BlockArgs("mbconv", 1, 3, 2, 1, 8, 8, 0.25),
        BlockArgs("mbconv", 1, 5, 2, 4, 8, 8, 0.25),
        BlockArgs("fused", 1, 3, 2, 4, 8, 16),
        BlockArgs("fused", 1, 3, 2, 1, 16, 16),
    ),
    width=1.0,
    depth=1.0,
    resolution=SIZE,
    train_resolution=SIZE,
    dropout_rate=0.0,
    stem_filters=8,
    head_filters=32,
    classes=1001,
)
NETWORK = resolve(TINY)


def _build(**kwargs):
    kwargs = {"classifier_activation": None, "input_shape": (SIZE, SIZE, 3), **kwargs}
    if not kwargs.get("include_top", True):
        del kwargs["classifier_activation"]
    return build(TINY, **kwargs)


def _images(channels=3):
    return np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, channels)).astype("float32")


@pytest.fixture(scope="module")
def model():
    made = _build()
    rng = np.random.default_rng(1)
    for key, variable in load.model_variables(made).items():
        if key.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif not key.endswith("kernel"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    return made


@pytest.fixture(scope="module")
def arrays(model):
    return load.model_arrays(model)


@pytest.fixture
def file(arrays, tmp_path):
    write_keras_h5(tmp_path / "tiny.h5", arrays, NETWORK)
    return str(tmp_path / "tiny.h5")


def _call(model, images):
    return np.array(model(images, training=False))


def test_one_channel_gives_what_three_equal_ones_give(model, file):
    # keras-team/keras#14373: grey pictures with weights for RGB.
    gray = _images(1)
    wanted = _call(model, np.repeat(gray, 3, axis=-1))
    found = _call(_build(weights=file, input_shape=(SIZE, SIZE, 1)), gray)
    assert np.abs(found - wanted).max() <= 1e-5 * np.ptp(wanted)


def test_one_channel_without_preprocessing(model, file):
    gray = _images(1) / 255
    kwargs = {"weights": file, "include_preprocessing": False}
    wanted = _call(_build(**kwargs), np.repeat(gray, 3, axis=-1))
    found = _call(_build(input_shape=(SIZE, SIZE, 1), **kwargs), gray)
    assert np.abs(found - wanted).max() <= 1e-5 * np.ptp(wanted)


@pytest.mark.parametrize("channels", [2, 4, 6, 7])
def test_stem_of_other_channels_keeps_the_scale(channels):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4096)).astype("float32")
    found = load.adapt_stem(kernel, channels)
    assert found.shape == (3, 3, channels, 4096)
    for channel in range(channels):
        np.testing.assert_allclose(
            found[:, :, channel], kernel[:, :, channel % 3] * 3 / channels, rtol=1e-6
        )
    if channels % 3 == 0:  # equal pictures in all channels: exactly the response to RGB
        np.testing.assert_allclose(found.sum(2), kernel.sum(2), atol=1e-5)


def test_one_channel_stem_is_the_sum():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 5)).astype("float32")
    np.testing.assert_allclose(load.adapt_stem(kernel, 1)[:, :, 0], kernel.sum(2), rtol=1e-6)


def test_six_channels_of_one_picture_twice_give_the_picture_s_logits(model, file):
    # qubvel/efficientnet#147: pretrained weights for multispectral pictures.
    images = _images()
    six = _build(weights=file, input_shape=(SIZE, SIZE, 6))
    wanted = _call(model, images)
    found = _call(six, np.concatenate([images, images], axis=-1))
    assert np.abs(found - wanted).max() <= 1e-5 * np.ptp(wanted)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_more_channels_see_what_the_rgb_stem_sees_of_their_mixture(model, file, channels):
    # keras#14373, qubvel/efficientnet#147. Channel c has the kernel of c % 3, times 3 / channels.
    pixels = _images(channels) / 255
    kwargs = {"weights": file, "include_preprocessing": False}
    mixture = np.zeros((2, SIZE, SIZE, 3), "float32")
    for channel in range(channels):
        mixture[..., channel % 3] += pixels[..., channel] * 3 / channels
    wanted = _call(_build(**kwargs), mixture)
    found = _call(_build(input_shape=(SIZE, SIZE, channels), **kwargs), pixels)
    assert np.abs(found - wanted).max() <= 1e-5 * np.ptp(wanted)


def test_our_file_of_four_channels_fits_four_channels_only(tmp_path, file):
    four = _build(weights=file, input_shape=(SIZE, SIZE, 4))
    path = tmp_path / "four.weights.h5"
    four.save_weights(path)
    again = _build(weights=str(path), input_shape=(SIZE, SIZE, 4))
    images = _images(4)
    assert np.array_equal(_call(again, images), _call(four, images))
    with pytest.raises(WeightsError, match="Only a stem for 3 channels"):
        _build(weights=str(path))


def test_the_background_class_can_be_left_out(model, file):
    found = _call(_build(weights=file, classes=1000), _images())
    np.testing.assert_allclose(found, _call(model, _images())[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [10, 999, 1002])
def test_other_classes_are_an_error_that_says_what_is_allowed(file, classes):
    with pytest.raises(WeightsError, match=r"classes=1001, classes=1000.*include_top=False"):
        _build(weights=file, classes=classes)


def test_models_that_end_earlier_are_loaded(model, file):
    images = _images()
    head = _build(weights=file, include_top=False)
    wanted = keras.Model(model.input, model.get_layer("top_activation").output)
    np.testing.assert_allclose(_call(head, images), _call(wanted, images), atol=1e-5)
    levels = _build(weights=file, include_top=False, features_only=True, levels=[3])
    wanted = keras.Model(model.input, model.get_layer("block2a_project_bn").output)
    found = levels(images, training=False)
    found = found[0] if isinstance(found, (list, tuple)) else found
    np.testing.assert_allclose(np.array(found), _call(wanted, images), atol=1e-5)


def test_preprocessing_is_the_same_layer_with_and_without_weights(file):
    # tensorflow#49930: keras.applications rescales once more where weights are loaded.
    random, loaded = _build(), _build(weights=file)
    assert [y.get_config() for y in random.layers] == [y.get_config() for y in loaded.layers]


def test_a_failed_load_leaves_the_model_as_it_was(arrays, tmp_path):
    target = _build()
    before = load.model_arrays(target)
    wrong = {**arrays, "top_bn/gamma": np.zeros(33, "float32")}
    write_keras_h5(tmp_path / "wrong.h5", wrong, NETWORK)
    with pytest.raises(WeightsError, match="top_bn/gamma"):
        load.load_weights(target, NETWORK, tmp_path / "wrong.h5", classes=1001)
    del wrong["top_bn/gamma"]
    with pytest.raises(WeightsError, match="top_bn/gamma"):
        load.assign(target, wrong)
    after = load.model_arrays(target)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_integers_in_place_of_weights_are_an_error(file):
    with h5py.File(file, "r+") as opened:
        del opened["top_bn/top_bn/gamma:0"]
        opened["top_bn/top_bn/gamma:0"] = np.zeros(32, "int32")
    with pytest.raises(WeightsError, match="top_bn/gamma holds int32"):
        _build(weights=file)


def test_recorded_normalization_must_be_the_model_s(arrays, tmp_path):
    path = str(tmp_path / "own.safetensors")
    write_safetensors(path, arrays, Normalization((127.5,) * 3, (127.5,) * 3))
    with pytest.raises(WeightsError, match=r"mean=\(127\.5, .*the model has another"):
        _build(weights=path, preprocessing="torch")
    scale = _build(weights=path).get_layer("rescaling").scale
    np.testing.assert_allclose(np.ravel(scale), 1 / 127.5)
    assert _build(weights=path, preprocessing="inception").count_params() > 0
    assert _build(weights=path, include_preprocessing=False).count_params() > 0
    _build(weights=path, preprocessing="inception", input_shape=(SIZE, SIZE, 5))


def test_unknown_files_and_tags_are_errors(tmp_path):
    (tmp_path / "notes.txt").write_text("These are no weights at all.")
    with pytest.raises(WeightsError, match="no weight file that can be read"):
        load.read(tmp_path / "notes.txt", NETWORK)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load.read(tmp_path / "nothing", NETWORK)
    with pytest.raises(ValueError, match="no published variant"):
        _build(weights="imagenet")


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFICIENTNET_TF_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("EFFICIENTNET_TF_HOME", str(tmp_path / "cache"))
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


def test_a_tag_loads_offline_from_a_mirror(shared_dir, mirror):
    # keras-team/keras#18981: the publisher's server can not be reached.
    shutil.copy(shared_dir / "fixtures/efficientnet-edgetpu-S.tar.gz", mirror)
    golden = np.load(shared_dir / "fixtures/efficientnet-edgetpu-S.golden.npz")
    made = build("efficientnet-edgetpu-s", classes=1000, classifier_activation=None)
    network = resolve("efficientnet-edgetpu-s")
    record = load.load_weights(made, network, "imagenet", classes=1000)
    assert record is registry.find("efficientnet-edgetpu-s", "imagenet")
    wanted = golden["logits_ema"][:, 1:]
    assert np.abs(_call(made, golden["images"]) - wanted).max() <= 1e-4 * np.ptp(wanted)
    # No hash is published: the first one is kept, and another file is refused from then on.
    shutil.copy(
        shared_dir / "fixtures/efficientnet-lite0.tar.gz", mirror / "efficientnet-edgetpu-S.tar.gz"
    )
    with pytest.raises(fetch.FetchError, match="first download"):
        load.load_weights(made, network, "imagenet", classes=1000)


def test_a_tag_that_is_not_in_the_mirror_is_an_error_not_random_weights(mirror):
    with pytest.raises(fetch.FetchError, match="nothing is downloaded"):
        build("efficientnet-lite0", weights="imagenet")


def test_a_published_hash_that_does_not_match_is_an_error(shared_dir, mirror):
    (mirror / "efficientnetb0.h5").write_bytes(b"\x89HDF\r\n\x1a\n wrong")
    with pytest.raises(fetch.FetchError, match="md5"):
        build("efficientnet-b0", weights="imagenet")


def test_classes_of_a_tag_are_checked_before_anything_is_fetched(mirror):
    with pytest.raises(WeightsError, match=r"weights='imagenet' has 1000 classes.*classes=10\."):
        build("efficientnet-b0", weights="imagenet", classes=10)


def test_without_classifier_the_smaller_file_is_preferred(mirror):
    record = registry.find("efficientnetv2-b0", "imagenet")
    for url, digits in ((record.url, record.hash), (record.url_notop, record.hash_notop)):
        (mirror / url.rsplit("/", 1)[1]).write_bytes(b"x")
        with pytest.raises(fetch.FetchError, match=digits.split(":")[1]):
            # The only one that is here is taken, the smaller one if both are.
            load.locate(record, include_top=False)


def test_timm_names_are_found_in_a_mirror(shared_dir, mirror):
    record = registry.find("efficientnet-b0", "timm/tf_efficientnet_b0.aa_in1k")
    with pytest.raises(fetch.FetchError, match=r"tf_efficientnet_b0\.aa_in1k\.safetensors"):
        load.locate(record)
    (mirror / "tf_efficientnet_b0.aa_in1k.safetensors").write_bytes(b"weights")
    assert load.locate(record).read_bytes() == b"weights"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("EFFICIENTNET_TF_MIRROR", raising=False)
    monkeypatch.setenv("EFFICIENTNET_TF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _hub(monkeypatch, download):
    module = types.SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_timm_names_come_from_the_hub(cache, tmp_path, monkeypatch):
    def download(repository, file, cache_dir):
        assert (repository, file) == ("timm/tf_efficientnetv2_b3.in21k", "model.safetensors")
        assert cache in cache_dir.parents
        return str(tmp_path / file)

    _hub(monkeypatch, download)
    record = registry.find("efficientnetv2-b3", "timm/tf_efficientnetv2_b3.in21k")
    assert load.locate(record) == tmp_path / "model.safetensors"


def test_a_failed_hub_download_is_an_error(cache, monkeypatch):
    def download(repository, file, cache_dir):
        raise RuntimeError("connection reset")

    _hub(monkeypatch, download)
    with pytest.raises(fetch.FetchError, match=r"tf_efficientnet_b0\.aa_in1k can not.*reset"):
        build("efficientnet-b0", weights="timm/tf_efficientnet_b0.aa_in1k")


def test_without_the_hub_package_the_github_release_is_used(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    asked = []
    monkeypatch.setattr(fetch, "_download", lambda url, target, digits: asked.append((url, digits)))
    load.locate(registry.find("efficientnet-b0", "timm/tf_efficientnet_b0.aa_in1k"))
    (url, digits) = asked[0]
    assert url.endswith("v0.1-weights/tf_efficientnet_b0_aa-827b6e33.pth")
    assert digits == "sha256-prefix:827b6e33"
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        load.locate(registry.find("efficientnetv2-b3", "timm/tf_efficientnetv2_b3.in21k"))


def test_a_mirror_must_tell_official_files_of_one_name_apart(mirror):
    record = registry.find("efficientnet-b0", "imagenet-advprop")
    (mirror / "efficientnet-b0.tar.gz").write_bytes(b"baseline, AutoAugment or AdvProp?")
    with pytest.raises(fetch.FetchError, match=r"advprop/efficientnet-b0\.tar\.gz"):
        load.locate(record)
    (mirror / "advprop").mkdir()
    (mirror / "advprop/efficientnet-b0.tar.gz").write_bytes(b"AdvProp")
    assert load.locate(record).read_bytes() == b"AdvProp"


def test_a_published_file_name_decides_the_normalisation_of_a_path(tmp_path):
    # The file of a 21k checkpoint does not say that its pictures are (x - 128) / 128.
    network = build("efficientnetv2-b0", classes=21843, input_shape=(32, 32, 3))
    network_of = resolve("efficientnetv2-b0")
    path = tmp_path / "efficientnetv2-b0-21k.h5"
    write_keras_h5(path, load.model_arrays(network), network_of)
    model = build("efficientnetv2-b0", weights=str(path), input_shape=(32, 32, 3))
    assert model.output_shape == (None, 21843)
    np.testing.assert_allclose(np.ravel(model.get_layer("rescaling").scale), 1 / 128)
    other = tmp_path / "mine.h5"
    path.rename(other)
    model = build("efficientnetv2-b0", weights=str(other), classes=21843, input_shape=(32, 32, 3))
    np.testing.assert_allclose(np.ravel(model.get_layer("rescaling").scale)[0], 1 / 58.395)


def test_a_file_name_that_was_published_twice_warns(tmp_path):
    # efficientnet-b0.tar.gz: AutoAugment and AdvProp, with different normalisations.
    network = build("efficientnet-b0", input_shape=(32, 32, 3))
    network_of = resolve("efficientnet-b0")
    path = tmp_path / "efficientnet-b0.h5"
    write_keras_h5(path, load.model_arrays(network), network_of)
    with pytest.warns(UserWarning, match="imagenet-advprop with 'inception'"):
        build("efficientnet-b0", weights=str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = build("efficientnet-b0", weights=str(path), preprocessing="inception")
    np.testing.assert_allclose(np.ravel(model.get_layer("rescaling").scale), 1 / 127.5)
