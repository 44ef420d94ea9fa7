"""Runs, pictures and models behind URLs: ram:// by TensorFlow, memory:// by fsspec."""

import contextlib
import csv
import dataclasses
import io
import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf import classifier, convert, evaluate, paths, predict, stores, writing
from efficientnet_tf.config import DataConfig, override
from efficientnet_tf.data import prepare, sources
from efficientnet_tf.export import artifacts, pictures, place
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.serve import server
from efficientnet_tf.train import interruption, report, run, workdir

STORES = ("ram", "memory")
SETTINGS = (
    "model.blocks=r1_k3_s22_e1_i8_o8_c1,r1_k3_s22_e2_i8_o16_se0.25",
    "model.stem_filters=8",
    "model.head_filters=16",
    "model.image_size=32",
    "data.batch_size=8",
    "train.epochs=2",
    "train.steps_per_epoch=4",
    "train.checkpoint_steps=2",
    "train.warmup_epochs=0",
)
CLASSES = ("cat", "dog")


def _upload(folder, url):
    paths.of(url).upload(pathlib.Path(folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Class folders, a table of them, records, ImageNet's files and arrays, all local."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows = []
    for label, name in enumerate(CLASSES):
        folder = root / "folder" / name
        folder.mkdir(parents=True)
        for index in range(12):
            image = generator.integers(0, 100, (36, 36, 3), np.uint8) + np.uint8(100 * label)
            file = folder / f"{index}.png"
            file.write_bytes(tf.io.encode_png(image).numpy())
            rows.append([f"{name}/{index}.png", name])
    with open(root / "folder" / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    prepare.prepare(f"folder:{root / 'folder'}", root / "records", shards=2)
    (root / "imagenet").mkdir()
    record = next(iter(tf.data.TFRecordDataset(str(next((root / "records").glob("train-*"))))))
    for split, count in (("train", 2), ("validation", 1)):
        for index in range(count):
            path = root / "imagenet" / f"{split}-{index:05d}-of-{count:05d}"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for _ in range(3):
                    writer.write(record.numpy())
    arrays = {}
    for split in sources.SPLITS:  # what is held out goes by the file's path
        arrays[f"x_{split}"] = generator.integers(0, 256, (8, 8, 8), np.uint8)
        arrays[f"y_{split}"] = np.arange(8) % 2
    np.savez(root / "arrays.npz", **arrays)
    return root


def _source(kind, root):
    places = {"folder": "folder", "csv": "folder/table.csv", "tfrecord": "records"}
    places |= {"imagenet": "imagenet", "npz": "arrays.npz"}
    return sources.open_source(DataConfig(source=f"{kind}:{root}/{places[kind]}"))


def _content(source, split="train"):
    return [
        (image.numpy().tobytes(), int(label))
        for image, label in source.records(split, None).map(source.decode)
    ]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["folder", "csv", "tfrecord", "imagenet", "npz"])
def test_every_kind_of_source_gives_the_same_pictures_from_a_store(data, kind, store):
    url = f"{store}://data-{kind}"
    _upload(data, url)
    here, there = _source(kind, data), _source(kind, url)
    assert there.class_names == here.class_names
    assert there.num_examples == here.num_examples
    for split in sources.SPLITS:
        content = _content(there, split)
        assert content == _content(here, split)
        assert content
    name = there.describe(*next(iter(there.records("train", None)))).numpy().decode()
    assert kind == "npz" or name.startswith(f"{store}://data-{kind}/")


@pytest.fixture(scope="module", params=["ram", pytest.param("memory", marks=pytest.mark.slow)])
def finished(request, data):
    """A run in a store, of pictures in the other one, that was interrupted and went on."""
    store, other = request.param, {"ram": "memory", "memory": "ram"}[request.param]
    _upload(data, f"{other}://flowers")
    config = override(RECIPES["digits"], f"data.source=folder:{other}://flowers/folder", *SETTINGS)
    folder = f"{store}://runs/flowers"
    with pytest.MonkeyPatch.context() as patched:
        save, saved = run.checkpoint.save, []

        def interrupted(*arguments):
            saved.append(save(*arguments))
            if len(saved) == 2:
                raise interruption.Interrupted("as by SIGTERM")

        patched.setattr(run.checkpoint, "save", interrupted)
        with pytest.raises(interruption.Interrupted):
            run.train(config, folder)
    return config, folder, run.train(config, folder)


def test_a_run_in_a_store_goes_on_to_the_bits_of_an_uninterrupted_local_one(
    finished, data, tmp_path
):
    config, folder, result = finished
    here = dataclasses.replace(
        config, data=dataclasses.replace(config.data, source=f"folder:{data / 'folder'}")
    )
    expected = run.train(here, tmp_path / "run")
    for ours, theirs in zip(result.model.weights, expected.model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    remote, local = paths.of(folder), tmp_path / "run"
    assert {path.name for path in remote.iterdir()} == {path.name for path in local.iterdir()}
    lines = (remote / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    table = list(csv.reader(io.StringIO((remote / "metrics.csv").read_text())))
    assert [row[0] for row in table] == ["epoch", "1", "2"]
    assert (remote / workdir.LABELS).read_text() == "cat\ndog\n"
    assert not any(path.name.startswith(writing.ASIDE) for path in remote.rglob("*"))


def test_a_run_in_a_store_is_opened_evaluated_and_exported_there(finished, tmp_path):
    config, folder, result = finished
    opened = classifier.load(folder)
    assert [label.name for label in opened.labels] == list(CLASSES)
    source = sources.open_source(config.data)
    scores = evaluate.evaluate(opened.model, source, "test", opened.preprocessing, 8)
    assert scores.top1 == result.test.top1
    picture = paths.of(config.data.source.removeprefix("folder:")) / "dog" / "0.png"
    (answer,) = predict.classify_files(
        [picture], opened.model, opened.preprocessing, labels=opened.labels
    )
    assert answer.error is None
    assert answer.path == str(picture)
    local = tmp_path / "best.keras"
    paths.of(f"{folder}/best.keras").download(local)
    origin = classifier.origin(folder)
    assert origin.sha256 == classifier.sha256(local) == classifier.sha256(f"{folder}/best.keras")
    again = classifier.load(f"{folder}/best.weights.h5")
    image = np.zeros((1, 32, 32, 3), np.float32)
    np.testing.assert_allclose(again.model(image), opened.model(image), atol=1e-6)

    target = paths.of("memory://exported/flowers")
    checked = pictures.named(config.data, "test", opened.labels, 4)
    artifacts.export(opened, target, ("keras",), checked, origin=origin)
    files = {path.name for path in target.iterdir()}
    assert files == {"model.keras", "model.keras.manifest.json", "report.json"}
    exported = classifier.load("memory://exported/flowers/model.keras")
    np.testing.assert_allclose(exported.model(image), opened.model(image), atol=1e-6)


@pytest.mark.parametrize("store", STORES)
def test_what_is_finished_is_put_into_a_store_in_order(store, tmp_path):
    target = paths.of(f"{store}://models/{tmp_path.name}")
    for version in (1, 2):
        with place.aside(target) as aside:
            folder = aside / "saved_model"
            (folder / "variables").mkdir(parents=True)
            (folder / "saved_model.pb").write_bytes(b"%d" % version)
            (folder / "variables" / "variables.index").write_bytes(b"v")
            (aside / "model.tflite").write_bytes(b"%d" % version)
            assert place.versions(target / "saved_model") == list(range(1, version))
            there = target / "saved_model" / str(version)
            place.move({folder: there, aside / "model.tflite": target / "model.tflite"}, aside)
        assert not aside.exists()
    assert (target / "saved_model" / "1" / "saved_model.pb").read_bytes() == b"1"
    assert (target / "saved_model" / "2" / "variables" / "variables.index").is_file()
    assert (target / "model.tflite").read_bytes() == b"2"
    with place.aside(target) as aside:
        (aside / "saved_model").mkdir()
        with pytest.raises(FileExistsError, match="exists already"):
            place.move({aside / "saved_model": target / "saved_model" / "2"}, aside)
    assert not any(path.name.startswith(writing.ASIDE) for path in target.rglob("*"))


@pytest.mark.parametrize("store", STORES)
def test_records_are_prepared_from_a_store_into_a_store(store, data, tmp_path):
    _upload(data / "folder", f"{store}://raw")
    to = paths.of(f"{store}://prepared")
    prepare.prepare(f"csv:{store}://raw/table.csv", to, shards=3)
    prepare.prepare(f"csv:{data / 'folder' / 'table.csv'}", tmp_path / "here", shards=3)
    for name in {path.name for path in (tmp_path / "here").glob("*.tfrecord")}:
        assert (to / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    (to / "train-00001-of-00003.tfrecord").unlink()
    prepare.prepare(f"csv:{store}://raw/table.csv", to, shards=3)
    here = {path.name for path in (tmp_path / "here").iterdir()}
    assert {path.name for path in to.iterdir()} == here


@pytest.mark.parametrize("store", STORES)
def test_a_folder_in_a_store_is_made_checked_and_written_to(store, tmp_path):
    root = paths.of(f"{store}://writing/{tmp_path.name}")
    writing.check_writable(root / "a" / "b")
    assert not (root / "a").exists()
    with writing.made(root / "a" / "b"):
        assert (root / "a" / "b").is_dir()
        with writing.lock(root / "a", wait=False) as ours:
            assert ours is None
    assert not (root / "a").exists()
    root.mkdir(parents=True)
    writing.append(root / "log", "one\r\n")
    writing.append(root / "log", "twö\n")
    assert (root / "log").read_bytes() == "one\r\ntwö\n".encode()
    with contextlib.suppress(ZeroDivisionError), writing.whole(root / "log") as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert (root / "log").read_bytes() == "one\r\ntwö\n".encode()
    (root / f"{writing.ASIDE}left").upload(pathlib.Path(__file__))
    writing.sweep(root)
    assert [path.name for path in root.iterdir()] == ["log"]
    with pytest.raises(OSError, match="It is a file"):
        writing.check_writable(root / "log")


def test_what_is_missing_for_a_scheme_is_said(monkeypatch):
    with pytest.raises(ValueError, match="Neither TensorFlow's file systems nor fsspec know nil"):
        paths.of("nil://bucket/run").exists()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"efficientnet_tf\[remote\]"):
        stores.store.__wrapped__("memory")
    with pytest.raises(ValueError, match=r"folder of a server.*must be local"):
        server.versions_folder("ram://models")
    with pytest.raises(ValueError, match="dst must be local"):
        convert.convert("weights.h5", "gs://bucket/weights.safetensors")
    with pytest.raises(ValueError, match="TensorBoard"):
        report.TensorBoard(paths.of("memory://run/tensorboard"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gs://b//c/./d/", "gs://b/c/d"),
        ("S3://b", "s3://b"),
        ("file:///a/b", "/a/b"),
        ("gs://b/c/../d", "gs://b/d"),
        ("plain/file", "plain/file"),
    ],
)
def test_texts_become_paths(text, expected):
    assert str(paths.of(text)) == expected


@pytest.mark.parametrize("text", ["gs://", "gs://..", "gs://b/../..", "gs:///"])
def test_urls_that_lead_nowhere_are_refused(text):
    with pytest.raises(ValueError, match="no file or folder"):
        paths.of(text)


def test_nothing_becomes_a_local_folder_that_is_called_as_a_scheme(tmp_path, monkeypatch):
    assert not [path.name for path in pathlib.Path().iterdir() if path.name.endswith(":")]
    monkeypatch.chdir(tmp_path)
    url = pathlib.Path("gs://bucket/run")  # which is gs:/bucket/run
    for use in (
        paths.of,
        lambda path: run.train(RECIPES["digits"], path),
        lambda path: writing.whole(path / "file").__enter__(),
        classifier.load,
    ):
        with pytest.raises(ValueError, match="URL that lost a slash"):
            use(url)
    with pytest.raises(TypeError, match=r"os\.PathLike"), open(paths.of("ram://bucket/file"), "w"):
        pass
    with pytest.raises(TypeError):
        pathlib.Path(paths.of("ram://bucket"))
    assert not list(tmp_path.iterdir())
