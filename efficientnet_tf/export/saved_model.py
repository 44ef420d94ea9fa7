"""SavedModels of a classifier: one for TensorFlow Serving, and a plain one to convert from.

Keras' own export stores every variable twice (keras#23553) and names its tensors anew in each
process; a `tf.Module` that holds the raw variables does neither, and loads in half the time.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Literal

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from efficientnet_tf.export import graph, lowered, signatures, stable
from efficientnet_tf.export.graph import FEATURES, INPUT, LOGITS, MAPS, PROBABILITIES, Parts
from efficientnet_tf.preprocessing import Preprocessing

LABELS = "labels.txt"
_CLASS_MAP, _CLASS_IDS = "class_map", "class_ids"
_PROBABILITIES = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}

# The gradients of swish would be written along, for nothing.
_OPTIONS = tf.saved_model.SaveOptions(experimental_custom_gradients=False)


def write_core(
    parts: Parts,
    path: str | os.PathLike,
    *,
    batch: int | None = None,
    dynamic_size: bool = False,
    outputs: Sequence[str] = (PROBABILITIES,),
) -> None:
    """Writes the plain SavedModel that other formats are converted from.

    It has one signature, "serving_default": `images`, float32 (batch, height, width, 3), to
    `outputs`.

    Args:
        parts: from `graph.parts`.
        path: folder that does not exist yet.
        batch: pictures per call; None for any number.
        dynamic_size: whether height and width are free.
        outputs: names of `parts.model`'s outputs.

    Raises:
        ValueError: the network has no such output, or cannot take pictures of any size.
        FileExistsError: `path` exists.
    """
    _must_not_exist(path)
    module = tf.Module(name="classifier")
    function, module.weights = _core(parts, outputs, batch, dynamic_size)
    tf.saved_model.save(
        module,
        os.fspath(path),
        signatures={"serving_default": function.get_concrete_function()},
        options=_OPTIONS,
    )


def core_function(
    parts: Parts,
    *,
    outputs: Sequence[str] = (PROBABILITIES,),
    batch: int | None = None,
    dynamic_size: bool = False,
):
    """Makes the network a function without variables: its weights are constants of the graph.

    Args:
        parts: from `graph.parts`.
        outputs: names of `parts.model`'s outputs.
        batch: pictures per call; None for any number.
        dynamic_size: whether height and width are free.

    Returns:
        A concrete function of `images`, float32 (batch, height, width, 3), whose graph has the
        placeholder "images". It returns a list in the order of `outputs`, whose tensors are the
        graph's "Identity:0", "Identity_1:0", …

    Raises:
        ValueError: the network has no such output, or cannot take pictures of any size.
    """
    function, _ = _core(parts, outputs, batch, dynamic_size, as_list=True)
    return convert_variables_to_constants_v2(function.get_concrete_function())


def _core(parts: Parts, outputs, batch, dynamic_size, as_list: bool = False):
    """The network as a tf.function, and its variables by name."""
    unknown = [name for name in outputs if name not in parts.model.output]
    if unknown or not outputs:
        raise ValueError(
            f"outputs must be some of {sorted(parts.model.output)}. Received: {list(outputs)}"
        )
    model = graph.resized(parts.model, None) if dynamic_size else parts.model
    signature = tf.TensorSpec((batch, *model.inputs[0].shape[1:]), tf.float32, name=INPUT)

    @tf.function(input_signature=[signature], autograph=False)
    def core(images):
        found = model(images, training=False)
        if as_list:
            return [found[name] for name in outputs]
        return {name: found[name] for name in outputs}

    return core, _variables(model)


def _variables(model: keras.Model) -> dict[str, tf.Variable]:
    return {variable.path: variable.value for variable in model.variables}


def _must_not_exist(path: str | os.PathLike) -> None:
    if os.path.lexists(path):
        raise FileExistsError(
            f"{os.fspath(path)} exists already. Give a new folder, such as the next version."
        )


def write(
    parts: Parts,
    path: str | os.PathLike,
    *,
    rule: Preprocessing,
    class_names: Sequence[str],
    frozen: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    top: int = 5,
) -> None:
    """Writes a classifier as a SavedModel for TensorFlow Serving.

    Its signatures, for any batch size; what pictures are cropped and resized by is `rule`:

    * "serving_default": `image_bytes`, string (batch,), picture files (JPEG, PNG, GIF, BMP, WebP),
      to the `top` best `classes` (string), `class_ids` (int32) and `scores` (float32), each (batch,
      top), and `probabilities`, float32 (batch, classes).
    * "images": `images`, float32 (batch, height, width, 3) in [0, 255], to `probabilities` and
      `logits`, float32 (batch, classes). Pictures of the network's own size are taken as they are,
      others are cropped and resized. "images_uint8": the same from uint8.
    * "classify": `inputs`, string (batch,), serialized `tf.train.Example`s with a picture file in
      "image/encoded", to all `classes` by falling score, of which there are `top`, and `scores`;
      TensorFlow Serving's Classify calls it.
    * "features": `images` as above to `features`, float32 (batch, units); see `graph.Parts`.
    * "explain": `image_bytes` and `class_id`, int32 (batch,), where -1 is the most likely class, to
      `maps`, float32 (batch, height, width) in [0, 1], and `class_ids`; see `signatures.class_map`.
      `boxes`, int32 (batch, 4): the part of each picture that its map covers, as top, left, height
      and width in pixels.

    "features" and "explain" are left out where the network has no such layers. A picture file that
    cannot be read fails the batch with INVALID_ARGUMENT, which says where in the batch it is.
    The class names are also the asset `labels.txt`. The same parts give the same bytes.

    Args:
        parts: from `graph.parts`, of a network that normalises its pictures itself.
        path: folder that does not exist yet; for TensorFlow Serving its name is a version number.
        rule: of the weights; its size is the network's.
        class_names: in the order of the outputs, one line each; empty for their numbers.
        frozen: store the weights as constants of the graph: faster by a tenth, and more memory, as
            each signature that is called has them once more.
        precision: "bfloat16" computes the convolutions in bfloat16, for CPUs that have instructions
            for it (AVX512-BF16, AMX); its weights are constants.
        top: classes that are named, or all where there are fewer.

    Raises:
        ValueError: names or rule do not fit the network, or another argument is not allowed.
        FileExistsError: `path` exists.
    """
    _must_not_exist(path)
    names = _names(class_names, parts.classes)
    parts = _of_size(parts, rule)
    if precision not in ("float32", "bfloat16"):
        raise ValueError(
            f"precision must be 'float32' or 'bfloat16'. Received: precision={precision!r}"
        )
    if top < 1:
        raise ValueError(f"top must be at least 1. Received: top={top}")
    path = os.fspath(path)
    parent = os.path.dirname(path) or "."
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".labels-") as folder:
        labels = os.path.join(folder, LABELS)
        with open(labels, "w", encoding="utf-8") as file:
            file.write("\n".join(names) + "\n")
        module = tf.Module(name="classifier")
        module.labels = tf.saved_model.Asset(labels)
        core, module.weights, outputs = _servable(parts, frozen, precision)
        functions = _signatures(parts, core, outputs, rule, names, min(top, parts.classes))
        tf.saved_model.save(module, path, signatures=functions, options=_OPTIONS)
    stable.settle(path, {"classify": "tensorflow/serving/classify"})


def _names(class_names: Sequence[str], classes: int) -> list[str]:
    names = list(class_names) or [str(index) for index in range(classes)]
    if len(names) != classes:
        raise ValueError(f"class_names must name {classes} classes. Received: {len(names)} names")
    wrong = [name for name in names if not name.strip() or len(name.splitlines()) != 1]
    if wrong:
        raise ValueError(f"Each class name must be one line of text. Received: {wrong[0]!r}")
    return names


def _of_size(parts: Parts, rule: Preprocessing) -> Parts:
    """The parts at the rule's size."""
    size = parts.model.inputs[0].shape[1:3]
    if size == (rule.size, rule.size):
        return parts
    if size != (None, None):
        raise ValueError(
            f"The network takes pictures of {size[0]} x {size[1]} px, the rule makes them"
            f" {rule.size} x {rule.size}. Give the rule of these weights."
        )
    return dataclasses.replace(parts, model=graph.resized(parts.model, rule.size))


