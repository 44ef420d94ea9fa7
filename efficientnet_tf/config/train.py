"""Settings of training: optimisation, progressive learning, fine-tuning."""

import dataclasses
import re
from typing import Literal

from efficientnet_tf.config import checks


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How the network is trained.

    Attributes:
        epochs: passes over the training pictures.
        min_steps: train for more epochs where these would be fewer steps.
        steps_per_epoch: instead of as many as the training pictures fill.
        steps_per_call: steps that run in one call into TensorFlow; more is faster where steps are
            short (accelerators), fewer moves the progress bar more often.
        optimizer: "rmsprop" (TensorFlow 1's, as the papers use it), "sgd", "adamw" or "lars" (for
            batches of thousands).
        learning_rate: highest, for 256 pictures per step; it scales with `data.batch_size`.
        momentum: of "rmsprop", "sgd" and "lars".
        schedule: "exponential" (in stairs, counted from step 0), "cosine" to zero, "polynomial" (of
            power 2) to `min_learning_rate`, "linear" to zero, or "constant".
        warmup_epochs: over which the rate rises from zero.
        decay_epochs: length of a stair of "exponential".
        decay_rate: factor from stair to stair of "exponential".
        min_learning_rate: the decayed rate never falls below it; not scaled by the batch.
        loss: "softmax" (one class per picture) or "sigmoid" (each class on its own, summed over
            classes: ImageNet-21k, several labels).
        label_smoothing: share of each label that is spread over all classes; "softmax" only.
        weight_decay: of kernels (and more, see `weight_decay_on`).
        weight_decay_in: "loss" adds weight_decay * sum(value**2) / 2 to the loss, as the papers
            do; "update" shrinks values by learning_rate * weight_decay in every step (AdamW).
        weight_decay_on: "kernels" (V2: neither biases nor batch normalization) or
            "all_but_norm" (V1: biases too).
        clip_norm: longest gradient, over all replicas; 0 for no limit.
        clip: what `clip_norm` limits: "global" (all gradients together), "variable" (each), or
            "both" (each, then all together: V2's released code).
        accumulate: parts that each replica's share of the batch is cut into; their gradients are
            added before one update. Saves memory. Batch normalization takes each part for a batch.
        rematerialise: whether the backward pass computes each block's activations again instead of
            keeping them: less memory, about a third more time, the same gradients.
        ema_decay: of the moving average of weights and batch statistics that is evaluated and
            saved beside the raw ones; 0 for none.
        patience: epochs without a better validation accuracy (or, where it is equal, loss) after
            which training stops; 0 for never.
        checkpoint_steps: steps between two checkpoints within an epoch; one is written after the
            steps of each epoch too. Neither this nor the next changes what is learnt.
        keep_checkpoints: how many of the last ones stay; each holds all weights several times.
        precision: "float32"; "mixed_bfloat16"; "mixed_float16" (with a dynamic loss scale); or
            "auto": bfloat16 on TPUs, on GPUs of compute capability 8.0 and later, and on processors
            with AVX512_BF16 or AMX, float16 on GPUs of 7.x, float32 elsewhere. Variables, batch
            statistics, the classifier and the loss are float32 in all of them.
        deterministic: whether TensorFlow may use only operations whose result does not vary from
            run to run; slower on GPUs.
        seed: of weights, order, augmentation and dropout.
    """

    epochs: int = 10
    min_steps: int = 0
    steps_per_epoch: int | None = None
    steps_per_call: int = 10
    optimizer: Literal["rmsprop", "sgd", "adamw", "lars"] = "rmsprop"
    learning_rate: float = 0.016
    momentum: float = 0.9
    schedule: Literal["cosine", "exponential", "polynomial", "linear", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    decay_epochs: float = 2.4
    decay_rate: float = 0.97
    min_learning_rate: float = 0.0
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    weight_decay_in: Literal["loss", "update"] = "loss"
    weight_decay_on: Literal["kernels", "all_but_norm"] = "kernels"
    clip_norm: float = 0.0
    clip: Literal["global", "variable", "both"] = "global"
    accumulate: int = 1
    rematerialise: bool = False
    ema_decay: float = 0.0
    patience: int = 0
    checkpoint_steps: int = 1000
    keep_checkpoints: int = 2
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    deterministic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("epochs", "steps_per_call", "accumulate", "checkpoint_steps", "keep_checkpoints")
        checks.within("train", self, counts, 1, float("inf"))
        checks.within("train", self, ("min_steps", "patience"), 0, float("inf"))
        steps = self.steps_per_epoch
        checks.check(steps is None or steps >= 1, "train.steps_per_epoch", ">= 1 or none", steps)
        for name in ("learning_rate", "decay_epochs", "decay_rate"):
            value = getattr(self, name)
            checks.check(value > 0, f"train.{name}", "> 0", value)
        checks.check(0 <= self.seed < 2**32, "train.seed", "in [0, 2**32)", self.seed)
        names = ("warmup_epochs", "weight_decay", "clip_norm", "min_learning_rate")
        checks.within("train", self, names, 0, float("inf"))
        checks.within("train", self, ("momentum", "label_smoothing", "ema_decay"), 0, 1)
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                "train.warmup_epochs must not exceed train.epochs. Received: "
                f"train.warmup_epochs={self.warmup_epochs}, train.epochs={self.epochs}"
            )
        only_used_with = (
            (self.optimizer != "adamw", "train.optimizer=rmsprop, sgd or lars", ["momentum"]),
            (self.schedule == "exponential", "train.schedule=exponential", ["decay_epochs"]),
            (self.schedule == "exponential", "train.schedule=exponential", ["decay_rate"]),
            (self.schedule != "constant", "a train.schedule that decays", ["min_learning_rate"]),
            (self.loss == "softmax", "train.loss=softmax", ["label_smoothing"]),
            (self.weight_decay > 0, "train.weight_decay > 0", ["weight_decay_in"]),
            (self.weight_decay > 0, "train.weight_decay > 0", ["weight_decay_on"]),
            (self.clip_norm > 0, "train.clip_norm > 0", ["clip"]),
        )
        for used, when, unused in only_used_with:
            checks.only_with("train", self, used, unused, when)


@dataclasses.dataclass(frozen=True)
class ProgressiveConfig:
    """Progressive learning (V2 Sec. 4.2): small pictures and little regularisation first.

    Each stage takes the same number of epochs. The last one ends at `data.train_size` and at the
    rates, magnitude and alphas of the other sections; what is None here keeps those throughout.

    Attributes:
        stages: 1 for none.
        rule: sizes of stage i = 0, 1, ...: "paper" (Algorithm 1) starts at `image_size`, stage i at
            the share i / (stages - 1) of the way; "released" at the share (i + 1) / stages, so that
            `image_size` itself is never used. Everything else follows Algorithm 1 in both.
        image_size: pixels that the sizes start from.
        dropout_rate: of the first stage.
        drop_connect_rate: of the first stage.
        magnitude: of RandAugment in the first stage.
        mixup: alpha of the first stage.
        cutmix: alpha of the first stage.
    """

    stages: int = 1
    rule: Literal["paper", "released"] = "paper"
    image_size: int = 128
    dropout_rate: float | None = None
    drop_connect_rate: float | None = None
    magnitude: float | None = None
    mixup: float | None = None
    cutmix: float | None = None

    def __post_init__(self) -> None:
        checks.check(self.stages >= 1, "progressive.stages", ">= 1", self.stages)
        checks.check(
            self.image_size >= 16, "progressive.image_size", ">= 16 pixels", self.image_size
        )
        checks.within("progressive", self, ("dropout_rate", "drop_connect_rate"), 0, 1)
        checks.within("progressive", self, ("mixup", "cutmix"), 0, float("inf"))
        magnitude = self.magnitude
        valid = magnitude is None or 0 <= magnitude <= 30
        checks.check(valid, "progressive.magnitude", "in [0, 30] or none", magnitude)
        names = [field.name for field in dataclasses.fields(self) if field.name != "stages"]
        checks.only_with("progressive", self, self.stages > 1, names, "progressive.stages > 1")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Which layers learn, how fast, and when.

    Attributes:
        head_epochs: first epochs, in which only the classifier learns.
        unfreeze: what learns after those: "all"; "head" (the classifier only); "blocks:N" (the last
            N blocks, the top convolution and the classifier); "regex:PATTERN" (layers whose name
            has a match, and the classifier).
        layer_decay: factor of the learning rate from stage to stage, going from the classifier
            (factor 1) towards the stem; 1 for the same rate everywhere.
        freeze_batch_norm: whether batch normalization keeps its statistics and parameters also in
            layers that learn: right for small batches. That of frozen layers always does.
    """

    head_epochs: int = 0
    unfreeze: str = "all"
    layer_decay: float = 1.0
    freeze_batch_norm: bool = False

    def __post_init__(self) -> None:
        checks.check(self.head_epochs >= 0, "finetune.head_epochs", ">= 0", self.head_epochs)
        checks.check(
            0 < self.layer_decay <= 1, "finetune.layer_decay", "in (0, 1]", self.layer_decay
        )
        kind, _, rest = self.unfreeze.partition(":")
        valid = self.unfreeze in ("all", "head")
        if kind == "blocks":
            valid = rest.isdecimal() and int(rest) >= 1
        elif kind == "regex" and rest:
            try:
                re.compile(rest)
                valid = True
            except re.error as error:
                raise ValueError(f"finetune.unfreeze={self.unfreeze!r}: {error}") from None
        expected = '"all", "head", "blocks:N" (N >= 1) or "regex:PATTERN"'
        checks.check(valid, "finetune.unfreeze", expected, self.unfreeze)
