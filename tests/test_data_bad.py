"""Bad records: left out, counted and named, and a reason to stop when there are too many."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import bad, images, pipeline, sources
from efficientnet_tf.preprocessing import Preprocessing

RULE = Preprocessing("plain", (0.0,) * 3, (1.0,) * 3, 16, "bilinear", "squash")
CLASSES = 4


def _source(count, broken=(), labels=None, encoded=True):
    """PNG pictures, number i gray of level i; those that are broken are so in all known ways."""
    ways = [
        lambda content: content[: len(content) // 2],
        lambda _: b"",
        lambda _: b"these bytes are not a picture",
        lambda _: tf.io.encode_jpeg(np.zeros((64, 64, 3), np.uint8)).numpy()[:200],
    ]
    contents, labels_ = [], []
    for number in range(count):
        content = tf.io.encode_png(np.full((20, 30, 3), number % 256, np.uint8)).numpy()
        if number in broken:
            content = ways[list(broken).index(number) % len(ways)](content)
        contents.append(content)
        labels_.append((labels or {}).get(number, number % CLASSES))
    names = [f"picture-{number}.png" for number in range(count)]

    def records(split, seed, start=0):
        dataset = tf.data.Dataset.from_tensor_slices(
            (contents, tf.constant(labels_, tf.int64), names)
        )
        return dataset if seed is None else dataset.repeat().skip(start)

    return sources.Source(
        name="broken",
        class_names=tuple("abcd"),
        num_examples=dict.fromkeys(sources.SPLITS, count),
        records=records,
        decode=lambda content, label, name: (images.decode(content), label),
        encoded=(lambda content, label, name: (content, label)) if encoded else None,
        describe=lambda content, label, name: name,
    )


def _levels(batch):
    return [int(level) for level in np.asarray(batch)[:, 0, 0, 0]]


@pytest.mark.parametrize("crop", ["none", "v1"])
@pytest.mark.parametrize("encoded", [True, False])
def test_training_puts_other_pictures_of_the_batch_in_their_place(crop, encoded):
    source = _source(12, broken=(1, 2, 4, 11), encoded=encoded)
    config = DataConfig(crop=crop, max_bad=0.5)
    found = bad.BadRecords(config.max_bad)
    dataset = pipeline.training(source, config, 16, 4, found=found)
    assert dataset.element_spec[0].shape == (4, 16, 16, 3)
    batches = list(dataset.take(3))
    assert [_levels(pictures) for pictures, _ in batches] == [
        [0, 0, 0, 3],
        [7, 5, 6, 7],
        [8, 9, 10, 10],
    ]
    for pictures, targets in batches:
        np.testing.assert_array_equal(
            np.argmax(targets, 1), [level % CLASSES for level in _levels(pictures)]
        )
    assert found.names == tuple(f"picture-{n}.png" for n in (1, 2, 4, 11))


def test_labels_of_no_class_count_as_bad():
    source = _source(8, labels={2: CLASSES, 5: -1})
    found = bad.BadRecords(0.5)
    pictures, _ = next(iter(pipeline.training(source, DataConfig(max_bad=0.5), 16, 8, found=found)))
    assert _levels(pictures) == [0, 1, 1, 3, 4, 4, 6, 7]
    assert found.names == ("picture-2.png", "picture-5.png")
    found = bad.BadRecords(0.5)
    ((_, labels, weights),) = pipeline.evaluation(source, "test", RULE, 8, found=found)
    np.testing.assert_array_equal(weights, [1, 1, 0, 1, 1, 0, 1, 1])
    assert labels.numpy().max() < CLASSES
    assert found.names == ("picture-2.png", "picture-5.png")


def test_a_batch_without_a_good_picture_has_no_class_and_keeps_its_place():
    source = _source(6, broken=(2, 3))
    dataset = pipeline.training(source, DataConfig(max_bad=0.9), 16, 2)
    batches = list(dataset.take(3))
    assert [_levels(pictures) for pictures, _ in batches] == [[0, 1], [0, 0], [4, 5]]
    np.testing.assert_array_equal(batches[1][1], np.zeros((2, CLASSES)))


@pytest.mark.parametrize("broken", [(1, 4, 7), (4, 5, 6, 7)])
def test_positions_stay_so_a_restart_goes_on_exactly(broken):
    source = _source(10, broken=broken)
    config = DataConfig(crop="v2", flip=True, mixup=0.3, max_bad=0.9)
    whole = list(pipeline.training(source, config, 16, 4).take(5))
    rest = list(pipeline.training(source, config, 16, 4, start=8).take(3))
    for one, two in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])


def test_evaluation_leaves_them_out():
    source = _source(10, broken=(0, 3, 4, 9))
    found = bad.BadRecords(0.5)
    dataset = pipeline.evaluation(source, "test", RULE, 4, found=found)
    pictures, labels, weights = (np.concatenate(part) for part in zip(*dataset, strict=True))
    np.testing.assert_array_equal(weights, [0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0])
    assert (pictures[weights == 0] == 0).all()
    kept = [1, 2, 5, 6, 7, 8]
    assert _levels(pictures[weights > 0]) == kept
    np.testing.assert_array_equal(labels[weights > 0], [number % CLASSES for number in kept])
    assert found.names == tuple(f"picture-{n}.png" for n in (0, 3, 4, 9))
    list(dataset)  # a second pass counts anew, and knows the names
    assert len(found.names) == 4


@pytest.mark.parametrize("training", [True, False])
def test_too_many_stop_the_run_and_are_named(training):
    source = _source(40, broken=(3, 30))
    # One in 40 is within 3 %, two are not.
    if training:
        dataset = pipeline.training(source, DataConfig(max_bad=0.03), 16, 4)
    else:
        dataset = pipeline.evaluation(source, "test", RULE, 4, found=bad.BadRecords(0.03))
    batches = iter(dataset)
    for _ in range(7):
        next(batches)
    message = r"2 of 32 records .* data.max_bad=0.03 .*: picture-3.png, picture-30.png\. Repair"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        next(batches)


def test_nothing_is_tolerated_where_nothing_may_be_bad():
    dataset = pipeline.training(_source(200, broken=(5,)), DataConfig(max_bad=0.0), 16, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"picture-5\.png"):
        list(dataset.take(2))


def test_every_pass_may_have_as_many_as_the_first():
    # 1 of 40 is within 3 %: last in the first pass, first in the second, and so on.
    source = _source(40, broken=(0,))
    forth = source.records("train", None)
    back = forth.skip(1).concatenate(forth.take(1))
    source = dataclasses.replace(
        source,
        records=lambda split, seed, start=0: back.concatenate(forth).repeat().skip(start),
    )
    config = DataConfig(max_bad=0.03)
    for start, passes in ((0, 6), (38, 6)):  # also where a run goes on in the middle of a pass
        found = bad.BadRecords(config.max_bad)
        read = pipeline.training(source, config, 16, 2, start=start, found=found).take(20 * passes)
        assert len(list(read)) == 20 * passes
        assert found.names == ("picture-0.png",)


def test_filling_is_no_excuse_for_bad_records():
    source = _source(40, broken=(3, 39))  # 2 of 40, and 8 of filling
    dataset = pipeline.evaluation(source, "test", RULE, 16, found=bad.BadRecords(0.045))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"^2 of 40|: 2 of 40 records"):
        list(dataset)


def test_pictures_go_on_with_the_share_that_is_given():
    source = _source(10, broken=(2, 3))
    found = bad.BadRecords(0.2)
    batches = list(pipeline.pictures(source, "test", RULE, 4, found=found))
    assert sum(len(labels) for _, labels in batches) == 8
    assert len(found.names) == 2
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"picture-2\.png"):
        list(pipeline.pictures(source, "test", RULE, 4))


@pytest.mark.parametrize(
    ("count", "read", "one_pass", "stops"),
    [
        (2, 100, 10**6, False),  # too early to tell
        (10, 100, 10**6, False),
        (11, 100, 10**6, True),  # more than 1 % of the first 1000, whatever follows
        (50, 5000, 10**6, False),
        (51, 5000, 10**6, True),
        (2, 10, 150, True),  # more than 1 % of all there are
        (1, 10, 150, False),
        (1, 150, 150, False),
        (2, 150, 150, True),
        (2, 151, 150, False),  # the same one again, early in the second pass
        (3, 300, 150, False),  # 1 % of 300
        (4, 300, 150, True),
    ],
)
def test_the_share_is_of_what_was_read_but_early_on_of_more(count, read, one_pass, stops):
    found = bad.BadRecords(0.01)
    names = [f"{number}.jpg" for number in range(count)]
    if stops:
        with pytest.raises(ValueError, match=f"{count} of {read} records .*0.jpg"):
            found.add(names, count, read, one_pass)
    else:
        found.add(names, count, read, one_pass)
    assert found.names == tuple(names)


def test_the_first_ten_are_named_in_warnings_and_then_the_total(caplog):
    found = bad.BadRecords(0.5)
    for number in range(25):
        found.add([f"{number}.jpg"], number + 1, 1000, 1000)
        found.add(["0.jpg"], number + 1, 1000, 1000)  # known already
    messages = [record.getMessage() for record in caplog.records]
    assert messages[:10] == [
        f"Left out, unreadable or without a valid label: {number}.jpg" for number in range(10)
    ]
    assert messages[10:] == ["20 records are left out so far."]


def test_names_need_not_be_valid_utf8():
    contents = [b"no picture", tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()]
    source = _source(2)
    source = sources.Source(
        name="odd",
        class_names=source.class_names,
        num_examples=source.num_examples,
        records=lambda split, seed, start=0: tf.data.Dataset.from_tensor_slices(
            (contents, tf.constant([0, 1], tf.int64), [b"/a/\xff.png", b"/b.png"])
        ),
        decode=source.decode,
        describe=source.describe,
    )
    found = bad.BadRecords(0.5)
    list(pipeline.evaluation(source, "test", RULE, 2, found=found))
    assert found.names == ("/a/\\xff.png",)
