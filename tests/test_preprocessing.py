import dataclasses
import json

import numpy as np
import pytest

from efficientnet_tf import preprocessing
from efficientnet_tf.arch import VARIANTS
from efficientnet_tf.preprocessing import NORMALIZATIONS, Preprocessing


def test_constants_are_the_published_ones():
    # In [0, 1] units, as the torch-style constants are usually quoted.
    mean, std = NORMALIZATIONS["torch"]
    np.testing.assert_allclose(np.array(mean) / 255, [0.485, 0.456, 0.406], rtol=1e-12)
    np.testing.assert_allclose(np.array(std) / 255, [0.229, 0.224, 0.225], rtol=1e-12)
    assert NORMALIZATIONS["v2"] == ((128,) * 3, (128,) * 3)
    assert NORMALIZATIONS["lite"] == ((127,) * 3, (128,) * 3)


def test_every_variant_names_a_normalisation():
    for variant in VARIANTS.values():
        preprocessing.default(variant.preprocessing, variant.resolution)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_rescaling_is_subtract_and_divide(name):
    # Not variance for std, nor std forgotten: (x - mean) / std to 1e-6 on fixed pixels.
    pixels = np.array([[0, 0, 0], [255, 255, 255], [12, 100, 200]], np.float64)
    scale, offset = preprocessing.rescaling(preprocessing.default(name, 224))
    mean, std = NORMALIZATIONS[name]
    np.testing.assert_allclose(pixels * scale + offset, (pixels - mean) / std, atol=1e-6)
    assert all(type(value) is float for value in scale + offset)


def test_inception_maps_pixels_onto_minus_one_to_one():
    scale, offset = preprocessing.rescaling(preprocessing.default("inception", 224))
    np.testing.assert_allclose(np.array([0, 127.5, 255]) * scale[0] + offset[0], [-1, 0, 1])


@pytest.mark.parametrize(
    ("made", "crop", "method"),
    [
        (preprocessing.v1_eval(224), "pad32", "bicubic_legacy"),
        (preprocessing.v1_eval(600, "inception"), "pad32", "bicubic_legacy"),
        (preprocessing.lite_eval(280), "pad32", "bilinear_legacy"),
        (preprocessing.v2_eval(300), "pad32_floor", "bilinear"),
        (preprocessing.v2_eval(319), "pad32_floor", "bilinear"),
        (preprocessing.v2_eval(320), "squash", "bilinear"),
        (preprocessing.v2_eval(480), "squash", "bilinear"),
    ],
)
def test_family_rules(made, crop, method):
    assert (made.crop, made.resize_method) == (crop, method)


def test_default_picks_the_rule_of_the_family():
    assert preprocessing.default("torch", 300) == preprocessing.v1_eval(300)
    assert preprocessing.default("inception", 300) == preprocessing.v1_eval(300, "inception")
    assert preprocessing.default("lite", 300) == preprocessing.lite_eval(300)
    assert preprocessing.default("v2", 384, None) == preprocessing.v2_eval(384, labels=None)


def test_crop_ratios_are_the_published_crop_fractions():
    # timm's crop_pct of the V1 checkpoints B0 to B7 and L2-475, which come from 32 px of padding.
    sizes = [224, 240, 260, 300, 380, 456, 528, 600, 475]
    expected = [0.875, 0.882, 0.890, 0.904, 0.922, 0.934, 0.942, 0.949, 0.936]
    ratios = [preprocessing.v1_eval(size).crop_ratio for size in sizes]
    np.testing.assert_allclose(ratios, expected, atol=1e-3)  # some of them are cut, not rounded


def test_fraction_rule_has_the_paddings_of_the_tpu_repository():
    # round(size * (1 / 0.875 - 1)) of V1 preprocessing.py for B0 to B8 and L2.
    sizes = [224, 240, 260, 300, 380, 456, 528, 600, 672, 800]
    paddings = [32, 34, 37, 43, 54, 65, 75, 86, 96, 114]
    base = dataclasses.replace(preprocessing.v1_eval(224), crop="fraction", crop_fraction=0.875)
    for size, padding in zip(sizes, paddings, strict=True):
        ratio = dataclasses.replace(base, size=size).crop_ratio
        assert ratio == size / (size + padding)
    whole = dataclasses.replace(base, crop_fraction=1.0)
    assert whole.crop_ratio == 1
    assert preprocessing.v2_eval(384).crop_ratio is None


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_own_rule_squashes_and_finds_the_constants_of_a_rescaling(name):
    made = preprocessing.own(64, *preprocessing.rescaling(preprocessing.default(name, 224)))
    assert (made.size, made.crop, made.resize_method, made.labels) == (
        64, "squash", "bilinear", None,
    )  # fmt: skip
    np.testing.assert_allclose([made.mean, made.std], NORMALIZATIONS[name], rtol=1e-12)


@pytest.mark.parametrize(
    "value",
    [
        preprocessing.v1_eval(224, "inception", None),
        preprocessing.lite_eval(300, labels="imagenet-background"),
        preprocessing.v2_eval(224, labels="imagenet21k"),
        Preprocessing("own", (1, 2, 3), (4, 5, 6), 99, "bicubic", "fraction", 0.9, None),
    ],
)
def test_json_round_trip(value):
    again = Preprocessing.from_dict(json.loads(json.dumps(value.to_dict())))
    assert again == value
    assert hash(again) == hash(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "name"),
        ({"mean": (1, 2)}, "mean must be three numbers"),
        ({"mean": "abc"}, "mean must be three numbers"),
        ({"std": (1, 0, 1)}, "std must be greater than 0"),
        ({"std": (1, float("nan"), 1)}, "std must be finite"),
        ({"size": 0}, "size"),
        ({"size": 224.0}, "size"),
        ({"size": True}, "size"),
        ({"resize_method": "lanczos"}, "resize_method must be one of .*bicubic_legacy"),
        ({"crop": "center"}, "crop must be one of .*pad32"),
        ({"labels": "imagenet22k"}, "labels must be one of .*imagenet21k"),
        ({"crop": "fraction"}, "needs crop_fraction"),
        ({"crop": "fraction", "crop_fraction": 1.5}, "needs crop_fraction"),
        ({"crop_fraction": 0.875}, "used only with"),
    ],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(preprocessing.v1_eval(224), **change)


def test_from_dict_names_missing_and_unknown_fields():
    fields = preprocessing.v1_eval(224).to_dict()
    del fields["std"]
    fields["sdt"] = [1, 1, 1]
    with pytest.raises(ValueError, match=r"unknown fields \['sdt'\], missing fields \['std'\]"):
        Preprocessing.from_dict(fields)
    with pytest.raises(ValueError, match="expected its fields"):
        Preprocessing.from_dict([224])


def test_unknown_normalisation_names_the_known_ones():
    with pytest.raises(ValueError, match=r"\['inception', 'lite', 'torch', 'v2'\].*'tf'"):
        preprocessing.default("tf", 224)
