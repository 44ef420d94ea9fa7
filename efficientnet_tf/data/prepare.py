"""Writes class folders, or a table of paths and labels, as sharded TFRecord files.

Every picture is decoded once; those that cannot be are left out and listed in `quarantine.csv`. The
files of the pictures are never touched. A file of records appears whole, and a journal
(`shards.jsonl`) keeps what is finished, so that a run that was stopped goes on where it was. Both
folders may be URLs, see `paths`; there, pictures are told from changed ones by their size alone.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf import paths, writing
from efficientnet_tf.data import folder, images, tables
from efficientnet_tf.data import listing as listing_lib
from efficientnet_tf.data.listing import Listing
from efficientnet_tf.data.records import SPLITS
from efficientnet_tf.data.tfrecord import MANIFEST, VERSION
from efficientnet_tf.paths import AnyPath, Remote

QUARANTINE = "quarantine.csv"
JOURNAL = "shards.jsonl"
_SHARD = re.compile(r"(train|validation|test)-\d{5}-of-\d{5}\.tfrecord")
_BYTES_PER_SHARD = 128 * 2**20
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".gif": "GIF"}
_SECONDS = 1.0  # between reports


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far it is.

    Attributes:
        pictures: that have been dealt with, those of earlier runs too.
        total: pictures altogether.
        bad: of them, pictures that were left out.
        shards: files that are finished.
        num_shards: files altogether.
        rate: pictures per second of this run.
    """

    pictures: int
    total: int
    bad: int
    shards: int
    num_shards: int
    rate: float


@dataclasses.dataclass(frozen=True)
class _Shard:
    name: str
    split: str
    rows: np.ndarray


