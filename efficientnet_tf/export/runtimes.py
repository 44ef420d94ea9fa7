"""Exported files answer in a process of their own, with the runtime that they are made for.

The process has a SavedModel in TensorFlow's C++ loader, as TensorFlow Serving has it (fed by the
tensors' names), a TFLite file in LiteRT, an ONNX file in ONNX Runtime, or OpenVINO's own files in
OpenVINO. Keras cannot be imported there, and neither can this package: what answers is what was
written, and not something that is still in memory. Only `.keras` files are opened with Keras.

This file is also the program of that process. It runs on the CPU, because the process that asks
may have taken the whole memory of the accelerator.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT = "serving_default"
TIMEOUT = 1800.0  # seconds for one answer
PACKAGES = {  # kind: (module, what to install)
    "saved_model": ("tensorflow", "tensorflow"),
    "tflite": ("ai_edge_litert", '"efficientnet_tf[tflite]"'),
    "onnx": ("onnxruntime", '"efficientnet_tf[onnx]"'),
    "openvino": ("openvino", '"efficientnet_tf[openvino]"'),
    "keras": ("keras", "keras"),
}
_START = (  # not as a module: neither the package nor its folder may be on the path
    "import sys; sys.path[:] = filter(None, sys.path); import runpy;"
    " sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)

Specs = Mapping[str, Mapping[str, Mapping[str, tuple[str, tuple[int | None, ...]]]]]


class RuntimeFailure(RuntimeError):
    """A file cannot be loaded by its runtime, or gives no answer."""


class Runtime:
    """A file that is open in a process of its own.

    Attributes:
        signatures: of the file: name to {"inputs": {name: (dtype, shape)}, "outputs": likewise};
            None stands for any number. Formats without signatures have one, "serving_default".
    """

    def __init__(self, process: subprocess.Popen, name: str, errors, timeout: float):
        self._process, self._name, self._errors, self._timeout = process, name, errors, timeout
        self.signatures: Specs = self._receive()

    def ask(
        self, inputs: Mapping[str, np.ndarray | list[bytes]], signature: str | None = None
    ) -> dict[str, np.ndarray]:
        """Runs the file once.

        Args:
            inputs: by name; lists of bytes for strings. Pictures for files that take uint8 may be
                floats, which are rounded; of files with a fixed batch, any number.
            signature: None is the one that takes float pictures.

        Returns:
            Its outputs by name. Those of 8 bits are given as the numbers that they stand for.

        Raises:
            RuntimeFailure: it does not answer; the message says why.
        """
        if signature is None:
            signature = "images" if "images" in self.signatures else DEFAULT
        with contextlib.suppress(BrokenPipeError):  # a dead process is reported below
            pickle.dump((signature, dict(inputs)), self._process.stdin, protocol=5)
            self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> Any:
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._timeout, end)
        timer.start()
        try:
            kind, content = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            code = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-5:]
            reason = f"exit code {code}"
            if late.is_set():
                reason = f"no answer in {self._timeout:.0f} s"
            text = " | ".join(last)
            message = f"{self._name}: the process of its runtime ended ({reason}): {text}"
            raise RuntimeFailure(message) from None
        finally:
            timer.cancel()
        if kind == "error":
            raise RuntimeFailure(f"{self._name}: {content}")
        return content


@contextlib.contextmanager
def start(kind: str, path: str | os.PathLike, *, timeout: float = TIMEOUT) -> Iterator[Runtime]:
    """Opens an exported file in a process of its own.

    Args:
        kind: a key of `PACKAGES`.
        path: of the file; of the folder, for a SavedModel and for OpenVINO.
        timeout: seconds for loading and for each answer.

    Raises:
        ImportError: the runtime is not installed; the message says how to install it.
        RuntimeFailure: the runtime cannot load the file.
    """
    require(kind)
    path = Path(path).absolute()
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, __file__, kind, os.fspath(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )
        try:
            yield Runtime(process, path.name, errors, timeout)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def require(kind: str) -> None:
    """Checks that a runtime is installed.

    Raises:
        ImportError: it is not; the message says how to install it.
        ValueError: an unknown kind.
    """
    if kind not in PACKAGES:
        raise ValueError(f"kind must be one of {sorted(PACKAGES)}. Received: kind={kind!r}")
    module, package = PACKAGES[kind]
    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"What is written is checked in its own runtime, {module}, which is not installed:"
            f" pip install {package}"
        )


def answer(
    kind: str,
    path: str | os.PathLike,
    images: np.ndarray,
    *,
    signature: str | None = None,
    batch_size: int = 8,
    timeout: float = TIMEOUT,
) -> dict[str, np.ndarray]:
    """Asks an exported file about pictures, in a process that is started for that.

    Args:
        kind: a key of `PACKAGES`.
        path: of the file or folder.
        images: float32 or uint8 (n, height, width, 3) in [0, 255].
        signature: see `Runtime.ask`.
        batch_size: pictures at a time.
        timeout: seconds for loading and for each answer.

    Returns:
        Outputs by name, such as "probabilities", float32 (n, classes).

    Raises:
        ImportError: the runtime is not installed.
        RuntimeFailure: the file cannot be loaded, or gives no answer.
    """
    with start(kind, path, timeout=timeout) as runtime:
        parts = [
            runtime.ask({"images": images[first : first + batch_size]}, signature)
            for first in range(0, len(images), batch_size)
        ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ---- the process


def _saved_model(path: str) -> tuple[Specs, Callable]:
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], path)
    signatures = {k: v for k, v in loaded.signature_def.items() if not k.startswith("__")}

    def spec(info):
        shape = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
        return tf.dtypes.as_dtype(info.dtype).name, shape

    def call(signature: str, inputs):
        known = signatures[signature]
        feed = {known.inputs[name].name: value for name, value in inputs.items()}
        fetch = {name: info.name for name, info in known.outputs.items()}
        return session.run(fetch, feed)

    specs = {
        name: {
            "inputs": {key: spec(info) for key, info in sorted(known.inputs.items())},
            "outputs": {key: spec(info) for key, info in sorted(known.outputs.items())},
        }
        for name, known in sorted(signatures.items())
    }
    return specs, call


def _tflite(path: str) -> tuple[Specs, Callable]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner(DEFAULT)
    inputs_, outputs_ = runner.get_input_details(), runner.get_output_details()
    ((source, details),) = inputs_.items()

    def spec(one):
        shape = tuple(None if side < 0 else int(side) for side in one["shape_signature"])
        return np.dtype(one["dtype"]).name, shape

    fixed = int(details["shape_signature"][0])

    def call(_, inputs):
        images = inputs[source]
        if details["dtype"] == np.uint8:
            images = np.clip(np.rint(images), 0, 255)
        images = images.astype(details["dtype"])
        count = len(images)
        if fixed > 0:
            filling = np.zeros((-count % fixed, *images.shape[1:]), images.dtype)
            images = np.concatenate([images, filling])
        size = fixed if fixed > 0 else count
        parts = [
            runner(**{source: images[first : first + size]})
            for first in range(0, len(images), size)
        ]
        found = {}
        for name, one in outputs_.items():
            value = np.concatenate([part[name] for part in parts])[:count]
            scale, zero = one["quantization"]
            if value.dtype.kind in "iu" and scale:
                value = (value.astype(np.float32) - zero) * np.float32(scale)
            found[name] = value
        return found

    specs = {
        "inputs": {name: spec(one) for name, one in inputs_.items()},
        "outputs": {name: spec(one) for name, one in outputs_.items()},
    }
    return {DEFAULT: specs}, call


def _onnx(path: str) -> tuple[Specs, Callable]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def spec(one):
        shape = tuple(side if isinstance(side, int) else None for side in one.shape)
        return {"tensor(float)": "float32"}.get(one.type, one.type), shape

    names = [one.name for one in session.get_outputs()]
    specs = {
        "inputs": {one.name: spec(one) for one in session.get_inputs()},
        "outputs": {one.name: spec(one) for one in session.get_outputs()},
    }

    def call(_, inputs):
        pixels = {name: value.astype(np.float32) for name, value in inputs.items()}
        return dict(zip(names, session.run(names, pixels), strict=True))

    return {DEFAULT: specs}, call


def _openvino(path: str) -> tuple[Specs, Callable]:
    import openvino

    # By default it computes in bfloat16 on processors that can.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(os.path.join(path, "model.xml"), "CPU", exact)

    def spec(one):
        shape = tuple(
            side.get_length() if side.is_static else None for side in one.get_partial_shape()
        )
        return one.get_element_type().to_dtype().name, shape

    specs = {
        "inputs": {one.any_name: spec(one) for one in model.inputs},
        "outputs": {one.any_name: spec(one) for one in model.outputs},
    }

    def call(_, inputs):
        found = model({name: value.astype(np.float32) for name, value in inputs.items()})
        return {one.any_name: np.array(found[one]) for one in model.outputs}

    return {DEFAULT: specs}, call


def _keras(path: str) -> tuple[Specs, Callable]:
    import keras

    model = keras.saving.load_model(path, compile=False)
    specs = {
        "inputs": {"images": (model.inputs[0].dtype, tuple(model.inputs[0].shape))},
        "outputs": {"probabilities": (model.outputs[0].dtype, tuple(model.outputs[0].shape))},
    }

    def call(_, inputs):
        found = model(inputs["images"].astype(np.float32), training=False)
        return {"probabilities": keras.ops.convert_to_numpy(found).astype(np.float32)}

    return {DEFAULT: specs}, call


_LOADERS = {
    "saved_model": _saved_model,
    "tflite": _tflite,
    "onnx": _onnx,
    "openvino": _openvino,
    "keras": _keras,
}


def _serve(kind: str, path: str) -> None:
    """Answers what comes in, until nothing more comes."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    if kind != "keras":
        sys.modules["keras"] = sys.modules["efficientnet_tf"] = None  # type: ignore[assignment]
    call = None
    while True:
        try:
            if call is None:
                content, call = _LOADERS[kind](path)
            else:
                content = call(*pickle.load(questions))
            reply = ("answer", content)
        except EOFError:
            return
        except Exception as error:
            reply = ("error", f"{type(error).__name__}: {error}"[:4000])
        pickle.dump(reply, answers, protocol=5)
        answers.flush()
        if call is None:
            return


if __name__ == "__main__":
    _serve(*sys.argv[1:])
