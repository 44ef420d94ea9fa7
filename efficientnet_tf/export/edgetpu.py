"""What stands in the way of Google's EdgeTPU compiler, read off a TFLite file.

The compiler itself is no Python package and runs on Linux x86-64 only. Its rules are those of
https://coral.ai/docs/edgetpu/models-intro/ ("Model requirements" and "Supported operations"): all
tensors are of 8 bits and of constant size, only the last three dimensions are larger than 1, and
the operations are those of a table. Up to the first operation that is not, the graph runs on the
EdgeTPU; that one and all behind it run on the host's processor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from efficientnet_tf.export import tflite_file

LARGEST_SOFTMAX = 16_000  # elements


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that keeps a file, or a part of it, off the EdgeTPU.

    Attributes:
        op: the TFLite operation, such as "HARD_SWISH"; "INPUT" for the model's input.
        layer: name of the tensor that it computes, which begins with the layer's; of the first one.
        count: how many operations of this kind have this problem.
        problem: what the EdgeTPU does not do.
        remedy: what to change.
        blocks: whether the compiler refuses the file. Otherwise the operation and all behind it run
            on the processor.
    """

    op: str
    layer: str
    count: int
    problem: str
    remedy: str
    blocks: bool

    def __str__(self):
        others = f" and {self.count - 1} more" if self.count > 1 else ""
        effect = "The compiler refuses the file" if self.blocks else "It runs on the processor"
        return f"{self.op} ({self.layer}{others}): {self.problem}. {effect}. {self.remedy}"


@dataclasses.dataclass(frozen=True)
class _Op:
    """One operation with its tensors."""

    name: str
    inputs: list[Any]
    outputs: list[Any]
    options: Any
    model: Any
    last: bool

    def constant(self, index: int) -> np.ndarray | None:
        """The int32 values of an input that the file holds, or None."""
        if index >= len(self.inputs):
            return None
        data = self.model.buffers[self.inputs[index].buffer].data
        return None if data is None else data.view(np.int32)


def check(content: bytes) -> tuple[Finding, ...]:
    """Lists what stands in the way of the EdgeTPU compiler.

    Args:
        content: of a TFLite file.

    Returns:
        Findings, in the order of the graph; none where everything can run on the EdgeTPU.

    Raises:
        ValueError: this is no TFLite file.
    """
    model = tflite_file.read(content)
    subgraph = model.subgraphs[0]
    findings: dict[tuple[str, str], Finding] = {}

    def note(op: str, layer: str, problem: str, remedy: str, blocks: bool) -> None:
        before = findings.get((op, problem))
        count = before.count + 1 if before else 1
        layer = before.layer if before else layer
        findings[op, problem] = Finding(op, layer, count, problem, remedy, blocks)

    for index in subgraph.inputs:
        tensor = subgraph.tensors[int(index)]
        if not _is_constant(tensor):
            sizes = ", ".join("any" if s < 0 else str(s) for s in _signature(tensor))
            problem = f"its size ({sizes}) is not constant"
            note("INPUT", _name(tensor), problem, "Export with batch=1 and one picture size.", True)
    dynamic = bool(findings)
    for op in _operations(model):
        for problem, remedy, blocks in _problems(op, dynamic):
            note(op.name, _name(op.outputs[0]), problem, remedy, blocks)
    return tuple(findings.values())


def _operations(model) -> Iterator[_Op]:
    names = tflite_file.schema()
    codes = {v: k for k, v in vars(names.BuiltinOperator).items() if not k.startswith("_")}
    subgraph = model.subgraphs[0]
    for operator in subgraph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = tflite_file.text(code.customCode) if code.customCode else codes[number]
        inputs, outputs = (
            [subgraph.tensors[int(index)] for index in indices if index >= 0]
            for indices in (operator.inputs, operator.outputs)
        )
        last = operator is subgraph.operators[-1]
        yield _Op(name, inputs, outputs, operator.builtinOptions, model, last)


def _problems(op: _Op, dynamic: bool) -> Iterator[tuple[str, str, bool]]:
    """Each problem of an operation with its remedy, and whether the compiler stops at it."""
    names = tflite_file.schema()
    kinds = {v: k for k, v in vars(names.TensorType).items() if not k.startswith("_")}
    eight = (names.TensorType.INT8, names.TensorType.UINT8)
    if op.name not in SUPPORTED:
        yield (
            "the EdgeTPU does not have this operation",
            _REMEDIES.get(op.name, "Build the model of other operations."),
            False,
        )
        return
    # Weights and the result; a bias has 32 bits, and what selects axes or sizes is no parameter.
    wide = {
        kinds[t.type]
        for t in (*op.inputs[: 2 if op.name in _WEIGHTED else 1], *op.outputs)
        if t.type not in eight
    }
    if wide:
        end = ' and io="uint8"' if op.name == "QUANTIZE" else ' and output="uint8"'
        yield (
            f"its tensors are {', '.join(sorted(wide))}, not of 8 bits",
            f'Export with kind="int8"{end if op.last or op.name == "QUANTIZE" else ""}.',
            op.name in _WEIGHTED,
        )
    if not dynamic and not all(map(_is_constant, op.outputs)):
        yield "the size of its output is not constant", "Export with batch=1.", True
    if not dynamic and any(t.shape is not None and np.prod(t.shape[:-3]) > 1 for t in op.outputs):
        problem = "its output has a dimension above 1 before the last three"
        yield problem, "Export with batch=1.", True
    limit = SUPPORTED[op.name]
    if limit is not None:
        problem = limit(op)
        if problem:
            yield problem, _LIMIT_REMEDIES.get(op.name, "Build the model without it."), False


