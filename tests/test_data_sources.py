"""Sources: which pictures are in which split, and what is said about bad data."""

import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import sources


def _write_picture(path, color, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), color, np.uint8)
    path.write_bytes(tf.io.encode_png(pixels).numpy())


@pytest.fixture
def flat_folder(tmp_path):
    """Two classes of 10 and 20 pictures; picture i of class k has the color (k, i, 7)."""
    for label, (name, count) in enumerate((("ant", 10), ("bee", 20))):
        for index in range(count):
            _write_picture(tmp_path / name / f"{index:02d}.png", (label, index, 7))
    return tmp_path


def _open(path, **settings):
    return sources.open_source(DataConfig(source=f"folder:{path}", **settings))


def _examples(source, split):
    """(label, color) of every picture of a split."""
    found = []
    for record in source.records(split, None):
        image, label = source.decode(*record)
        found.append((int(label), tuple(image[0, 0].numpy().tolist())))
    return found


def test_digits_are_the_real_pictures_in_three_splits_without_overlap():
    from sklearn import datasets

    source = sources.open_source(DataConfig())
    assert source.class_names == tuple("0123456789")
    digits = datasets.load_digits()
    expected = sorted(
        (int(label), np.round(image * 255 / 16).astype(np.uint8).tobytes())
        for image, label in zip(digits.images, digits.target, strict=True)
    )
    found = []
    for split in sources.SPLITS:
        before = len(found)
        for record in source.records(split, None):
            image, label = source.decode(*record)
            assert image.shape == (8, 8, 3)
            assert image.dtype == tf.uint8
            found.append((int(label), image.numpy()[..., 1].tobytes()))
        assert len(found) - before == source.num_examples[split]
    assert sorted(found) == expected  # every picture in exactly one split


def test_digits_test_split_is_stratified_and_does_not_depend_on_the_holdout():
    first = sources.open_source(DataConfig(holdout=0.1))
    second = sources.open_source(DataConfig(holdout=0.3))

    def labels(source):
        return [int(label) for _, label, _ in source.records("test", None)]

    assert labels(first) == labels(second)
    counts = np.bincount(labels(first))
    assert counts.min() >= 34  # 20 % of 174 to 183 pictures a class
    assert counts.max() <= 37
    assert second.num_examples["validation"] > 2.8 * first.num_examples["validation"]


def test_no_holdout_validates_on_the_test_split():
    source = sources.open_source(DataConfig(holdout=0.0))
    assert source.num_examples["validation"] == source.num_examples["test"]
    assert source.num_examples["train"] + source.num_examples["test"] == 1797


def test_flat_folder_is_split_by_class_and_the_same_each_time(flat_folder):
    source = _open(flat_folder, holdout=0.2)
    assert source.class_names == ("ant", "bee")
    splits = {split: _examples(source, split) for split in sources.SPLITS}
    everything = [example for split in splits.values() for example in split]
    assert sorted(everything) == sorted(
        [(0, (0, i, 7)) for i in range(10)] + [(1, (1, i, 7)) for i in range(20)]
    )
    assert [label for label, _ in splits["test"]].count(0) == 2
    assert [label for label, _ in splits["test"]].count(1) == 4
    again = _open(flat_folder, holdout=0.2)
    assert {split: _examples(again, split) for split in sources.SPLITS} == splits
    # Moving the folder does not move pictures between splits: only relative names count.
    moved = flat_folder.rename(flat_folder.with_name("moved"))
    assert _examples(_open(moved, holdout=0.2), "test") == splits["test"]


