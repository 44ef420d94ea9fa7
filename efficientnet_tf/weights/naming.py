"""The variables of a network, and what each file format calls them.

A naming maps every variable of a network, keyed "layer/variable" as in our models, to a name in a
file and to the axes that bring the file's array into Keras' layout.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Literal

from efficientnet_tf.arch import Block, Network

Kind = Literal["conv", "depthwise", "bn", "dense"]
Shape = tuple[int | None, ...]

BN_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")
CLASSIFIER = "predictions"

# PyTorch keeps output filters first: axes that lead from its layout to Keras'.
_TORCH_AXES: dict[str, tuple[int, ...]] = {
    "conv": (2, 3, 1, 0),
    "depthwise": (2, 3, 0, 1),
    "dense": (1, 0),
}
_TORCH_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        name: in our models, for example "block2a_expand_conv".
        role: without the block, for example "expand_conv".
        kind: which tells the layout of its kernel.
        variables: name to shape; None is a length that the file decides (channels of the input,
            number of classes).
        block: index of its block in `Network.blocks`; None outside the blocks.
    """

    name: str
    role: str
    kind: Kind
    variables: dict[str, Shape]
    block: int | None = None


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a variable is in a file.

    Attributes:
        name: of the array in the file.
        axes: transposition that brings the file's array into Keras' layout; None for none.
    """

    name: str
    axes: tuple[int, ...] | None = None


def layers(network: Network) -> list[Layer]:
    """Lists the layers with weights of a network, in the order of the forward pass."""
    rows = [
        _conv("stem_conv", "stem_conv", (3, 3, None, network.stem_filters)),
        _bn("stem_bn", "stem_bn", network.stem_filters),
    ]
    for index, block in enumerate(network.blocks):
        rows += _block_layers(block, index, network.variant.depthwise_name)
    last = network.blocks[-1].output_filters
    return [
        *rows,
        _conv("top_conv", "top_conv", (1, 1, last, network.head_filters)),
        _bn("top_bn", "top_bn", network.head_filters),
        Layer(
            CLASSIFIER,
            CLASSIFIER,
            "dense",
            {"kernel": (network.head_filters, None), "bias": (None,)},
        ),
    ]


def shapes(network: Network) -> dict[str, Shape]:
    """Shape of every variable, keyed "layer/variable"; see `Layer.variables` for None."""
    return {f"{row.name}/{name}": s for row in layers(network) for name, s in row.variables.items()}


def _block_layers(block: Block, index: int, depthwise_name: str) -> list[Layer]:
    kernel, inner = block.kernel_size, block.expanded_filters
    fused = block.conv == "fused"
    expands = block.expand_ratio != 1
    rows: list[Layer] = []

    def conv(role: str, shape: Shape, bias: bool = False) -> None:
        rows.append(_conv(f"{block.name}_{role}", role, shape, bias, index))

    def bn(role: str, filters: int) -> None:
        rows.append(_bn(f"{block.name}_{role}", role, filters, index))

    if expands:
        size = kernel if fused else 1
        conv("expand_conv", (size, size, block.input_filters, inner))
        bn("expand_bn", inner)
    if not fused:
        name = f"{block.name}_{depthwise_name}"
        shape = (kernel, kernel, inner, 1)
        rows.append(Layer(name, "dwconv", "depthwise", {"kernel": shape}, index))
        bn("bn", inner)
    if block.se_filters:
        conv("se_reduce", (1, 1, inner, block.se_filters), bias=True)
        conv("se_expand", (1, 1, block.se_filters, inner), bias=True)
    size = kernel if fused and not expands else 1
    conv("project_conv", (size, size, inner, block.output_filters))
    bn("project_bn", block.output_filters)
    return rows


def _conv(name: str, role: str, shape: Shape, bias: bool = False, block: int | None = None):
    variables = {"kernel": shape, "bias": shape[-1:]} if bias else {"kernel": shape}
    return Layer(name, role, "conv", variables, block)


def _bn(name: str, role: str, filters: int, block: int | None = None) -> Layer:
    return Layer(name, role, "bn", {variable: (filters,) for variable in BN_VARIABLES}, block)


def keras(network: Network) -> dict[str, Stored]:
    """keras.applications, its older copy by qubvel, and our own files."""
    return {key: Stored(key) for key in shapes(network)}


def official(network: Network) -> dict[str, Stored]:
    """TensorFlow checkpoints of tensorflow/tpu and google/automl, below the model's prefix.

    Layers are numbered per block in the order of their creation: `conv2d`, `conv2d_1`, …
    """
    counters: Counter[tuple[int | None, str]] = Counter()
    names: dict[str, str] = {}
    for row in layers(network):
        scope = {"stem": "stem", "top": "head"}.get(row.role.split("_")[0], "head")
        if row.block is not None:
            scope = f"blocks_{row.block}"
        if row.role.startswith("se_"):
            scope += "/se"
        base = {
            "conv": "conv2d",
            "depthwise": "depthwise_conv2d",
            "bn": "tpu_batch_normalization",
            "dense": "dense",
        }[row.kind]
        place = counters[(row.block, scope + base)]
        counters[(row.block, scope + base)] += 1
        names[row.name] = f"{scope}/{base}" + (f"_{place}" if place else "")

    def variable(row: Layer, name: str) -> str:
        return "depthwise_kernel" if row.kind == "depthwise" else name

    return {
        f"{row.name}/{name}": Stored(f"{names[row.name]}/{variable(row, name)}")
        for row in layers(network)
        for name in row.variables
    }


def kecam(network: Network) -> dict[str, Stored]:
    """keras_cv_attention_models and keras_efficientnet_v2 (leondgarse)."""
    roles = {
        "expand_conv": "sortcut_conv",  # spelled so in the published files
        "expand_bn": "sortcut_bn",
        "dwconv": "MB_dw_",
        "bn": "MB_dw_bn",
        "se_reduce": "se_1_conv",
        "se_expand": "se_2_conv",
        "project_conv": "MB_pw_conv",
        "project_bn": "MB_pw_bn",
    }
    plain = {"project_conv": "fu_conv", "project_bn": "fu_bn"}  # a fused block that has one conv
    outside = {"top_conv": "post_conv", "top_bn": "post_bn"}
    places = _places(network)
    stored = {}
    for row in layers(network):
        name = outside.get(row.role, row.role)
        if row.block is not None:
            block = network.blocks[row.block]
            single = block.conv == "fused" and block.expand_ratio == 1
            role = {**roles, **plain}[row.role] if single else roles[row.role]
            stage, place = places[row.block]
            name = f"stack_{stage}_block{place}_{role}"
        for variable in row.variables:
            stored[f"{row.name}/{variable}"] = Stored(f"{name}/{variable}")
    return stored


def timm(network: Network) -> dict[str, Stored]:
    """State dicts of timm's `tf_` models (pytorch-image-models, `_efficientnet_blocks.py`)."""
    expanded = {
        "expand_conv": "conv_pw",
        "expand_bn": "bn1",
        "dwconv": "conv_dw",
        "bn": "bn2",
        "se_reduce": "se.conv_reduce",
        "se_expand": "se.conv_expand",
        "project_conv": "conv_pwl",
        "project_bn": "bn3",
    }
    separable = {**expanded, "bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}
    edge = {**expanded, "expand_conv": "conv_exp", "project_bn": "bn2"}
    single = {**expanded, "project_conv": "conv", "project_bn": "bn1"}
    outside = {
        "stem_conv": "conv_stem",
        "stem_bn": "bn1",
        "top_conv": "conv_head",
        "top_bn": "bn2",
        CLASSIFIER: "classifier",
    }
    kinds = {
        ("mbconv", True): expanded,
        ("mbconv", False): separable,
        ("fused", True): edge,
        ("fused", False): single,
    }
    places = _places(network)

    def name(row: Layer) -> str:
        if row.block is None:
            return outside[row.role]
        block = network.blocks[row.block]
        stage, place = places[row.block]
        return f"blocks.{stage}.{place}.{kinds[block.conv, block.expand_ratio != 1][row.role]}"

    return _torch(network, name)


def lukemelas(network: Network) -> dict[str, Stored]:
    """State dicts of EfficientNet-PyTorch (lukemelas), V1 networks only."""
    roles = {
        "expand_conv": "_expand_conv",
        "expand_bn": "_bn0",
        "dwconv": "_depthwise_conv",
        "bn": "_bn1",
        "se_reduce": "_se_reduce",
        "se_expand": "_se_expand",
        "project_conv": "_project_conv",
        "project_bn": "_bn2",
    }
    outside = {
        "stem_conv": "_conv_stem",
        "stem_bn": "_bn0",
        "top_conv": "_conv_head",
        "top_bn": "_bn1",
        CLASSIFIER: "_fc",
    }

    def name(row: Layer) -> str:
        return outside[row.role] if row.block is None else f"_blocks.{row.block}.{roles[row.role]}"

    return _torch(network, name)


def _torch(network: Network, name: Callable[[Layer], str]) -> dict[str, Stored]:
    return {
        f"{row.name}/{variable}": Stored(
            f"{name(row)}.{_TORCH_VARIABLES[variable]}",
            _TORCH_AXES[row.kind] if variable == "kernel" else None,
        )
        for row in layers(network)
        for variable in row.variables
    }


def _places(network: Network) -> list[tuple[int, int]]:
    """(stage, place in the stage) of every block, both counted from 0."""
    counter: Counter[int] = Counter()
    places = []
    for block in network.blocks:
        places.append((block.stage - 1, counter[block.stage]))
        counter[block.stage] += 1
    return places


Naming = Callable[[Network], dict[str, Stored]]
NAMINGS: dict[str, Naming] = {
    "keras": keras,
    "official": official,
    "kecam": kecam,
    "timm": timm,
    "lukemelas": lukemelas,
}
