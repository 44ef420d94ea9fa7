"""TFRecord sources: official layouts, orders that can be repeated, and damaged files."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import sources, tfrecord
from efficientnet_tf.labels import imagenet_labels


def _picture(number):
    pixels = np.full((3, 4, 3), (number // 256, number % 256, 9), np.uint8)
    return tf.io.encode_png(pixels).numpy()


def _feature(value):
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=value))


def _write(path, examples):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            features = {key: _feature(value) for key, value in example.items()}
            record = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(record.SerializeToString())


def _official(number, label):
    return {
        "image/encoded": _picture(number),
        "image/class/label": [label],
        "image/class/text": b"something",
        "image/height": [3],
        "image/width": [4],
    }


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """104 training files of 3 pictures, 4 validation files of 5: numbers 0..311 and 312..331."""
    root = tmp_path_factory.mktemp("imagenet")
    number = 0
    for split, files, count in (("train", 104, 3), ("validation", 4, 5)):
        for index in range(files):
            examples = [_official(number + i, (number + i) % 1000 + 1) for i in range(count)]
            _write(root / f"{split}-{index:05d}-of-{files:05d}", examples)
            number += count
    return root


def _copy(root, to):
    for path in root.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def _open(root, kind="imagenet", **settings):
    return sources.open_source(DataConfig(source=f"{kind}:{root}", **settings))


def _numbers(source, records):
    """Number of each picture, by its colors, and its label."""
    decoded = [source.decode(*record) for record in records]
    return [(256 * int(i[0, 0, 0]) + int(i[0, 0, 1]), int(label)) for i, label in decoded]


def test_imagenet_has_its_labels_and_a_minival_apart(imagenet):
    source = _open(imagenet)
    assert source.class_names == tuple(label.name for label in imagenet_labels())
    # 20 of 1024 files are 2 of 104, and they are the first.
    assert dict(source.num_examples) == {"train": 306, "validation": 6, "test": 20}
    numbers = {split: _numbers(source, source.records(split, None)) for split in sources.SPLITS}
    assert numbers["validation"] == [(i, i) for i in range(6)]  # label 1 is class 0
    assert numbers["train"] == [(i, i) for i in range(6, 312)]
    assert numbers["test"] == [(i, i) for i in range(312, 332)]


def test_imagenet_without_holdout_trains_on_all_and_validates_on_the_test_split(imagenet):
    source = _open(imagenet, holdout=0.0)
    assert dict(source.num_examples) == {"train": 312, "validation": 20, "test": 20}


def test_the_official_number_of_files_gives_the_official_minival():
    from efficientnet_tf.data import imagenet as imagenet_lib

    assert imagenet_lib._share(imagenet_lib._MINIVAL, ["file"] * 1024, "") == 20
    assert imagenet_lib._share(imagenet_lib._MINIVAL, ["file"] * 2, "") == 1
    assert imagenet_lib._share(imagenet_lib._TEST_21K, ["file"] * 2048, "") == 16
    assert imagenet_lib._share(imagenet_lib._MINIVAL_21K, ["file"] * 2048, "") == 4


def test_every_pass_has_each_record_once_in_another_order(imagenet):
    source = _open(imagenet)

    def names(seed, start, most):
        records = source.records("train", seed, start).take(most)
        return [source.describe(*record).numpy() for record in records]

    stream = names(7, 0, 3 * 306)
    passes = [stream[i : i + 306] for i in (0, 306, 612)]
    everything = [source.describe(*record).numpy() for record in source.records("train", None)]
    assert len(set(everything)) == 306
    for each in passes:
        assert collections.Counter(each) == collections.Counter(everything)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    # Files are mixed: the first 16 that are read have 48 records.
    assert len({name.split(b":")[0] for name in passes[0][:48]}) > 16
    tf.random.set_seed(99)  # has no say
    assert names(7, 0, 400) == stream[:400]
    assert names(8, 0, 306) != passes[0]
    for start in (1, 305, 306, 400):
        assert names(7, start, 20) == stream[start : start + 20]


def test_the_order_is_the_same_whatever_the_number_of_threads(imagenet):
    source = _open(imagenet)
    found = []
    for threads in (1, 4):
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        options.autotune.enabled = threads > 1
        records = source.records("train", 3).with_options(options).take(400)
        found.append([source.describe(*record).numpy() for record in records])
    assert found[0] == found[1]


def test_records_have_names_and_encoded_pictures(imagenet):
    source = _open(imagenet)
    record = list(source.records("test", None))[6]
    assert source.describe(*record) == str(imagenet / "validation-00001-of-00004") + ": record 1"
    content, label = source.encoded(*record)
    assert content.numpy() == _picture(318)
    assert int(label) == 318


def test_labels_out_of_range_are_refused_one_by_one(tmp_path):
    for label, index in ((0, 0), (1001, 1)):
        _write(tmp_path / f"train-{index:05d}-of-00002", [_official(1, label)])
    _write(tmp_path / "validation-00000-of-00001", [_official(1, 1)])
    source = _open(tmp_path)
    for split in ("train", "validation"):
        (record,) = source.records(split, None)
        for function in (source.decode, source.encoded, tf.function(source.decode)):
            with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels from 0 to 999"):
                function(*record)
    assert len(_numbers(source, source.records("test", None))) == 1


@pytest.mark.parametrize("name", ["imagenet21k", "imagenet21k_train.tfrecord", "train"])
def test_imagenet21k_has_several_labels(tmp_path, name):
    # The released code reads "imagenet21k*".
    for index in range(6):
        example = {"id": b"x", "image": _picture(index), "labels": [index, 21842]}
        _write(tmp_path / f"{name}-{index:05d}-of-00006", [example])
    source = _open(tmp_path, "imagenet21k")
    assert source.multi_label
    assert source.num_classes == 21843
    assert dict(source.num_examples) == {"train": 4, "validation": 1, "test": 1}
    first = {"test": 0, "validation": 1, "train": 2}  # the first files are held out
    for split, number in first.items():
        image, label = source.decode(*next(iter(source.records(split, None))))
        assert int(image[0, 0, 1]) == number
        assert label.dtype == tf.float32
        np.testing.assert_array_equal(np.flatnonzero(label), [number, 21842])


def test_mistakes_are_explained(tmp_path, imagenet, caplog):
    with pytest.raises(ValueError, match=r"There are no files .*train-\*-of-\*"):
        _open(tmp_path)
    _write(tmp_path / "train-00000-of-00001", [_official(1, 1)])
    _write(tmp_path / "validation-00000-of-00001", [_official(1, 1)])
    with pytest.raises(ValueError, match=r"has one training file"):
        _open(tmp_path)
    (tmp_path / "train-00000-of-00001").rename(tmp_path / "train-00000-of-00002")
    _write(tmp_path / "train-00000-of-00003", [_official(1, 1)])
    with pytest.raises(ValueError, match=r"files of several sets: of 0000[23], 0000[23]"):
        _open(tmp_path)
    with pytest.raises(ValueError, match=r"no .*dataset.json, which scripts/prepare_data.py"):
        _open(imagenet, "tfrecord")
    _copy(imagenet, tmp_path)
    for name in ("train-00000-of-00002", "train-00000-of-00003", "validation-00000-of-00001"):
        (tmp_path / name).unlink()
    (tmp_path / "train-00050-of-00104").unlink()
    with caplog.at_level("WARNING", "absl"):
        _open(tmp_path)
    assert "lacks 1 of 104 train-* files: 00050" in caplog.text
    (tmp_path / "train-00051-of-00104").unlink()
    with pytest.raises(ValueError, match=r"lacks 2 of 104 .*: 00050, 00051. Copy .*data.max_bad"):
        _open(tmp_path)
    _open(tmp_path, max_bad=0.02)
    (tmp_path / "train-00052-of-00104.tfrecord").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-\* files of the same number"):
        _open(tmp_path)


def test_counting_agrees_with_reading(imagenet):
    for path in sorted(imagenet.iterdir())[::20]:
        counted = tfrecord.count_records(str(path))
        assert counted.whole
        assert counted.count == sum(1 for _ in tf.data.TFRecordDataset(str(path)))


def test_files_that_are_cut_off_are_named_and_used_as_far_as_they_go(tmp_path, imagenet, caplog):
    root = _copy(imagenet, tmp_path)
    content = (root / "train-00010-of-00104").read_bytes()
    (root / "train-00010-of-00104").write_bytes(content[: len(content) - 7])
    with caplog.at_level("WARNING", "absl"):
        source = _open(root)
    assert source.bad == (f"{root}/train-00010-of-00104 (cut off)",)
    assert (
        "1 record files are cut off or damaged, about 1 of 332 records are missing" in caplog.text
    )
    assert "train-00010-of-00104" in caplog.text
    assert source.num_examples["train"] == 305
    numbers = [number for number, _ in _numbers(source, source.records("train", None))]
    assert numbers == [number for number in range(6, 312) if number != 32]
    with pytest.raises(ValueError, match=r"about 1 of 332 records .*train-00010-of-00104"):
        _open(root, max_bad=0.001)
    (root / "train-00011-of-00104").write_bytes(b"")  # nothing left of 3
    with pytest.raises(ValueError, match=r"2 record files .*, about 4 of 332 records"):
        _open(root)


def test_a_damaged_length_ends_what_is_counted(tmp_path):
    path = tmp_path / "train-00000-of-00001"
    _write(path, [_official(i, 1) for i in range(5)])
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    content[length + 16] ^= 1  # of the second record
    path.write_bytes(content)
    counted = tfrecord.count_records(str(path))
    assert (counted.count, counted.whole) == (1, False)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_damaged_record_costs_no_record_without_a_word(tmp_path, seed):
    path = tmp_path / "train-00000-of-00001"
    _write(path, [_official(i, 1) for i in range(5)])
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    content[2 * (length + 16) + 40] ^= 1  # inside the third record
    path.write_bytes(content)
    file = tfrecord.count_records(str(path))
    assert (file.count, file.whole) == (5, True)  # only reading tells
    records = [
        (int(number), serialized.numpy())
        for serialized, _, number in tfrecord.read([file], seed).take(5)
    ]
    assert sorted(number for number, _ in records) == list(range(5))  # a pass is as long as before
    assert {number for number, serialized in records if not serialized} == {2, 3, 4}
    files = {split: [file] for split in sources.SPLITS}
    source = tfrecord.record_source("x", ("a", "b"), files, tfrecord.parse_example, False)
    *_, last = source.records("train", None)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)damaged before.*: record 4"):
        source.decode(*last)
    assert source.describe(*last) == f"{path}: record 4"
