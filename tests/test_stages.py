"""Stages against Algorithm 1 of the V2 paper and the sizes of the released code."""

import numpy as np
import pytest

from efficientnet_tf import stages
from efficientnet_tf.config import Config, override

V2_S = override(
    Config(),
    "model.variant=efficientnetv2-s",
    "model.image_size=384",
    "model.dropout_rate=0.3",
    "data.train_size=300",
    "data.augment=randaugment",
    "data.magnitude=15",
    "train.epochs=350",
    "progressive.stages=4",
    "progressive.dropout_rate=0.1",
    "progressive.magnitude=5",
)


def _column(found, name):
    return [getattr(stage, name) for stage in found]


def test_the_paper_rule_is_algorithm_1():
    found = stages.expand(V2_S, 350)
    share = np.arange(4) / 3
    assert _column(found, "image_size") == [int(128 + 172 * s) for s in share]
    np.testing.assert_allclose(_column(found, "dropout_rate"), 0.1 + 0.2 * share)
    np.testing.assert_allclose(_column(found, "magnitude"), 5 + 10 * share)
    assert _column(found, "drop_connect_rate") == [0.2] * 4  # the variant's, not scheduled
    assert _column(found, "mixup") == [0.0] * 4


@pytest.mark.parametrize(
    ("size", "expected"),
    [  # of the released code: int(128 + (size - 128) * (stage + 1) / 4)
        (300, [171, 214, 257, 300]),
        (384, [192, 256, 320, 384]),
        (192, [144, 160, 176, 192]),
        (208, [148, 168, 188, 208]),
        (240, [156, 184, 212, 240]),
    ],
)
def test_the_released_rule_never_uses_the_first_size(size, expected):
    config = override(
        V2_S,
        "progressive.rule=released",
        f"data.train_size={size}",
        "data.magnitude=10",
        "data.mixup=0.2",
        "progressive.mixup=0",
        "data.cutmix=0.2",
        "progressive.cutmix=0",
        "progressive.drop_connect_rate=0",
    )
    found = stages.expand(config, 350)
    assert _column(found, "image_size") == expected
    np.testing.assert_allclose(_column(found, "magnitude"), np.linspace(5, 10, 4))
    for name in ("mixup", "cutmix", "drop_connect_rate"):
        np.testing.assert_allclose(_column(found, name), np.linspace(0, 0.2, 4))


@pytest.mark.parametrize("epochs", [350, 351, 353, 9])
@pytest.mark.parametrize("head", [0, 3])
def test_every_epoch_belongs_to_one_stage_of_about_equal_length(epochs, head):
    config = override(V2_S, f"finetune.head_epochs={head}", "train.epochs=9")
    found = stages.expand(config, epochs)
    covered = [e for s in found for e in range(s.first_epoch, s.last_epoch + 1)]
    assert covered == list(range(1, epochs + 1))
    lengths = _column(found[bool(head) :], "epochs")
    assert max(lengths) - min(lengths) <= 1
    if head:
        assert found[0].epochs == head


def test_the_classifier_learns_alone_first_with_the_first_stages_pictures():
    config = override(V2_S, "finetune.head_epochs=5", "finetune.unfreeze=blocks:2")
    found = stages.expand(config, 350)
    assert _column(found, "unfreeze") == ["head", *["blocks:2"] * 4]
    assert _column(found, "image_size") == [128, 128, 185, 242, 300]


def test_without_progressive_learning_there_is_one_stage_at_the_final_values():
    (stage,) = stages.expand(Config(), 10)
    assert (stage.first_epoch, stage.last_epoch, stage.image_size) == (1, 10, 224)
    assert (stage.dropout_rate, stage.drop_connect_rate) == (0.2, 0.2)  # V2-B0's


def test_the_table_has_a_line_per_stage():
    lines = stages.table(stages.expand(V2_S, 350)).splitlines()
    assert lines[0].split() == [
        "stage", "epochs", "px", "dropout", "drop_connect", "magnitude", "mixup", "cutmix", "learns"
    ]  # fmt: skip
    assert lines[2].split() == ["2/4", "89-175", "185", "0.167", "0.2", "8.33", "0", "0", "all"]
    assert len(lines) == 5
