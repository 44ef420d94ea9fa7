"""Pictures listed in a table of paths and labels."""

import csv
import dataclasses
import functools
import os
from collections.abc import Callable

import numpy as np
from absl import logging

from efficientnet_tf import paths
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import listing as listing_lib
from efficientnet_tf.data.listing import Listing
from efficientnet_tf.data.records import SPLITS, Source, first_few
from efficientnet_tf.labels import check_class_name
from efficientnet_tf.paths import AnyPath, Remote

COLUMNS = ("path", "label", "split")


@dataclasses.dataclass(frozen=True)
class _Row:
    line: int
    name: str
    labels: tuple[str, ...]
    split: str  # empty where the table has no such column


def open_csv(config: DataConfig) -> Source:
    """Opens a table of paths and labels, see `list_csv`.

    Args:
        config: `source` is "csv:PATH"; see `listing.source` for the others that are used.

    Raises:
        ValueError: the pictures cannot be trained on; the message says why.
    """
    path = paths.of(config.source.partition(":")[2])
    return listing_lib.source(list_csv(path), config)


def list_csv(table: AnyPath) -> Listing:
    """Reads a table with the columns path, label and, if wanted, split.

    Paths are relative to the table's folder. A label may be several, `cat|dog`: then the whole
    table has several labels a picture. Splits are train, validation and test; without them the
    pictures are held out as from a folder. The first line may name the columns, in any order and
    beside others; without it they are path, label, split. UTF-8, commas, quotes as in RFC 4180. A
    local table may name other places by absolute paths, one in a store by URLs of its scheme.

    Args:
        table: file.

    Raises:
        ValueError: naming lines.
    """
    if not table.is_file():
        raise ValueError(f"data.source: there is no file {str(table)!r}.")
    rows, mistakes = _rows(table)
    rows, more = _unique(rows)
    mistakes += more
    if mistakes:
        raise ValueError(f"{table}: {len(mistakes)} wrong lines: {first_few(mistakes)}")
    if not rows:
        raise ValueError(f"{table} lists no pictures.")

    multi_label = any(len(row.labels) > 1 for row in rows)
    class_names = tuple(sorted({label for row in rows for label in row.labels}))
    if len(class_names) < 2:
        raise ValueError(f"{table} has one class, {class_names[0]!r}. Expected at least two.")
    for class_name in class_names:
        check_class_name(class_name, f"{table}: a class")
    number = {class_name: label for label, class_name in enumerate(class_names)}
    splits = np.array([row.split or "train" for row in rows])
    parts = {split: np.flatnonzero(splits == split) for split in SPLITS if split in splits}
    if "train" not in parts:
        raise ValueError(f"{table} has {', '.join(parts)} but no train pictures.")
    trained = {label for index in parts["train"] for label in rows[index].labels}
    if missing := [class_name for class_name in class_names if class_name not in trained]:
        raise ValueError(f"{table}: classes without training pictures: {first_few(missing)}")
    return Listing(
        names=[row.name for row in rows],
        paths=[str(paths.joined(table.parent, row.name)) for row in rows],
        labels=[tuple(sorted(number[label] for label in row.labels)) for row in rows],
        class_names=class_names,
        parts=parts,
        multi_label=multi_label,
    )


def _rows(table: AnyPath) -> tuple[list[_Row], list[str]]:
    """The rows, and what is wrong with others."""
    is_file = _finder(table.parent)
    rows: list[_Row] = []
    mistakes: list[str] = []
    columns: dict[str, int] | None = None
    width = 0
    # Paths need not be valid UTF-8, and spreadsheets write a mark in front (utf-8-sig).
    with paths.open_text(table, "utf-8-sig", "surrogateescape") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if columns is None:
                    head = [cell.strip().lower() for cell in cells]
                    if {"path", "label"} <= set(head):
                        columns = {name: head.index(name) for name in COLUMNS if name in head}
                        width = len(cells)
                        continue
                    width = min(max(len(cells), 2), len(COLUMNS))
                    columns = {name: index for index, name in enumerate(COLUMNS[:width])}
                row = _row(is_file, reader.line_num, cells, columns, width)
                if isinstance(row, str):
                    mistakes.append(row)
                else:
                    rows.append(row)
        except csv.Error as error:
            raise ValueError(f"{table}, line {reader.line_num}: {error}") from None
    return rows, mistakes


def _row(
    is_file: Callable[[str], bool],
    line: int,
    cells: list[str],
    columns: dict[str, int],
    width: int,
) -> _Row | str:
    """One row, or what is wrong with it."""
    if len(cells) != width:
        return f"line {line}: expected {width} cells ({', '.join(columns)}), found {len(cells)}"
    cell = {name: cells[index].strip() for name, index in columns.items()}
    labels = tuple(label.strip() for label in cell["label"].split("|"))
    if not cell["path"]:
        return f"line {line}: no path"
    if not all(labels):
        return f"line {line}: an empty label"
    if "split" in cell and cell["split"] not in SPLITS:
        return f"line {line}: the split must be one of {', '.join(SPLITS)}, not {cell['split']!r}"
    name = cell["path"] if "://" in cell["path"] else os.path.normpath(cell["path"])
    try:
        found = is_file(name)
    except ValueError as error:
        return f"line {line}: {error}"
    if not found:
        hint = " (the first line may name the columns: path,label)" if line == 1 else ""
        return f"line {line}: there is no file {name!r}{hint}"
    return _Row(line, name, tuple(sorted(set(labels))), cell.get("split", ""))


def _finder(folder: AnyPath) -> Callable[[str], bool]:
    """Tells whether there is a file of a name; stores are asked once for each of their folders."""
    if not isinstance(folder, Remote):
        return lambda name: paths.joined(folder, name).is_file()

    @functools.cache
    def files(inside: Remote) -> frozenset[Remote]:
        if not inside.is_dir():
            return frozenset()
        return frozenset(path for path, is_folder in inside.entries() if not is_folder)

    def is_file(name: str) -> bool:
        path = paths.joined(folder, name)
        return path in files(path.parent)

    return is_file


def _unique(rows: list[_Row]) -> tuple[list[_Row], list[str]]:
    """Each picture once; a picture with two labels or in two splits is a mistake."""
    first: dict[str, _Row] = {}
    mistakes, repeated = [], []
    for row in rows:
        earlier = first.setdefault(row.name, row)
        if earlier is row:
            continue
        if earlier.labels != row.labels:
            old, new = "|".join(earlier.labels), "|".join(row.labels)
            mistakes.append(
                f"line {row.line}: {row.name!r} is {new!r}, but {old!r} in line {earlier.line}"
                " (several labels of a picture are written a|b)"
            )
        elif earlier.split != row.split:
            mistakes.append(
                f"line {row.line}: {row.name!r} is in {row.split}, but in {earlier.split} in line"
                f" {earlier.line}"
            )
        else:
            repeated.append(f"line {row.line}")
    if repeated:
        logging.warning(
            "%d lines repeat others and are not used: %s", len(repeated), first_few(repeated)
        )
    return list(first.values()), mistakes
