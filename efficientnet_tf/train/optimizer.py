"""The papers' optimizers, equal to TensorFlow 1's, and which variables weight decay shrinks."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import keras
import tensorflow as tf

from efficientnet_tf.config import Config
from efficientnet_tf.train.schedule import WarmupSchedule

_TRUST = 1e-3  # eta of LARS, in the paper and in TensorFlow 1


class _PerVariable:
    """What Keras' optimizers lack: rates per variable, and clipping that minds the replicas.

    Args:
        *args: of the Keras optimizer.
        multipliers: factors of the learning rate by `variable.path`; 1 for those not named.
        **kwargs: of the Keras optimizer. Gradients are clipped after they were summed over the
            replicas; Keras clips each replica's part on its own.
    """

    _decoupled = True  # whether `weight_decay` shrinks the variables themselves
    _factors: tuple[float, ...] = ()
    _learns: tf.Tensor | None = None

    def __init__(self, *args, multipliers: Mapping[str, float] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        for path, factor in (multipliers or {}).items():
            if not (math.isfinite(factor) and factor >= 0):
                raise ValueError(
                    f"multipliers must be finite and >= 0. Received: {factor} for {path!r}"
                )
        self._multipliers = tuple((multipliers or {}).items())

    def build(self, variables):
        """Makes the slots of the variables."""
        super().build(variables)
        multipliers = dict(self._multipliers)
        self._factors = tuple(float(multipliers.get(v.path, 1.0)) for v in variables)

    def apply(self, grads, trainable_variables=None, *, learns=None):
        """Takes a step; see `keras.optimizers.Optimizer`.

        Args:
            grads: the replica's part of the gradients.
            trainable_variables: that they are of.
            learns: bool (), the same on all replicas. Where it is False, variables and slots stay
                what they are, and the step is only counted. None is True.
        """
        self._learns = learns
        super().apply(grads, trainable_variables)
        self._learns = None

    def _distributed_tf_update_step(self, distribution, grads_and_vars, learning_rate):
        step = super()._distributed_tf_update_step
        if self._learns is None:
            step(distribution, grads_and_vars, learning_rate)
        else:  # here, because no branch may contain what replicas do together
            tf.cond(
                self._learns,
                lambda: step(distribution, grads_and_vars, learning_rate),
                lambda: None,
            )

    def update_step(self, gradient, variable, learning_rate):
        """Takes a step at the variable's own learning rate, which also scales its decay."""
        rate = tf.cast(learning_rate, variable.dtype)
        factor = self._factors[self._get_variable_index(variable)]
        if factor != 1:
            rate *= factor
        if self._decoupled and self.weight_decay and self._use_weight_decay(variable):
            variable.assign_sub(variable * (rate * self.weight_decay))
        super().update_step(gradient, variable, rate)

    def _apply_weight_decay(self, variables):
        """Nothing: `update_step` does it, as Keras knows one learning rate only."""

    def _clip_gradients(self, grads):
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        pairs = super()._all_reduce_sum_gradients(grads_and_vars)
        grads = super()._clip_gradients([grad for grad, _ in pairs])
        if self.clipnorm and self.global_clipnorm:  # Keras does the first alone
            grads, _ = tf.clip_by_global_norm(grads, self.global_clipnorm)
        return list(zip(grads, [var for _, var in pairs], strict=True))


class RMSprop(_PerVariable, keras.optimizers.RMSprop):
    """RMSprop of TensorFlow 1 (`tf.compat.v1.train.RMSPropOptimizer`), which the papers use.

    It differs from Keras' in one point: the mean square starts at 1, not at 0. With 0 the first
    steps are tens of times longer.

    Args:
        learning_rate: number or schedule.
        **kwargs: of `keras.optimizers.RMSprop`, and `multipliers`: factors of the learning rate
            by `variable.path`.
    """

    def __init__(self, learning_rate=0.016, **kwargs):
        super().__init__(learning_rate, **kwargs)

    def add_optimizer_variables(self, trainable_variables, name, initializer="zeros"):
        """Adds slots; those of the mean square ("velocity") start at 1."""
        if name == "velocity":
            initializer = "ones"
        return super().add_optimizer_variables(trainable_variables, name, initializer)


