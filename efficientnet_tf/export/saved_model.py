"""SavedModel of a classifier, ready for TensorFlow Serving.

Keras' own export stores every variable twice (keras#23553) and names its tensors anew in each
process; a `tf.Module` that holds the raw variables does neither, and loads in half the time.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence

import keras
import tensorflow as tf


class _Servable(tf.Module):
    """The functions and everything that they use, without the Keras model."""

    def __init__(self, model: keras.Model, labels_path: str | None):
        super().__init__(name="efficientnet")
        head = classifier(model)
        trunk = keras.Model(model.inputs, head.input)
        self.variables_of_model = [v.value for v in model.variables]
        if labels_path is not None:
            self.labels = tf.saved_model.Asset(labels_path)
        shape = (None, *model.input_shape[1:])
        signature = [tf.TensorSpec(shape, tf.float32, name="images")]

        def logits(images):
            features = tf.cast(trunk(images, training=False), tf.float32)
            return tf.matmul(features, head.kernel.value) + head.bias.value

        sigmoid = head.activation is keras.activations.sigmoid
        probabilities = tf.sigmoid if sigmoid else tf.nn.softmax

        @tf.function(input_signature=signature)
        def serving_default(images):
            return {"probabilities": probabilities(logits(images))}

        @tf.function(input_signature=signature)
        def serving_logits(images):
            return {"logits": logits(images)}

        self.signatures_to_save = {"serving_default": serving_default, "logits": serving_logits}


def write(model: keras.Model, path: str | os.PathLike, class_names: Sequence[str] = ()) -> None:
    """Writes a classifier as a SavedModel.

    Its signatures take `images`, float32 (batch, height, width, 3) in [0, 255], any batch size:
    "serving_default" returns `probabilities` and "logits" returns `logits`, float32 (batch,
    classes). The class names, one per line, are the asset `labels.txt`.

    Args:
        model: ends in a dense layer with softmax, sigmoid (each class on its own) or no activation
            (logits, whose softmax is served); with its preprocessing inside. Mixed precision is
            allowed.
        path: folder that does not exist yet; for TensorFlow Serving its name is a version number.
        class_names: in the order of the outputs; none are written when empty.

    Raises:
        ValueError: the model does not end as described, or the names do not fit its outputs.
        FileExistsError: `path` exists.
    """
    path = os.fspath(path)
    if os.path.exists(path):
        raise FileExistsError(
            f"{path} exists already. Give a new folder, such as the next version."
        )
    classes = model.output_shape[-1]
    if class_names and len(class_names) != classes:
        raise ValueError(
            f"class_names must name {classes} classes. Received: {len(class_names)} names"
        )
    labels_path = None
    if class_names:
        parent = os.path.dirname(path) or "."
        os.makedirs(parent, exist_ok=True)
        folder = tempfile.mkdtemp(dir=parent, prefix=".labels-")
        labels_path = os.path.join(folder, "labels.txt")
        with open(labels_path, "w", encoding="utf-8") as file:
            file.write("\n".join(class_names) + "\n")
    try:
        servable = _Servable(model, labels_path)
        tf.saved_model.save(
            servable,
            path,
            signatures=servable.signatures_to_save,
            # The gradients of swish would be written along, for nothing.
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )
    finally:
        if labels_path is not None:
            shutil.rmtree(folder)


def classifier(model: keras.Model) -> keras.layers.Dense:
    """Returns a model's last layer, which must be dense with softmax, sigmoid or no activation.

    Raises:
        ValueError: it is something else.
    """
    head = model.layers[-1]
    if isinstance(head, keras.layers.Dense) and head.activation in (
        keras.activations.softmax,
        keras.activations.sigmoid,
        keras.activations.linear,
    ):
        return head
    raise ValueError(
        "The model must end in a dense layer with softmax, sigmoid or no activation. Received:"
        f" {type(head).__name__} {head.name!r}"
    )
