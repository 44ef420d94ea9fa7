"""TFLite (LiteRT) files, for phones and small computers."""

import os

import tensorflow as tf


def write(saved_model: str | os.PathLike, path: str | os.PathLike) -> None:
    """Converts a SavedModel of `saved_model.write` to a float32 TFLite file.

    The file takes `images`, float32 (batch, height, width, 3) in [0, 255], and gives
    `probabilities`, float32 (batch, classes). The batch size is free: resize the input tensor, or
    use the signature "serving_default".

    Args:
        saved_model: its folder. Conversion starts here because a converter that is given a Keras 3
            model can leave its variables out and write a file that answers nan.
        path: of the file; it appears whole or not at all.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(
        os.fspath(saved_model), signature_keys=["serving_default"]
    )
    content = converter.convert()
    path = os.fspath(path)
    temporary = f"{path}.writing-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