class _Momentum(keras.optimizers.SGD):
    """Momentum of TensorFlow 1: the rate multiplies the sum of gradients, not its terms."""

    def update_step(self, gradient, variable, learning_rate):
        """Takes a step."""
        if self.momentum:
            total = self.momentums[self._get_variable_index(variable)]
            total.assign(total * self.momentum + gradient)
            gradient = total
        self.assign_sub(variable, learning_rate * gradient)


class SGD(_PerVariable, _Momentum):
    """Gradient descent of TensorFlow 1 (`tf.compat.v1.train.MomentumOptimizer`).

    It differs from Keras' where the learning rate changes: momentum m sums gradients,
    s = m * s + g, and the step is rate * s; Keras sums rate * g.

    Args:
        learning_rate: number or schedule.
        **kwargs: of `keras.optimizers.SGD` but `nesterov`, and `multipliers`: factors of the
            learning rate by `variable.path`.
    """

    def __init__(self, learning_rate=0.01, **kwargs):
        _refuse_nesterov(kwargs)
        super().__init__(learning_rate, **kwargs)


class _Adam(keras.optimizers.Adam):
    """Adam that corrects the moments of each variable for the steps that this variable took.

    Keras counts the optimizer's steps: what begins to learn late, after the classifier, would take
    first steps several times too long.
    """

    def build(self, variables):
        """Makes the slots of the variables."""
        if not self.built:
            super().build(variables)
            self._steps = [
                self.add_variable((), "zeros", "float32", name="steps") for _ in variables
            ]

    def update_step(self, gradient, variable, learning_rate):
        """Takes a step."""
        steps = self._steps[self._get_variable_index(variable)]
        self.assign_add(steps, 1.0)
        # The second is what Keras multiplies by; both are the same where nothing began late.
        factor = self._correction(steps) / self._correction(self.iterations + 1)
        super().update_step(gradient, variable, learning_rate * factor)

    def _correction(self, steps):
        steps = keras.ops.cast(steps, "float32")
        return tf.sqrt(1 - self.beta_2**steps) / (1 - self.beta_1**steps)


class AdamW(_PerVariable, _Adam):
    """Adam (`tf.compat.v1.train.AdamOptimizer`) with decay of the variables themselves.

    Equal to `keras.optimizers.AdamW` but that decay may be left out, and that a variable which
    begins to learn late starts as it would have at the first step.

    Args:
        learning_rate: number or schedule.
        **kwargs: of `keras.optimizers.Adam`, and `multipliers`: factors of the learning rate by
            `variable.path`.
    """

    def __init__(self, learning_rate=0.001, **kwargs):
        super().__init__(learning_rate, **kwargs)


class _Layerwise(_Momentum):
    """Momentum whose rate is in proportion to each kernel's length over its gradient's."""

    def update_step(self, gradient, variable, learning_rate):
        """Takes a step."""
        decay = (self.weight_decay or 0.0) * self._use_weight_decay(variable)
        if self._adapted[self._get_variable_index(variable)]:
            weight, slope = tf.norm(variable), tf.norm(gradient)
            ratio = tf.math.divide_no_nan(_TRUST * weight, slope + decay * weight)
            learning_rate *= tf.where((weight > 0) & (slope > 0), ratio, 1.0)
        if decay and not self._decay_in_gradients:
            gradient += decay * variable
        super().update_step(gradient, variable, learning_rate)


