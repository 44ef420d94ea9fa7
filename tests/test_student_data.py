"""Unlabelled pictures: which are chosen, and how they come into the batches."""

import collections
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_tf.config import Config, DataConfig, override
from efficientnet_tf.data import arrays, pipeline, unlabeled

RATIO, CLASSES = 3, 4


def _shades(first, count):
    """Pictures of one gray each, by which they are known."""
    shades = np.arange(first, first + count, dtype=np.uint8)
    return np.broadcast_to(shades[:, None, None, None], (count, 16, 16, 3)).copy()


@pytest.fixture(scope="module")
def labelled():
    """20 pictures of gray 0 to 19; the label is the gray modulo 4."""
    pictures, labels = _shades(0, 20), np.arange(20) % CLASSES
    other = (_shades(240, 4), np.arange(4))
    return arrays.from_arrays(pictures, labels, validation=other, test=other)


@pytest.fixture(scope="module")
def more():
    """40 pictures of gray 100 to 139, of which rows 5, 7 and 9 are chosen; row 7 three times."""
    source = arrays.from_arrays(_shades(100, 40), np.arange(40) % 2, test=(_shades(200, 2), [0, 1]))
    return dataclasses.replace(source, num_examples={**source.num_examples, "train": 36})


ROWS = np.array([5, 7, 7, 7, 9])
TABLE = np.random.default_rng(0).dirichlet(np.ones(CLASSES), 36).astype(np.float32)


def _join(labelled, more, **settings):
    return unlabeled.join(labelled, more, ROWS, TABLE, **{"ratio": RATIO, **settings})


def _seen(source, count, **settings):
    """The gray and the target of each picture that is trained on."""
    batches = pipeline.training(source, DataConfig(), 16, 4, **settings).take(count)
    images, targets = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return images[:, 0, 0, 0].round().astype(int), targets


def test_pictures_are_chosen_by_confidence_and_balanced():
    # Rows by class and confidence: class 0: 0 (.9), 4 (.8), 1 (.7); class 1: 2 (.6); class 2: 3.
    probabilities = np.float32(
        [[0.9, 0.1, 0], [0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.3, 0.3, 0.4], [0.8, 0.1, 0.1]]
    )
    usable = np.ones(5, bool)

    def chosen(usable=usable, **settings):
        settings = {"threshold": 0.3, "per_class": None, "seed": 0} | settings
        return unlabeled.select(probabilities, usable, ("a", "b", "c"), **settings).tolist()

    assert chosen() == [0, 1, 4, 2, 3]
    assert chosen(threshold=0.6) == [0, 1, 4, 2]
    assert chosen(usable=usable & (np.arange(5) != 4)) == [0, 1, 2, 3]
    assert chosen(per_class=2) == [0, 4, 2, 2, 3, 3]
    five = [chosen(per_class=5, seed=seed) for seed in range(20)]
    for rows in five:
        assert rows[5:] == [2] * 5 + [3] * 5
        assert sorted(collections.Counter(rows[:5]).values()) == [1, 2, 2]
    assert len({tuple(rows) for rows in five}) > 1  # which one is there less often is drawn
    with pytest.raises(ValueError, match=r"sure of none of the 5 .*highest probability is 0\.9, "):
        chosen(threshold=0.95)


@pytest.mark.parametrize("stream", [False, True])
def test_batches_hold_the_ratio_and_each_pass_every_picture(labelled, more, stream):
    more = dataclasses.replace(more, row=None) if stream else more
    source = _join(labelled, more)
    assert source.num_examples["train"] == 80
    grays, targets = _seen(source, 200)  # batches of 4: one labelled picture, three others
    is_labelled = grays < 20
    np.testing.assert_array_equal(is_labelled.reshape(-1, 4).sum(1), 1)
    # It is not always in the same place of the batch, which would be the same machine's.
    assert (is_labelled.reshape(-1, 4).sum(0) > 20).all()
    labelled_passes = grays[is_labelled].reshape(-1, 20)
    np.testing.assert_array_equal(np.sort(labelled_passes), [np.arange(20)] * 10)
    other_passes = grays[~is_labelled].reshape(-1, 5)
    np.testing.assert_array_equal(np.sort(other_passes), [[105, 107, 107, 107, 109]] * 120)
    assert len(np.unique(other_passes, axis=0)) > 10
    expected = np.where(
        is_labelled[:, None], np.eye(CLASSES)[grays % CLASSES], TABLE[np.maximum(grays - 100, 0)]
    )
    np.testing.assert_allclose(targets, expected, atol=1e-6)


@pytest.mark.parametrize(("stream", "batches"), [(False, 5), (True, 26)])
def test_a_run_that_goes_on_sees_what_it_would_have_seen(labelled, more, stream, batches):
    source = _join(labelled, dataclasses.replace(more, row=None) if stream else more, ratio=4)
    whole = _seen(source, batches + 6, seed=3)
    rest = _seen(source, 6, seed=3, start=4 * batches)  # in the middle of a group of 5
    for part, of in zip(rest, whole, strict=True):
        np.testing.assert_array_equal(part, of[4 * batches :])
    assert (_seen(source, 6, seed=4)[0] != whole[0][:24]).any()


