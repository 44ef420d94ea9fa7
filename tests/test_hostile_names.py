"""Names that come from data: never executed, never HTML, never a path that is followed."""

import html.parser
import json
import os
import pathlib
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf import classifier, labels, paths, preprocessing
from efficientnet_tf.config import DataConfig, override
from efficientnet_tf.data import arrays, folder, records, sources, tables, tfrecord
from efficientnet_tf.export import artifacts, pictures
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.train import run, workdir

# As class names, and as names of pictures where the file system takes them.
MARKUP = "<script>alert(1)</script>"
CLIMBING = "../../escaped"
FORMULA = '=HYPERLINK("http://x";"y")'
SHELL = "$(touch escaped);`touch escaped`'\"&<>{{7*7}}%s%n{0.__class__}"
NAMES = (SHELL, CLIMBING, MARKUP, FORMULA)  # as they are sorted
REFUSED = (
    "two\nlines",
    "two\u2028lines",
    "a\ttab",
    "\x1b]0;title\x07",
    "turned\u202egpj.exe",
    "",
    " ",
    "space ",
    "\udcff",
)


class _Page(html.parser.HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attributes), attributes

    def handle_data(self, data):
        self.text += data


def _pictures(root, count=10):
    """A table of pictures with hostile labels, and hostile names of files."""
    generator = np.random.default_rng(0)
    root.mkdir()
    rows = []
    for label, name in enumerate(NAMES):
        for index in range(count):
            image = generator.integers(0, 60, (32, 32, 3), np.uint8) + np.uint8(60 * label)
            file = f"{index} <img src=x onerror=alert({label})> $(touch escaped) \x1b[31m.png"
            (root / file).write_bytes(tf.io.encode_png(image).numpy())
            os.rename(root / file, root / (file := f"{label}{file}"))
            rows.append((file, name))
    lines = [",".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) for row in rows]
    (root / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "table.csv"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on pictures with hostile names, one of them unreadable, in a folder watched."""
    root = tmp_path_factory.mktemp("watched")
    table = _pictures(root / "data")
    bad = root / "data" / os.fsdecode(b"\xff\n<b>bad.png")
    bad.write_bytes(b"no picture")
    quoted = MARKUP.replace('"', '""')
    with open(table, "ab") as file:
        file.write(b'"' + os.fsencode(bad.name) + f'","{quoted}"\n'.encode())
    config = override(
        RECIPES["digits"],
        f"data.source=csv:{table}",
        "data.max_bad=0.5",
        "model.blocks=r1_k3_s22_e1_i8_o8_c1",
        "model.stem_filters=8",
        "model.head_filters=16",
        "model.image_size=32",
        "data.holdout=0.2",
        "data.batch_size=4",
        "train.epochs=1",
        "train.steps_per_epoch=2",
        "train.warmup_epochs=0",
    )
    before = pathlib.Path.cwd()
    os.chdir(root)
    try:
        result = run.train(config, root / "run")
    finally:
        os.chdir(before)
    return root, result


def _untouched(root):
    assert {path.name for path in root.iterdir()} <= {"data", "run", "export"}
    assert not (root.parent / "escaped").exists()
    assert not (root.parent.parent / "escaped").exists()


def test_a_run_keeps_hostile_names_as_text(finished):
    root, result = finished
    assert result.source.class_names == NAMES
    page = _Page((root / "run" / workdir.SUMMARY).read_text(encoding="utf-8"))
    assert not page.tags & {"script", "iframe", "link", "object", "b"}
    for name in NAMES:
        assert name in page.text
    kept = (root / "run" / workdir.LABELS).read_text(encoding="utf-8").splitlines()
    assert tuple(kept) == NAMES
    unreadable = (root / "run" / workdir.BAD_PICTURES).read_text(encoding="utf-8")
    assert unreadable.count("\n") == 1
    assert unreadable.endswith(r"\udcff\n<b>bad.png" + "\n")
    assert "\x1b" not in unreadable
    _untouched(root)


def test_an_export_and_the_server_keep_hostile_names_as_text(finished):
    root, _ = finished
    opened = classifier.load(root / "run")
    assert tuple(label.name for label in opened.labels) == NAMES
    table = root / "data" / "table.csv"
    checked = pictures.named(DataConfig(f"csv:{table}", max_bad=0.5), "test", opened.labels, 6)
    artifacts.export(
        opened,
        root / "export",
        ("saved_model", "tflite"),
        checked,
        origin=classifier.origin(root / "run"),
    )
    version = root / "export" / "saved_model" / "1"
    assert tuple((version / "assets" / "labels.txt").read_text().splitlines()) == NAMES
    manifest = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
    assert tuple(manifest["labels"]) == NAMES
    with zipfile.ZipFile(root / "export" / "model.tflite") as archive:
        assert set(archive.namelist()) == {"labels.txt", "preprocessing.json"}
        assert tuple(archive.read("labels.txt").decode().splitlines()) == NAMES
    _untouched(root)


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_no_file_of_labels_gives_back_are_refused(name):
    with pytest.raises(ValueError, match=r"a class has a .*rename it"):
        records.Source("given", ("cat", name), {}, lambda: None, lambda: None)
    images, targets = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2
    with pytest.raises(ValueError, match="rename it"):
        arrays.from_arrays(images, targets, class_names=("cat", name))


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\u2028b", "a\rb", " a", "a\x85b"])
def test_class_folders_with_such_names_are_refused(tmp_path, name):
    for each in ("cat", name):
        (tmp_path / each).mkdir()
        (tmp_path / each / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="rename it"):
        folder.list_folder(tmp_path)


def test_printed_names_do_nothing_to_a_terminal():
    name = "cat\x1b[2J\x07\r\n\x9b31m\u202e\u2066\udcff\x00"
    shown = labels.printable(name)
    assert shown == r"cat\x1b[2J\x07\r\n\x9b31m\u202e\u2066\udcff\x00"
    assert labels.printable("naïve 猫 \u200dfamily 👩‍👧 ü") == "naïve 猫 \u200dfamily 👩‍👧 ü"
    assert records.first_few([name]) == shown


@pytest.mark.parametrize(
    "file", ["../outside.tfrecord", "/etc/passwd", "a/b", "..", "ram://x/y", 7, None, "", "a\n"]
)
def test_a_manifest_of_records_names_files_beside_it_only(tmp_path, file):
    shard = {"file": file, "num_examples": 1, "bytes": 1}
    manifest = {"version": 1, "class_names": ["a", "b"], "multi_label": False}
    manifest["splits"] = {"train": [shard], "test": [shard]}
    (tmp_path / tfrecord.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="no file beside it"):
        sources.open_source(DataConfig(source=f"tfrecord:{tmp_path}"))


@pytest.mark.parametrize(
    "row", ["gs://elsewhere/a.png", "ram://other/../../x.png", "http://localhost/a.png"]
)
def test_a_local_table_leads_to_no_store(tmp_path, row):
    (tmp_path / "table.csv").write_text(f"{row},cat\n{row}2,dog\n")
    with pytest.raises(ValueError, match="Expected a path in the store of"):
        tables.list_csv(tmp_path / "table.csv")


@pytest.mark.parametrize("row", ["../../other/a.png", "/etc/passwd", "memory://table/a.png"])
def test_a_table_in_a_store_leads_to_no_other_bucket_store_or_local_file(tmp_path, row):
    (tmp_path / "table.csv").write_text(f"{row},cat\n{row}2,dog\n")
    url = paths.of("ram://table/folder/table.csv")
    url.parent.mkdir(parents=True, exist_ok=True)
    url.upload(tmp_path / "table.csv")
    with pytest.raises(ValueError, match="Expected a path"):
        tables.list_csv(url)


def test_names_in_a_store_cannot_lead_out_of_the_copy(tmp_path, monkeypatch):
    url = paths.of("memory://climbing")
    store = type(url._store)
    for name in ("..", "../x", "a/b", "a\\b", "a\0b"):
        monkeypatch.setattr(store, "entries", lambda *_, name=name: [(name, False)])
        with pytest.raises(ValueError, match="no name of a file"):
            url.entries()


def test_arrays_that_would_be_unpickled_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'escaped'}",)

    evil = np.array([Evil()] * 4, object)
    np.savez(tmp_path / "evil.npz", x_train=evil, y_train=np.arange(4))
    with pytest.raises(ValueError, match="plain arrays"):
        sources.open_source(DataConfig(source=f"npz:{tmp_path / 'evil.npz'}"))
    assert not (tmp_path / "escaped").exists()


def test_a_keras_file_with_code_in_it_is_refused(tmp_path):
    target = tmp_path / "escaped"
    inputs = keras.Input((32, 32, 3))
    code = eval(f"lambda x: [x, open({str(target)!r}, 'w')][0]")
    outputs = keras.layers.Lambda(code, output_shape=(32, 32, 3))(inputs)
    outputs = keras.layers.GlobalAveragePooling2D()(outputs)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(outputs))
    path = tmp_path / "model.keras"
    model.save(path)
    target.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"unsafe|Lambda"):
        classifier.load(path)
    assert not target.exists()


@pytest.mark.parametrize("names", [["cat", "a\nb"], ["cat", 7], ["cat"], "cd", ["cat", "n1\t\x1b"]])
def test_labels_of_a_manifest_are_checked(tmp_path, names):
    inputs = keras.Input((32, 32, 3))
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, keras.layers.Softmax()(outputs)).save(tmp_path / "model.keras")
    rule = preprocessing.own(32, np.ones(3), np.zeros(3)).to_dict()
    content = {"labels": ["cat", "dog"], "preprocessing": rule}
    manifest = tmp_path / "model.keras.manifest.json"
    manifest.write_text(json.dumps(content))
    found = classifier.load(tmp_path / "model.keras").labels
    assert [label.name for label in found] == ["cat", "dog"]
    manifest.write_text(json.dumps({**content, "labels": names}))
    with pytest.raises(ValueError, match="manifest"):
        classifier.load(tmp_path / "model.keras")
