"""Writing TFRecord files: what is in them, going on after a stop, and unreadable pictures."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import prepare, sources


@pytest.fixture
def pictures(tmp_path):
    """Two classes of 20 pictures; picture i of class k has the color (k, i, 7)."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("ant", "bée")):
        (root / name).mkdir(parents=True)
        for index in range(20):
            pixels = np.full((4, 5, 3), (label, index, 7), np.uint8)
            content = tf.io.encode_png(pixels).numpy()
            (root / name / f"{index:02d}.png").write_bytes(content)
    return root


def _examples(source, split):
    decoded = [source.decode(*record) for record in source.records(split, None)]
    return [(tuple(i[0, 0].numpy().tolist()), label.numpy().tolist()) for i, label in decoded]


def _open(path):
    return sources.open_source(DataConfig(source=f"tfrecord:{path}"))


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_what_the_folder_has(pictures, tmp_path):
    to = tmp_path / "records"
    manifest = prepare.prepare(f"folder:{pictures}", to, shards=3, holdout=0.2)
    written, read = _open(to), sources.open_source(DataConfig(source=f"folder:{pictures}",
                                                              holdout=0.2))  # fmt: skip
    assert written.class_names == ("ant", "bée")
    assert dict(written.num_examples) == dict(read.num_examples) == manifest["num_examples"]
    assert dict(written.num_examples) == {"train": 26, "validation": 6, "test": 8}
    for split in sources.SPLITS:
        assert sorted(_examples(written, split)) == sorted(_examples(read, split))
    assert _examples(written, "train") != sorted(_examples(written, "train"))  # classes are mixed
    assert sorted(path.name for path in to.iterdir()) == [
        "dataset.json",
        "shards.jsonl",
        "test-00000-of-00001.tfrecord",
        "train-00000-of-00003.tfrecord",
        "train-00001-of-00003.tfrecord",
        "train-00002-of-00003.tfrecord",
        "validation-00000-of-00001.tfrecord",
    ]
    assert [shard["num_examples"] for shard in manifest["splits"]["train"]] == [9, 9, 8]


def test_records_have_the_official_keys(pictures, tmp_path):
    prepare.prepare(f"folder:{pictures}", tmp_path / "records", shards=1)
    path = str(tmp_path / "records" / "train-00000-of-00001.tfrecord")
    for serialized in tf.data.TFRecordDataset(path):
        feature = tf.train.Example.FromString(serialized.numpy()).features.feature
        name = feature["image/filename"].bytes_list.value[0].decode()
        assert feature["image/encoded"].bytes_list.value[0] == (pictures / name).read_bytes()
        text = feature["image/class/text"].bytes_list.value[0].decode()
        assert text == name.split("/")[0]
        # From 1, as in ImageNet's.
        assert list(feature["image/class/label"].int64_list.value) == [1 + (text != "ant")]
        assert feature["image/height"].int64_list.value[0] == 4
        assert feature["image/width"].int64_list.value[0] == 5
        assert feature["image/format"].bytes_list.value[0] == b"PNG"


def test_a_table_with_several_labels(pictures, tmp_path):
    table = tmp_path / "table.csv"
    lines = [f"pictures/ant/{i:02d}.png,{'a|b' if i % 2 else 'b'}" for i in range(20)]
    table.write_text("path,label\n" + "\n".join(lines))
    prepare.prepare(f"csv:{table}", tmp_path / "records", shards=2, holdout=0.2)
    source = _open(tmp_path / "records")
    assert source.multi_label
    found = [example for split in sources.SPLITS for example in _examples(source, split)]
    assert sorted(found) == [((0, i, 7), [i % 2, 1]) for i in range(20)]


def test_without_a_holdout_the_test_split_is_written_once(pictures, tmp_path):
    split = tmp_path / "split"
    split.mkdir()
    (split / "train").symlink_to(pictures)
    (split / "test").symlink_to(pictures)
    manifest = prepare.prepare(f"folder:{split}", tmp_path / "records", shards=2, holdout=0.0)
    assert manifest["num_examples"] == {"train": 40, "test": 40}
    assert _open(tmp_path / "records").num_examples["validation"] == 40


