"""TensorFlow Datasets as a source: splits that share nothing, and orders that can be repeated."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import sources
from efficientnet_tf.data import tfds as tfds_lib


def _open(folder, **settings):
    return sources.open_source(DataConfig(source="tfds:tiny_beetles", data_dir=folder, **settings))


def _examples(source, split):
    """(label, color) of every picture of a split."""
    found = []
    for record in source.records(split, None):
        image, label = source.decode(*record)
        found.append((int(label), tuple(image[0, 0].numpy().tolist())))
    return found


@functools.cache  # TensorFlow Datasets refuses to define a name twice
def _builder():
    """20 train and 5 unlabelled test pictures."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyBeetles(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(None, None, 3)),
                        "label": tfds.features.ClassLabel(names=["red", "green"]),
                    }
                ),
            )

        def _split_generators(self, manager):
            del manager
            return {"train": self._examples(20, True), "test": self._examples(5, False)}

        def _generate_examples(self):
            raise NotImplementedError

        def _examples(self, count, labelled):
            for index in range(count):
                pixels = np.full((5, 6, 3), index, np.uint8)
                yield index, {"image": pixels, "label": index % 2 if labelled else -1}

    return TinyBeetles


def _prepare(folder, file_format):
    tfds = pytest.importorskip("tensorflow_datasets")
    config = tfds.download.DownloadConfig(num_shards=3)
    builder = _builder()(data_dir=folder, file_format=file_format)
    builder.download_and_prepare(download_config=config)
    return str(folder)


@pytest.fixture(scope="module")
def tiny_tfds(tmp_path_factory):
    return _prepare(tmp_path_factory.mktemp("tfds"), "tfrecord")


def test_tfds_splits_do_not_overlap_and_skip_unlabelled_ones(tiny_tfds):
    source = sources.open_source(
        DataConfig(source="tfds:tiny_beetles", data_dir=tiny_tfds, holdout=0.2)
    )
    assert source.class_names == ("red", "green")
    # The test split has no labels, so test and validation both come out of the 20.
    assert dict(source.num_examples) == {"train": 13, "validation": 3, "test": 4}
    found = [example for split in sources.SPLITS for example in _examples(source, split)]
    assert sorted(found) == sorted((i % 2, (i, i, i)) for i in range(20))


def test_tfds_formats_that_cannot_be_read_are_refused(tmp_path):
    pytest.importorskip("array_record")
    with pytest.raises(ValueError, match=r'is kept as array_record.* file_format="tfrecord"'):
        _open(_prepare(tmp_path, "array_record"))


def test_tfds_passes_differ_and_a_run_can_go_on(tiny_tfds):
    source = _open(tiny_tfds, holdout=0.2)

    def colors(seed, start, most):
        records = source.records("train", seed, start).take(most)
        return [int(source.decode(*record)[0][0, 0, 0]) for record in records]

    stream = colors(3, 0, 39)
    passes = [stream[i : i + 13] for i in (0, 13, 26)]
    everything = sorted(color for _, (color, _, _) in _examples(source, "train"))
    assert [sorted(each) for each in passes] == [everything] * 3
    assert passes[0] != passes[1] != passes[2]
    assert colors(3, 0, 39) == stream
    assert colors(4, 0, 39) != stream
    for start in (5, 13, 18):
        assert colors(3, start, 8) == stream[start : start + 8]


def test_tfds_records_have_encoded_pictures_and_names(tiny_tfds):
    source = _open(tiny_tfds)
    record = next(iter(source.records("test", None)))
    content, label = source.encoded(*record)
    assert content.numpy().startswith(b"\x89PNG")
    assert int(label) == int(source.decode(*record)[1])
    assert b"tiny_beetles-train.tfrecord" in source.describe(*record).numpy()


def test_tfds_unlabelled_pictures_are_no_class(tiny_tfds):
    source = _open(tiny_tfds, train_split="train[:50%]", test_split="test", holdout=0.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels from 0 to 1"):
        source.decode(*next(iter(source.records("test", None))))


def test_tfds_splits_can_be_chosen(tiny_tfds):
    source = _open(
        tiny_tfds,
        train_split="train[:10]+train[15:18]",
        validation_split="train[10:14]",
        test_split="train[90%:]",
    )
    assert dict(source.num_examples) == {"train": 13, "validation": 4, "test": 2}
    examples = [example for split in sources.SPLITS for example in _examples(source, split)]
    assert len(set(examples)) == 19
    assert len(list(source.records("train", 1).take(13))) == 13


def test_tfds_validation_as_test_split_does_not_validate_too():
    # ImageNet has train, validation and an unlabelled test split. Early stopping on what is
    # evaluated at the end would flatter.
    class Split:
        num_examples = 100

    class Splits(dict):
        def __missing__(self, spec):
            return Split()

    class Builder:
        name = "imagenet"
        info = type("Info", (), {"splits": Splits(train=Split(), validation=Split(), test=Split())})

    def parts(**settings):
        config = DataConfig(source="tfds:imagenet", holdout=0.1, **settings)
        return tfds_lib._parts(Builder(), config, lambda split: -1 if split == "test" else 0)

    expected = {"train": "train[:90]", "validation": "train[90:100]", "test": "validation"}
    assert parts() == expected
    assert parts(test_split="validation") == expected
    asked = parts(test_split="validation", validation_split="validation")
    assert asked == {"train": "train", "validation": "validation", "test": "validation"}


def test_tfds_splits_that_share_pictures_are_refused(tiny_tfds):
    # The released code trains on train[:70%] of tf_flowers and evaluates on train[30%:].
    with pytest.raises(ValueError, match=r"^8 pictures are in train .*\[:70%\].* and in test"):
        _open(
            tiny_tfds,
            train_split="train[:70%]",
            test_split="train[30%:]",
            validation_split="train[70%:80%]",
        )
    with pytest.raises(ValueError, match=r"^2 pictures are in validation .* and in test"):
        _open(
            tiny_tfds,
            train_split="train[:50%]",
            test_split="train[80%:]",
            validation_split="train[70%:90%]",
        )
    with pytest.raises(ValueError, match=r"in train \(train\) and in validation"):
        _open(tiny_tfds, train_split="train", validation_split="train[:5]", test_split="test")


def test_tfds_mistakes_in_splits_are_explained(tiny_tfds):
    with pytest.raises(ValueError, match=r"train_split='trian' is no part .* train \(20\)"):
        _open(tiny_tfds, train_split="trian")
    with pytest.raises(ValueError, match=r"test_split='train\[20:\]' has no pictures"):
        _open(tiny_tfds, test_split="train[20:]")
    with pytest.raises(ValueError, match=r"set data.test_split too"):
        _open(tiny_tfds, train_split="train[:50%]")
