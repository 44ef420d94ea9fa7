"""Tables of paths and labels: what is read, and what is said about wrong lines."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import sources


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures p00.png ...; number i has the color (i, 5, 7)."""
    for index in range(12):
        pixels = np.full((4, 4, 3), (index, 5, 7), np.uint8)
        (tmp_path / f"p{index:02d}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return tmp_path


def _open(folder, text, **settings):
    table = folder / "table.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return sources.open_source(DataConfig(source=f"csv:{table}", **settings))


def _found(source, split):
    """Number of the picture to label."""
    decoded = (source.decode(*record) for record in source.records(split, None))
    return {int(image[0, 0, 0]): label.numpy().tolist() for image, label in decoded}


def test_paths_and_labels_without_a_header(pictures):
    lines = [f"p{i:02d}.png,{'cat' if i % 2 else 'a dog'}" for i in range(12)]
    source = _open(pictures, "\n".join(lines), holdout=0.2)
    assert source.class_names == ("a dog", "cat")
    assert source.checked
    found = [_found(source, split) for split in sources.SPLITS]
    assert [len(part) for part in found] == [8, 2, 2]
    assert {key: label for part in found for key, label in part.items()} == {
        i: i % 2 for i in range(12)
    }


def test_columns_by_name_splits_quotes_and_a_mark(pictures):
    lines = ["split,width, Label ,path"]
    for index in range(12):
        split = ("train", "validation", "test")[index // 4]
        lines.append(f'{split},4,"dog, big",p{index:02d}.png' if index % 2 else
                     f"{split},4,cat,./p{index:02d}.png")  # fmt: skip
    source = _open(pictures, b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    assert source.class_names == ("cat", "dog, big")
    for number, split in enumerate(sources.SPLITS):
        assert _found(source, split) == {4 * number + i: i % 2 for i in range(4)}
    content, label = source.encoded(*next(iter(source.records("test", None))))
    assert content.numpy() == (pictures / "p08.png").read_bytes()
    assert int(label) == 0


def test_several_labels_a_picture(pictures):
    labels = ["sun", "sea|sun", "sand | sea", "sun|sun"] * 3
    lines = [f"p{i:02d}.png,{label}" for i, label in enumerate(labels)]
    source = _open(pictures, "path,label\n" + "\n".join(lines), holdout=0.1)
    assert source.multi_label
    assert source.class_names == ("sand", "sea", "sun")
    expected = [[0, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1]] * 3
    found = {}
    for split in sources.SPLITS:
        found.update(_found(source, split))
    assert found == dict(enumerate(expected))
    image, label = source.decode(*next(iter(source.records("train", 1))))
    assert label.dtype == tf.float32
    assert image.dtype == tf.uint8


def test_classes_of_which_all_pictures_are_held_out_are_named(pictures, caplog):
    # One class more for each picture: those of the pictures held out are not trained on.
    lines = [f"p{i:02d}.png,every|own{i:02d}" for i in range(12)]
    with caplog.at_level("WARNING", "absl"):
        source = _open(pictures, "\n".join(lines), holdout=0.1)
    held_out = sorted({*_found(source, "test"), *_found(source, "validation")})
    names = ", ".join(f"own{i:02d}" for i in held_out)
    assert len(held_out) == 2
    assert (
        f"2 classes have no training pictures, because all were held out: {names}." in caplog.text
    )


def test_several_labels_inside_a_graph(pictures):
    lines = [f"p{i:02d}.png,{'a|b' if i % 2 else 'a'}" for i in range(12)]
    source = _open(pictures, "\n".join(lines), holdout=0.1)
    batch = next(iter(source.records("train", 1).map(source.decode).batch(4)))
    assert batch[0].shape == (4, 4, 4, 3)
    assert batch[1].shape == (4, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\np00.png,a", r"line 1: there is no file 'file' \(the first line may name"),
        ("p00.png,a\np99.png,b", r"1 wrong lines: line 2: there is no file 'p99.png'$"),
        ("p00.png,a\np01.png,\np02.png,a||b", "line 2: an empty label, line 3: an empty label"),
        ("p00.png,a\n,b", "line 2: no path"),
        ("p00.png,a,train\np01.png,b,dev", "line 2: the split must be one of .*, not 'dev'"),
        ("p00.png,a\np01.png,b,train", "line 2: expected 2 cells .path, label., found 3"),
        ("p00.png\np01.png,b", "line 1: expected 2 cells .path, label., found 1"),
        ("p00.png,a\np01.png,b\n./p00.png,b", "line 3: 'p00.png' is 'b', but 'a' in line 1"),
        ("p00.png,a,train\np00.png,a,test", "line 2: 'p00.png' is in test, but in train in line 1"),
        ('p00.png,a\n"p01.png,b', "line 2: unexpected end of data"),
        ("path,label\n", "lists no pictures"),
        ("p00.png,a\np01.png,a", "one class, 'a'"),
        ("p00.png,a,train\np01.png,b,test", "classes without training pictures: b"),
        ("p00.png,a,test\np01.png,b,test", "has test but no train pictures"),
        (b"p00.png,a\np01.png,caf\xe9", "not valid UTF-8"),
    ],
)
def test_wrong_lines_are_named(pictures, text, message):
    with pytest.raises(ValueError, match=message):
        _open(pictures, text)


def test_a_missing_table_and_unreadable_pictures_are_named(pictures, caplog):
    with pytest.raises(ValueError, match="there is no file"):
        sources.open_source(DataConfig(source=f"csv:{pictures / 'none.csv'}"))
    (pictures / "p03.png").write_bytes(b"no picture")
    lines = "\n".join(f"p{i:02d}.png,{'a' if i % 2 else 'b'}" for i in range(12))
    with pytest.raises(ValueError, match=r"^1 of 12 pictures .*p03.png"):
        _open(pictures, lines)
    assert _open(pictures, lines, max_bad=0.1).bad == (str(pictures / "p03.png"),)
    with caplog.at_level("WARNING", "absl"):
        _open(pictures, lines + "\np00.png,b", max_bad=0.1)
    assert "1 lines repeat others and are not used: line 13" in caplog.text
