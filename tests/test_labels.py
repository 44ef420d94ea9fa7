import re
import tarfile

import numpy as np
import pytest

from efficientnet_tf import labels
from efficientnet_tf.labels import Label, decode_predictions


def test_the_1000_names_come_with_the_package():
    names = labels.imagenet_labels()
    assert names[0] == Label("n01440764", "tench")
    assert names[281] == Label("n02123045", "tabby")
    assert names[388] == Label("n02510455", "giant panda")
    assert names[999] == Label("n15075141", "toilet tissue")
    assert len({label.wnid for label in names}) == 1000
    assert all(re.fullmatch(r"n\d{8}", label.wnid) for label in names)
    # The index order of ImageNet-1k is the order of the WordNet ids.
    assert [label.wnid for label in names] == sorted(label.wnid for label in names)


def test_names_agree_with_the_sample_pictures(shared_dir):
    archive = shared_dir / "data" / "imagenet-samples.tar"
    with tarfile.open(archive) as tar:
        stems = sorted(name.removesuffix(".JPEG") for name in tar.getnames() if "JPEG" in name)
    assert len(stems) == 200
    for index, stem in enumerate(stems):
        wnid, _, name = stem.partition("_")
        label = labels.imagenet_labels()[5 * index]
        assert label.wnid == wnid
        assert re.sub(r"\W", "_", label.name) == re.sub(r"\W", "_", name)


def test_background_is_class_0_of_1001():
    names = labels.imagenet_labels(background=True)
    assert len(names) == 1001
    assert names[0].name == "background"
    assert names[1:] == labels.imagenet_labels()


def _scores(width, best):
    scores = np.full((1, width), 0.001, np.float32)
    scores[0, list(best)] = [0.5 / 2**rank for rank in range(len(best))]
    return scores


def test_decode_1000_and_1001():
    (first,) = decode_predictions(_scores(1000, [388, 281]), top=2)
    assert first == [("n02510455", "giant panda", 0.5), ("n02123045", "tabby", 0.25)]
    (shifted,) = decode_predictions(_scores(1001, [389, 0]), top=2)
    assert shifted == [("n02510455", "giant panda", 0.5), ("", "background", 0.25)]


def test_decode_orders_rows_and_breaks_ties_by_index():
    own = [("", "a"), ("", "b"), ("", "c")]
    decoded = decode_predictions([[0.1, 0.8, 0.1], [-3.0, -2.0, -1.0]], top=9, labels=own)
    assert [name for _, name, _ in decoded[0]] == ["b", "a", "c"]
    assert decoded[1] == [("", "c", -1.0), ("", "b", -2.0), ("", "a", -3.0)]
    np.testing.assert_array_equal(labels.top_classes(np.zeros((2, 1000)), 3), [[0, 1, 2]] * 2)


@pytest.mark.parametrize(
    ("preds", "arguments", "message"),
    [
        (np.zeros((1, 999)), {}, "999 scores and 1,000 labels"),
        (np.zeros(1000), {}, r"\(batch, classes\).*\(1000,\)"),
        (np.zeros((1, 1000)), {"top": 0}, "top must be at least 1"),
        (np.zeros((1, 3)), {"labels": [("", "a")]}, "3 scores and 1 labels"),
        (np.zeros((1, 21_843)), {}, r"labels=imagenet21k_labels\(path\)"),
        (np.full((1, 1000), np.nan), {}, "NaN"),
    ],
)
def test_decode_refuses_what_does_not_fit(preds, arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_predictions(preds, **arguments)


def _write(path, count, ending="\n"):
    path.write_text("\n".join(f"n{i:08d}\tname {i}, other" for i in range(count)) + ending)
    return path


def test_full_21k_file_is_read_with_or_without_a_last_newline(tmp_path):
    for ending in ("\n", ""):
        names = labels.imagenet21k_labels(_write(tmp_path / "labels.txt", 21_843, ending))
        assert len(names) == 21_843
        assert names[-1] == Label("n00021842", "name 21842, other")
    (best,) = decode_predictions(_scores(21_843, [21_842]), top=1, labels=names)
    assert best == [("n00021842", "name 21842, other", 0.5)]


def test_published_21k_file_is_one_name_short_and_that_is_said(tmp_path):
    path = _write(tmp_path / "imagenet21k_labels.txt", 21_842)
    with pytest.warns(UserWarning, match="21,842 of the 21,843"):
        names = labels.imagenet21k_labels(path)
    assert len(names) == 21_843
    assert names[0].name == "name 0, other"
    assert names[-1] == Label("", "class 21842")


def test_other_21k_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="21,841"):
        labels.imagenet21k_labels(_write(tmp_path / "labels.txt", 21_841))


def test_label_files_without_ids_and_with_gaps(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("cat\nhot dog\n", encoding="utf-8")
    assert labels.read_labels(path) == (Label("", "cat"), Label("", "hot dog"))
    path.write_text("cat\n\ndog\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"labels.txt.*line 2 has no name"):
        labels.read_labels(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"labels.txt.*empty"):
        labels.read_labels(path)


def test_labels_for_a_classifier(tmp_path):
    assert labels.labels_for("imagenet", 1000) == labels.imagenet_labels()
    assert labels.labels_for("imagenet-background", 1001)[0].name == "background"
    assert labels.labels_for(None, 2) == (Label("", "class 0"), Label("", "class 1"))
    path = tmp_path / "labels.txt"
    path.write_text("cat\ndog\n", encoding="utf-8")
    assert labels.labels_for(None, 2, path)[1].name == "dog"
    with pytest.raises(ValueError, match="3 scores and 2 labels"):
        labels.labels_for(None, 3, path)
    with pytest.raises(ValueError, match="give a label file"):
        labels.labels_for("imagenet21k", 21_843)
