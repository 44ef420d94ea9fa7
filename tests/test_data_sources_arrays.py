"""Pictures in memory: what is taken, what is refused, and that nothing is changed."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import arrays, sources


def _random(count, *shape):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def _content(source, split):
    decoded = [source.decode(*record) for record in source.records(split, None)]
    return np.array([image for image, _ in decoded]), np.array([label for _, label in decoded])


def test_arrays_come_back_as_they_are():
    train, test = _random(30, 4, 5, 3), _random(9, 4, 5, 3)
    labels = np.arange(30) % 3
    source = arrays.from_arrays(
        train, labels, class_names=("a", "b", "c"), test=(test, np.arange(9) % 3), holdout=0.0
    )
    assert source.class_names == ("a", "b", "c")
    assert source.checked
    assert source.encoded is None
    images, found = _content(source, "train")
    np.testing.assert_array_equal(images, train)
    np.testing.assert_array_equal(found, labels)
    for split in ("validation", "test"):  # without a holdout the test split validates
        np.testing.assert_array_equal(_content(source, split)[0], test)


def test_missing_splits_are_held_out_by_class():
    pictures, labels = _random(60, 3, 3, 3), np.repeat([0, 1], 30)
    source = arrays.from_arrays(pictures, labels, holdout=0.2)
    assert dict(source.num_examples) == {"train": 38, "validation": 10, "test": 12}
    contents = [_content(source, split) for split in sources.SPLITS]
    together = np.concatenate([images for images, _ in contents])
    assert sorted(map(bytes, together)) == sorted(map(bytes, pictures))
    assert [int(found.sum()) for _, found in contents] == [19, 5, 6]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_gray_pictures_get_three_equal_channels(shape):
    gray = _random(20, *shape)
    source = arrays.from_arrays(gray, np.arange(20)[:, None] % 2)
    images, _ = _content(source, "train")
    assert images.shape == (source.num_examples["train"], 4, 5, 3)
    known = {bytes(picture) for picture in gray.reshape(20, 4, 5)}
    for channel in range(3):
        assert {bytes(picture) for picture in images[..., channel]} <= known


def test_several_labels_a_picture():
    marks = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    single = arrays.from_arrays(_random(30, 2, 2, 3), marks, test=(_random(3, 2, 2, 3), np.eye(3)))
    assert not single.multi_label  # exactly one label each
    np.testing.assert_array_equal(_content(single, "test")[1], [0, 1, 2])
    marks[7] = (1, 0, 1)
    marks[8] = 0
    several = arrays.from_arrays(
        _random(30, 2, 2, 3), marks, test=(_random(3, 2, 2, 3), np.eye(3)), holdout=0.0
    )
    assert several.multi_label
    found = _content(several, "train")[1]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, marks)


def test_labels_of_which_all_pictures_are_held_out_are_named(caplog):
    marks = np.eye(13, dtype=np.uint8)[:12]
    marks[:, 12] = 1  # each picture has a label of its own and one that all have
    with caplog.at_level("WARNING", "absl"):
        source = arrays.from_arrays(_random(12, 2, 2, 3), marks)
    held_out = np.concatenate([_content(source, split)[1] for split in ("validation", "test")])
    names = ", ".join(map(str, np.flatnonzero(held_out[:, :12].any(axis=0))))
    assert (
        f"2 classes have no training pictures, because all were held out: {names}." in caplog.text
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((4, 2, 2, 3), np.float32)},
            r"must be uint8 .* float32 \(4, 2, 2, 3\)",
        ),
        ({"images": np.zeros((4, 2, 2, 4), np.uint8)}, r"must be uint8 .*\(4, 2, 2, 4\)"),
        ({"labels": np.zeros(3, int)}, r"must be \(4,\) or \(4, classes\).* \(3,\)"),
        ({"labels": np.zeros(4)}, "must be integers. Received: float64"),
        ({"labels": np.array([0, 1, 2, 1]), "class_names": "ab"}, "from 0 to 1. Received: 2$"),
        ({"labels": np.array([0, 1, -1, 1]), "class_names": "ab"}, "from 0 to 1. Received: -1$"),
        ({"labels": np.array([1, 2, 1, 2])}, "1 of 3 classes have no training .*: 0. .* from 0"),
        ({"labels": np.zeros(4, int)}, "2 different class names. Received 1"),
        ({"labels": np.full((4, 2), 0.5)}, "must be zeros and ones"),
        ({"test": (np.zeros((4, 3, 3, 3), np.uint8), np.zeros(4, int))}, "one shape in all splits"),
    ],
)
def test_arrays_that_do_not_fit_are_explained(changes, message):
    fitting = {"images": np.zeros((4, 2, 2, 3), np.uint8), "labels": np.array([0, 1, 0, 1])}
    with pytest.raises(ValueError, match=message):
        arrays.from_arrays(**{**fitting, **changes})


def test_npz_files(tmp_path):
    path = tmp_path / "data.npz"
    parts = {"x_train": _random(20, 3, 3), "y_train": np.arange(20) % 2}
    tests = {"x_test": _random(6, 3, 3), "y_test": np.arange(6) % 2}
    np.savez(path, **parts, **tests, class_names=np.array(["no", "yes"]))
    source = sources.open_source(DataConfig(source=f"npz:{path}"))
    assert source.class_names == ("no", "yes")
    assert dict(source.num_examples) == {"train": 18, "validation": 2, "test": 6}
    images, labels = _content(source, "test")
    np.testing.assert_array_equal(images[..., 2], tests["x_test"])
    np.testing.assert_array_equal(labels, tests["y_test"])


def test_npz_mistakes_are_explained(tmp_path):
    path = tmp_path / "data.npz"
    with pytest.raises(ValueError, match="there is no file"):
        sources.open_source(DataConfig(source=f"npz:{path}"))
    path.write_text("text")
    with pytest.raises(ValueError, match=r"is no .npz file of plain arrays"):
        sources.open_source(DataConfig(source=f"npz:{path}"))
    parts = {"x_train": _random(20, 3, 3), "y_train": np.arange(20) % 2}
    np.savez(path, **parts, x_test=_random(6, 3, 3))
    with pytest.raises(ValueError, match="expected x_test and y_test"):
        sources.open_source(DataConfig(source=f"npz:{path}"))
    np.savez(path, **parts, x_valid=_random(6, 3, 3))
    with pytest.raises(ValueError, match=r"Received: \['x_valid'\]"):
        sources.open_source(DataConfig(source=f"npz:{path}"))


def test_fake_pictures():
    source = sources.open_source(DataConfig(source="fake:4x32x100"))
    assert dict(source.num_examples) == {"train": 100, "validation": 10, "test": 10}
    images, labels = _content(source, "train")
    assert images.shape == (100, 32, 32, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(100) % 4)
    again, _ = _content(sources.open_source(DataConfig(source="fake:4x32x100")), "train")
    np.testing.assert_array_equal(images, again)
    by_class = {label: images[labels == label] for label in range(4)}
    assert all((same == same[0]).all() for same in by_class.values())
    assert len({bytes(same[0]) for same in by_class.values()}) == 4
    default = sources.open_source(DataConfig(source="fake"))
    assert default.num_classes == 1000
    assert default.decode(*next(iter(default.records("train", 1))))[0].shape == (224, 224, 3)
    for wrong in ("1x32", "10", "ten", "10x0"):
        with pytest.raises(ValueError, match="fake:CLASSESxPIXELS"):
            sources.open_source(DataConfig(source=f"fake:{wrong}"))


def test_every_pass_of_arrays_has_all_of_them_and_the_global_seed_has_no_say():
    source = sources.open_source(DataConfig(source="fake:50x4x50"))

    def labels(global_seed):
        tf.random.set_seed(global_seed)
        return [int(label) for label, _ in source.records("train", 9).take(100)]

    found = labels(1)
    assert found == labels(2)
    assert sorted(found[:50]) == sorted(found[50:]) == list(range(50))
    assert found[:50] != found[50:]