def test_the_same_seed_gives_the_same_files_whatever_the_workers(pictures, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, workers, seed in zip(folders, (1, 4, 4), (1, 1, 2), strict=True):
        prepare.prepare(f"folder:{pictures}", folder, shards=4, workers=workers, seed=seed)
    first, second, other = ({k: v for k, v in _contents(f).items() if "jsonl" not in k}
                            for f in folders)  # fmt: skip
    assert first == second
    assert first["train-00000-of-00004.tfrecord"] != other["train-00000-of-00004.tfrecord"]


def test_a_stopped_run_goes_on(pictures, tmp_path, monkeypatch):
    expected = tmp_path / "expected"
    prepare.prepare(f"folder:{pictures}", expected, shards=4, workers=1)

    to = tmp_path / "records"
    example, written, seen = prepare._example, [], []

    def count(listing, row):
        written.append(row)
        if len(written) >= 20 and not seen:  # shards that a thread begins before it is told
            raise MemoryError("stopped")
        return example(listing, row)

    monkeypatch.setattr(prepare, "_example", count)
    with pytest.raises(MemoryError):
        prepare.prepare(f"folder:{pictures}", to, shards=4, workers=1)
    assert not (to / "dataset.json").exists()
    with pytest.raises(ValueError, match=r"no .*dataset.json, which .* writes when it is done"):
        _open(to)
    finished = [path for path in to.iterdir() if path.suffix == ".tfrecord"]
    assert len(finished) == 2  # of 8, 8, 8 and 8 pictures
    with open(to / "shards.jsonl", "ab") as journal:
        journal.write(b'{"file": "train-0000')  # killed while it wrote this
    stamps = {path: path.stat().st_mtime_ns for path in finished}
    del written[:]
    seen.append("from here on nothing stops it")

    prepare.prepare(f"folder:{pictures}", to, shards=4, workers=1, progress=seen.append)
    assert len(written) == 40 - 16
    assert {path: path.stat().st_mtime_ns for path in finished} == stamps
    assert _contents(to) == _contents(expected)
    assert (seen[-1].pictures, seen[-1].total, seen[-1].shards) == (40, 40, 6)

    # A file that is lost or cut off is written again, and nothing else is.
    del written[:]
    shard = to / "train-00001-of-00004.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-1])
    prepare.prepare(f"folder:{pictures}", to, shards=4, workers=1)
    assert len(written) == 8
    assert {p.name: p.read_bytes() for p in to.glob("*.tfrecord")} == {
        p.name: p.read_bytes() for p in expected.glob("*.tfrecord")
    }


def test_other_pictures_or_settings_are_not_mixed(pictures, tmp_path):
    to = tmp_path / "records"
    prepare.prepare(f"folder:{pictures}", to, shards=2)
    (to / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="other settings"):
        prepare.prepare(f"folder:{pictures}", to, shards=3)
    with pytest.raises(FileExistsError, match="holds records of other pictures"):
        prepare.prepare(f"folder:{pictures}", to, shards=2, seed=1)
    os.rename(pictures / "ant" / "00.png", pictures / "ant" / "new.png")
    with pytest.raises(FileExistsError):
        prepare.prepare(f"folder:{pictures}", to, shards=2)
    prepare.prepare(f"folder:{pictures}", to, shards=1, overwrite=True)
    assert sorted(path.name for path in to.glob("train*")) == ["train-00000-of-00001.tfrecord"]
    assert (to / "notes.txt").read_text() == "mine"


def _stamp(path):
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def test_unreadable_pictures_are_quarantined_by_a_list(pictures, tmp_path):
    whole = (pictures / "ant" / "01.png").read_bytes()
    (pictures / "ant" / "01.png").write_bytes(whole[:40])
    (pictures / "bée" / "02.png").write_bytes(b"")
    (pictures / "bée" / "03.png").unlink()
    (pictures / "bée" / "03.png").symlink_to(tmp_path / "nowhere")
    before = {path: _stamp(path) for path in pictures.rglob("*")}
    to = tmp_path / "records"
    with pytest.raises(ValueError, match=r"^\d of 40 pictures are empty, cut off .*quarantine.csv"):
        prepare.prepare(f"folder:{pictures}", to, shards=2)
    assert (to / "quarantine.csv").exists()
    assert not (to / "dataset.json").exists()
    manifest = prepare.prepare(f"folder:{pictures}", to, shards=2, max_bad=0.1)  # goes on
    assert manifest["quarantined"] == 3
    assert sum(manifest["num_examples"].values()) == 37
    with open(to / "quarantine.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [os.path.relpath(row["path"], pictures) for row in rows]
    assert names == ["ant/01.png", "bée/02.png", "bée/03.png"]
    assert all(row["reason"] for row in rows)
    assert rows[2]["reason"] == "No such file or directory"
    after = {path: _stamp(path) for path in pictures.rglob("*")}
    assert after == before  # nothing is touched
    found = [example for split in sources.SPLITS for example in _examples(_open(to), split)]
    assert len(set(found)) == 37


def test_a_class_that_is_wholly_unreadable_is_named(pictures, tmp_path):
    for path in (pictures / "ant").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"nothing is left of class 'ant'"):
        prepare.prepare(f"folder:{pictures}", tmp_path / "records", max_bad=0.6)


def test_files_that_changed_after_writing_are_found(pictures, tmp_path, caplog):
    to = tmp_path / "records"
    prepare.prepare(f"folder:{pictures}", to, shards=2)
    shard = to / "train-00001-of-00002.tfrecord"
    content = shard.read_bytes()
    shard.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"about 1 of 40 records .*train-00001-of-00002"):
        _open(to)
    with caplog.at_level("WARNING", "absl"):
        source = sources.open_source(DataConfig(source=f"tfrecord:{to}", max_bad=0.05))
    assert not source.checked
    assert source.bad == (f"{shard} (cut off)",)
    assert "train-00001-of-00002" in caplog.text
    assert source.num_examples["train"] == 31
    assert len(_examples(source, "train")) == 31
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-00001-of-00002.tfrecord is missing"):
        _open(to)
    (to / "dataset.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match="expected version 1"):
        _open(to)


def test_sources_that_cannot_be_written_are_refused(tmp_path):
    for source in ("digits", "tfds:mnist", "folder:"):
        with pytest.raises(ValueError, match="must be folder:PATH or csv:PATH"):
            prepare.prepare(source, tmp_path)


_KILLED = """
import os, signal, sys, time
from efficientnet_tf.data import prepare

source, to = sys.argv[1:]
written, example = [], prepare._example

def kill(listing, row):  # as the system does for lack of memory, inside the seventh of ten files
    written.append(row)
    if len(written) == 26:
        while open(f"{to}/shards.jsonl").read().count("file") < 5:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return example(listing, row)

prepare._example = kill
prepare.prepare(source, to, shards=8, workers=1)
"""


def test_the_script_goes_on_after_it_was_killed(pictures, tmp_path, root):
    to = tmp_path / "records"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", _KILLED, f"folder:{pictures}", str(to)]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -9
    journal = (to / "shards.jsonl").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in to.glob("[!.]*.tfrecord")}
    kept = {path: stamp for path, stamp in stamps.items() if path.name in journal}
    assert 5 <= len(kept) <= len(stamps) == 6
    assert not (to / "dataset.json").exists()

    command = [sys.executable, "scripts/prepare_data.py", f"--data=folder:{pictures}"]
    command += [f"--to={to}", "--shards=8"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 classes, 32 train, 4 validation, 4 test" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found = [example for split in sources.SPLITS for example in _examples(_open(to), split)]
    assert len(set(found)) == len(found) == 40
