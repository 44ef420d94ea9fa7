"""Named recipes against numbers typed from the papers and the released code, not from the tables.

V1: arXiv 1905.11946, tensorflow/tpu models/official/efficientnet (main.py, README.md).
V2: arXiv 2104.00298, google/automl efficientnetv2 (effnetv2_configs.py, datasets.py, main.py).
"""

import dataclasses
import subprocess
import sys

import pytest

from efficientnet_tf import recipes
from efficientnet_tf.arch import BlockArgs, resolve
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.config import from_json, override, to_json
from efficientnet_tf.recipes import RECIPES, imagenet, small, transfer
from efficientnet_tf.stages import expand, table
from efficientnet_tf.weights.registry import list_weights

V1 = {  # V1 efficientnet_builder.py: pixels, dropout
    "imagenet-b0": (224, 0.2),
    "imagenet-b1": (240, 0.2),
    "imagenet-b2": (260, 0.3),
    "imagenet-b3": (300, 0.3),
    "imagenet-b4": (380, 0.4),
    "imagenet-b5": (456, 0.4),
    "imagenet-b6": (528, 0.5),
    "imagenet-b7": (600, 0.5),
}
V1_RANDAUGMENT = {"imagenet-b5-randaugment": (456, 17), "imagenet-b7-randaugment": (600, 28)}
STAGES = {  # pixels, RandAugment, mixup, cutmix, dropout of every stage; evaluation pixels
    "imagenet-v2-s-paper": (
        (128, 185, 242, 300),
        (5, 8.33, 11.67, 15),
        (0, 0, 0, 0),
        (0, 0, 0, 0),
        (0.1, 0.167, 0.233, 0.3),
        384,
    ),
    "imagenet-v2-m-paper": (
        (128, 212, 296, 380),
        (5, 10, 15, 20),
        (0, 0.067, 0.133, 0.2),
        (0, 0, 0, 0),
        (0.1, 0.2, 0.3, 0.4),
        480,
    ),
    "imagenet-v2-l-paper": (
        (128, 212, 296, 380),
        (5, 11.67, 18.33, 25),
        (0, 0.133, 0.267, 0.4),
        (0, 0, 0, 0),
        (0.1, 0.233, 0.367, 0.5),
        480,
    ),
    "imagenet-v2-s-released": (
        (171, 214, 257, 300),
        (5, 6.67, 8.33, 10),
        (0, 0, 0, 0),
        (0, 0, 0, 0),
        (0.2, 0.2, 0.2, 0.2),
        384,
    ),
    "imagenet-v2-m-released": (
        (192, 256, 320, 384),
        (5, 8.33, 11.67, 15),
        (0, 0.067, 0.133, 0.2),
        (0, 0.067, 0.133, 0.2),
        (0.3, 0.3, 0.3, 0.3),
        480,
    ),
    "imagenet-v2-l-released": (
        (192, 256, 320, 384),
        (5, 10, 15, 20),
        (0, 0.167, 0.333, 0.5),
        (0, 0.167, 0.333, 0.5),
        (0.4, 0.4, 0.4, 0.4),
        480,
    ),
}
V2_BASE = {  # pixels of every stage, dropout, evaluation pixels
    "imagenet-v2-b0-released": ((144, 160, 176, 192), 0.2, 224),
    "imagenet-v2-b1-released": ((144, 160, 176, 192), 0.2, 240),
    "imagenet-v2-b2-released": ((148, 168, 188, 208), 0.3, 260),
    "imagenet-v2-b3-released": ((156, 184, 212, 240), 0.3, 300),
    "imagenet-v2-b0-paper": ((192,), 0.2, 224),
    "imagenet-v2-b1-paper": ((192,), 0.2, 240),
    "imagenet-v2-b2-paper": ((208,), 0.3, 260),
    "imagenet-v2-b3-paper": ((240,), 0.3, 300),
}
FT1K = {  # training pixels (evaluation pixels // 16 * 16), evaluation pixels
    "imagenet21k-ft1k-v2-b0": (224, 224),
    "imagenet21k-ft1k-v2-b1": (240, 240),
    "imagenet21k-ft1k-v2-b2": (256, 260),
    "imagenet21k-ft1k-v2-b3": (288, 300),
    "imagenet21k-ft1k-v2-s": (384, 384),
    "imagenet21k-ft1k-v2-m": (480, 480),
    "imagenet21k-ft1k-v2-l": (480, 480),
    "imagenet21k-ft1k-v2-xl": (512, 512),
}
PRETRAINING = [name for name in RECIPES if name.startswith("imagenet21k-v2-")]
FROM_SCRATCH = [*V1, *V1_RANDAUGMENT, *STAGES, *V2_BASE]
TRANSFER = ["cifar10", "cifar100", "flowers", "cars", "pets", "food101", "aircraft", "stl10"]