def _one_dimensional(op: _Op) -> str | None:
    shape = op.outputs[0].shape
    return None if np.prod(shape[:-1]) <= 1 else "its output must have one dimension"


def _small_softmax(op: _Op) -> str | None:
    size = int(np.prod(op.inputs[0].shape))
    if size <= LARGEST_SOFTMAX:
        return None
    return f"{size:,} elements are more than the {LARGEST_SOFTMAX:,} that it takes"


def _over_pictures(op: _Op) -> str | None:
    axes = op.constant(1)
    rank = len(op.inputs[0].shape)
    if axes is not None and rank == 4 and {int(a) % rank for a in axes} <= {1, 2}:
        return None
    return "it can reduce over height and width only"


def _no_activation(op: _Op) -> str | None:
    fused = getattr(op.options, "fusedActivationFunction", 0)
    return "it cannot have an activation fused into it" if fused else None


def _no_dilation(op: _Op) -> str | None:
    factors = {getattr(op.options, f"dilation{side}Factor", 1) for side in "WH"}
    return None if factors == {1} else "its kernel cannot be dilated"


def _equal_dilation(op: _Op) -> str | None:
    factors = {getattr(op.options, f"dilation{side}Factor", 1) for side in "WH"}
    return None if len(factors) == 1 else "its dilation must be the same in both directions"


def _pads_pictures(op: _Op) -> str | None:
    paddings = op.constant(1)
    if paddings is not None:
        sides = paddings.reshape(-1, 2)
        if len(sides) == 4 and not sides[0].any() and not sides[3].any():
            return None
    return "it can pad height and width only"


def _unit_strides(op: _Op) -> str | None:
    strides = op.constant(3)
    masks = (getattr(op.options, name, 0) for name in ("ellipsisMask", "newAxisMask"))
    if strides is not None and set(strides.tolist()) == {1} and not any(masks):
        return None
    return "its strides must all be 1"


# Operations of the table, each with what it must fulfil besides being of 8 bits; limits that are
# not given as a rule there ("depending on the size") are not checked.
SUPPORTED: dict[str, Callable[[_Op], str | None] | None] = {
    "ADD": None,
    "AVERAGE_POOL_2D": _no_activation,
    "CONCATENATION": _no_activation,
    "CONV_2D": _equal_dilation,
    "DEPTHWISE_CONV_2D": _no_dilation,
    "EXPAND_DIMS": None,
    "FULLY_CONNECTED": _one_dimensional,
    "L2_NORMALIZATION": None,
    "LOGISTIC": None,
    "MAXIMUM": None,
    "MAX_POOL_2D": _no_activation,
    "MEAN": _over_pictures,
    "MINIMUM": None,
    "MUL": None,
    "PACK": None,
    "PAD": _pads_pictures,
    "PRELU": None,
    "QUANTIZE": None,
    "REDUCE_MAX": _over_pictures,
    "REDUCE_MIN": _over_pictures,
    "RELU": None,
    "RELU6": None,
    "RELU_N1_TO_1": None,
    "RESHAPE": None,
    "RESIZE_BILINEAR": None,
    "RESIZE_NEAREST_NEIGHBOR": None,
    "RSQRT": None,
    "SLICE": None,
    "SOFTMAX": _small_softmax,
    "SPACE_TO_DEPTH": None,
    "SPLIT": None,
    "SQUARED_DIFFERENCE": None,
    "SQUEEZE": None,
    "STRIDED_SLICE": _unit_strides,
    "SUB": None,
    "SUM": _over_pictures,
    "TANH": None,
    "TRANSPOSE": None,
    "TRANSPOSE_CONV": None,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": None,
}
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_REMEDIES = {
    "DEQUANTIZE": 'Export with kind="int8" and output="uint8".',
    "HARD_SWISH": 'Build the model with activation="relu6", as the EdgeTPU and Lite variants.',
    "GELU": 'Build the model with activation="relu6", as the EdgeTPU and Lite variants.',
    "SHAPE": "Export with batch=1.",
}
_LIMIT_REMEDIES = {
    "FULLY_CONNECTED": "Export with batch=1.",
    "SOFTMAX": "Train a classifier of fewer classes.",
    "MEAN": "Use GlobalAveragePooling2D.",
}


def _signature(tensor) -> list[int]:
    shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return [int(side) for side in shape] if shape is not None else []


def _is_constant(tensor) -> bool:
    return min(_signature(tensor), default=0) >= 0


def _name(tensor) -> str:
    return tflite_file.text(tensor.name)
