"""Keras layers with faster kernels on the TensorFlow backend.

They compute what the Keras layers of the same name compute, have the same variables and the same
config, and are saved as those layers: a file written from a model that contains them opens in a
process that knows only Keras, with Keras' own layers. `with_fast_layers` puts these back.
"""

import keras
import numpy as np
from keras import ops


class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` by TensorFlow's fused kernel where there is one.

    Keras 3 spells the normalisation out in elementwise operations, which read and write the
    activations several times in both directions. On the TensorFlow backend, images in
    channels-last layout go through `FusedBatchNormV3` instead, in float32, float16 and bfloat16
    (statistics in float32); at inference, behind a depthwise convolution, through its kernel.
    Everything else (other backends, ranks and axes, masks, `synchronized=True`, renorm) is left to
    Keras.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalises a batch; see `keras.layers.BatchNormalization`.

        Args:
            inputs: float (batch, height, width, channels), or any shape that Keras accepts.
            training: whether to use the batch's statistics and update the moving ones.
            mask: as in Keras.

        Returns:
            A tensor of the shape of `inputs`, in the layer's compute dtype.
        """
        if mask is not None or not self._has_fused_kernel(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        train = bool(training) and self.trainable
        if not train and _is_depthwise_output(inputs):
            return self._into_depthwise(inputs.op)
        empty = tf.constant([], tf.float32)
        result = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=empty if train else self.moving_mean,
            variance=empty if train else self.moving_variance,
            epsilon=self.epsilon,
            is_training=train,
        )
        if train:
            # The kernel returns the sample variance; Keras' moving variance is the population's.
            size = tf.reduce_prod(tf.cast(tf.shape(inputs)[:3], tf.float32))
            variance = result.batch_variance * (tf.maximum(size - 1.0, 1.0) / size)
            self._update(self.moving_mean, result.batch_mean)
            self._update(self.moving_variance, variance)
        return ops.cast(result.y, self.compute_dtype)

    def _into_depthwise(self, op):
        """Repeats a depthwise convolution with the normalisation in its kernel and a bias.

        The kernel is small; normalising afterwards is one more pass over the widest activations.
        The convolution that is repeated is dropped from the graph where nothing else reads it.
        """
        import tensorflow as tf

        scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
        outputs = tf.raw_ops.DepthwiseConv2dNative(
            input=op.inputs[0],
            filter=op.inputs[1] * tf.expand_dims(scale, -1),
            strides=op.get_attr("strides"),
            padding=op.get_attr("padding"),
            dilations=op.get_attr("dilations"),
        )
        return tf.nn.bias_add(outputs, self.beta - self.moving_mean * scale)

    def _update(self, moving, batch):
        moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))

    def _has_fused_kernel(self, inputs) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and not self.synchronized
            and not getattr(self, "renorm", False)  # not in every Keras 3
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "float16", "bfloat16")
            and keras.backend.standardize_dtype(self.variable_dtype) == "float32"
        )


def _is_depthwise_output(x) -> bool:
    import tensorflow as tf

    return (
        tf.is_symbolic_tensor(x)
        and x.op.type == "DepthwiseConv2dNative"
        and x.op.inputs[1].shape[-1] == 1
        and x.dtype == tf.float32
    )


class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` that is a matrix product where the map is a single pixel.

    Squeeze-excite convolves maps of 1 x 1 with kernels of 1 x 1. Calling the convolution kernel for
    that costs more than the arithmetic, most of all in the backward pass.
    """

    def call(self, inputs):
        """Convolves a batch; see `keras.layers.Conv2D`.

        Args:
            inputs: float (batch, height, width, channels).

        Returns:
            float (batch, new height, new width, filters).
        """
        single = tuple(inputs.shape[1:3]) == (1, 1) and tuple(self.kernel_size) == (1, 1)
        if not single or self.groups != 1 or self.data_format != "channels_last":
            return super().call(inputs)
        kernel = ops.reshape(self.kernel, self.kernel.shape[2:])
        x = ops.matmul(ops.reshape(inputs, (-1, inputs.shape[-1])), kernel)
        if self.use_bias:
            x = ops.add(x, self.bias)
        if self.activation is not None:
            x = self.activation(x)
        return ops.reshape(x, (-1, 1, 1, self.filters))


class Activation(keras.layers.Activation):
    """`keras.layers.Activation` whose SiLU has a shorter gradient on TensorFlow.

    As in `tf.nn.silu`, the backward pass computes the sigmoid again instead of keeping it, but it
    runs over the activations four times, not six.
    """

    def call(self, inputs):
        """Applies the activation; see `keras.layers.Activation`.

        Args:
            inputs: float, of any shape.

        Returns:
            A tensor of the shape of `inputs`.
        """
        if keras.backend.backend() != "tensorflow" or self.activation is not keras.activations.silu:
            return super().call(inputs)
        return _silu(inputs)


def _silu(x):
    import tensorflow as tf

    @tf.custom_gradient
    def silu(x):
        def gradient(upstream):
            # Not before the upstream gradient is there, or it would be kept since the forward pass.
            with tf.control_dependencies([upstream]):
                gate = tf.sigmoid(x)
            # d/dx x s(x) = s + x s (1 - s); SigmoidGrad(y=s, dy=x) is the second term.
            return upstream * (gate + tf.raw_ops.SigmoidGrad(y=gate, dy=x))

        return x * tf.sigmoid(x), gradient

    return silu(x)


class Rescaling(keras.layers.Rescaling):
    """`keras.layers.Rescaling` that handles constants per channel a row at a time.

    Broadcasting over three channels runs element by element on CPUs. Laid out over a whole row of
    pixels, the same constants make long vectors.
    """

    def call(self, inputs):
        """Computes `inputs * scale + offset`; see `keras.layers.Rescaling`.

        Args:
            inputs: (batch, height, width, channels), or any shape that Keras accepts.

        Returns:
            float, the shape of `inputs`.
        """
        if len(inputs.shape) != 4 or None in inputs.shape[1:3] or np.size(self.scale) == 1:
            return super().call(inputs)
        height, width, channels = inputs.shape[1:]
        scale, offset = (
            ops.convert_to_tensor(
                np.tile(np.broadcast_to(np.float32(values), channels), width), self.compute_dtype
            )
            for values in (self.scale, self.offset)
        )
        x = ops.cast(ops.reshape(inputs, (-1, height, width * channels)), self.compute_dtype)
        return ops.reshape(x * scale + offset, (-1, height, width, channels))


class Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` with the rate that was asked for in half precision too.

    Keras draws the mask in the dtype of the inputs. A bfloat16 number in [0, 1) is one of 128, so
    that a rate of 1e-6 drops 1/128, and 1 / (1 - rate) is rounded to 8 bits.
    """

    def call(self, inputs, training=False):
        """Drops values; see `keras.layers.Dropout`.

        Args:
            inputs: float, of any shape.
            training: whether to drop any.

        Returns:
            A tensor of the shape and dtype of `inputs`.
        """
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if not training or not self.rate or dtype not in ("bfloat16", "float16"):
            return super().call(inputs, training=training)
        shape = ops.shape(inputs)
        if self.noise_shape is not None:
            pairs = zip(self.noise_shape, shape, strict=True)
            shape = tuple(size if fixed is None else fixed for fixed, size in pairs)
        drawn = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        mask = ops.cast(drawn >= self.rate, "float32") / (1.0 - self.rate)
        return ops.cast(ops.cast(inputs, "float32") * mask, dtype)


_LAYERS = (Activation, BatchNormalization, Conv2D, Dropout, Rescaling)
for _layer in _LAYERS:
    # Keras writes a layer's module and class name into files and looks them up when it reads them.
    _layer.__module__ = "keras.layers"
_FAST = {getattr(keras.layers, layer.__name__): layer for layer in _LAYERS}


def with_fast_layers(model: keras.Model) -> keras.Model:
    """Copies a model, with these layers in place of those that Keras reads from a file.

    `custom_objects` cannot do that: Keras never looks the names of its own layers up in it.

    Args:
        model: functional or sequential, such as `keras.saving.load_model` returns.

    Returns:
        A model, not compiled, with the same names, weights and answers.
    """

    def copy(layer):
        return _FAST.get(type(layer), type(layer)).from_config(layer.get_config())

    fast = keras.models.clone_model(model, clone_function=copy, recursive=True)
    fast.set_weights(model.get_weights())
    return fast