def test_split_folders_are_used_as_they_are(tmp_path):
    for split, first in (("train", 0), ("val", 100), ("test", 200)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(3):
                _write_picture(tmp_path / split / name / f"{index}.png", (label, first + index, 0))
    source = _open(tmp_path)
    assert source.num_examples == {"train": 6, "validation": 6, "test": 6}
    assert _examples(source, "validation")[0] == (0, (0, 100, 0))
    assert _examples(source, "test")[-1] == (1, (1, 202, 0))


def test_a_lone_validation_folder_is_the_test_split(tmp_path):
    for split, count in (("train", 10), ("validation", 4)):
        for name in ("ant", "bee"):
            for index in range(count):
                _write_picture(tmp_path / split / name / f"{index}.png", (1, 2, 3))
    assert _open(tmp_path).num_examples == {"train": 18, "validation": 2, "test": 8}


def test_unreadable_pictures_are_counted_and_named(flat_folder):
    whole = (flat_folder / "ant" / "00.png").read_bytes()
    (flat_folder / "ant" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (flat_folder / "ant" / "empty.jpg").write_bytes(b"")
    (flat_folder / "bee" / "text.jpeg").write_text("no picture")
    with pytest.raises(ValueError, match=r"^3 of 33 pictures") as error:
        _open(flat_folder)
    for name in ("cut.png", "empty.jpg", "text.jpeg"):
        assert name in str(error.value)
    assert "00.png" not in str(error.value)
    unchecked = _open(flat_folder, check_pictures=False)  # asked to trust the files
    assert not unchecked.checked
    names = {unchecked.describe(*record).numpy() for record in unchecked.records("train", None)}
    assert os.fsencode(flat_folder / "bee" / "00.png") in names
    assert _open(flat_folder, max_bad=0.1).checked


def test_few_unreadable_pictures_are_left_out_and_named(flat_folder, caplog):
    before = {split: _examples(_open(flat_folder), split) for split in sources.SPLITS}
    (flat_folder / "ant" / "07.png").write_bytes(b"")
    with caplog.at_level("WARNING", "absl"):
        source = _open(flat_folder, max_bad=0.04)  # 1 of 30 is 3.3 %
    assert source.bad == (str(flat_folder / "ant" / "07.png"),)
    assert "1 unreadable ones are left out" in caplog.text
    assert "07.png" in caplog.text
    # Everything else stays in the split that it was in.
    for split in sources.SPLITS:
        expected = [example for example in before[split] if example != (0, (0, 7, 7))]
        assert _examples(source, split) == expected
    assert sum(source.num_examples.values()) == 29
    for path in (flat_folder / "ant").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"nothing is left of class 'ant'"):
        _open(flat_folder, max_bad=0.9)


def test_folder_mistakes_are_explained(tmp_path, flat_folder):
    with pytest.raises(ValueError, match=r"there is no folder"):
        _open(tmp_path / "missing")
    (flat_folder / "cow").mkdir()
    with pytest.raises(ValueError, match=r"1 of 3 class folders .* have no pictures: cow"):
        _open(flat_folder)
    bare = tmp_path / "bare"
    (bare / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no pictures. Pictures end in"):
        _open(bare)
    (bare / "ant").rmdir()
    with pytest.raises(ValueError, match=r"has no class folders. Expected"):
        _open(bare)


def test_hidden_files_are_no_pictures_and_other_endings_are_named(flat_folder, caplog):
    for name in ("ant/._00.png", "bee/.ipynb_checkpoints/01.png", "__MACOSX/ant/00.png"):
        path = flat_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no picture")
    (flat_folder / "ant" / "scan.tif").write_text("ignored")
    (flat_folder / "bee").rename(flat_folder / "_bee")  # an underscore hides no class
    with caplog.at_level("WARNING", "absl"):
        source = _open(flat_folder)
    assert source.class_names == ("_bee", "ant")
    assert sum(source.num_examples.values()) == 30
    assert "1 files are ignored" in caplog.text
    assert "scan.tif" in caplog.text


def test_names_need_not_be_ascii_nor_utf8(tmp_path):
    for name in ("кот 猫", "Äpfel grün"):
        for index in range(4):
            _write_picture(tmp_path / name / f"a b {index}.png", (1, index, 3))
    os.rename(
        os.fsencode(tmp_path / "кот 猫" / "a b 0.png"),
        os.fsencode(tmp_path / "кот 猫") + b"/\xe9.png",
    )
    source = _open(tmp_path, holdout=0.25)
    assert source.class_names == ("Äpfel grün", "кот 猫")
    found = [example for split in sources.SPLITS for example in _examples(source, split)]
    assert sorted(found) == sorted((label, (1, i, 3)) for label in (0, 1) for i in range(4))


def test_classes_that_differ_between_splits_are_named(tmp_path):
    for path in ("train/ant", "train/bee", "test/ant", "test/fly"):
        _write_picture(tmp_path / path / "0.png", (1, 2, 3))
    with pytest.raises(ValueError, match=r"Only in train: bee. Only in test: fly"):
        _open(tmp_path)


def test_a_class_too_small_to_split_is_refused(tmp_path):
    _write_picture(tmp_path / "ant" / "0.png", (1, 2, 3))
    for index in range(9):
        _write_picture(tmp_path / "bee" / f"{index}.png", (1, 2, 3))
    with pytest.raises(ValueError, match=r"Class 'ant' has 1 pictures left .* hold out 1"):
        _open(tmp_path)


def test_every_pass_has_all_records_in_another_order(flat_folder):
    source = _open(flat_folder, holdout=0.2)
    count = source.num_examples["train"]
    stream = [path.numpy() for path, _ in source.records("train", 5).take(3 * count)]
    passes = [stream[i * count : (i + 1) * count] for i in range(3)]
    ordered = sorted(path.numpy() for path, _ in source.records("train", None))
    assert all(sorted(p) == ordered for p in passes)
    assert passes[0] != passes[1] != passes[2]
    assert [path.numpy() for path, _ in source.records("train", 6).take(count)] != passes[0]


@pytest.mark.parametrize("source_name", ["folder", "digits"])
def test_a_run_can_go_on_from_any_record(flat_folder, source_name):
    source = _open(flat_folder) if source_name == "folder" else sources.open_source(DataConfig())
    count = source.num_examples["train"]

    def taken(start, most):
        records = source.records("train", 3, start).take(most)
        return [(bytes(first.numpy()), int(label)) for first, label, *_ in records]

    stream = taken(0, count + 30) if source_name == "digits" else taken(0, 3 * count)
    for start in (1, count - 1, count, count + 7):
        assert taken(start, 20) == stream[start : start + 20]
    assert len(list(source.records("train", None, 5))) == count - 5


def test_folders_called_like_splits_may_be_classes(tmp_path):
    for name in ("plane", "test", "train"):
        for index in range(4):
            _write_picture(tmp_path / name / f"{index}.png", (1, 2, 3))
    assert _open(tmp_path, holdout=0.25).class_names == ("plane", "test", "train")


def test_a_folder_that_may_be_a_split_or_a_class_is_refused(tmp_path):
    for path in ("plane/0.png", "train/steam/0.png", "train/diesel/0.png"):
        _write_picture(tmp_path / path, (1, 2, 3))
    with pytest.raises(ValueError, match=r"whether train is a split or a class.* beside plane"):
        _open(tmp_path)
    (tmp_path / "plane" / "0.png").unlink()  # a folder without pictures is no class
    for index in range(1, 4):
        for name in ("steam", "diesel"):
            _write_picture(tmp_path / "train" / name / f"{index}.png", (1, 2, 3))
    assert _open(tmp_path, holdout=0.25).class_names == ("diesel", "steam")


def test_pictures_beside_the_splits_are_named(tmp_path, caplog):
    for path in ("train/ant", "train/bee", "test/ant", "test/bee"):
        for index in range(3):
            _write_picture(tmp_path / path / f"{index}.png", (1, 2, 3))
    _write_picture(tmp_path / "unlabelled" / "0.png", (1, 2, 3))
    with caplog.at_level("WARNING", "absl"):
        assert sum(_open(tmp_path).num_examples.values()) == 12
    assert "ignored are unlabelled" in caplog.text


def test_class_names_that_cannot_be_written_are_refused(flat_folder):
    os.rename(os.fsencode(flat_folder / "ant"), os.fsencode(flat_folder) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"caf\\xe9' has a name that is not valid UTF-8: rename"):
        _open(flat_folder)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install tensorflow-datasets"):
        sources.open_source(DataConfig(source="tfds:cifar10"))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn"):
        sources.open_source(DataConfig())


def test_sources_are_values():
    source = sources.open_source(DataConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.name = "other"
