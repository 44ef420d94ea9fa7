"""Networks in files, and wherever a name is taken."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from scripting import call_all

import efficientnet_tf as et
from efficientnet_tf import classifier
from efficientnet_tf.arch import VARIANTS, BlockArgs, files
from efficientnet_tf.config import Config, differences, from_json, override, to_json, to_table
from efficientnet_tf.config.model import describe
from efficientnet_tf.recipes import RECIPES

OWN = et.Variant(
    "own",
    (
        BlockArgs("fused", 1, 3, 1, 1, 8, 8),
        BlockArgs("mbconv", 2, 5, 2, 4, 8, 16, 1 / 24, skip=False),
    ),
    width=1.3,
    depth=1.1,
    resolution=64,
    train_resolution=48,
    dropout_rate=0.1,
    drop_connect_rate=0.3,
    stem_filters=8,
    head_filters=24,
    activation="relu6",
    use_se=False,
    classes=7,
    preprocessing="lite",
    bn_momentum=0.9,
    bn_epsilon=1e-2,
    filters_divisor=4,
    rounding_limit=0.0,
    scale_stem_and_head=False,
    scale_outer_repeats=False,
    depthwise_name="dwconv2",
)


@pytest.fixture
def path(tmp_path):
    files.write(OWN, tmp_path / "own.json")
    return tmp_path / "own.json"


def test_a_file_keeps_every_field(path):
    default = VARIANTS["efficientnet-b0"]
    for field in dataclasses.fields(OWN):  # or a field that is left out would go unnoticed
        assert getattr(OWN, field.name) != getattr(default, field.name), field.name
    assert files.read(path) == OWN


def test_a_file_stands_for_a_name(path):
    assert et.count(path, 64) == et.count(OWN, 64)
    model = et.build(str(path), input_shape=(64, 64, 3))
    assert model.name == "own"
    assert model.count_params() == et.count(OWN).total.params
    opened = classifier.load(path)
    assert (opened.model.output_shape, opened.preprocessing.size) == ((None, 7), 64)
    assert classifier.origin(path).variant == "own"


@pytest.mark.parametrize("size", [(90, 80), (64, 64)])  # the second is the network's
def test_a_file_is_exported(root, path, tmp_path, size):
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(np.random.default_rng(0).integers(0, 256, (4, *size, 3))):
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "labels.txt").write_text("\n".join("abcdefg") + "\n")
    flags = ["--to=out", "--weights=none", "--labels=labels.txt", "--verify=folder:photos"]
    ((code, _, errors),) = call_all(root, "export", tmp_path, [[path.name, *flags]])
    assert code == 0, errors
    manifest = json.loads((tmp_path / "out/saved_model/1/manifest.json").read_text())
    assert manifest["variant"] == "own"
    assert manifest["labels"] == list("abcdefg")


def test_a_configuration_holds_the_network_itself(path):
    config = override(Config(), f"model.variant={path}", "model.image_size=64")
    path.unlink()
    assert describe(config.model) == OWN
    assert from_json(to_json(config)) == config
    assert '"r2_k5_s22_e4_i8_o16' in to_table(config)
    other = dataclasses.replace(OWN, bn_momentum=0.8)
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, variant=other))
    (difference,) = differences(config, changed)
    assert '"bn_momentum": 0.8' in difference


@pytest.mark.parametrize("name", RECIPES)
def test_another_variant_replaces_the_whole_network_of_a_recipe(name, path):
    config = override(RECIPES[name], f"model.variant={path}")
    rates = {
        rate: getattr(config.model, rate)
        for rate in ("dropout_rate", "drop_connect_rate")
        if getattr(config.model, rate) is not None
    }
    assert describe(config.model) == dataclasses.replace(OWN, **rates)
    wider = override(RECIPES[name], "model.width=2", f"model.variant={path}")
    assert describe(wider.model).width == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "A variant is a JSON object with"),
        ({"version": 2}, "Variants of version 1 can be read. Received: 2"),
        ({"wdith": 1.0}, "A variant has no field 'wdith'"),
        ({"width": None}, "width must be float. Received: width=None"),
        ({"width": float("nan")}, "width must be float. Received: width=nan"),
        ({"width": 0}, "width must be > 0"),
        ({"filters_divisor": 0}, "filters_divisor must be > 0"),
        ({"train_resolution": -1}, "train_resolution must be > 0"),
        ({"bn_epsilon": -1.0}, "bn_epsilon must be > 0"),
        ({"bn_momentum": 2.0}, "bn_momentum must lie in [0, 1)"),
        ({"resolution": 64.5}, "resolution must be int"),
        ({"use_se": 1}, "use_se must be bool"),
        ({"activation": "gelu"}, "activation must be one of"),
        ({"blocks": "r1_k3_s1_e1_i8_o8"}, "blocks must be a list of block strings"),
        ({"blocks": ["r1_k3_s1_e1_i8"]}, "has no token 'o'"),
        ({"blocks": []}, "must have at least one stage"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(changes, message, path):
    path.write_text(json.dumps({**files.to_dict(OWN), **changes}))
    with pytest.raises(ValueError, match=r"own\.json: ") as error:
        files.read(path)
    assert message in str(error.value)


def test_a_file_without_a_required_field_is_refused(path):
    values = files.to_dict(OWN)
    del values["depth"], values["bn_epsilon"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="The variant has no 'depth'"):
        files.read(path)
    path.write_text(json.dumps({**values, "depth": 1}))
    assert files.read(path) == dataclasses.replace(OWN, depth=1.0, bn_epsilon=1e-3)


def test_missing_files_and_other_endings_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        et.count(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        classifier.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"ends in \.json"):
        files.write(OWN, tmp_path / "own.txt")
    assert not list(tmp_path.iterdir())