def _stages(name):
    return expand(RECIPES[name], RECIPES[name].train.epochs)


def _column(name, field):
    return [getattr(stage, field) for stage in _stages(name)]


def test_these_tables_have_every_recipe():
    known = [*FROM_SCRATCH, *PRETRAINING, *FT1K, *TRANSFER, "digits", "small", "smoke", "finetune"]
    known.append("small-progressive")
    assert len(PRETRAINING) == 8
    assert sorted(known) == sorted(RECIPES)


def test_no_name_is_used_twice():
    parts = (small.RECIPES, transfer.RECIPES, imagenet.RECIPES)
    assert sum(map(len, parts)) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_describes_a_network_and_stages(name):
    config = RECIPES[name]
    assert from_json(to_json(config)) == config
    model = config.model
    variant = find(model.variant)
    if model.blocks:
        blocks = tuple(BlockArgs.parse(block) for block in model.blocks)
        variant = dataclasses.replace(variant, blocks=blocks)
    network = resolve(variant, width=model.width, depth=model.depth)
    assert len(network.blocks) >= (4 if model.blocks else 16)
    stages = _stages(name)
    epochs = [epoch for s in stages for epoch in range(s.first_epoch, s.last_epoch + 1)]
    assert epochs == list(range(1, config.train.epochs + 1))
    assert stages[-1].image_size == config.train_size
    assert len(table(stages).splitlines()) == len(stages) + 1
    if model.weights:
        assert model.weights in [record.tag for record in list_weights(model.variant)]


# --- From scratch on ImageNet-1k ------------------------------------------------------------------


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_optimisation_on_imagenet_is_the_published_one(name):
    config = RECIPES[name]
    train = config.train
    assert train.epochs == 350
    assert train.min_steps == 0
    assert train.steps_per_epoch is None
    assert (train.optimizer, train.momentum) == ("rmsprop", 0.9)
    assert (train.schedule, train.decay_rate, train.decay_epochs) == ("exponential", 0.97, 2.4)
    assert train.warmup_epochs == 5
    assert train.min_learning_rate == 0
    assert (train.loss, train.label_smoothing) == ("softmax", 0.1)
    assert (train.weight_decay, train.weight_decay_in) == (1e-5, "loss")
    assert train.clip_norm == 0
    assert train.ema_decay == 0.9999
    assert _column(name, "drop_connect_rate") == [0.2] * config.progressive.stages
    v1 = name in V1 or name in V1_RANDAUGMENT
    assert config.data.batch_size == (2048 if v1 else 4096)
    assert config.scaled_learning_rate == pytest.approx(0.128 if v1 else 0.256)
    assert train.weight_decay_on == ("all_but_norm" if v1 else "kernels")
    assert config.model.weights is None
    assert config.model.normalization is None  # the variant's
    assert config.data.flip
    assert config.data.source.startswith("imagenet:")
    assert config.data.cutout == config.data.random_erasing == config.data.shift == 0
    assert round(config.data.holdout * 1024) == 20
    assert config.data.bug_compat == name.endswith("-released")


@pytest.mark.parametrize("name", [*V1, *V1_RANDAUGMENT, *V2_BASE])
def test_v1_pictures(name):
    data = RECIPES[name].data
    assert (data.crop, data.resize) == ("v1", "bicubic_legacy")
    assert (data.eval_crop, data.eval_resize) == ("pad32", "bicubic_legacy")
    assert data.mixup == data.cutmix == 0
    assert data.augment == ("randaugment" if name in V1_RANDAUGMENT else "autoaugment")


@pytest.mark.parametrize("name", V1)
def test_v1_sizes_and_rates(name):
    size, dropout = V1[name]
    config = RECIPES[name]
    assert config.model.variant == name.replace("imagenet", "efficientnet")
    assert config.model.image_size == config.train_size == size
    assert _column(name, "dropout_rate") == [dropout]


