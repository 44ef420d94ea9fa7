"""Every published checkpoint as a record: where it is, what it is, and how it wants its pictures.

Tags say what the weights were trained with:

* `imagenet`: what keras.applications means by it (V1: AutoAugment; V2: ImageNet-1k); for Lite and
  EdgeTPU, the only official weights. Variants without such weights have no such tag.
* `imagenet-baseline`, `imagenet-autoaugment`, `imagenet-randaug`, `imagenet-advprop`,
  `noisy-student` (and `noisy-student-475`), `imagenet21k`, `imagenet21k-ft1k`: the official files.
* `official/…`, `qubvel/…`, `leondgarse/…`, `lukemelas/…`, `timm/…`: the same or similar weights
  from another place, in another format.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from efficientnet_tf import paths, preprocessing
from efficientnet_tf.arch import VARIANTS
from efficientnet_tf.preprocessing import NORMALIZATIONS, LabelMap, Preprocessing
from efficientnet_tf.weights import tables

OFFICIAL_URL = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet/"
_KERAS_V1_URL = "https://storage.googleapis.com/keras-applications/"
_KERAS_V2_URL = "https://storage.googleapis.com/tensorflow/keras-applications/efficientnet_v2/"
_CALLIDIOR_URL = "https://github.com/Callidior/keras-applications/releases/download/efficientnet/"
_QUBVEL_URL = "https://github.com/qubvel/efficientnet/releases/download/v0.0.1/"
_LEONDGARSE_URL = "https://github.com/leondgarse/keras_efficientnet_v2/releases/download/"
_LUKEMELAS_URL = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
_TIMM_URL = "https://github.com/rwightman/pytorch-image-models/releases/download/"

Format = Literal["official", "keras-h5", "pytorch"]

CLASSES: dict[LabelMap, int] = {
    "imagenet": 1000,
    "imagenet-background": 1001,
    "imagenet21k": 21843,
}
# What a path to weights can end in. Tags never do.
SUFFIXES = (".tar.gz", ".tgz", ".tar", ".h5", ".keras", ".safetensors", ".pth", ".pt", ".index")


@dataclasses.dataclass(frozen=True)
class WeightsRecord:
    """One published checkpoint.

    Attributes:
        variant: key in `VARIANTS`.
        tag: what `weights=` takes; unique for the variant.
        source: who published the file.
        url: of the file; None where it is on the Hugging Face hub only.
        hash: "md5:…", "sha256:…", or "sha256-prefix:…" with the first 8 digits; None where none
            is published.
        format: which reader it needs.
        preprocessing: what the weights were evaluated with; its `labels` say what the classes are.
        top1: reported accuracy on ImageNet's validation set, percent, by the publisher (timm: its
            own evaluation); None where none is reported for this file.
        url_notop: of a separate file without the classifier, where there is one.
        hash_notop: of that file.
        hub: name on the Hugging Face hub, where the same weights are `model.safetensors`.
    """

    variant: str
    tag: str
    source: str
    url: str | None
    hash: str | None
    format: Format
    preprocessing: Preprocessing
    top1: float | None = None
    url_notop: str | None = None
    hash_notop: str | None = None
    hub: str | None = None

    @property
    def label_map(self) -> LabelMap:
        """What the classes are; "imagenet-background" has the background as class 0."""
        labels = self.preprocessing.labels
        if labels is None:
            raise ValueError(f"The record {self.variant} {self.tag} does not say its labels.")
        return labels

    @property
    def classes(self) -> int:
        """Number of classes of the classifier."""
        return CLASSES[self.label_map]

    @property
    def resolution(self) -> int:
        """Evaluation size, pixels, square."""
        return self.preprocessing.size


def list_weights(variant: str | None = None) -> list[WeightsRecord]:
    """Lists the published weights.

    Args:
        variant: only those of this variant; None for all.

    Raises:
        ValueError: an unknown variant.
    """
    if variant is None:
        return list(RECORDS.values())
    from efficientnet_tf.arch.scaling import find as find_variant

    name = find_variant(variant).name
    return [record for record in RECORDS.values() if record.variant == name]


def find(variant: str, tag: str) -> WeightsRecord:
    """Looks a record up.

    >>> find("efficientnet-b0", "imagenet-advprop").top1
    77.6

    Raises:
        ValueError: lists the variant's tags and suggests one.
    """
    record = RECORDS.get((variant, tag))
    if record is not None:
        return record
    tags = [record.tag for record in list_weights(variant)]
    close = difflib.get_close_matches(str(tag).lower().replace("_", "-"), tags, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    known = f"Its tags: {', '.join(tags)}." if tags else "There are no published weights for it."
    raise ValueError(
        f"{variant} has no weights {tag!r}.{hint} {known} None gives random weights, and a path "
        "loads a file."
    )


def lookup(variant: str, weights: str | os.PathLike[str]) -> WeightsRecord | None:
    """Tells a tag from a path.

    A tag of the variant is always the tag: a folder called `imagenet` does not hide it (write
    `./imagenet` for the folder). Anything else that exists, or is written like a path, is one.

    Args:
        variant: key in `VARIANTS`, or the name of a network of your own.
        weights: a tag or a path.

    Returns:
        The record of a tag; None for a path.

    Raises:
        ValueError: neither a tag nor a path.
        FileNotFoundError: written like a path, but there is nothing.
    """
    if (variant, weights) in RECORDS:
        return RECORDS[variant, str(weights)]
    path = paths.of(weights)
    if str(weights) and (path.exists() or paths.of(f"{path}.index").exists()):
        return None
    text = str(path)
    starts = (os.sep, "." + os.sep, ".." + os.sep, "~")
    written = not isinstance(weights, str) or "://" in text
    if written or weights.startswith(starts) or text.endswith(SUFFIXES):
        raise FileNotFoundError(f"There are no weights at {text}.")
    if variant not in VARIANTS:
        raise ValueError(
            f"{variant!r} is no published variant, so it has no weights {weights!r}. Give the path "
            "of a file, or None for random weights."
        )
    return find(variant, weights)


def recognise(variant: str, path: str | os.PathLike[str]) -> list[WeightsRecord]:
    """Finds the records that a local file may be, by the name under which it was published.

    A file does not say how its pictures were normalised; a published name does, but for V1's
    archives: `efficientnet-b0.tar.gz` was published with two normalisations.

    Args:
        variant: key in `VARIANTS`, or the name of a network of your own.
        path: of the file as it was downloaded, or of the folder of its archive.

    Returns:
        The records whose file has this name; none for a name that was not published.
    """
    name = paths.of(path).name
    stem = _stem(name)
    return [
        record
        for record in RECORDS.values()
        if record.variant == variant
        and stem in {_stem(os.path.basename(url)) for url in (record.url, record.url_notop) if url}
    ]


def published(variant: str, weights: str | os.PathLike[str]) -> WeightsRecord | None:
    """Returns the record of a tag, or of a path whose file has a published name.

    Args:
        variant: key in `VARIANTS`, or the name of a network of your own.
        weights: a tag or a path.

    Returns:
        None for a path of another name, or of one under which files with different normalisations
        were published.

    Raises:
        ValueError: neither a tag nor a path.
        FileNotFoundError: written like a path, but there is nothing.
    """
    record = lookup(variant, weights)
    if record is not None:
        return record
    records = recognise(variant, weights)
    kinds = {(r.preprocessing.mean, r.preprocessing.std, r.classes) for r in records}
    return records[0] if len(kinds) == 1 else None


def _stem(name: str) -> str:
    return next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)


def _official() -> Iterator[WeightsRecord]:
    for tag, files in tables.OFFICIAL.items():
        for variant, (file, top1) in files.items():
            yield WeightsRecord(
                variant,
                tag,
                "official",
                OFFICIAL_URL + file,
                None,
                "official",
                _evaluation(variant, tag),
                top1,
            )


def _keras() -> Iterator[WeightsRecord]:
    for variant, (top, notop) in tables.KERAS_MD5.items():
        file = variant if variant.startswith("efficientnetv2") else variant.replace("-", "")
        base = (_KERAS_V2_URL if file == variant else _KERAS_V1_URL) + file
        same = "official/imagenet" if file == variant else "imagenet-autoaugment"
        yield WeightsRecord(
            variant,
            "imagenet",
            "keras.applications",
            base + ".h5",
            f"md5:{top}",
            "keras-h5",
            _evaluation(variant, "imagenet"),
            tables.OFFICIAL[same][variant][1],
            base + "_notop.h5",
            f"md5:{notop}",
        )


def _qubvel() -> Iterator[WeightsRecord]:
    rows = (
        ("autoaugment", "sha256", tables.QUBVEL_AUTOAUGMENT_SHA256, _CALLIDIOR_URL),
        ("noisy-student", "md5", tables.QUBVEL_NOISY_STUDENT_MD5, _QUBVEL_URL),
    )
    for name, algorithm, hashes, base in rows:
        middle = "_noisy-student"
        if name == "autoaugment":
            middle = "_weights_tf_dim_ordering_tf_kernels_autoaugment"
        for variant, (top, notop) in hashes.items():
            yield WeightsRecord(
                variant,
                f"qubvel/{name}",
                "qubvel",
                f"{base}{variant}{middle}.h5",
                f"{algorithm}:{top}",
                "keras-h5",
                _evaluation(variant, name),
                None,
                f"{base}{variant}{middle}_notop.h5",
                f"{algorithm}:{notop}",
            )


def _leondgarse() -> Iterator[WeightsRecord]:
    tags = {
        "imagenet": "imagenet",
        "21k": "imagenet21k",
        "21k-ft1k": "imagenet21k-ft1k",
        "noisy_student": "noisy-student",
    }
    for variant, hashes in tables.LEONDGARSE_MD5.items():
        generation = "v2" if variant.startswith("efficientnetv2") else "v1"
        file = f"efficientnet{generation}-{variant.rsplit('-', 1)[1]}"
        for name, digits in hashes.items():
            yield WeightsRecord(
                variant,
                f"leondgarse/{tags[name]}",
                "leondgarse",
                f"{_LEONDGARSE_URL}effnet{generation}_pretrained/{file}-{name}.h5",
                f"md5:{digits}",
                "keras-h5",
                _evaluation(variant, tags[name]),
            )


def _lukemelas() -> Iterator[WeightsRecord]:
    for tag, hashes in tables.LUKEMELAS_SHA8.items():
        prefix = "adv-" if tag == "imagenet-advprop" else ""
        for variant, digits in hashes.items():
            yield WeightsRecord(
                variant,
                f"lukemelas/{tag}",
                "lukemelas",
                f"{_LUKEMELAS_URL}{prefix}{variant}-{digits}.pth",
                f"sha256-prefix:{digits}",
                "pytorch",
                _evaluation(variant, tag),
            )


def _timm() -> Iterator[WeightsRecord]:
    for variant, name, file, normalization, size, resize, crop, top1 in tables.TIMM:
        release = "v0.1-effv2-weights" if "v2" in name else "v0.1-weights"
        mean, std = NORMALIZATIONS[normalization]
        yield WeightsRecord(
            variant,
            f"timm/{name}",
            "timm",
            f"{_TIMM_URL}{release}/{file}.pth" if file else None,
            f"sha256-prefix:{file.rsplit('-', 1)[1]}" if file else None,
            "pytorch",
            Preprocessing(
                normalization,
                mean,
                std,
                size,
                resize_method=resize,
                crop="squash" if crop == "squash" else "fraction",
                crop_fraction=None if crop == "squash" else float(crop),
                labels="imagenet21k" if name.endswith(".in21k") else "imagenet",
            ),
            top1,
            hub=f"timm/{name}",
        )


def _evaluation(variant: str, tag: str) -> Preprocessing:
    """Evaluation rule of the official weights, from the variant's row and what the tag changes."""
    row = VARIANTS[variant]
    size, normalization = row.resolution, row.preprocessing
    labels: LabelMap = "imagenet-background" if row.classes == 1001 else "imagenet"
    if tag == "imagenet21k":
        size, normalization, labels = 224, "v2", "imagenet21k"  # automl datasets.py Imagenet21k
    elif tag == "imagenet21k-ft1k":
        normalization = "v2"
    elif tag == "imagenet-advprop":
        normalization = "inception"
    elif tag == "noisy-student-475":
        size = 475
    rule = preprocessing.default(normalization, size, labels)
    if tag == "imagenet21k-ft1k":  # automl's fine-tuning resizes whole pictures at any size
        return dataclasses.replace(rule, crop="squash")
    return rule


def _collect() -> dict[tuple[str, str], WeightsRecord]:
    records = [
        *_keras(),
        *_official(),
        *_qubvel(),
        *_leondgarse(),
        *_lukemelas(),
        *_timm(),
    ]
    order = list(VARIANTS)
    records.sort(key=lambda record: order.index(record.variant))
    return {(record.variant, record.tag): record for record in records}


RECORDS: dict[tuple[str, str], WeightsRecord] = _collect()

_FILE_NAMES = Counter(record.url.rsplit("/", 1)[1] for record in RECORDS.values() if record.url)


def unique_file_name(url: str) -> bool:
    """Whether no other published file has the same name, so that the name alone identifies it."""
    return _FILE_NAMES[url.rsplit("/", 1)[1]] <= 1
