"""Configurations: overrides from text, checks, JSON."""

import dataclasses

import pytest

from efficientnet_tf.config import (
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
    from_json,
    override,
    to_json,
)
from efficientnet_tf.recipes import RECIPES


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.batch_sise=1", "No setting 'data.batch_sise'. Did you mean 'batch_size'?"),
        ("data.batch_size=ten", "data.batch_size expects int. Received: 'ten'"),
        ("data.batch_size=1.5", "data.batch_size expects int. Received: '1.5'"),
        (
            "train.optimizer=adam",
            "train.optimizer is one of ('rmsprop', 'sgd', 'adamw'). Received: 'adam'",
        ),
        ("trian.epochs=1", "No setting 'trian.epochs'. Did you mean 'train'?"),
        ("epochs=1", "No setting 'epochs'. Did you mean 'train.epochs'?"),
        ("zzz=1", "No setting 'zzz'. Known: model, data, train."),
        ("train.epochs", "A setting is written section.name=value. Received: 'train.epochs'"),
        ("train.learning_rate=nan", "train.learning_rate expects float. Received: 'nan'"),
        ("train.epochs=none", "train.epochs expects int. Received: 'none'"),
        ("data.flip=maybe", "data.flip expects bool. Received: 'maybe'"),
        ("train.epochs=0", "train.epochs must be >= 1. Received: train.epochs=0"),
        (
            "data.source=imagenet",
            'data.source must be "digits", "folder:PATH" or "tfds:NAME".'
            " Received: data.source='imagenet'",
        ),
        (
            "data.source=folder:",
            'data.source must be "digits", "folder:PATH" or "tfds:NAME".'
            " Received: data.source='folder:'",
        ),
    ],
)
def test_a_wrong_setting_says_what_is_wrong(setting, message):
    with pytest.raises(ValueError, match=r".") as error:
        override(Config(), setting)
    assert str(error.value) == message


def test_override_reads_every_kind_of_value():
    config = override(
        Config(),
        "train.epochs=3",
        "train.learning_rate=1e-3",
        "train.warmup_epochs=1",
        "train.steps_per_epoch=7",
        "data.flip=TRUE",
        "data.source=folder:a=b",
        "model.blocks=r1_k3_s11_e1_i16_o16, r1_k3_s22_e4_i16_o32",
        "model.dropout_rate=none",
        "model.weights=imagenet",
        "train.schedule=constant",
    )
    assert config.train.epochs == 3
    assert config.train.learning_rate == 1e-3
    assert config.train.warmup_epochs == 1.0
    assert isinstance(config.train.warmup_epochs, float)
    assert config.train.steps_per_epoch == 7
    assert config.data.flip is True
    assert config.data.source == "folder:a=b"
    assert config.model.blocks == ("r1_k3_s11_e1_i16_o16", "r1_k3_s22_e4_i16_o32")
    assert config.model.dropout_rate is None
    assert config.model.weights == "imagenet"
    assert config.train.schedule == "constant"


def test_settings_that_depend_on_each_other_are_checked_together():
    # Either alone would be refused: warmup longer than 10 epochs, shift wider than 224 px.
    config = override(Config(), "train.warmup_epochs=20", "train.epochs=40")
    assert (config.train.warmup_epochs, config.train.epochs) == (20.0, 40)
    with pytest.raises(ValueError, match=r"train\.warmup_epochs must not exceed train\.epochs"):
        override(Config(), "train.warmup_epochs=20")
    with pytest.raises(ValueError, match=r"data\.shift must be smaller than model\.image_size"):
        override(Config(), "model.image_size=32", "data.shift=32")


def test_replace_checks_again():
    with pytest.raises(ValueError, match=r"train\.ema_decay must be in \[0, 1\)"):
        dataclasses.replace(TrainConfig(), ema_decay=1.0)


def _different(value):
    """Another valid value for a field with this default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 32
    if isinstance(value, float):
        return value / 2 + 0.0625
    return value


def test_json_round_trip_with_every_setting_changed():
    sections = {}
    for name, section in {
        "model": ModelConfig(),
        "data": DataConfig(),
        "train": TrainConfig(),
    }.items():
        values = {
            field.name: _different(getattr(section, field.name))
            for field in dataclasses.fields(section)
        }
        sections[name] = type(section)(**values)
    config = Config(**sections)
    config = override(
        config,
        "model.variant=efficientnet-b0",
        "model.blocks=r1_k3_s11_e1_i16_o16",
        "model.width=0.5",
        "model.stem_filters=8",
        "model.weights=w.h5",
        "model.drop_connect_rate=0.1",
        "data.source=tfds:cifar10",
        "data.data_dir=d",
        "train.steps_per_epoch=5",
        "train.optimizer=sgd",
        "train.schedule=exponential",
        "train.weight_decay_in=update",
        "train.precision=mixed_bfloat16",
    )
    assert from_json(to_json(config)) == config
    assert config != Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": {"batch_sise": 1}}', "Did you mean 'batch_size'"),
        ('{"data": {"batch_size": 1.5}}', "data.batch_size expects int. Received: 1.5"),
        ('{"data": {"batch_size": true}}', "data.batch_size expects int. Received: True"),
        ('{"model": {"blocks": "r1"}}', "model.blocks expects a list of strings. Received: 'r1'"),
        ('{"train": {"seed": -1}}', "train.seed must be in [0, 2**32)"),
        ('{"nope": {}}', "No setting 'nope'. Known: model, data, train."),
        ('{"train": 3}', "train expects a JSON object of settings. Received: 3"),
        ("[]", "A configuration is a JSON object of sections. Received: []"),
    ],
)
def test_json_is_checked_like_overrides(text, message):
    with pytest.raises(ValueError, match=r".") as error:
        from_json(text)
    assert message in str(error.value)


def test_learning_rate_scales_with_the_batch():
    config = override(Config(), "train.learning_rate=0.016", "data.batch_size=4096")
    assert config.scaled_learning_rate == pytest.approx(0.256)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    assert from_json(to_json(RECIPES[name])) == RECIPES[name]