@pytest.mark.parametrize("name", V1_RANDAUGMENT)
def test_v1_randaugment_differs_in_the_augmentation_only(name):
    size, magnitude = V1_RANDAUGMENT[name]
    config = RECIPES[name]
    assert (config.data.num_layers, config.data.magnitude) == (2, magnitude)
    assert config.train_size == size
    plain = RECIPES[name.removesuffix("-randaugment")]
    back = override(config, "data.augment=autoaugment", "data.magnitude=10", "data.num_layers=2")
    assert back == plain


@pytest.mark.parametrize("name", STAGES)
def test_v2_stages(name):
    sizes, magnitudes, mixups, cutmixes, dropouts, size = STAGES[name]
    config = RECIPES[name]
    assert config.model.variant == f"efficientnetv2-{name.split('-')[2]}"
    assert config.model.image_size == size
    assert _column(name, "image_size") == list(sizes)
    assert _column(name, "magnitude") == pytest.approx(magnitudes, abs=0.005)
    assert _column(name, "mixup") == pytest.approx(mixups, abs=0.0005)
    assert _column(name, "cutmix") == pytest.approx(cutmixes, abs=0.0005)
    assert _column(name, "dropout_rate") == pytest.approx(dropouts, abs=0.0005)
    assert {stage.epochs for stage in _stages(name)} <= {87, 88}  # "about 87 epochs" each
    data = config.data
    assert (data.crop, data.resize) == ("v2", "bilinear")
    assert (data.eval_crop, data.eval_resize) == ("squash", "bilinear")
    assert (data.augment, data.num_layers) == ("randaugment", 2)


@pytest.mark.parametrize("name", V2_BASE)
def test_v2_base_stages(name):
    sizes, dropout, size = V2_BASE[name]
    assert _column(name, "image_size") == list(sizes)
    assert _column(name, "dropout_rate") == [dropout] * len(sizes)
    assert RECIPES[name].model.image_size == size
    assert RECIPES[name].model.variant == f"efficientnetv2-{name.split('-')[2]}"


# --- ImageNet-21k ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_on_imagenet21k(name):
    config = RECIPES[name]
    train, data = config.train, config.data
    assert config.model.variant == name.replace("imagenet21k-v2", "efficientnetv2")
    assert (train.epochs, train.schedule, train.warmup_epochs) == (60, "cosine", 1)
    assert (data.batch_size, config.scaled_learning_rate) == (4096, pytest.approx(0.128))
    assert (train.loss, train.label_smoothing) == ("sigmoid", 0)
    assert (train.ema_decay, train.weight_decay, train.weight_decay_on) == (0.9999, 1e-5, "kernels")
    (stage,) = _stages(name)
    assert (stage.image_size, config.model.image_size) == (224, 224)
    assert (stage.dropout_rate, stage.drop_connect_rate) == (1e-6, 0)  # survival 1
    assert (data.augment, data.mixup, data.cutmix, data.cutout) == ("none", 0, 0, 0)
    assert (data.crop, data.eval_crop, data.flip) == ("v2", "pad32_floor", True)
    assert config.model.normalization == "v2"
    assert data.source.startswith("imagenet21k:")  # several labels per picture


@pytest.mark.parametrize("name", FT1K)
def test_from_imagenet21k_to_imagenet(name):
    train_size, size = FT1K[name]
    config = RECIPES[name]
    assert config.model.variant == name.replace("imagenet21k-ft1k-v2", "efficientnetv2")
    assert config.model.weights == "imagenet21k"
    assert (config.train_size, config.model.image_size) == (train_size, size)
    assert (config.train.epochs, config.train.min_steps) == (15, 10_000)
    # 15 epochs of 1,256,144 pictures are more than that: 36,801 steps in the released code.
    assert 15 * 1_256_144 // config.batch_size == 36_801
    _check_ft(config)


def _check_ft(config):
    """The row `imagenetft` of datasets.py, of which cifar10ft and its like are copies."""
    train, data = config.train, config.data
    assert (train.optimizer, train.schedule, train.warmup_epochs) == ("rmsprop", "constant", 1)
    assert (data.batch_size, config.scaled_learning_rate) == (512, pytest.approx(0.001))
    assert (train.ema_decay, train.label_smoothing) == (0.9996, 0.1)
    assert (train.weight_decay, train.weight_decay_on) == (1e-5, "kernels")
    assert (data.augment, data.mixup, data.cutmix) == ("none", 0, 0)
    assert (data.crop, data.eval_crop, data.resize) == ("none", "squash", "bilinear")
    assert (data.flip, data.cutout, data.cutout_fill) == (True, 0.5, "noise")
    (stage,) = expand(config, train.epochs)
    assert (stage.dropout_rate, stage.drop_connect_rate) == (1e-6, 0.2)  # survival 0.8
    assert config.finetune.freeze_batch_norm is False


