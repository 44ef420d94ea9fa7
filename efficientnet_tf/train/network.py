"""The network of a run: made from the configuration, and changed from stage to stage."""

import dataclasses
import re

import keras

from efficientnet_tf import preprocessing as preprocessing_lib
from efficientnet_tf.arch import Variant, resolve
from efficientnet_tf.config import Config, ModelConfig
from efficientnet_tf.models import layers
from efficientnet_tf.models.blocks import dense_initializer
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.stages import Stage

_HEAD = "predictions"


def trained(config: ModelConfig, variant: Variant, classes: int, stages: tuple[Stage, ...]):
    """Builds the network that is trained: from pictures of any size to logits.

    It has the layers that its stages need: a rate that is 0 in some stage only keeps its layer.

    Args:
        config: `weights` and `normalization` are used.
        variant: from `describe`.
        classes: of the classifier, which is always new.
        stages: of the run.
    """
    rates = {
        name: max(getattr(stage, name) for stage in stages)
        for name in ("dropout_rate", "drop_connect_rate")
    }
    variant = dataclasses.replace(variant, **rates)
    shape = (None, None, 3)
    if config.weights is None:
        return build(
            variant,
            classes=classes,
            classifier_activation=None,
            input_shape=shape,
            preprocessing=config.normalization,
        )
    trunk = build(
        variant,
        include_top=False,
        pooling="avg",
        weights=config.weights,
        input_shape=shape,
        preprocessing=config.normalization,
    )
    x = trunk.output
    if variant.dropout_rate:
        x = layers.Dropout(variant.dropout_rate, name="top_dropout")(x)
    x = keras.layers.Dense(
        classes,
        kernel_initializer=dense_initializer(),
        dtype=keras.config.dtype_policy().variable_dtype,
        name=_HEAD,
    )(x)
    return keras.Model(trunk.inputs, x, name=variant.name)


def kept(config: Config, variant: Variant, model: keras.Model) -> keras.Model:
    """Builds the network that is saved: one picture size, float32, probabilities.

    Its weights are random; `set_weights(model.get_weights())` fills them in.

    Args:
        config: `model.image_size` and `train.loss` are used.
        variant: from `describe`.
        model: from `trained`.
    """
    size = config.model.image_size
    return build(
        variant,
        classes=model.output_shape[-1],
        classifier_activation="sigmoid" if config.train.loss == "sigmoid" else "softmax",
        input_shape=(size, size, 3),
        preprocessing=evaluation_rule(config, model),
    )


def evaluation_rule(config: Config, model: keras.Model) -> Preprocessing:
    """How pictures are prepared for evaluation and prediction, with the model's normalisation."""
    layer = model.get_layer("rescaling")
    own = preprocessing_lib.own(config.model.image_size, layer.scale, layer.offset)
    return dataclasses.replace(
        own, crop=config.data.eval_crop, resize_method=config.data.eval_resize
    )


def synchronize(model: keras.Model) -> None:
    """Has batch normalization take all replicas' pictures for one batch."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def set_rates(model: keras.Model, variant: Variant, stage: Stage) -> None:
    """Sets dropout and stochastic depth. Functions traced before keep the rates they had."""
    network = resolve(variant, drop_connect_rate=stage.drop_connect_rate)
    rates = {f"{block.name}_drop": block.drop_rate for block in network.blocks}
    rates["top_dropout"] = stage.dropout_rate
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = rates[layer.name]


def set_trainable(
    model: keras.Model, variant: Variant, unfreeze: str, freeze_batch_norm: bool
) -> None:
    """Sets which layers learn. Batch normalization that does not learn keeps its statistics.

    Args:
        model: from `trained`.
        variant: of the model.
        unfreeze: as `FinetuneConfig.unfreeze`.
        freeze_batch_norm: whether no batch normalization learns.

    Raises:
        ValueError: no layer has that name, or there are fewer blocks.
    """
    kind, _, rest = unfreeze.partition(":")
    names = {layer.name for layer in model.layers if layer.weights}
    if unfreeze == "all":
        learning = names
    elif kind == "blocks":
        blocks = [block.name for block in resolve(variant).blocks]
        if int(rest) > len(blocks):
            raise ValueError(
                f"finetune.unfreeze={unfreeze!r}, but {variant.name} has {len(blocks)} blocks:"
                f" {blocks[0]} to {blocks[-1]}."
            )
        prefixes = ("top_", *(f"{name}_" for name in blocks[-int(rest) :]))
        learning = {name for name in names if name.startswith(prefixes)}
    elif kind == "regex":
        learning = {name for name in names if re.search(rest, name)}
        if not learning:
            raise ValueError(
                f"finetune.unfreeze={unfreeze!r} is in no layer's name. Names are such as"
                " stem_conv, block1a_project_conv, top_conv."
            )
    else:
        learning = set()
    for layer in model.layers:
        norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = layer.name == _HEAD or (
            layer.name in learning and not (norm and freeze_batch_norm)
        )


def learning_rate_factors(model: keras.Model, variant: Variant, decay: float) -> dict[str, float]:
    """Factor of the learning rate of each variable, smaller towards the stem.

    The classifier has factor 1, the top convolution `decay`, the last stage `decay**2`, and so on.

    Args:
        model: from `trained`.
        variant: of the model.
        decay: in (0, 1].

    Returns:
        Path of each weight to its factor.
    """
    stage_of = {block.name: block.stage for block in resolve(variant).blocks}
    last = max(stage_of.values())
    factors = {}
    for layer in model.layers:
        prefix = layer.name.partition("_")[0]
        if layer.name == _HEAD:
            distance = 0
        elif prefix == "top":
            distance = 1
        else:
            distance = 2 + last - stage_of.get(prefix, 0)  # the stem is before stage 1
        for variable in layer.weights:
            factors[variable.path] = decay**distance
    return factors