class LARS(_PerVariable, _Layerwise):
    """Layer-wise adaptive rate scaling for batches of thousands (arXiv:1708.03888).

    As TensorFlow 1's (`tf.contrib.opt.LARSOptimizer`), which the V1 code uses: a kernel w with
    gradient g learns at rate * 0.001 * |w| / (|g| + weight_decay * |w|), or at the plain rate where
    either length is 0; biases and batch normalization learn at the plain rate. That multiplies the
    sum of gradients, as in `SGD`; the paper's Algorithm 1 has it inside the sum.

    Args:
        learning_rate: number or schedule.
        decay_in_gradients: True where the loss has the decay, so that gradients contain it already
            (V1); False to add weight_decay * w to them here (the paper's Algorithm 1).
        **kwargs: of `keras.optimizers.SGD` but `nesterov`, and `multipliers`: factors of the
            learning rate by `variable.path`.
    """

    _decoupled = False

    def __init__(self, learning_rate=0.1, *, decay_in_gradients: bool = False, **kwargs):
        _refuse_nesterov(kwargs)
        super().__init__(learning_rate, **kwargs)
        self._decay_in_gradients = decay_in_gradients

    def build(self, variables):
        """Makes the slots of the variables."""
        super().build(variables)
        self._adapted = tuple(decayed(v, "kernels") for v in variables)


def create(
    config: Config,
    variables: Sequence[keras.Variable],
    steps_per_epoch: int,
    epochs: int,
    *,
    multipliers: Mapping[str, float] | None = None,
) -> keras.optimizers.Optimizer:
    """Makes the optimizer with its slots. Call it in the strategy's scope.

    Args:
        config: of the run.
        variables: of the model, all that will ever learn.
        steps_per_epoch: for the schedule.
        epochs: that the run has, which may be more than `config.train.epochs`.
        multipliers: factors of the learning rate by `variable.path`; 1 for those not named. Decay
            in the update is scaled with the rate. Paths of other variables have no effect.

    Returns:
        A built optimizer. Its `apply` takes the replica's part of the gradients, of all variables
        or of some.

    Raises:
        ValueError: a multiplier is negative or not finite, or `min_learning_rate` is above the
            highest rate.
    """
    train = config.train
    schedule = WarmupSchedule(train, config.scaled_learning_rate, steps_per_epoch, epochs)
    in_update = train.weight_decay_in == "update"
    decay = train.weight_decay or None
    kwargs = {"weight_decay": decay if in_update else None, "multipliers": multipliers}
    momentum = float(train.momentum)
    if train.optimizer == "rmsprop":
        # rho and epsilon of V1 `main.py` and V2 `hparams.py`.
        optimizer = RMSprop(schedule, rho=0.9, momentum=momentum, epsilon=1e-3, **kwargs)
    elif train.optimizer == "sgd":
        optimizer = SGD(schedule, momentum=momentum, **kwargs)
    elif train.optimizer == "lars":
        kwargs["weight_decay"] = decay  # its share of the rate, wherever it is added
        optimizer = LARS(schedule, momentum=momentum, decay_in_gradients=not in_update, **kwargs)
    else:
        optimizer = AdamW(schedule, epsilon=1e-8, **kwargs)  # TensorFlow 1's; Keras has 1e-7
    # Set afterwards, because Keras' constructors take only one of them.
    if train.clip_norm and train.clip in ("variable", "both"):
        optimizer.clipnorm = train.clip_norm
    if train.clip_norm and train.clip in ("global", "both"):
        optimizer.global_clipnorm = train.clip_norm
    optimizer.exclude_from_weight_decay(
        var_list=[v for v in variables if not decayed(v, train.weight_decay_on)]
    )
    optimizer.build(list(variables))
    return optimizer


def decayed(variable: keras.Variable, on: Literal["kernels", "all_but_norm"]) -> bool:
    """Whether weight decay applies to a trainable variable.

    Args:
        variable: of a model.
        on: "kernels" for all but biases and normalization's parameters (V2 `main.py`; depthwise
            kernels are decayed), "all_but_norm" for all but normalization's (V1 `main.py`: the
            biases of squeeze-and-excitation and of the classifier are decayed).
    """
    excluded = {"kernels": ("bias", "gamma", "beta"), "all_but_norm": ("gamma", "beta")}[on]
    return variable.path.rpartition("/")[2] not in excluded


def _refuse_nesterov(kwargs: Mapping[str, object]) -> None:
    if kwargs.get("nesterov"):
        raise ValueError("nesterov=True is not supported. Use keras.optimizers.SGD for it.")
