"""Pseudo-labels: the teacher's probabilities, computed once, kept whole, used where they fit."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from PIL import Image

from efficientnet_tf.arch import BlockArgs
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.config import Config, DataConfig, override
from efficientnet_tf.data import arrays, sources, unlabeled
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.train import pseudo
from efficientnet_tf.train import teacher as teacher_lib

NAMES = ("ant", "bee", "cat")
SIZE = 32


def _network(classes=3, activation="softmax", seed=0):
    keras.utils.set_random_seed(seed)
    variant = dataclasses.replace(
        find("efficientnetv2-b0"),
        name="tiny",
        blocks=(BlockArgs.parse("r1_k3_s22_e1_i8_o8_c1"),),
        stem_filters=8,
        head_filters=16,
    )
    shape = (SIZE, SIZE, 3)
    model = build(variant, classes=classes, classifier_activation=activation, input_shape=shape)
    kernel, bias = model.get_layer("predictions").get_weights()
    model.get_layer("predictions").set_weights([kernel * 15, bias])  # answers that differ
    return model


def _saved(folder, model, names):
    folder.mkdir()
    model.save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(names) + "\n")
    return str(folder / "model.keras")


def _noise(count, seed):
    """Pictures of one colour each, and noise."""
    random = np.random.default_rng(seed)
    colors = random.uniform(30, 225, (count, 1, 1, 3))
    return (colors + random.uniform(-30, 30, (count, SIZE, SIZE, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def labelled():
    labels = np.arange(12) % 3
    split = (_noise(12, 1), labels)
    return arrays.from_arrays(
        *split, class_names=NAMES, validation=split, test=(_noise(9, 2), labels[:9])
    )


@pytest.fixture(scope="module")
def network():
    return _network()


@pytest.fixture(scope="module")
def path(tmp_path_factory, network):
    """A teacher whose outputs are in another order than the classes of the pictures."""
    return _saved(tmp_path_factory.mktemp("teacher") / "files", network, ("cat", "ant", "bee"))


@pytest.fixture(scope="module")
def teacher(path, labelled):
    return teacher_lib.load(path, labelled)


@pytest.fixture(scope="module")
def pictures():
    """200 pictures; rows 10 and 150 are in the test split."""
    found = _noise(200, 3)
    found[[10, 150]] = _noise(9, 2)[[0, 8]]
    return found


@pytest.fixture(scope="module")
def more(pictures):
    test = (_noise(2, 4), [0, 1])
    return arrays.from_arrays(pictures, np.arange(200) % 2, validation=test, test=test)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(pseudo, "PART", 64)


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_they_are_the_teachers_probabilities(tmp_path, network, teacher, labelled, more, pictures):
    found = pseudo.label(tmp_path, teacher, more, labelled)
    expected = network.predict(pictures.astype("float32"), verbose=0)[:, [1, 2, 0]]
    assert np.ptp(expected.max(1)) > 0.1  # the network does not answer the same to all
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(~found.usable), [10, 150])
    assert sorted(_files(tmp_path)) == [
        "000000000.npz",
        "000000064.npz",
        "000000128.npz",
        "000000192.npz",
        "about.json",
        "held-out.npz",
    ]


class _Stopped(Exception):
    pass


def _before_batches(patch, call):
    """Calls a function before each batch of pictures that is looked at."""
    hashes = pseudo._hashes

    def called(images):
        call()
        return hashes(images)

    patch.setattr(pseudo, "_hashes", called)


@pytest.mark.parametrize("batches", [1, 2, 4, 6])
def test_a_stop_changes_no_byte(tmp_path, teacher, labelled, more, batches, monkeypatch):
    pseudo.label(tmp_path / "whole", teacher, more, labelled)
    calls = []

    def stop():
        if len(calls) == batches:
            raise _Stopped
        calls.append(None)

    with monkeypatch.context() as patch:
        _before_batches(patch, stop)
        with pytest.raises(_Stopped):
            pseudo.label(tmp_path / "stopped", teacher, more, labelled)
    assert len(_files(tmp_path / "stopped")) < 6
    calls.clear()
    done = sum(name[0].isdigit() for name in _files(tmp_path / "stopped"))
    _before_batches(monkeypatch, lambda: calls.append(None))
    pseudo.label(tmp_path / "stopped", teacher, more, labelled)
    assert _files(tmp_path / "stopped") == _files(tmp_path / "whole")
    assert len(calls) <= 7 - 2 * done + 2  # what was done is not done again


def test_what_is_stored_is_read_and_a_damaged_part_made_anew(
    tmp_path, teacher, labelled, more, monkeypatch
):
    first = pseudo.label(tmp_path, teacher, more, labelled)
    before = _files(tmp_path)

    def never():
        raise AssertionError("the teacher was asked again")

    with monkeypatch.context() as patch:
        _before_batches(patch, never)
        again = pseudo.label(tmp_path, teacher, more, labelled)
    np.testing.assert_array_equal(again.probabilities, first.probabilities)
    np.testing.assert_array_equal(again.usable, first.usable)
    part = tmp_path / "000000128.npz"
    part.write_bytes(part.read_bytes()[:-100])
    pseudo.label(tmp_path, teacher, more, labelled)
    assert _files(tmp_path) == before


def test_pseudo_labels_of_something_else_are_not_used(tmp_path, teacher, labelled, more, pictures):
    folder = tmp_path / "kept"
    pseudo.label(folder, teacher, more, labelled)
    before = _files(folder)
    other = _saved(tmp_path / "other", _network(seed=1), NAMES)
    test = (_noise(2, 4), [0, 1])
    fewer = arrays.from_arrays(pictures[:150], np.arange(150) % 2, validation=test, test=test)
    for arguments, name in (
        ((teacher_lib.load(other, labelled), more, labelled), "teacher"),
        ((teacher, fewer, labelled), "unlabeled"),
        ((teacher, more, dataclasses.replace(labelled, class_names=NAMES[::-1])), "classes"),
    ):
        with pytest.raises(ValueError, match=rf"another kind: {name}\b.* differs?\. .*--overwrite"):
            pseudo.label(folder, *arguments)
    assert _files(folder) == before
    found = pseudo.label(folder, teacher, fewer, labelled, overwrite=True)
    assert found.probabilities.shape == (150, 3)
    assert json.loads((folder / "about.json").read_text())["unlabeled"]["examples"] == 150


def test_unreadable_pictures_are_left_out_or_too_many(tmp_path, teacher, labelled, pictures):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(pictures[number]).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"no picture")
    source = unlabeled.open_unlabeled(DataConfig(source=f"folder:{folder}"))
    found = pseudo.label(tmp_path / "labels", teacher, source, labelled, max_bad=0.1)
    np.testing.assert_array_equal(np.flatnonzero(~found.usable), [7, 10])
    assert not found.probabilities[7].any()
    with pytest.raises(ValueError, match=r"Unlabelled pictures: 1 of .*07\.png.*data\.max_bad"):
        pseudo.label(tmp_path / "strict", teacher, source, labelled, max_bad=0.0)


def test_held_out_pictures_may_be_as_bad_as_the_configuration_says(tmp_path, teacher, pictures):
    for number in range(60):
        place = tmp_path / "labelled" / ("train", "validation", "test")[number // 20]
        place = place / NAMES[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[number]).save(place / f"{number:02}.png")
    broken = tmp_path / "labelled" / "validation" / NAMES[0] / "21.png"
    broken.write_bytes(broken.read_bytes()[:100])
    own = DataConfig(source=f"folder:{tmp_path / 'labelled'}", check_pictures=False)
    own = sources.open_source(own)
    more = arrays.from_arrays(pictures[60:100], np.arange(40) % 2)
    with pytest.raises(ValueError, match=r"validation split: 1 of .*data\.max_bad=0 .*21\.png"):
        pseudo.label(tmp_path / "strict", teacher, more, own, max_bad=0.0)
    assert pseudo.label(tmp_path / "labels", teacher, more, own, max_bad=0.2).usable.any()


def test_the_share_of_unreadable_pictures_is_that_of_all_where_labelling_goes_on(
    tmp_path, teacher, labelled, pictures, monkeypatch
):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(100):
        Image.fromarray(pictures[number]).save(folder / f"{number:03}.png")
    for number in (20, 90):
        (folder / f"{number:03}.png").write_bytes(b"no picture")
    source = unlabeled.open_unlabeled(DataConfig(source=f"folder:{folder}"))
    pseudo.label(tmp_path / "whole", teacher, source, labelled, max_bad=0.02)
    for name, max_bad in (("whole", 0.02), ("strict", 0.015)):
        labels, write = tmp_path / f"{name}-stopped", pseudo._write

        def stop(path, arrays, write=write):
            write(path, arrays)
            if path.name == "000000000.npz":
                raise _Stopped

        with monkeypatch.context() as patch:
            patch.setattr(pseudo, "_write", stop)
            with pytest.raises(_Stopped):
                pseudo.label(labels, teacher, source, labelled, max_bad=max_bad)
        if name == "whole":
            pseudo.label(labels, teacher, source, labelled, max_bad=max_bad)
            assert _files(labels) == _files(tmp_path / "whole")
        else:
            with pytest.raises(ValueError, match=r"pictures: 2 of 96 .* of 100: .*090\.png"):
                pseudo.label(labels, teacher, source, labelled, max_bad=max_bad)


def test_teachers_that_cannot_teach_are_refused(tmp_path, path, labelled, network):
    with pytest.raises(FileNotFoundError, match=r"The teacher 'nowhere\.keras' cannot be opened"):
        teacher_lib.load("nowhere.keras", labelled)
    with pytest.raises(ValueError, match=r"The teacher 'efficientnet-b99' cannot be opened"):
        teacher_lib.load("efficientnet-b99", labelled)
    birds = dataclasses.replace(labelled, class_names=("ant", "bee", "owl"))
    with pytest.raises(ValueError, match=r"does not fit arrays.*Only in the data set: 'owl'"):
        teacher_lib.load(path, birds)
    fewer = dataclasses.replace(labelled, class_names=("ant", "bee"))
    with pytest.raises(ValueError, match="has 3 classes, of which arrays has 2"):
        teacher_lib.load(path, fewer)
    sigmoid = _saved(tmp_path / "sigmoid", _network(activation="sigmoid"), NAMES)
    with pytest.raises(ValueError, match=r"probability of its own \(sigmoid\)"):
        teacher_lib.load(sigmoid, labelled)
    several = dataclasses.replace(labelled, multi_label=True)
    with pytest.raises(ValueError, match="several labels per picture"):
        teacher_lib.load(path, several)


def test_the_background_is_no_class_of_the_pictures(tmp_path, labelled, network, pictures):
    wide = _network(classes=4)
    path = _saved(tmp_path / "wide", wide, ("background", *NAMES))
    teacher = teacher_lib.load(path, labelled)
    test = (_noise(2, 4), [0, 1])
    source = arrays.from_arrays(pictures[:32], np.arange(32) % 2, validation=test, test=test)
    found = pseudo.label(tmp_path / "labels", teacher, source, labelled)
    expected = wide.predict(pictures[:32].astype("float32"), verbose=0)[:, 1:]
    expected = expected / expected.sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_what_a_configuration_asks_for_is_trained_on(
    tmp_path, network, path, labelled, pictures, labels
):
    np.savez(
        tmp_path / "more.npz",
        x_train=pictures,
        y_train=np.arange(200) % 2,
        x_test=pictures[:2],
        y_test=[0, 1],
    )
    config = override(
        Config(),
        f"student.teacher={path}",
        f"student.unlabeled=npz:{tmp_path}/more.npz",
        f"student.labels={labels}",
        "student.threshold=0.8",
        "student.ratio=2",
        "train.label_smoothing=0.3",
    )
    source, taught = pseudo.with_unlabeled(config, labelled, tmp_path / "labels")
    assert taught
    assert source.num_examples == {"train": 36}
    probabilities = network.predict(pictures.astype("float32"), verbose=0)[:, [1, 2, 0]]
    sure = probabilities.max(1) >= 0.8
    sure[[10, 150]] = False  # of the test split
    assert 20 < sure.sum() < 190
    rows = {picture.tobytes(): row for row, picture in enumerate(pictures)}
    known = {}
    for record in source.records("train", 0).take(3 * int(sure.sum())):
        picture, target = source.decode(*record)
        if (row := rows.get(picture.numpy().tobytes())) is not None:
            known[row] = target.numpy()
    assert sorted(known) == np.flatnonzero(sure).tolist()
    for row, target in known.items():
        expected = probabilities[row]
        if labels == "hard":
            expected = np.eye(3)[expected.argmax()] * 0.7 + 0.1
        np.testing.assert_allclose(target, expected, atol=1e-5)
    # Another choice of pictures is another lesson, from the same pseudo-labels.
    other = override(config, "student.threshold=0.9")
    before = _files(tmp_path / "labels")
    assert pseudo.with_unlabeled(other, labelled, tmp_path / "labels")[1] != taught
    assert _files(tmp_path / "labels") == before
