"""The batch that is chosen where none is given."""

import dataclasses
import subprocess

import numpy as np
import pytest
import tensorflow as tf

import efficientnet_tf
from efficientnet_tf.arch import VARIANTS
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


def test_only_the_gpus_that_are_seen_are_asked(monkeypatch):
    def nvidia_smi(command, **_):
        (chosen,) = [part for part in command if part.startswith("--id=")] or [None]
        free = {"--id=1": "40000", None: "12\n40000"}[chosen]
        return subprocess.CompletedProcess(command, 0, stdout=free)

    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(memory.subprocess, "run", nvidia_smi)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert memory.free_memory() == 40_000 << 20
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert memory.free_memory() == 12 << 20


def test_the_limits_of_control_groups_hold(monkeypatch, tmp_path):
    """A job within a slice, each with a limit; files in memory can be given back."""
    job = tmp_path / "groups" / "slice" / "job"
    job.mkdir(parents=True)
    (tmp_path / "own").write_text("4:memory:/other\n0::/slice/job\n")
    for folder, most, used, cached in ((job, "max", 0, 0), (job.parent, 9000, 6000, 500)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    assert memory.free_memory() == 3500
    monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "none")
    assert memory.free_memory() > 1 << 20


def test_what_is_kept_when_blocks_are_computed_again():
    """The blocks' inputs and the largest block, counted on the built network."""
    variant = VARIANTS["efficientnetv2-b0"]
    model = efficientnet_tf.build(variant, input_shape=(64, 64, 3), drop_connect_rate=0.2)
    sizes, names = [], []
    for layer in model.layers:
        part = layer.name.partition("_")[0]
        part = (
            part if part.startswith("block") else "top" if names and names[-1] != "stem" else "stem"
        )
        if not names or names[-1] != part:
            names.append(part)
            sizes.append([])
        sizes[-1].append(int(np.prod(layer.output.shape[1:])))
    kept = sum(part[-1] for part in sizes[:-1]) + max(map(sum, sizes))
    plain, again = (
        override(CONFIG, "model.image_size=64", "train.precision=float32", setting)
        for setting in ("train.rematerialise=false", "train.rematerialise=true")
    )
    saved = sum(map(sum, sizes)) - kept
    difference = memory.training_memory(plain, variant, 1000, 7) - memory.training_memory(
        again, variant, 1000, 7
    )
    assert difference == pytest.approx(2.0 * 7 * 4 * saved, rel=1e-6)  # _ACTIVATIONS, float32
    assert saved > kept