def _servable(parts: Parts, frozen: bool, precision: str):
    """The network as one function that all signatures call, its variables, and its outputs.

    The function takes `images` of the network's size and `class_id`, int32 (batch,), and gives all
    outputs of `signatures` by name; what a signature does not use is not computed.
    """
    model, tail = parts.model, graph.tail(parts)
    trunk = model
    if precision == "bfloat16":
        # Scores would come in steps of 1/256: what follows the last maps stays float32.
        wanted = (
            [MAPS] if tail is not None else [n for n in (LOGITS, FEATURES) if n in model.output]
        )
        trunk = lowered.bfloat16(core_function(parts, outputs=wanted), wanted)

    def network(images, class_id):
        found = dict(trunk(images))
        if tail is not None:
            found.update(tail(found[MAPS]))
            found[_CLASS_MAP], found[_CLASS_IDS] = signatures.class_map(
                found[MAPS], found[LOGITS], class_id
            )
        found[PROBABILITIES] = _PROBABILITIES[parts.activation](found[LOGITS])
        return [found[name] for name in names]

    names = sorted(model.output) + ([] if tail is None else [_CLASS_MAP, _CLASS_IDS])
    specs = (
        tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32, name=INPUT),
        tf.TensorSpec((None,), tf.int32, name="class_id"),
    )
    core, variables = tf.function(network, input_signature=specs, autograph=False), {}
    if frozen or precision == "bfloat16":
        core = convert_variables_to_constants_v2(core.get_concrete_function())
    else:
        variables = _variables(model)

    def call(images, class_id=None):
        if class_id is None:
            class_id = tf.fill(tf.shape(images)[:1], -1)
        return dict(zip(names, core(images, class_id), strict=True))

    return call, variables, names


