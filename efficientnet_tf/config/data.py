"""Settings of the pictures."""

import dataclasses
from typing import Literal

from efficientnet_tf.config import checks
from efficientnet_tf.preprocessing import ResizeMethod

SOURCES = ("folder", "csv", "tfds", "imagenet", "imagenet21k", "tfrecord", "npz", "fake")
GIVEN = "given"  # no setting leads to these pictures


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from, and what is done to those that are trained on.

    Attributes:
        source: "digits", "folder:PATH", "csv:PATH", "tfds:NAME", "imagenet:PATH" and
            "imagenet21k:PATH" (TFRecord files in the official layouts), "tfrecord:PATH" (written by
            `scripts/prepare_data.py`), "npz:PATH" or "fake" ("fake:CLASSESxPIXELS"); see
            `data.sources`. "given" for one that was made in Python (`train.run.train(source=)`).
        data_dir: where TensorFlow Datasets keeps its files; None for its own default.
        train_split: slice of TensorFlow Datasets ("train[:90%]") instead of the one chosen.
        validation_split: likewise.
        test_split: likewise.
        batch_size: pictures per step, over all replicas; None for as many as fit the memory.
        holdout: share of the training pictures that is set apart for every split that the source
            lacks (test, validation). 0: validate on the test split. ImageNet has a part of its own
            to hold out ("minival"): there it only counts whether this is 0. "tfrecord" has the
            splits that were written.
        check_pictures: whether every picture of a folder or table is decoded once before training
            starts, so that unreadable ones are named at once instead of after hours. Other sources
            name them when they read them.
        max_bad: largest share of unreadable pictures or wrong labels that a run goes on with. They
            are left out, counted and named either way.
        train_size: pixels, square, of training pictures; None for `model.image_size`.
        crop: of training pictures: "none" resizes the whole picture; "v1" and "v2" take a random
            part as the papers' code does (8 % to 100 % of the area, and 5 % to 100 %).
        resize: method for training pictures, see `preprocessing.Preprocessing`.
        eval_crop: centre crop for evaluation, see `preprocessing.Preprocessing`.
        eval_resize: method for evaluation.
        flip: whether half of the training pictures are mirrored left to right.
        shift: training pictures of the final size move by up to this many pixels in each direction,
            smaller ones by the same share; what comes in repeats the border.
        augment: "none", "autoaugment", "randaugment", or a layer of Keras ("keras:RandAugment") or
            KerasCV ("keras_cv:RandAugment"), applied to batches.
        magnitude: of "randaugment", 0 to 30; of a plugged-in layer, where it has such a setting.
        num_layers: operations per picture of "randaugment".
        augment_pixels: what the operations of "autoaugment" and "randaugment" that count in pixels
            (translations, cutout) do: "published" the same number at any size, as for pictures of
            224 px and more; "relative" the same share of the picture as of one of 224 px.
        bug_compat: whether the operations of "autoaugment" and "randaugment", and cutmix's labels,
            have the released code's errors (see `data.augment` and `data.mix`).
        cutout: side of a square that is blanked, as a share of the picture's; 0 for none.
        cutout_fill: "gray", or "noise" as the released fine-tuning code has it.
        random_erasing: probability that a rectangle is replaced by noise.
        mixup: alpha of the Beta distribution that pairs of pictures are mixed by; 0 for none.
        cutmix: alpha of the Beta distribution that the area of patches is drawn from; 0 for none.
            With mixup, each gets one half of the batch.
        service: address of a tf.data service dispatcher ("grpc://host:port") whose workers prepare
            the training pictures; None to do so here.
    """

    source: str = "digits"
    data_dir: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    batch_size: int | None = 64
    holdout: float = 0.1
    check_pictures: bool = True
    max_bad: float = 0.01
    train_size: int | None = None
    crop: Literal["none", "v1", "v2"] = "none"
    resize: ResizeMethod = "bilinear"
    eval_crop: Literal["squash", "pad32", "pad32_floor"] = "squash"
    eval_resize: ResizeMethod = "bilinear"
    flip: bool = False
    shift: int = 0
    augment: str = "none"
    magnitude: float = 10.0
    num_layers: int = 2
    augment_pixels: Literal["published", "relative"] = "published"
    bug_compat: bool = False
    cutout: float = 0.0
    cutout_fill: Literal["gray", "noise"] = "gray"
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    service: str | None = None

    @property
    def has_own_augment(self) -> bool:
        """Whether the papers' operations are applied, not a layer's, or none."""
        return self.augment in ("autoaugment", "randaugment")

    def __post_init__(self) -> None:
        if self.source != GIVEN:
            check_source("data.source", self.source)
        kind = self.source.partition(":")[0]
        splits = ("data_dir", "train_split", "validation_split", "test_split")
        checks.only_with("data", self, kind == "tfds", splits, "data.source=tfds:NAME")
        size = self.batch_size
        checks.check(size is None or size >= 1, "data.batch_size", ">= 1 or none", size)
        checks.check(0 <= self.holdout < 0.5, "data.holdout", "in [0, 0.5)", self.holdout)
        checks.within("data", self, ("max_bad", "cutout"), 0, 1)
        checks.within("data", self, ("shift", "mixup", "cutmix"), 0, float("inf"))
        size = self.train_size
        checks.check(size is None or size >= 16, "data.train_size", ">= 16 pixels or none", size)
        library, _, layer = self.augment.partition(":")
        plugged = library in ("keras", "keras_cv") and layer.isidentifier()
        valid = self.augment in ("none", "autoaugment", "randaugment") or plugged
        expected = '"none", "autoaugment", "randaugment", "keras:LAYER" or "keras_cv:LAYER"'
        checks.check(valid, "data.augment", expected, self.augment)
        randaugment = plugged or self.augment == "randaugment"
        checks.only_with("data", self, randaugment, ("magnitude",), "data.augment=randaugment")
        randaugment = self.augment == "randaugment"
        checks.only_with("data", self, randaugment, ("num_layers",), "data.augment=randaugment")
        own = self.has_own_augment
        when = "data.augment=autoaugment or randaugment"
        checks.only_with("data", self, own, ("augment_pixels",), when)
        used = own or self.cutmix > 0
        checks.only_with("data", self, used, ("bug_compat",), f"{when}, or data.cutmix > 0")
        checks.check(0 <= self.magnitude <= 30, "data.magnitude", "in [0, 30]", self.magnitude)
        checks.check(self.num_layers >= 1, "data.num_layers", ">= 1", self.num_layers)
        checks.only_with("data", self, self.cutout > 0, ("cutout_fill",), "data.cutout > 0")
        erasing = self.random_erasing
        checks.check(0 <= erasing <= 1, "data.random_erasing", "in [0, 1]", erasing)


def check_source(name: str, source: str) -> None:
    """Raises ValueError, naming the setting, unless a text has the form of a source's name."""
    kind, _, rest = source.partition(":")
    expected = '"digits", "fake" or "KIND:PATH" with KIND one of ' + ", ".join(SOURCES)
    valid = source in ("digits", "fake") or (kind in SOURCES and rest)
    checks.check(bool(valid), name, expected, source)
