"""Settings of the network."""

import dataclasses
from typing import Any

from efficientnet_tf.arch import BlockArgs, Variant, files
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.config import checks
from efficientnet_tf.preprocessing import NORMALIZATIONS

SHAPE = ("width", "depth", "blocks", "stem_filters", "head_filters")  # in place of a variant's


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network is trained, and from what. The number of classes comes from the data.

    Attributes:
        variant: a name in `arch.VARIANTS`; or a network of your own: a `Variant`, or the path of a
            file of one (`arch.files`), which is read at once. Where it is changed by `override`,
            the settings of `SHAPE` fall back to the new variant's own, if they are not set with it.
        width: multiplier of filters instead of the variant's.
        depth: multiplier of repeats instead of the variant's.
        blocks: stages in the official notation ("r2_k3_s22_e6_i16_o24_se0.25") instead of the
            variant's; empty for the variant's own.
        stem_filters: of the first convolution, before scaling, instead of the variant's.
        head_filters: of the last convolution, before scaling, instead of the variant's.
        image_size: pixels, square: what the model is evaluated and exported at. Training may use
            other sizes, see `DataConfig.train_size` and `ProgressiveConfig`.
        weights: tag of published weights or path of a local file; None for random weights. The
            classifier starts fresh in any case.
        normalization: a key of `preprocessing.NORMALIZATIONS` instead of the weights' or the
            variant's.
        dropout_rate: probability of dropping a pooled feature instead of the variant's.
        drop_connect_rate: stochastic depth of the last block instead of the variant's.
        sync_batch_norm: whether batch normalization takes the pictures of all replicas for a batch,
            not each replica's own, as is right for small shares. It is slower: three exchanges
            between the replicas in every such layer.
    """

    variant: str | Variant = "efficientnetv2-b0"
    width: float | None = None
    depth: float | None = None
    blocks: tuple[str, ...] = ()
    stem_filters: int | None = None
    head_filters: int | None = None
    image_size: int = 224
    weights: str | None = None
    normalization: str | None = None
    dropout_rate: float | None = None
    drop_connect_rate: float | None = None
    sync_batch_norm: bool = False

    def __post_init__(self) -> None:
        if files.is_path(self.variant):
            object.__setattr__(self, "variant", find(self.variant))
        checks.check(self.image_size >= 32, "model.image_size", ">= 32 pixels", self.image_size)
        for name in ("width", "depth", "stem_filters", "head_filters"):
            value = getattr(self, name)
            checks.check(value is None or value > 0, f"model.{name}", "> 0 or none", value)
        checks.within("model", self, ("dropout_rate", "drop_connect_rate"), 0, 1)
        known = (None, *NORMALIZATIONS)
        checks.check(
            self.normalization in known,
            "model.normalization",
            f"one of {known}",
            self.normalization,
        )


def describe(config: ModelConfig) -> Variant:
    """Makes the variant that a configuration asks for: a row of the table with changes.

    Raises:
        ValueError: unknown variant or wrong block string.
    """
    changes: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("width", "depth", "stem_filters", "head_filters")
        if getattr(config, name) is not None
    }
    if config.blocks:
        changes["blocks"] = tuple(BlockArgs.parse(block) for block in config.blocks)
    variant = find(config.variant)
    if changes:
        changes["name"] = f"{variant.name}-custom"
    for name in ("dropout_rate", "drop_connect_rate"):
        if getattr(config, name) is not None:
            changes[name] = getattr(config, name)
    return dataclasses.replace(variant, **changes)