def test_soft_targets_go_through_mixup_and_randaugment(labelled, more):
    source = _join(labelled, more)
    config = DataConfig(augment="randaugment", mixup=0.4, cutmix=0.4, crop="v2")
    for images, targets in pipeline.training(source, config, 16, 8).take(5):
        assert images.shape == (8, 16, 16, 3)
        np.testing.assert_allclose(tf.reduce_sum(targets, -1), 1, atol=1e-5)
    mixed = pipeline.training(source, DataConfig(mixup=0.4), 16, 2, seed=1)
    pairs = pipeline.training(source, DataConfig(), 16, 2, seed=1)
    for (images, targets), (before, plain) in zip(mixed.take(8), pairs.take(8), strict=True):
        # Grays tell the share that the partner has in each picture, and so in its target.
        own, partner = before[:, 0, 0, 0].numpy(), before[::-1, 0, 0, 0].numpy()
        share = ((images[:, 0, 0, 0] - own) / np.where(own == partner, 1, partner - own)).numpy()
        expected = plain * (1 - share[:, None]) + plain[::-1] * share[:, None]
        np.testing.assert_allclose(targets, expected, atol=1e-3)


def test_only_labels_are_smoothed(labelled, more):
    grays, targets = _seen(_join(labelled, more, label_smoothing=0.2), 20)
    smoothed = np.eye(CLASSES)[grays % CLASSES] * 0.8 + 0.2 / CLASSES
    known = grays < 20
    np.testing.assert_allclose(targets[known], smoothed[known], atol=1e-6)
    np.testing.assert_allclose(targets[~known], TABLE[grays[~known] - 100], atol=1e-6)


def test_hosts_share_out_both_kinds(labelled, more):
    source = _join(labelled, more, ratio=1)
    whole, _ = _seen(source, 40)
    for index in range(2):
        part, _ = _seen(source, 20, shard=pipeline.Shard(index, 2))
        np.testing.assert_array_equal(part, whole[index::2])
        assert 15 < (part < 20).sum() < 65  # of 80


def test_a_folder_needs_no_classes_and_its_test_pictures_stay_out(tmp_path):
    for name in ("a.png", "below/b.png", "below/.hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, "png")
    source = unlabeled.open_unlabeled(DataConfig(source=f"folder:{tmp_path}"))
    assert source.num_examples["train"] == 2
    for name in ("train/x/c.png", "test/x/d.png"):
        (tmp_path / "split" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "split" / name)
    source = unlabeled.open_unlabeled(DataConfig(source=f"folder:{tmp_path}/split"))
    assert source.num_examples["train"] == 1
    with pytest.raises(ValueError, match=r"There is no folder '.*nowhere'"):
        unlabeled.open_unlabeled(DataConfig(source=f"folder:{tmp_path}/nowhere"))


def test_what_a_source_holds_out_is_used_unless_it_is_its_own(tmp_path):
    pictures, labels = _shades(0, 40), np.arange(40) % 2
    np.savez(tmp_path / "all.npz", x_train=pictures, y_train=labels)
    source = unlabeled.open_unlabeled(DataConfig(source=f"npz:{tmp_path}/all.npz"))
    grays = [int(source.decode(*record)[0][0, 0, 0]) for record in source.records("train", None, 0)]
    assert sorted(grays) == list(range(40))
    for row in (0, 31, 32, 39):  # across the three splits
        record = source.row("train", tf.constant(row, tf.int64))
        assert int(source.decode(*record)[0][0, 0, 0]) == grays[row]
    test = {"x_test": pictures[:10], "y_test": labels[:10]}
    np.savez(tmp_path / "own.npz", x_train=pictures[10:], y_train=labels[10:], **test)
    source = unlabeled.open_unlabeled(DataConfig(source=f"npz:{tmp_path}/own.npz"))
    assert source.num_examples["train"] == 30
    # The labelled pictures' own splits do not matter here.
    alone = DataConfig(source=f"npz:{tmp_path}/all.npz", holdout=0.0)
    assert unlabeled.open_unlabeled(alone).num_examples["train"] == 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["student.teacher=a"], "give both"),
        (["student.unlabeled=digits"], "give both"),
        (["student.teacher=a", "student.unlabeled=digits", "student.distill=b"], "give one"),
        (["student.teacher=a", "student.unlabeled=cats"], "student.unlabeled must be"),
        (["student.ratio=2"], "student.ratio is used only with student.teacher"),
        (["student.alpha=0.5"], "student.alpha is used only with student.distill"),
        (["student.distill=a", "student.alpha=0"], r"student.alpha must be in \(0, 1\]"),
        (["student.distill=a", "student.temperature=0"], "student.temperature must be > 0"),
        (["student.distill=a", "train.loss=sigmoid"], "student.distill needs train.loss=softmax"),
        (
            ["student.teacher=a", "student.unlabeled=digits", "data.service=grpc://a:1"],
            "student.unlabeled and data.service",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        override(Config(), *settings)
