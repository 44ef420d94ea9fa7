"""Networks as functions that their large weights are handed to.

Converters copy the constants of a graph many times over, and cannot hold more than 2 GiB of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from efficientnet_tf.export.graph import INPUT

LARGE = 2**15  # numbers
_UNINITIALIZED = "uninitialized_variables"


def copy(model: keras.Model, clone: Callable, *, dynamic_size: bool = False) -> keras.Model:
    """Copies a flat model without its weights.

    Args:
        model: flat, with any structure of outputs.
        clone: a layer to the layer that takes its place, not built.
        dynamic_size: whether height and width are free.

    Returns:
        A model whose variables have no values: it runs in a `keras.StatelessScope` that has them.

    Raises:
        ValueError: a layer of the model needs its own size.
    """
    images = model.inputs[0]
    shape = (None, None, images.shape[3]) if dynamic_size else images.shape[1:]
    before = list(global_state.get_global_attribute(_UNINITIALIZED) or ())
    try:
        with keras.StatelessScope(initialize_variables=False):
            return keras.models.clone_model(
                model, keras.Input(shape, name=images.name), clone_function=clone
            )
    finally:
        # Or Keras would give them values, and memory, when the next layer is made.
        global_state.set_global_attribute(_UNINITIALIZED, before)


def function(model: keras.Model, weights: Sequence, outputs: Sequence[str], large: float = LARGE):
    """Makes a model without weights a function of pictures and of its large weights.

    Args:
        model: from `copy`; its outputs are a dict.
        weights: variables with the values of `model.weights`, in the same order.
        outputs: names of the outputs.
        large: numbers that a weight has at least to be handed over; others are constants, and so
            are those of one dimension, which converters compute on.

    Returns:
        A concrete function without variables of `images`, float32 (batch, height, width, 3), and of
        the large weights, which returns a list in the order of `outputs`; and the large weights in
        the order of its other inputs.
    """
    handed = [i for i, v in enumerate(weights) if len(v.shape) > 1 and math.prod(v.shape) >= large]
    signature = [tf.TensorSpec(model.inputs[0].shape, tf.float32, name=INPUT)]
    for i in handed:
        signature.append(tf.TensorSpec(weights[i].shape, weights[i].dtype, name=f"weight_{i}"))

    @tf.function(input_signature=signature, autograph=False)
    def core(images, *given):
        values = list(weights)
        for i, tensor in zip(handed, given, strict=True):
            values[i] = tensor
        with keras.StatelessScope(zip(model.weights, values, strict=True)):
            found = model(images, training=False)
        return [found[name] for name in outputs]

    concrete = convert_variables_to_constants_v2(core.get_concrete_function())
    return concrete, [weights[i] for i in handed]
