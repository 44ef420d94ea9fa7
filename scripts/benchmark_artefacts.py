"""Exported files against each other and keras.applications' own: `benchmark.py --artefacts`.

One picture at a time on one thread. All files are called in one fresh process, in turn, in random
order; loading and memory are measured in a process of its own for each file. Weights are random,
with normalisation statistics that are not the initial ones.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from absl import logging

BASE = "TFLite float32"
PEER, PEER_TFLITE = "keras.applications SavedModel", "keras.applications TFLite"
INPUT_SIZE = 224
CALLS = 5  # in a row, as the other files push each other's weights out of the processor's cache


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A file or folder, and the signature of a SavedModel that is called."""

    path: pathlib.Path
    signature: str = "images"

    @property
    def size(self) -> int:
        """Bytes, of all files of a folder."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())


def perturb(model) -> None:
    """Sets biases and normalisation to values that no converter can leave out."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(random.uniform(0.7, 1.4, variable.shape))
        if variable.path.endswith(("beta", "bias", "moving_mean")):
            variable.assign(random.uniform(-0.2, 0.2, variable.shape))


def write(variant: str, size: int, folder: pathlib.Path, peer) -> tuple[dict, int]:
    """Writes all files of a variant.

    Returns:
        The artefacts by name, and the bytes of the network's weights, folded.
    """
    import tensorflow as tf

    import efficientnet_tf
    from efficientnet_tf import preprocessing
    from efficientnet_tf.export import graph, onnx, saved_model, tflite

    model = efficientnet_tf.build(variant, input_shape=(size, size, 3))
    perturb(model)
    parts = graph.parts(model)
    rule = preprocessing.v1_eval(size)
    pictures = np.random.default_rng(1).uniform(0, 255, (100, size, size, 3)).astype(np.float32)
    found = {}

    def file(name: str, path: str, make: Callable, **kwargs) -> None:
        make(parts, folder / path, **kwargs)
        found[name] = Artefact(folder / path)

    names = [str(index) for index in range(parts.classes)]
    served = {"rule": rule, "class_names": names}
    file(BASE, "float32.tflite", tflite.write)
    calibration = lambda: [pictures]  # noqa: E731
    file("TFLite int8", "int8.tflite", tflite.write, kind="int8", calibration=calibration)
    file("SavedModel", "served", saved_model.write, **served)
    file("SavedModel frozen", "frozen", saved_model.write, **served, frozen=True)
    file("SavedModel bfloat16", "half", saved_model.write, **served, precision="bfloat16")
    try:
        file("ONNX Runtime", "model.onnx", onnx.write)
    except ImportError as error:
        print(f"Without ONNX: {error}", flush=True)
    if peer is not None:
        perturb(peer)
        peer.export(folder / "peer", verbose=False)
        found[PEER] = Artefact(folder / "peer", "serving_default")
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "peer"))
        (folder / "peer.tflite").write_bytes(converter.convert())
        found[PEER_TFLITE] = Artefact(folder / "peer.tflite")
    return found, 4 * parts.model.count_params()


def opened(artefact: Artefact, size: int) -> Callable[[], np.ndarray]:
    """Opens an artefact in its runtime, with one thread, and returns one call of it."""
    path = str(artefact.path)
    image = np.random.default_rng(0).uniform(0, 255, (1, size, size, 3)).astype(np.float32)
    if path.endswith(".tflite"):
        return _tflite(path, image)
    if path.endswith(".onnx"):
        return _onnx(path, image)
    return _session(path, artefact.signature, image)


