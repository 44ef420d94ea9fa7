"""Pictures in class folders."""

import os
from collections.abc import Iterator, Mapping

import numpy as np
from absl import logging

from efficientnet_tf import paths
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import listing as listing_lib
from efficientnet_tf.data.listing import Listing
from efficientnet_tf.data.records import Source, first_few
from efficientnet_tf.labels import check_class_name
from efficientnet_tf.paths import AnyPath, Remote

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}


def open_folder(config: DataConfig) -> Source:
    """Opens class folders, either below a folder or below its train, validation and test folders.

    Args:
        config: `source` is "folder:PATH"; see `listing.source` for the others that are used.

    Raises:
        ValueError: the pictures cannot be trained on; the message says why.
    """
    root = paths.of(config.source.partition(":")[2])
    return listing_lib.source(list_folder(root), config)


def list_folder(root: AnyPath) -> Listing:
    """Lists PATH/CLASS/PICTURE, or PATH/SPLIT/CLASS/PICTURE.

    Pictures may be at any depth below their class folder. Folders that are called as splits are
    (`train`, `val`, ...) are splits where they hold folders, and classes where they hold pictures.

    Args:
        root: folder.

    Raises:
        ValueError: it cannot be trained on; the message says why.
    """
    if not root.is_dir():
        raise ValueError(f"data.source: there is no folder {str(root)!r}.")
    found = {split: _class_folders(folder) for split, folder in _split_folders(root).items()}
    if "train" not in found:
        if found:
            raise ValueError(f"{root} has {', '.join(found)} but no train folder.")
        found = {"train": _class_folders(root)}
    class_names = _same_classes(root, found)

    files: list[str] = []
    labels: list[tuple[int, ...]] = []
    parts: dict[str, np.ndarray] = {}
    for split, classes in found.items():
        first = len(files)
        for label, class_name in enumerate(class_names):
            files += classes[class_name]
            labels += [(label,)] * len(classes[class_name])
        parts[split] = np.arange(first, len(files))
    names = [os.path.relpath(file, str(root)) for file in files]
    return Listing(names, files, labels, class_names, parts)


def list_pictures(root: AnyPath) -> list[str]:
    """Lists the pictures of a folder, at any depth, whatever its folders mean; sorted.

    Of a folder with a train folder (see `list_folder`) these are the pictures in that.

    Args:
        root: folder.

    Raises:
        ValueError: there are none.
    """
    if not root.is_dir():
        raise ValueError(f"There is no folder {str(root)!r}.")
    found = _split_folders(root)
    if found and "train" not in found:
        raise ValueError(f"{root} has {', '.join(found)} but no train folder.")
    files = _files(found.get("train", root))
    pictures = sorted(file for file in files if file.lower().endswith(EXTENSIONS))
    if not pictures:
        raise ValueError(f"{root} has no pictures. Pictures end in {', '.join(EXTENSIONS)}.")
    return pictures


def _split_folders(root: AnyPath) -> dict[str, AnyPath]:
    """Split to its folder; none where the folders of these names are classes."""
    found = {}
    for split, names in _SPLIT_FOLDERS.items():
        present = [root / name for name in names if (root / name).is_dir()]
        if len(present) > 1:
            raise ValueError(
                f"{root} has more than one {split} folder: {', '.join(p.name for p in present)}."
            )
        if present:
            found[split] = present[0]
    if not found:
        return {}
    others = [
        folder
        for folder in visible_folders(root)
        if folder not in found.values()
        and any(f.lower().endswith(EXTENSIONS) for f in _files(folder))
    ]
    if not others:
        return found
    if not any(visible_folders(folder) for folder in found.values()):
        return {}  # "train" beside "plane": a class of pictures of trains
    used = ", ".join(folder.name for folder in found.values())
    if len(found) == 1:
        raise ValueError(
            f"{root}: cannot tell whether {used} is a split or a class, because it holds folders"
            f" and is beside {first_few([folder.name for folder in others])}. Put the classes into"
            " train/, or move the other folders away."
        )
    logging.warning(
        "%s: used are %s; ignored are %s", root, used, first_few([f.name for f in others])
    )
    return found


def visible_folders(root: AnyPath) -> list[AnyPath]:
    """The folders in a folder that may be classes, by name."""
    if isinstance(root, Remote):
        folders = [path for path, is_folder in root.entries() if is_folder]
    else:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    return [
        folder
        for folder in folders
        if not folder.name.startswith(".") and folder.name != "__MACOSX"  # the latter from archives
    ]


def _class_folders(root: AnyPath) -> dict[str, list[str]]:
    """Class name to the sorted paths of its pictures; hidden files and folders do not count."""
    classes = {}
    ignored: list[str] = []
    for folder in visible_folders(root):
        check_class_name(folder.name, f"The class folder {os.fsencode(str(folder))!r}")
        files = sorted(_files(folder))
        classes[folder.name] = [f for f in files if f.lower().endswith(EXTENSIONS)]
        ignored += [f for f in files if not f.lower().endswith(EXTENSIONS)]
    if not classes:
        raise ValueError(
            f"{root} has no class folders. Expected {root}/<class>/<picture>, or the same below"
            " train/ and test/."
        )
    empty = [name for name, files in classes.items() if not files]
    if len(empty) == len(classes):
        raise ValueError(f"{root} has no pictures. Pictures end in {', '.join(EXTENSIONS)}.")
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(classes)} class folders of {root} have no pictures:"
            f" {first_few(empty)}. Remove them or fill them."
        )
    if ignored:
        endings = ", ".join(EXTENSIONS)
        message = "%d files are ignored, because pictures end in %s: %s"
        logging.warning(message, len(ignored), endings, first_few(ignored))
    return classes


def _files(folder: AnyPath) -> Iterator[str]:
    """Paths of the files at any depth, but for hidden ones ("._a.jpg", ".ipynb_checkpoints")."""
    for directory, below, files in paths.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        visible = (name for name in files if not name.startswith("."))
        yield from (os.path.join(str(directory), name) for name in visible)


def _same_classes(root: AnyPath, found: Mapping[str, Mapping[str, list[str]]]) -> tuple[str, ...]:
    expected = found["train"]
    for split, classes in found.items():
        missing = sorted(set(expected) - set(classes))
        extra = sorted(set(classes) - set(expected))
        if missing or extra:
            raise ValueError(
                f"The classes of {root} differ between train and {split}."
                f" Only in train: {first_few(missing) or 'none'}."
                f" Only in {split}: {first_few(extra) or 'none'}."
            )
    if len(expected) < 2:
        raise ValueError(f"{root} has one class, {next(iter(expected))!r}. Expected at least two.")
    return tuple(sorted(expected))
