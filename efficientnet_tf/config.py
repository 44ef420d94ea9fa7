"""What a training run is made of, as frozen dataclasses; nothing here imports TensorFlow.

A recipe is a value of `Config`. Change one with `dataclasses.replace`, or from the command line
with `override(config, "train.epochs=3")`; either way every check runs again.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

_WORDS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def _check(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}. Received: {name}={value!r}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network is trained, and from what. The number of classes comes from the data.

    Attributes:
        variant: a name in `arch.VARIANTS`.
        width: multiplier of filters instead of the variant's.
        depth: multiplier of repeats instead of the variant's.
        blocks: stages in the official notation ("r2_k3_s22_e6_i16_o24_se0.25") instead of the
            variant's; empty for the variant's own.
        stem_filters: of the first convolution, before scaling, instead of the variant's.
        head_filters: of the last convolution, before scaling, instead of the variant's.
        image_size: pixels, square; every picture is resized to it.
        weights: tag of published weights or path of a local file; None for random weights. The
            classifier starts fresh in any case.
        dropout_rate: probability of dropping a pooled feature instead of the variant's.
        drop_connect_rate: stochastic depth of the last block instead of the variant's.
    """

    variant: str = "efficientnetv2-b0"
    width: float | None = None
    depth: float | None = None
    blocks: tuple[str, ...] = ()
    stem_filters: int | None = None
    head_filters: int | None = None
    image_size: int = 224
    weights: str | None = None
    dropout_rate: float | None = None
    drop_connect_rate: float | None = None

    def __post_init__(self) -> None:
        _check(self.image_size >= 32, "model.image_size", ">= 32 pixels", self.image_size)
        for name in ("width", "depth", "stem_filters", "head_filters"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"model.{name}", "> 0 or none", value)
        for name in ("dropout_rate", "drop_connect_rate"):
            value = getattr(self, name)
            _check(value is None or 0 <= value < 1, f"model.{name}", "in [0, 1) or none", value)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from, and what is done to those that are trained on.

    Attributes:
        source: "digits", "folder:PATH" or "tfds:NAME"; see `data.sources`.
        data_dir: where TensorFlow Datasets keeps its files; None for its own default.
        batch_size: pictures per step, over all replicas.
        holdout: share of the training pictures that is set apart for every split that the source
            lacks (test, validation). 0: validate on the test split.
        check_pictures: whether every picture of a folder is decoded once before training starts,
            so that unreadable ones are named at once instead of after hours.
        flip: whether half of the training pictures are mirrored left to right.
        shift: training pictures move by up to this many pixels of the model's input in each
            direction; what comes in repeats the border.
    """

    source: str = "digits"
    data_dir: str | None = None
    batch_size: int = 64
    holdout: float = 0.1
    check_pictures: bool = True
    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        kind, _, rest = self.source.partition(":")
        valid = self.source == "digits" or (kind in ("folder", "tfds") and rest)
        _check(bool(valid), "data.source", '"digits", "folder:PATH" or "tfds:NAME"', self.source)
        _check(self.batch_size >= 1, "data.batch_size", ">= 1", self.batch_size)
        _check(0 <= self.holdout < 0.5, "data.holdout", "in [0, 0.5)", self.holdout)
        _check(self.shift >= 0, "data.shift", ">= 0 pixels", self.shift)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How the network is trained.

    Attributes:
        epochs: passes over the training pictures.
        steps_per_epoch: instead of as many as the training pictures fill.
        steps_per_call: steps that run in one call into TensorFlow; more is faster where steps are
            short (accelerators), fewer moves the progress bar more often.
        optimizer: "rmsprop" (TensorFlow 1's, as the papers use it), "sgd" or "adamw".
        learning_rate: highest, for 256 pictures per step; it scales with `data.batch_size`.
        momentum: of "rmsprop" and "sgd".
        schedule: "cosine" to zero, "exponential" (in stairs, counted from step 0) or "constant".
        warmup_epochs: over which the rate rises from zero.
        decay_epochs: length of a stair of "exponential".
        decay_rate: factor from stair to stair of "exponential".
        label_smoothing: share of each label that is spread over all classes.
        weight_decay: of kernels (not of biases or batch normalization).
        weight_decay_in: "loss" adds weight_decay * sum(kernel**2) / 2 to the loss, as the papers
            do; "update" shrinks kernels by learning_rate * weight_decay in every step (AdamW).
        clip_norm: longest gradient over all variables and replicas; 0 for no limit.
        ema_decay: of the moving average of weights and batch statistics that is evaluated and
            saved; 0 for none.
        precision: "float32" or "mixed_bfloat16" (accelerators and recent processors).
        seed: of weights, order, augmentation and dropout.
    """

    epochs: int = 10
    steps_per_epoch: int | None = None
    steps_per_call: int = 10
    optimizer: Literal["rmsprop", "sgd", "adamw"] = "rmsprop"
    learning_rate: float = 0.016
    momentum: float = 0.9
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    decay_epochs: float = 2.4
    decay_rate: float = 0.97
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    weight_decay_in: Literal["loss", "update"] = "loss"
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_call"):
            value = getattr(self, name)
            _check(value >= 1, f"train.{name}", ">= 1", value)
        steps = self.steps_per_epoch
        _check(steps is None or steps >= 1, "train.steps_per_epoch", ">= 1 or none", steps)
        for name in ("learning_rate", "decay_epochs", "decay_rate"):
            value = getattr(self, name)
            _check(value > 0, f"train.{name}", "> 0", value)
        _check(0 <= self.seed < 2**32, "train.seed", "in [0, 2**32)", self.seed)
        for name in ("warmup_epochs", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            _check(value >= 0, f"train.{name}", ">= 0", value)
        for name in ("momentum", "label_smoothing", "ema_decay"):
            value = getattr(self, name)
            _check(0 <= value < 1, f"train.{name}", "in [0, 1)", value)
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                "train.warmup_epochs must not exceed train.epochs. Received: "
                f"train.warmup_epochs={self.warmup_epochs}, train.epochs={self.epochs}"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole training run: network, data, training."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        if self.data.shift >= self.model.image_size:
            raise ValueError(
                "data.shift must be smaller than model.image_size. Received: "
                f"data.shift={self.data.shift}, model.image_size={self.model.image_size}"
            )

    @property
    def scaled_learning_rate(self) -> float:
        """Highest learning rate at this batch size (linear scaling, as the papers do)."""
        return self.train.learning_rate * self.data.batch_size / 256


def override(config: Config, *settings: str) -> Config:
    """Changes settings given as text, all at once, so that they may depend on each other.

    >>> override(Config(), "train.epochs=3", "model.weights=none").train.epochs
    3

    Args:
        config: to start from.
        *settings: "section.name=value". Tuples are separated by commas, None is "none".

    Returns:
        The changed configuration.

    Raises:
        ValueError: unknown setting, a value of the wrong type or out of range.
    """
    changes: dict[str, dict[str, Any]] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"A setting is written section.name=value. Received: {setting!r}")
        section, field = _find(path)
        changes.setdefault(section, {})[field] = _parse(path, _field_type(section, field), text)
    return _replace(config, changes)