# --- Transfer, and one's own pictures -------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFER)
def test_transfer_takes_ten_thousand_steps_of_the_released_settings(name):
    config = RECIPES[name]
    assert config.train.epochs * config.train.steps_per_epoch == 10_000
    assert (config.model.variant, config.train_size) == ("efficientnetv2-s", 384)
    assert config.model.weights == "imagenet"
    _check_ft(config)


def test_tensorflow_datasets_has_what_the_recipes_name():
    tfds = pytest.importorskip("tensorflow_datasets")
    known = tfds.list_builders(with_community_datasets=False)
    for name in TRANSFER:
        kind, _, dataset = RECIPES[name].data.source.partition(":")
        assert (kind, dataset in known) == (
            ("folder", False) if name == "aircraft" else ("tfds", True)
        )


def test_no_flower_is_both_trained_on_and_validated_on():
    data = RECIPES["flowers"].data
    kept, chosen = data.train_split.split("+")[1], data.validation_split
    assert kept == "validation[:80%]"
    assert chosen == "validation[80%:]"
    assert data.train_split.startswith("train+")
    assert data.test_split == "test"


def test_finetuning_trains_the_classifier_first_and_keeps_batch_statistics():
    config = RECIPES["finetune"]
    head, rest = _stages("finetune")
    assert (head.unfreeze, head.first_epoch, head.last_epoch) == ("head", 1, 3)
    assert (rest.unfreeze, rest.first_epoch, rest.last_epoch) == ("all", 4, 30)
    assert config.finetune.freeze_batch_norm
    assert config.data.batch_size is None
    assert config.train.patience
    assert config.model.weights == "imagenet"
    other = override(config, "data.source=folder:/flowers", "model.variant=efficientnet-b0")
    assert other.model.variant == "efficientnet-b0"


def test_documented_changes_of_recipes_are_possible():
    """What the comments offer with --set."""
    offers = {
        "imagenet-b0": ["data.bug_compat=true"],
        "imagenet-v2-m-paper": ["progressive.drop_connect_rate=0.1"],
        "imagenet21k-ft1k-v2-s": ["train.schedule=cosine"],
        "cifar10": ["train.schedule=cosine", "train.weight_decay=0"],
        "flowers": ["data.train_split=train+validation", "data.validation_split=test"],
        "cars": ["data.holdout=0", "train.accumulate=16", "model.image_size=224"],
        "finetune": ["data.flip=false", "data.crop=none", "data.augment=randaugment"],
    }
    for name, settings in offers.items():
        assert override(RECIPES[name], *settings) != RECIPES[name]
    rates = [
        stage.drop_connect_rate
        for stage in expand(
            override(RECIPES["imagenet-v2-m-paper"], *offers["imagenet-v2-m-paper"]), 350
        )
    ]
    assert rates == pytest.approx([0.1, 0.4 / 3, 0.5 / 3, 0.2])


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("imagenet-b9", "imagenet-b"),
        ("cifar", "cifar1"),
        ("imagenet-v2-s", "imagenet-v2-s-"),
        ("fine-tune", "finetune"),
        ("ImageNet_V2_S_Paper", "imagenet-v2-s-paper"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, close):
    with pytest.raises(ValueError, match=f"^No recipe '{name}'. Did you mean '{close}") as error:
        recipes.get(name)
    assert all(known in str(error.value) for known in RECIPES)


def test_a_name_unlike_any_gets_the_list():
    with pytest.raises(ValueError, match=r"^No recipe 'zzz'\. Recipes: digits, "):
        recipes.get("zzz")
    assert recipes.get("digits") is RECIPES["digits"]


def test_recipes_are_read_without_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['keras'] = None;"
        " import importlib.util, types, pathlib;"
        " root = pathlib.Path(importlib.util.find_spec('efficientnet_tf').origin).parent;"
        " package = types.ModuleType('efficientnet_tf'); package.__path__ = [str(root)];"
        " sys.modules['efficientnet_tf'] = package;"
        " from efficientnet_tf.recipes import get; print(get('smoke').data.source)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("fake")
