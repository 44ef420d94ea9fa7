"""Stages of a training run: what changes while the network learns; nothing here imports TensorFlow.

Progressive learning (V2 Sec. 4.2, Algorithm 1) goes from small pictures with little regularisation
to large ones with much; fine-tuning starts with the classifier alone. One optimizer, one schedule
and one set of weights go through all stages.
"""

import dataclasses
from collections.abc import Sequence

from efficientnet_tf import columns
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.config import Config

COLUMNS = (
    "stage",
    "epochs",
    "px",
    "dropout",
    "drop_connect",
    "magnitude",
    "mixup",
    "cutmix",
    "learns",
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive epochs with the same pictures, regularisation and learning layers.

    Attributes:
        first_epoch: counted from 1.
        last_epoch: the last of this stage.
        image_size: pixels of training pictures, square.
        dropout_rate: of the classifier.
        drop_connect_rate: of the last block.
        magnitude: of RandAugment; None where nothing has a magnitude.
        mixup: alpha.
        cutmix: alpha.
        unfreeze: which layers learn, as `FinetuneConfig.unfreeze`.
    """

    first_epoch: int
    last_epoch: int
    image_size: int
    dropout_rate: float
    drop_connect_rate: float
    magnitude: float | None
    mixup: float
    cutmix: float
    unfreeze: str

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return self.last_epoch - self.first_epoch + 1


def expand(config: Config, epochs: int) -> tuple[Stage, ...]:
    """Cuts a run into stages.

    Args:
        config: of the run.
        epochs: of the run, at least as many as `config.train.epochs`.

    Returns:
        The stages in order; together they have every epoch once.
    """
    progressive, count = config.progressive, config.progressive.stages
    head = config.finetune.head_epochs
    variant = find(config.model.variant)
    rates = [
        getattr(variant, name)
        if getattr(config.model, name) is None
        else getattr(config.model, name)
        for name in ("dropout_rate", "drop_connect_rate")
    ]
    plain = config.data.augment in ("none", "autoaugment")
    magnitude = None if plain else config.data.magnitude
    stages = []
    for index in range(count):
        # Algorithm 1: the last stage trains at the values of the other sections.
        progress = index / (count - 1) if count > 1 else 1.0

        def value(start, end, progress=progress):
            return end if start is None or end is None else start + (end - start) * progress

        size_progress = (index + 1) / count if progressive.rule == "released" else progress
        stages.append(
            Stage(
                first_epoch=head + round(index * (epochs - head) / count) + 1,
                last_epoch=head + round((index + 1) * (epochs - head) / count),
                image_size=int(value(progressive.image_size, config.train_size, size_progress)),
                dropout_rate=value(progressive.dropout_rate, rates[0]),
                drop_connect_rate=value(progressive.drop_connect_rate, rates[1]),
                magnitude=value(progressive.magnitude, magnitude),
                mixup=value(progressive.mixup, config.data.mixup),
                cutmix=value(progressive.cutmix, config.data.cutmix),
                unfreeze=config.finetune.unfreeze,
            )
        )
    if head:
        stages.insert(
            0, dataclasses.replace(stages[0], first_epoch=1, last_epoch=head, unfreeze="head")
        )
    return tuple(stages)


def rows(stages: Sequence[Stage]) -> list[tuple[str | int | float, ...]]:
    """A row of plain values for each stage, in the order of `COLUMNS`."""
    return [
        (
            f"{number}/{len(stages)}",
            f"{stage.first_epoch}-{stage.last_epoch}",
            stage.image_size,
            stage.dropout_rate,
            stage.drop_connect_rate,
            "-" if stage.magnitude is None else stage.magnitude,
            stage.mixup,
            stage.cutmix,
            stage.unfreeze,
        )
        for number, stage in enumerate(stages, 1)
    ]


def table(stages: Sequence[Stage]) -> str:
    """Lays the stages out for people, a stage per line."""
    shown = [
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row]
        for row in [COLUMNS, *rows(stages)]
    ]
    return columns.align(shown)
