"""Configurations: overrides from text, checks, JSON."""

import dataclasses

import pytest

from efficientnet_tf.config import (
    Config,
    TrainConfig,
    from_json,
    override,
    to_json,
    to_table,
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
            "train.optimizer is one of ('rmsprop', 'sgd', 'adamw', 'lars'). Received: 'adam'",
        ),
        ("trian.epochs=1", "No setting 'trian.epochs'. Did you mean 'train'?"),
        ("epochs=1", "No setting 'epochs'. Did you mean 'train.epochs'?"),
        ("zzz=1", "No setting 'zzz'. Known: model, data, train, progressive, finetune, student."),
        ("train.epochs", "A setting is written section.name=value. Received: 'train.epochs'"),
        ("train.learning_rate=nan", "train.learning_rate expects float. Received: 'nan'"),
        ("train.epochs=none", "train.epochs expects int. Received: 'none'"),
        ("data.flip=maybe", "data.flip expects bool. Received: 'maybe'"),
        ("train.epochs=0", "train.epochs must be >= 1. Received: train.epochs=0"),
        ("data.source=imagenet", 'data.source must be "digits", "fake" or "KIND:PATH"'),
        ("data.source=folder:", 'data.source must be "digits", "fake" or "KIND:PATH"'),
        ("data.source=flowers", "Received: data.source='flowers'"),
        ("data.augment=rand", 'data.augment must be "none", "autoaugment", "randaugment"'),
        ("data.augment=keras:", "Received: data.augment='keras:'"),
        ("data.max_bad=1", "data.max_bad must be in [0, 1). Received: data.max_bad=1.0"),
        ("data.mixup=-1", "data.mixup must be >= 0. Received: data.mixup=-1.0"),
        ("model.normalization=caffe", "model.normalization must be one of (None, 'torch'"),
        ("model.dropout_rate=1", "model.dropout_rate must be in [0, 1)"),
        ("finetune.unfreeze=blocks:0", 'finetune.unfreeze must be "all", "head", "blocks:N"'),
        ("finetune.unfreeze=regex:(", "finetune.unfreeze='regex:(': missing )"),
        ("finetune.layer_decay=0", "finetune.layer_decay must be in (0, 1]"),
        # Nothing is accepted and then ignored.
        ("data.magnitude=9", "data.magnitude is used only with data.augment=randaugment"),
        ("data.bug_compat=true", "data.bug_compat is used only with data.augment=autoaugment"),
        ("data.cutout_fill=noise", "data.cutout_fill is used only with data.cutout > 0"),
        ("data.data_dir=d", "data.data_dir is used only with data.source=tfds:NAME"),
        ("train.decay_rate=0.9", "train.decay_rate is used only with train.schedule=exponential"),
        ("train.clip=both", "train.clip is used only with train.clip_norm > 0"),
        ("train.weight_decay_in=update", "train.weight_decay_in is used only with train.weight_"),
        ("progressive.magnitude=31", "progressive.magnitude must be in [0, 30] or none"),
        ("progressive.rule=released", "progressive.rule is used only with progressive.stages > 1"),
    ],
)
def test_a_wrong_setting_says_what_is_wrong(setting, message):
    with pytest.raises(ValueError, match=r".") as error:
        override(Config(), setting)
    assert str(error.value).startswith(message) or message in str(error.value)


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
    with pytest.raises(ValueError, match=r"data\.shift must be smaller than the training"):
        override(Config(), "model.image_size=32", "data.shift=32")
    with pytest.raises(ValueError, match=r"progressive\.image_size must not exceed the training"):
        override(Config(), "progressive.stages=2", "model.image_size=100")
    stages = "progressive.stages=4", "finetune.head_epochs=5"
    assert override(Config(), *stages, "train.epochs=9").train.epochs == 9
    with pytest.raises(ValueError, match=r"an epoch for each stage after finetune\.head_epochs"):
        override(Config(), *stages, "train.epochs=8")
    with pytest.raises(ValueError, match=r"an epoch for each stage after finetune\.head_epochs"):
        override(Config(), "finetune.head_epochs=10")
    with pytest.raises(ValueError, match=r"used only with data\.augment=randaugment"):
        override(Config(), "progressive.stages=2", "progressive.magnitude=5")
    with pytest.raises(ValueError, match=r"momentum is used only with train\.optimizer=rmsprop"):
        override(Config(), "train.optimizer=adamw", "train.momentum=0.5")


def test_replace_checks_again():
    with pytest.raises(ValueError, match=r"train\.ema_decay must be in \[0, 1\)"):
        dataclasses.replace(TrainConfig(), ema_decay=1.0)


