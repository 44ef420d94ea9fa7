"""SavedModels whose answers are known in closed form, and servers and clients for them.

`python tests/serve_models.py FOLDER` writes version 1 into FOLDER/1, for a server that the tests
are pointed at by TFS_URL.
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys
import urllib.error
import urllib.request

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

METHODS = {
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
}


def write(folder, version: int) -> pathlib.Path:
    """Writes a version; `scale(x)` is x * [1, 2, 3] + 1000 * version."""
    path = pathlib.Path(folder) / str(version)
    if _cache:
        whole = path.with_name(f".writing-{version}")
        shutil.copytree(_cache[0], whole)
        _set_version(whole, version)
        whole.rename(path)  # a server may look at any moment
        return path
    _write(path, version)
    return path


def _write(path: pathlib.Path, version: int) -> None:
    module = tf.Module()
    module.offset = tf.Variable(1000.0 * version, name="offset")
    floats = tf.TensorSpec((None, 3), tf.float32, name="x")
    strings = tf.TensorSpec((None,), tf.string)

    @tf.function(input_signature=[floats])
    def scale(x):
        return {"y": x * [1.0, 2.0, 3.0] + module.offset}

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.int32, name="a"), floats])
    def two(a, x):
        """Rejects negative a by the row."""
        row = tf.cast(tf.argmax(tf.reduce_any(a < 0, 1)), tf.int32)
        bad = tf.reduce_any(a < 0)
        check = tf.debugging.Assert(~bad, [tf.strings.format("row {} is negative", row)])
        with tf.control_dependencies([check]):
            return {"product": a * 10, "total": tf.reduce_sum(x, 1) + tf.cast(a[:, 0], tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="image_bytes")])
    def picture(image_bytes):
        def mean(content):
            image = tf.io.decode_image(content, channels=3, expand_animations=False)
            return tf.reduce_mean(tf.cast(image, tf.float32), (0, 1))

        means = tf.map_fn(mean, image_bytes, fn_output_signature=tf.TensorSpec((3,), tf.float32))
        return {"mean": means}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="text")])
    def echo(text):
        return {"said": text, "said_bytes": text}

    @tf.function(input_signature=[floats])
    def total(x):
        return {"sum": tf.reduce_sum(x)}

    @tf.function(input_signature=[floats])
    def centered(x):
        """Whose rows depend on each other."""
        return {"y": x - tf.reduce_mean(x, 0, keepdims=True), "count": tf.shape(x)[:1]}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, name="seconds")])
    def wait(seconds):
        start = tf.timestamp()
        end = start + tf.cast(tf.reduce_max(seconds), tf.float64)
        last = tf.while_loop(lambda now: now < end, lambda now: [tf.timestamp()], [start])[0]
        return {"waited": seconds + 0.0 * tf.cast(last - start, tf.float32)}

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.bool, name="flag"),
            tf.TensorSpec((None,), tf.uint8, name="small"),
            tf.TensorSpec((None,), tf.int64, name="large"),
            tf.TensorSpec((None,), tf.float64, name="double"),
        ]
    )
    def kinds(flag, small, large, double):
        return {"not": ~flag, "small": small + 1, "large": large + 1, "double": double / 3}

    def features(examples):
        spec = {"x": tf.io.FixedLenFeature((3,), tf.float32)}
        return tf.io.parse_example(examples, spec)["x"]

    @tf.function(input_signature=[strings])
    def classify(inputs):
        x = features(inputs)
        names = tf.tile(tf.constant([["ant", "bee", "cow"]]), (tf.shape(x)[0], 1))
        return {"classes": names, "scores": x}

    @tf.function(input_signature=[strings])
    def regress(inputs):
        return {"outputs": tf.reduce_sum(features(inputs), 1)}

    functions = (scale, two, picture, echo, total, centered, wait, kinds, classify, regress)
    signatures = {function.__name__: function for function in functions}
    tf.saved_model.save(module, path, signatures={"serving_default": scale, **signatures})
    file = path / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for name, method in METHODS.items():
        proto.meta_graphs[0].signature_def[name].method_name = method
    file.write_bytes(proto.SerializeToString(deterministic=True))


_cache: list[pathlib.Path] = []


def _set_version(path: pathlib.Path, version: int) -> None:
    """Rewrites the only variable, which is faster than tracing everything anew."""
    prefix = str(path / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    names = list(reader.get_variable_to_shape_map())
    values = {name: reader.get_tensor(name) for name in names}
    for name in names:
        if name.startswith("offset"):
            values[name] = np.float32(1000 * version)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[values[name] for name in names],
    )


def remember(path: pathlib.Path) -> None:
    """Makes later calls of `write` copy a version instead of tracing it."""
    _cache[:] = [path]


def expected(x, version: int) -> np.ndarray:
    """What `scale` says."""
    return np.asarray(x, np.float32) * np.float32([1, 2, 3]) + np.float32(1000 * version)


@contextlib.contextmanager
def contract(folder):
    """(REST's host:port, gRPC's, name of the model) of a server of version 1, or of TFS_URL's."""
    if "TFS_URL" in os.environ:
        model = os.environ.get("TFS_MODEL", "default")
        yield os.environ["TFS_URL"], os.environ["TFS_GRPC"], model
        return
    from efficientnet_tf.serve import server

    write(folder, 1)
    running = server.start(folder, name="tiny", port=0, grpc_port=0)
    try:
        assert running.wait_ready(60)
        yield f"127.0.0.1:{running.port}", f"127.0.0.1:{running.grpc_port}", "tiny"
    finally:
        running.stop()


def ask(url: str, document=None, *, data: bytes | None = None, timeout: float = 60):
    """(status, parsed answer) of a request: POST where there is something to send."""
    body = data if document is None else json.dumps(document).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


if __name__ == "__main__":
    write(sys.argv[1], 1)