def _signatures(parts: Parts, core: Callable, outputs, rule: Preprocessing, names, top: int):
    contents = tf.TensorSpec((None,), tf.string, name="image_bytes")
    pixels = tf.TensorSpec((None, None, None, 3), tf.float32, name=INPUT)

    def signature(*specs):
        return tf.function(input_signature=specs, autograph=False)

    def named(probabilities):
        return signatures.best(probabilities, tf.constant(names), top)

    @signature(contents)
    def serving_default(image_bytes):
        images, _ = signatures.pictures(image_bytes, rule, "image_bytes")
        probabilities = core(images)[PROBABILITIES]
        return {**named(probabilities), PROBABILITIES: probabilities}

    def from_pixels(images):
        found = core(signatures.fitted(images, rule))
        return {PROBABILITIES: found[PROBABILITIES], LOGITS: found[LOGITS]}

    @signature(tf.TensorSpec((None,), tf.string, name="inputs"))
    def classify(inputs):
        images, _ = signatures.pictures_of_examples(inputs, rule, "inputs")
        found = named(core(images)[PROBABILITIES])
        return {"classes": found["classes"], "scores": found["scores"]}

    @signature(pixels)
    def features(images):
        return {FEATURES: core(signatures.fitted(images, rule))[FEATURES]}

    @signature(contents, tf.TensorSpec((None,), tf.int32, name="class_id"))
    def explain(image_bytes, class_id):
        images, boxes = signatures.pictures(image_bytes, rule, "image_bytes")
        found = core(images, signatures.checked(class_id, images, parts.classes))
        return {"maps": found[_CLASS_MAP], "class_ids": found[_CLASS_IDS], "boxes": boxes}

    functions = {
        "serving_default": serving_default,
        "images": signature(pixels)(from_pixels),
        "images_uint8": signature(tf.TensorSpec(pixels.shape, tf.uint8, name=INPUT))(from_pixels),
        "classify": classify,
    }
    if FEATURES in outputs:
        functions["features"] = features
    if _CLASS_MAP in outputs:
        functions["explain"] = explain
    return functions