def prepare(
    source: str,
    to: str | os.PathLike | Remote,
    *,
    shards: int | None = None,
    workers: int | None = None,
    holdout: float = 0.1,
    max_bad: float = 0.01,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes a source as TFRecord files, to be read as "tfrecord:TO".

    The same pictures, settings and seed give the same files, whatever the number of workers. Where
    they have been written before, only what is missing is written.

    Args:
        source: "folder:PATH" or "csv:PATH", see `data.folder` and `data.tables`.
        to: folder to write to; it is made. Nothing else may write there meanwhile.
        shards: files of training pictures; other splits get as many as fit their size. None: files
            of about 128 MiB.
        workers: files that are written at a time; None for one per core.
        holdout: share of the training pictures for each split that the source lacks; 0: the test
            split validates.
        max_bad: largest share of unreadable pictures.
        seed: of the order in which pictures are spread over the files.
        overwrite: whether to begin anew where something else was written before. Files of other
            names are left alone.
        progress: is told how far it is, about once a second.

    Returns:
        The manifest, as in `dataset.json`.

    Raises:
        ValueError: the source cannot be used, or too many pictures cannot be read.
        FileExistsError: something else was written before.
    """
    root = paths.of(to)
    writing.check_writable(root)
    listing = listing_lib.split(_list(source), holdout)
    stamps = [_stamp(path) for path in listing.paths]
    if shards is None:
        trained = sum(stamps[row][0] for row in listing.parts["train"])
        shards = max(1, round(trained / _BYTES_PER_SHARD))
    if shards < 1:
        raise ValueError(f"shards must be at least 1. Received: {shards}")
    fingerprint = _fingerprint(listing, stamps, shards, seed)
    plan = _plan(listing, shards, seed)
    root.mkdir(parents=True, exist_ok=True)
    writing.sweep(root)
    done = _finished(root, fingerprint, overwrite)
    done = {name: entry for name, entry in done.items() if _is_whole(root, entry)}
    _write_all(root, listing, plan, done, workers or os.cpu_count() or 1, max_bad, progress)
    bad = _bad(done)
    listing_lib.without(listing, sorted(bad), max_bad)  # fails where too little is left
    _write_quarantine(root, listing, bad)
    manifest = _manifest(listing, plan, done, fingerprint)
    _replace(root / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _list(source: str) -> Listing:
    kind, _, rest = source.partition(":")
    if kind == "folder" and rest:
        return folder.list_folder(paths.of(rest))
    if kind == "csv" and rest:
        return tables.list_csv(paths.of(rest))
    raise ValueError(f"source must be folder:PATH or csv:PATH. Received: {source!r}")


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of the last change of a file; zeros for a link that leads nowhere."""
    located = paths.of(path)
    if isinstance(located, Remote):
        return located.size(), 0
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _fingerprint(listing: Listing, stamps: list[tuple[int, int]], shards: int, seed: int) -> str:
    """Of what is read and of how it is spread: where it is the same, the files will be."""
    digest = hashlib.sha256(json.dumps([VERSION, shards, seed, listing.class_names]).encode())
    for split in SPLITS:
        digest.update(split.encode())
        for row in listing.parts[split]:
            line = (listing.names[row], listing.labels[row], *stamps[row])
            digest.update(repr(line).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _plan(listing: Listing, shards: int, seed: int) -> list[_Shard]:
    """Which pictures go into which file."""
    plan = []
    for index, split in enumerate(SPLITS):
        rows = listing.parts[split]
        if split == "validation" and rows is listing.parts["test"]:
            continue  # the test split validates
        share = len(rows) / len(listing.parts["train"])
        count = min(len(rows), max(1, round(shards * share)))
        order = np.random.default_rng([seed, index]).permutation(rows)
        for number, part in enumerate(np.array_split(order, count)):
            plan.append(_Shard(f"{split}-{number:05d}-of-{count:05d}.tfrecord", split, part))
    return plan


def _finished(root: AnyPath, fingerprint: str, overwrite: bool) -> dict[str, dict[str, Any]]:
    """What an earlier run finished, by file; begins a journal where there is none."""
    own = (MANIFEST, JOURNAL, QUARANTINE)
    ours = [p for p in root.iterdir() if _SHARD.fullmatch(p.name) or p.name in own]
    lines = list(_journal(root))
    if ours and (not lines or lines[0]["fingerprint"] != fingerprint):
        if not overwrite:
            raise FileExistsError(
                f"{root} holds records of other pictures, or of these before they changed, or with"
                " other settings. Choose another folder, or overwrite."
            )
        for path in ours:
            path.unlink()
        lines = []
    if not lines:
        _replace(root / JOURNAL, json.dumps({"fingerprint": fingerprint}) + "\n")
    return {line["file"]: line for line in lines[1:]}


def _journal(root: AnyPath) -> Iterator[dict[str, Any]]:
    try:
        text = (root / JOURNAL).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.split("\n")[:-1]:  # what follows the last line break was not finished
        yield json.loads(line)


def _is_whole(root: AnyPath, entry: dict[str, Any]) -> bool:
    path = root / entry["file"]
    return path.exists() and paths.size(path) == entry["bytes"]


def _write_all(
    root: AnyPath,
    listing: Listing,
    plan: list[_Shard],
    done: dict[str, dict[str, Any]],
    workers: int,
    max_bad: float,
    progress: Callable[[Progress], None],
) -> None:
    """Writes the files that are not `done`, and adds them to it."""
    total = sum(len(shard.rows) for shard in plan)
    earlier = sum(len(shard.rows) for shard in plan if shard.name in done)
    started = time.monotonic()
    counter = _Counter()

    def tell() -> None:
        rate = counter.pictures / max(time.monotonic() - started, 1e-9)
        read = earlier + counter.pictures
        progress(Progress(read, total, len(_bad(done)), len(done), len(plan), rate))

    _mend(root / JOURNAL)
    with futures.ThreadPoolExecutor(workers) as pool:
        running = {
            pool.submit(_write, root, listing, shard, counter)
            for shard in plan
            if shard.name not in done
        }
        try:
            _check_bad(root, listing, done, total, max_bad)
            while running:
                finished, running = futures.wait(
                    running, timeout=_SECONDS, return_when=futures.FIRST_COMPLETED
                )
                # Those that failed come last: what the others did is kept.
                for future in sorted(finished, key=lambda each: each.exception() is not None):
                    entry = future.result()
                    writing.append(root / JOURNAL, json.dumps(entry) + "\n")
                    done[entry["file"]] = entry
                if finished:
                    _check_bad(root, listing, done, total, max_bad)
                tell()
        except BaseException:
            counter.stop = True
            for future in running:
                future.cancel()
            raise


def _mend(journal: AnyPath) -> None:
    """Takes away a last line that was not finished."""
    text = journal.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        _replace(journal, text[: text.rfind("\n") + 1])


class _Counter:
    """What the threads tell each other."""

    def __init__(self) -> None:
        self.pictures = 0
        self.stop = False
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.pictures += 1


def _write(root: AnyPath, listing: Listing, shard: _Shard, counter: _Counter) -> dict[str, Any]:
    """Writes one file, and says what is in it."""
    bad = []
    with writing.whole(root / shard.name) as temporary:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for row in shard.rows:
                if counter.stop:
                    raise InterruptedError("Another file could not be written.")
                try:
                    example = _example(listing, row)
                except tf.errors.OpError as error:
                    bad.append([int(row), listing_lib.reason(error)])
                except OSError as error:
                    bad.append([int(row), error.strerror or type(error).__name__])
                else:
                    writer.write(example)
                counter.add()
        size = temporary.stat().st_size
    count = len(shard.rows) - len(bad)
    return {"file": shard.name, "num_examples": count, "bytes": size, "bad": bad}


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])
def _shape(content):
    return tf.shape(images.decode(content))