def to_json(config: Config) -> str:
    """Writes a configuration as indented JSON; `from_json` reads it back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote. Settings that are not in the text have their defaults.

    Raises:
        ValueError: unknown setting, a value of the wrong type or out of range.
    """
    changes: dict[str, dict[str, Any]] = {}
    sections = json.loads(text)
    if not isinstance(sections, dict):
        raise ValueError(f"A configuration is a JSON object of sections. Received: {sections!r}")
    for section, values in sections.items():
        if section not in _names(Config):
            raise ValueError(_unknown(section, section, _names(Config)))
        if not isinstance(values, dict):
            raise ValueError(f"{section} expects a JSON object of settings. Received: {values!r}")
        for field, value in values.items():
            path = f"{section}.{field}"
            _find(path)
            kind = _field_type(section, field)
            changes.setdefault(section, {})[field] = _convert(path, kind, value)
    return _replace(Config(), changes)


def _replace(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    sections = {
        section: dataclasses.replace(getattr(config, section), **values)
        for section, values in changes.items()
    }
    return dataclasses.replace(config, **sections)


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _section_type(section: str) -> type:
    return typing.get_type_hints(Config)[section]


def _field_type(section: str, field: str) -> Any:
    return typing.get_type_hints(_section_type(section))[field]


def _find(path: str) -> tuple[str, str]:
    section, dot, field = path.partition(".")
    sections = _names(Config)
    if dot and section in sections:
        if field in _names(_section_type(section)):
            return section, field
        raise ValueError(_unknown(path, field, _names(_section_type(section))))
    if dot:
        raise ValueError(_unknown(path, section, sections))
    everything = {name: f"{s}.{name}" for s in sections for name in _names(_section_type(s))}
    close = difflib.get_close_matches(path, everything, n=1)
    raise ValueError(_unknown(path, "", sections, everything[close[0]] if close else ""))


def _unknown(path: str, part: str, known: Sequence[str], close: str = "") -> str:
    close = close or next(iter(difflib.get_close_matches(part, known, n=1)), "")
    hint = f"Did you mean {close!r}?" if close else f"Known: {', '.join(known)}."
    return f"No setting {path!r}. {hint}"


def _parse(path: str, kind: Any, text: str) -> Any:
    """Turns text from the command line into a value of the setting's type."""
    optional, kind = _strip_none(kind)
    if optional and text.lower() == "none":
        return None
    if typing.get_origin(kind) is tuple:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if kind is bool and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if kind in (int, float):
        try:
            return _convert(path, kind, kind(text))
        except ValueError:
            raise ValueError(f"{path} expects {kind.__name__}. Received: {text!r}") from None
    return _convert(path, kind, text)


def _convert(path: str, kind: Any, value: Any) -> Any:
    """Checks that a value has the setting's type; JSON's lists become tuples."""
    optional, kind = _strip_none(kind)
    if optional and value is None:
        return None
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError(f"{path} is one of {choices}. Received: {value!r}")
        return value
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(f"{path} expects a list of strings. Received: {value!r}")
    if kind is float and type(value) is int:
        value = float(value)
    # bool is an int to isinstance; nan and inf would pass every later comparison or none.
    if type(value) is not kind or (kind is float and not abs(value) < float("inf")):
        raise ValueError(f"{path} expects {kind.__name__}. Received: {value!r}")
    return value


def _strip_none(kind: Any) -> tuple[bool, Any]:
    if isinstance(kind, types.UnionType):
        (inner,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
        return True, inner
    return False, kind
