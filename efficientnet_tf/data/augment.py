"""AutoAugment and RandAugment, as functions of a picture and a seed.

    image = randaugment(image, seed, num_layers=2, magnitude=15)

Nothing but stateless TensorFlow operations, and of these only the ones drawn for a picture run: a
picture and a seed give the same result eagerly, in a graph and in `Dataset.map` with any number of
threads. Functions that are given the same seed draw the same numbers, so each step of a pipeline
needs a seed of its own.

The operations are those of the released code (tensorflow/tpu
`models/official/efficientnet/autoaugment.py`, google/automl `efficientnetv2/autoaugment.py`), with
its arguments at each level (`policies.argument`). It has errors, found after the papers' networks
had been trained with them. `bug_compat=True` keeps them, to repeat those trainings; by default

- Contrast is about the picture's mean gray, not about `height * width / 256`
  (tensorflow/tpu#825, #1057, google-research/big_vision#109);
- Solarize's threshold does not wrap at 256, where level 10 inverted everything
  (google-research/big_vision#110). From there on, Solarize does nothing;
- Posterize keeps 1 to 8 bits, where levels from 22.5 on, 9 bits or more, kept one
  (tensorflow/tpu#495). From level 20 on, it does nothing;
- Color, Sharpness and AutoContrast round as Pillow does, or exactly: one level at times.

See `color`, `geometry` and `erase` for each operation as a function of a picture and its argument.
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

from efficientnet_tf.data import color, geometry, policies
from efficientnet_tf.data.erase import blank, cutout, random_erasing

__all__ = ["apply", "autoaugment", "cutout", "randaugment", "random_erasing"]

_NOTHING = len(policies.OPERATIONS)  # index of the operation that does nothing


def _functions(image, argument, center, bug_compat: bool):
    """One function without arguments for each of `policies.OPERATIONS`, and one of nothing."""
    return {
        "AutoContrast": lambda: color.autocontrast(image, bug_compat=bug_compat),
        "Equalize": lambda: color.equalize(image),
        "Invert": lambda: color.invert(image),
        "Rotate": lambda: geometry.rotate(image, argument),
        "Posterize": lambda: color.posterize(image, argument, bug_compat=bug_compat),
        "Solarize": lambda: color.solarize(image, argument, bug_compat=bug_compat),
        "Color": lambda: color.color(image, argument, bug_compat=bug_compat),
        "Contrast": lambda: color.contrast(image, argument, bug_compat=bug_compat),
        "Brightness": lambda: color.brightness(image, argument),
        "Sharpness": lambda: color.sharpness(image, argument, bug_compat=bug_compat),
        "ShearX": lambda: geometry.shear_x(image, argument),
        "ShearY": lambda: geometry.shear_y(image, argument),
        "TranslateX": lambda: geometry.translate_x(image, argument),
        "TranslateY": lambda: geometry.translate_y(image, argument),
        "Cutout": lambda: blank(image, center, argument),
        "SolarizeAdd": lambda: color.solarize_add(image, argument),
        "Nothing": lambda: tf.identity(image),
    }


def apply(operation: str, image, argument=0, center=(0.5, 0.5), *, bug_compat: bool = False):
    """Applies one operation.

    Args:
        operation: one of `policies.OPERATIONS`.
        image: uint8 (height, width, 3).
        argument: Python number or scalar tensor, see `policies.argument`; with its sign.
        center: of Cutout: row and column, as shares of height and width.
        bug_compat: whether to keep the released code's errors.

    Returns:
        uint8 (height, width, 3).
    """
    center = tf.convert_to_tensor(center, tf.float32)
    return _functions(image, argument, center, bug_compat)[operation]()


@functools.lru_cache(maxsize=64)
def _traced(shape: tuple[int | None, ...], bug_compat: bool):
    """Graphs of all operations, in order, and one of nothing, for pictures of a shape."""

    def trace(name):
        def function(image, argument, center):
            return _functions(image, argument, center, bug_compat)[name]()

        return tf.function(function, autograph=False).get_concrete_function(
            tf.TensorSpec(shape, tf.uint8),
            tf.TensorSpec((), tf.float32),
            tf.TensorSpec((2,), tf.float32),
        )

    with tf.init_scope():
        return [trace(name) for name in (*policies.OPERATIONS, "Nothing")]


def _run(image, operations, arguments, draws, bug_compat: bool):
    """Applies operations one after the other.

    Args:
        image: uint8 (height, width, 3).
        operations: int32 (n,), indices into `policies.OPERATIONS`, or `_NOTHING`.
        arguments: float32 (n,), before their sign.
        draws: float32 (n, 3), uniform in [0, 1): sign, row and column.
        bug_compat: whether to keep the released code's errors.
    """
    signed = tf.constant([float(n in policies.SIGNED) for n in policies.OPERATIONS] + [0.0])
    flip = tf.gather(signed, operations) * tf.cast(draws[:, 0] < 0.5, tf.float32)
    arguments *= 1 - 2 * flip
    shape = image.shape
    branches = _traced(tuple(shape), bug_compat)
    for i in range(draws.shape[0]):
        # Not `tf.switch_case`: it becomes part of the graph around it, whose executor then visits
        # each node of the branches that are not taken, which takes longer than the one that is.
        (image,) = tf.raw_ops.StatelessCase(
            branch_index=operations[i],
            input=[image, arguments[i], draws[i, 1:]],
            Tout=[tf.uint8],
            branches=branches,
            output_shapes=[shape],
        )
        image = tf.ensure_shape(image, shape)
    return image


def _check(image):
    image = tf.convert_to_tensor(image)
    if image.dtype != tf.uint8 or image.shape.rank not in (3, None):
        raise ValueError(
            "Expected one picture, uint8 (height, width, 3). "
            f"Received: {image.dtype.name} of shape {image.shape}"
        )
    return tf.ensure_shape(image, (None, None, 3))


def autoaugment(
    image,
    seed,
    *,
    policy: Sequence[Sequence[policies.Step]] = policies.V0,
    sizes: policies.Sizes = policies.AUTOAUGMENT_SIZES,
    bug_compat: bool = False,
):
    """Applies one sub-policy of AutoAugment (https://arxiv.org/abs/1805.09501) to a picture.

    Args:
        image: uint8 (height, width, 3), static or dynamic, of at least 2 x 2 pixels.
        seed: int64 (2,).
        policy: sub-policies of equally many steps.
        sizes: what level 10 means for the operations that count in pixels.
        bug_compat: whether to keep the released code's errors.

    Returns:
        uint8 (height, width, 3).
    """
    image = _check(image)
    steps = len(policy[0])
    numbers = [[policies.OPERATIONS.index(step.operation) for step in row] for row in policy]
    arguments = [[policies.argument(s.operation, s.level, sizes) for s in row] for row in policy]
    probabilities = [[step.probability for step in row] for row in policy]
    draws = tf.random.stateless_uniform((1 + 4 * steps,), seed, alg="philox")
    row = tf.cast(draws[0] * len(policy), tf.int32)
    draws = tf.reshape(draws[1:], (steps, 4))
    applied = draws[:, 0] < tf.constant(probabilities, tf.float32)[row]
    operations = tf.where(applied, tf.constant(numbers)[row], _NOTHING)
    return _run(
        image, operations, tf.constant(arguments, tf.float32)[row], draws[:, 1:], bug_compat
    )


def randaugment(
    image,
    seed,
    *,
    num_layers: int = 2,
    magnitude: float = 10.0,
    sizes: policies.Sizes = policies.RANDAUGMENT_SIZES,
    bug_compat: bool = False,
):
    """Applies RandAugment (https://arxiv.org/abs/1909.13719) to a picture.

    Each layer draws one of the 16 operations uniformly and always applies it, as the released code
    does.

    Args:
        image: uint8 (height, width, 3), static or dynamic, of at least 2 x 2 pixels.
        seed: int64 (2,).
        num_layers: operations per picture.
        magnitude: level of all operations, from 0; the papers go from 5 to 28.
        sizes: what magnitude 10 means for the operations that count in pixels. The released
            numbers are for pictures of 224 pixels and more: magnitude 10 moves one of 32 x 32 out
            of sight.
        bug_compat: whether to keep the released code's errors.

    Returns:
        uint8 (height, width, 3).
    """
    image = _check(image)
    arguments = [policies.argument(n, magnitude, sizes) for n in policies.OPERATIONS]
    draws = tf.random.stateless_uniform((num_layers, 4), seed, alg="philox")
    operations = tf.cast(draws[:, 0] * len(policies.OPERATIONS), tf.int32)
    arguments = tf.gather(tf.constant(arguments, tf.float32), operations)
    return _run(image, operations, arguments, draws[:, 1:], bug_compat)