def _example(listing: Listing, row: int) -> bytes:
    content = paths.of(listing.paths[row]).read_bytes()
    height, width, _ = _shape(content).numpy().tolist()
    name = listing.names[row]
    labels = listing.labels[row]
    text = "|".join(listing.class_names[label] for label in labels)
    extension = os.path.splitext(name)[1].lower()
    values = {
        "image/encoded": content,
        "image/format": _FORMATS.get(extension, extension[1:].upper()).encode(),
        "image/filename": os.fsencode(name),
        "image/class/text": text.encode(),
        "image/class/label": [label + 1 for label in labels],
        "image/height": [height],
        "image/width": [width],
    }
    feature = {}
    for key, value in values.items():
        if isinstance(value, bytes):
            feature[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        else:
            feature[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=value))
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def _bad(done: dict[str, dict[str, Any]]) -> dict[int, str]:
    """Row to reason."""
    return dict(pair for entry in done.values() for pair in entry["bad"])


def _check_bad(
    root: AnyPath,
    listing: Listing,
    done: dict[str, dict[str, Any]],
    total: int,
    max_bad: float,
) -> None:
    bad = _bad(done)
    try:
        listing_lib.too_many([listing.paths[row] for row in sorted(bad)], total, max_bad)
    except ValueError as error:
        _write_quarantine(root, listing, bad)
        raise ValueError(f"{error} Those found so far are in {root / QUARANTINE}.") from None


def _write_quarantine(root: AnyPath, listing: Listing, bad: dict[int, str]) -> None:
    if not bad:
        (root / QUARANTINE).unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("path", "reason"))
    writer.writerows((listing.paths[row], bad[row]) for row in sorted(bad))
    with writing.whole(root / QUARANTINE) as temporary:
        # As in the file system: a path need not be valid UTF-8.
        temporary.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def _manifest(
    listing: Listing, plan: list[_Shard], done: dict[str, dict[str, Any]], fingerprint: str
) -> dict[str, Any]:
    splits: dict[str, list[dict[str, Any]]] = {}
    for shard in plan:
        entry = done[shard.name]
        kept = {key: entry[key] for key in ("file", "num_examples", "bytes")}
        splits.setdefault(shard.split, []).append(kept)
    counts = {split: sum(each["num_examples"] for each in files) for split, files in splits.items()}
    return {
        "version": VERSION,
        "class_names": listing.class_names,
        "multi_label": listing.multi_label,
        "first_label": 1,  # in the records, as in ImageNet's official files
        "num_examples": counts,
        "quarantined": len(_bad(done)),
        "splits": splits,
        "fingerprint": fingerprint,
    }


def _replace(path: AnyPath, text: str) -> None:
    with writing.whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
