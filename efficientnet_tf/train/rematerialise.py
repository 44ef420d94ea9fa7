"""Gradients that keep less: each block is computed again in the backward pass (arXiv:1604.06174).

Only the inputs of the blocks are kept between the passes. Neither `tf.recompute_grad` nor Keras'
`RematScope` will do: computed twice, dropout draws another mask, and batch normalization moves its
statistics twice. Here the second pass starts from the states of the random numbers that the first
one started from, and changes no variable.
"""

import itertools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf


def segments(model: keras.Model) -> list[keras.Model]:
    """Cuts a network between its blocks, into models that share its layers.

    Args:
        model: whose layers are called as here: all of a block begin with its name, "block1a_".

    Returns:
        Stem, blocks and head, each of which takes the one before's output.
    """
    cuts = [model.input]
    for layer, following in itertools.pairwise(model.layers):
        names = [each.name.partition("_")[0] for each in (layer, following)]
        if names[0] != names[1] and any(name.startswith("block") for name in names):
            cuts.append(layer.output)
    cuts.append(model.output)
    return [keras.Model(start, end) for start, end in itertools.pairwise(cuts)]


def gradients(
    parts: Sequence[keras.Model],
    images: tf.Tensor,
    loss_of: Callable[[tf.Tensor], tf.Tensor],
    variables: Sequence[keras.Variable],
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Computes the gradients of a loss, of a network in training.

    Args:
        parts: from `segments`.
        images: (batch, height, width, 3).
        loss_of: logits to the loss, a scalar.
        variables: that learn.

    Returns:
        (logits, gradients of `variables`).
    """
    learning = {id(variable) for variable in variables}
    theirs = [[v for v in part.trainable_variables if id(v) in learning] for part in parts]
    kept = []
    x = images
    for part in parts[:-1]:
        states = [v for v in part.variables if "seed_generator_state" in v.path]
        kept.append((x, [(state, tf.identity(state.value)) for state in states]))
        x = part(x, training=True)
    values = [v.value for v in theirs[-1]]
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = parts[-1](x, training=True)
        loss = loss_of(logits)
    upstream, *slopes = tape.gradient(loss, [x, *values], unconnected_gradients="zero")
    found = {id(v): slope for v, slope in zip(theirs[-1], slopes, strict=True)}
    for index in reversed(range(len(kept))):
        if not any(theirs[: index + 1]):
            break  # nothing from here to the stem learns
        x, states = kept[index]
        # Not before the gradient is there, or the first pass's activations would be taken for it.
        with tf.control_dependencies([upstream]):
            x = tf.identity(x)
        values = [v.value for v in theirs[index]]
        with tf.GradientTape() as tape, keras.StatelessScope(states):
            tape.watch(x)
            y = parts[index](x, training=True)
        upstream, *slopes = tape.gradient(
            y, [x, *values], output_gradients=upstream, unconnected_gradients="zero"
        )
        found |= {id(v): slope for v, slope in zip(theirs[index], slopes, strict=True)}
    return logits, [found[id(v)] for v in variables]
