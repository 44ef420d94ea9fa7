"""The batch that is chosen where none is given."""

import dataclasses

import pytest
import tensorflow as tf

from efficientnet_tf.config import Config, override
from efficientnet_tf.config.model import describe
from efficientnet_tf.data import sources
from efficientnet_tf.train import memory

CONFIG = override(Config(), "data.batch_size=none", "model.image_size=32")


@pytest.mark.parametrize(
    ("pictures", "parts", "expected"),
    [  # the largest power of two, up to 64, with 8 steps per epoch; times the parts
        (10_000, 1, 64),
        (511, 1, 32),
        (511, 4, 4 * 8),
        (5, 1, 1),
    ],
)
def test_small_data_gets_batches_that_leave_eight_steps(monkeypatch, pictures, parts, expected):
    monkeypatch.setattr(memory, "free_memory", lambda: 1 << 40)
    source = dataclasses.replace(
        sources.open_source(Config().data), num_examples={"train": pictures}
    )
    config = override(CONFIG, f"train.accumulate={parts}")
    variant = describe(config.model)
    chosen = memory.choose_batch(config, variant, source, tf.distribute.get_strategy())
    assert chosen.batch_size == expected