def _tflite(path: str, image: np.ndarray):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=1)
    (inputs,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(inputs["index"], image.shape)
    interpreter.allocate_tensors()
    output = interpreter.get_output_details()[0]["index"]
    image = image.astype(inputs["dtype"])

    def call():
        interpreter.set_tensor(inputs["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return call


def _onnx(path: str, image: np.ndarray):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["probabilities"], {"images": image})[0]


def _session(path: str, signature: str, image: np.ndarray):
    """The C++ session, as TensorFlow Serving opens it: by the tensors' names."""
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1,
        inter_op_parallelism_threads=1,
        use_per_session_threads=True,  # or it would get those of the process
    )
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    with session.graph.as_default():
        meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
    described = meta.signature_def[signature]
    (inputs,) = described.inputs.values()
    outputs = described.outputs
    output = (
        outputs["probabilities"] if "probabilities" in outputs else next(iter(outputs.values()))
    )
    call = session.make_callable([output.name], [inputs.name])
    return lambda: call(image)[0]


def repeated(call: Callable) -> Callable[[], None]:
    """What is timed: several calls."""

    def calls():
        for _ in range(CALLS):
            call()

    return calls


def child(*arguments: str) -> dict:
    """Runs this file in a fresh process, and reads what it prints."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return json.loads(done.stdout.splitlines()[-1])


def timed(artefacts: dict[str, Artefact], size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a call by name, round by round; for the fresh process."""
    from benchmark import interleave

    calls = {name: repeated(opened(artefact, size)) for name, artefact in artefacts.items()}
    interleave(calls, 3)  # traces and warms up
    seconds = interleave(calls, rounds)
    return {name: [value / CALLS for value in values] for name, values in seconds.items()}


def loaded(artefact: Artefact, size: int) -> dict[str, float]:
    """What loading a SavedModel costs; for the fresh process."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:  # what the first of all costs is not counted
        first = tf.Module()
        first.variable = tf.Variable(tf.ones((1, size, size, 3)))
        spec = tf.TensorSpec((1, size, size, 3), tf.float32, name="images")
        add = tf.function(lambda images: images + first.variable, input_signature=[spec])
        tf.saved_model.save(first, folder, signatures=add)
        opened(Artefact(pathlib.Path(folder), "serving_default"), size)()
    before, start = _resident(), time.perf_counter()
    call = opened(artefact, size)
    memory, seconds = _resident() - before, time.perf_counter() - start
    call()
    return {
        "load, s": seconds,
        "first call, s": time.perf_counter() - start - seconds,
        "loaded, MiB": memory,
        "called, MiB": _resident() - before,
    }


def _resident() -> float:
    import resident

    return resident.read("VmRSS") / 2**20  # MiB


def report(variant: str, size: int, rounds: int, peer=None) -> None:
    """Prints the tables of a variant.

    Args:
        variant: name of the network.
        size: pixels.
        rounds: of measurement.
        peer: keras.applications' network of the same kind, or None where there is none.
    """
    logging.set_verbosity(logging.ERROR)  # TensorFlow tells of each captured variable
    with tempfile.TemporaryDirectory() as folder:
        artefacts, weights = write(variant, size, pathlib.Path(folder), peer)
        places = {name: [str(a.path), a.signature] for name, a in artefacts.items()}
        seconds = child("timed", json.dumps(places), str(size), str(rounds))
        base = artefacts[BASE].size
        print(f"\n| {variant}, {size} px, 1 thread | ms | × {BASE} | MB | size ÷ {BASE}'s |")
        print("|---|---:|---:|---:|---:|")
        for name, artefact in artefacts.items():
            ratio = statistics.median(
                a / b for a, b in zip(seconds[name], seconds[BASE], strict=True)
            )
            print(
                f"| {name} | {1e3 * statistics.median(seconds[name]):.2f} | {ratio:.2f} |"
                f" {artefact.size / 1e6:.2f} | {artefact.size / base:.2f} |"
            )
        print(f"\nThe folded weights are {weights / 1e6:.2f} MB.", flush=True)
        costs = {
            name: [child("loaded", json.dumps(places[name]), str(size)) for _ in range(3)]
            for name, artefact in artefacts.items()
            if artefact.path.is_dir()
        }
        columns = list(next(iter(costs.values()))[0])
        print(f"\n| {variant} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
        for name, found in costs.items():
            medians = [statistics.median(row[column] for row in found) for column in columns]
            print(f"| {name} | {' | '.join(f'{value:.2f}' for value in medians)} |", flush=True)


def main(task: str, what: str, size: str, *rounds: str) -> None:
    """What a fresh process does: `timed` or `loaded`, printed as JSON."""
    if task == "timed":
        artefacts = {
            name: Artefact(pathlib.Path(path), signature)
            for name, (path, signature) in json.loads(what).items()
        }
        found = timed(artefacts, int(size), int(*rounds))
    else:
        path, signature = json.loads(what)
        found = loaded(Artefact(pathlib.Path(path), signature), int(size))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