def test_json_round_trip_with_every_setting_changed():
    config = override(
        Config(),
        "model.variant=efficientnet-b0",
        "model.width=0.5",
        "model.depth=0.5",
        "model.blocks=r1_k3_s11_e1_i16_o16",
        "model.stem_filters=8",
        "model.head_filters=8",
        "model.image_size=192",
        "model.weights=w.h5",
        "model.normalization=lite",
        "model.dropout_rate=0.1",
        "model.drop_connect_rate=0.1",
        "data.source=tfds:cifar10",
        "data.data_dir=d",
        "data.train_split=train[:90%]",
        "data.validation_split=train[90%:]",
        "data.test_split=test",
        "data.batch_size=none",
        "data.holdout=0.2",
        "data.check_pictures=false",
        "data.max_bad=0.02",
        "data.train_size=160",
        "data.crop=v1",
        "data.resize=bicubic",
        "data.eval_crop=pad32",
        "data.eval_resize=bicubic_legacy",
        "data.flip=true",
        "data.shift=3",
        "data.augment=randaugment",
        "data.magnitude=9",
        "data.num_layers=3",
        "data.augment_pixels=relative",
        "data.bug_compat=true",
        "data.cutout=0.5",
        "data.cutout_fill=noise",
        "data.random_erasing=0.25",
        "data.mixup=0.2",
        "data.cutmix=0.3",
        "data.service=grpc://localhost:5000",
        "train.checkpoint_steps=100",
        "train.keep_checkpoints=3",
        "train.epochs=20",
        "train.min_steps=7",
        "train.steps_per_epoch=5",
        "train.steps_per_call=2",
        "train.optimizer=sgd",
        "train.learning_rate=0.1",
        "train.momentum=0.8",
        "train.schedule=exponential",
        "train.warmup_epochs=1",
        "train.decay_epochs=2",
        "train.decay_rate=0.9",
        "train.min_learning_rate=1e-6",
        "train.label_smoothing=0.2",
        "train.weight_decay=1e-4",
        "train.weight_decay_in=update",
        "train.weight_decay_on=all_but_norm",
        "train.clip_norm=1",
        "train.clip=both",
        "train.accumulate=2",
        "train.rematerialise=true",
        "train.ema_decay=0.9",
        "train.patience=3",
        "train.precision=mixed_bfloat16",
        "train.deterministic=true",
        "train.seed=5",
        "progressive.stages=3",
        "progressive.rule=released",
        "progressive.image_size=96",
        "progressive.dropout_rate=0.05",
        "progressive.drop_connect_rate=0.05",
        "progressive.magnitude=4",
        "progressive.mixup=0",
        "progressive.cutmix=0",
        "finetune.head_epochs=2",
        "finetune.unfreeze=blocks:3",
        "finetune.layer_decay=0.8",
        "finetune.freeze_batch_norm=true",
    )
    others = [  # what refuses some of these
        override(Config(), "train.loss=sigmoid", "model.sync_batch_norm=true"),
        override(
            Config(),
            "student.teacher=run",
            "student.unlabeled=folder:pictures",
            "student.labels=hard",
            "student.threshold=0.5",
            "student.per_class=100",
            "student.ratio=3",
        ),
        override(Config(), "student.distill=run", "student.temperature=2", "student.alpha=0.5"),
    ]
    unchanged = [
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(getattr(config, section.name))
        if all(
            getattr(getattr(each, section.name), field.name) == field.default
            for each in (config, *others)
        )
    ]
    assert not unchanged
    for each in (config, *others):
        assert from_json(to_json(each)) == each
    assert from_json("{}") == Config()


def test_the_table_shows_every_setting_and_what_differs_from_the_default():
    lines = to_table(override(Config(), "train.epochs=3")).splitlines()
    assert [line.split()[0] for line in lines] == [
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(getattr(Config(), section.name))
    ]
    (line,) = (line for line in lines if line.startswith("train.epochs "))
    assert line.split(maxsplit=1)[1] == "3  (default 10)"
    assert sum("default" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": {"batch_sise": 1}}', "Did you mean 'batch_size'"),
        ('{"data": {"batch_size": 1.5}}', "data.batch_size expects int. Received: 1.5"),
        ('{"data": {"batch_size": true}}', "data.batch_size expects int. Received: True"),
        ('{"model": {"blocks": "r1"}}', "model.blocks expects a list of strings. Received: 'r1'"),
        ('{"train": {"seed": -1}}', "train.seed must be in [0, 2**32)"),
        ('{"nope": {}}', "No setting 'nope'. Known: model, data, train, "),
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
    with pytest.raises(ValueError, match=r"chosen when training starts"):
        assert override(config, "data.batch_size=none").scaled_learning_rate


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    assert from_json(to_json(RECIPES[name])) == RECIPES[name]
