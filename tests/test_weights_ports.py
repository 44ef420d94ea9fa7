"""qubvel, leondgarse and lukemelas files give the golden logits of the official checkpoints.

The files are made from the official tensors by rules on names alone, which know nothing of the
package's own tables.
"""

import re

import h5py
import numpy as np
import pytest

from efficientnet_tf.arch import resolve
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.weights import load
from efficientnet_tf.weights.official import open_official
from efficientnet_tf.weights.source import WeightsError

V1_REPEATS = (1, 2, 2, 3, 3, 4, 1)
V2_REPEATS = (1, 2, 2, 3, 5, 8)
V2_NUM_FUSED = 5  # blocks


@pytest.fixture(scope="module")
def official(shared_dir):
    """Tensors, images and logits of the two fixtures, by variant."""
    found = {}
    for variant, file in (
        ("efficientnet-b0", "efficientnet-b0.tar.gz"),
        ("efficientnetv2-b0", "efficientnetv2-b0.tgz"),
    ):
        with open_official(shared_dir / "fixtures" / file) as source:
            tensors = {name: source.load(name) for name in source.shapes}
        golden = np.load(shared_dir / f"fixtures/{variant}.golden.npz")
        found[variant] = tensors, golden["images"], golden["logits_ema"]
    return found


def _roles(tensors, num_fused=0):
    """Official name -> (block or None, role, variable)."""
    roles = {}
    for name in tensors:
        scope, layer, variable = name.rsplit("/", 2)
        match = re.fullmatch(r"blocks_(\d+)(/se)?", scope)
        if not match:
            roles[name] = (None, f"{scope} {layer}", variable)
            continue
        block = int(match.group(1))
        expands = f"blocks_{block}/conv2d_1/kernel" in tensors
        depthwise = block >= num_fused
        if match.group(2):
            role = {"conv2d": "reduce", "conv2d_1": "excite"}[layer]
        elif layer == "depthwise_conv2d":
            role = "depthwise"
        elif layer.startswith("conv2d"):
            role = "project" if layer == "conv2d_1" or not expands else "expand"
        else:
            order = ["expand bn"] * expands + ["depthwise bn"] * depthwise + ["project bn"]
            place = int(layer.removeprefix("tpu_batch_normalization").lstrip("_") or 0)
            role = order[place]
        roles[name] = (block, role, variable)
    return roles


def _place(block, repeats):
    for stage, count in enumerate(repeats):
        if block < count:
            return stage, block
        block -= count
    raise AssertionError


def _write_h5(path, arrays):
    """The layout of Keras 2's `save_weights("x.h5")`."""
    layers = {}
    for name, array in arrays.items():
        layers.setdefault(name.split("/")[0], {})[f"{name}:0"] = array
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, variables in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in variables]
            for name, array in variables.items():
                group[name] = array


def _assert_golden(path, variant, images, logits, preprocessing):
    model = build(
        variant, weights=str(path), classifier_activation=None, preprocessing=preprocessing
    )
    found = np.asarray(model(images, training=False))
    assert np.abs(found - logits).max() <= 1e-4 * np.ptp(logits)


def test_qubvel(official, tmp_path):
    tensors, images, logits = official["efficientnet-b0"]
    outside = {
        "stem conv2d": "stem_conv",
        "stem tpu_batch_normalization": "stem_bn",
        "head conv2d": "top_conv",
        "head tpu_batch_normalization": "top_bn",
        "head dense": "probs",
    }
    inside = {
        "expand": "expand_conv",
        "expand bn": "expand_bn",
        "depthwise": "dwconv",
        "depthwise bn": "bn",
        "reduce": "se_reduce",
        "excite": "se_expand",
        "project": "project_conv",
        "project bn": "project_bn",
    }
    arrays = {}
    for name, (block, role, variable) in _roles(tensors).items():
        layer = outside.get(role)
        if block is not None:
            stage, place = _place(block, V1_REPEATS)
            layer = f"block{stage + 1}{'abcd'[place]}_{inside[role]}"
        arrays[f"{layer}/{variable}"] = tensors[name]
    path = tmp_path / "efficientnet-b0_noisy-student.h5"
    _write_h5(path, arrays)
    _assert_golden(path, "efficientnet-b0", images, logits, "torch")


@pytest.mark.parametrize(
    ("variant", "repeats", "num_fused", "preprocessing"),
    [
        ("efficientnet-b0", V1_REPEATS, 0, "torch"),
        ("efficientnetv2-b0", V2_REPEATS, V2_NUM_FUSED, "v2"),
    ],
)
def test_leondgarse(official, tmp_path, variant, repeats, num_fused, preprocessing):
    tensors, images, logits = official[variant]
    outside = {
        "stem conv2d": "stem_conv",
        "stem tpu_batch_normalization": "stem_bn",
        "head conv2d": "post_conv",
        "head tpu_batch_normalization": "post_bn",
        "head dense": "predictions",
    }
    inside = {
        "expand": "sortcut_conv",
        "expand bn": "sortcut_bn",
        "depthwise": "MB_dw_",
        "depthwise bn": "MB_dw_bn",
        "reduce": "se_1_conv",
        "excite": "se_2_conv",
        "project": "MB_pw_conv",
        "project bn": "MB_pw_bn",
    }
    arrays = {}
    for name, (block, role, variable) in _roles(tensors, num_fused).items():
        layer = outside.get(role)
        if block is not None:
            stage, place = _place(block, repeats)
            layer = f"stack_{stage}_block{place}_{inside[role]}"
            if block == 0 and num_fused:  # one convolution only
                layer = layer.replace("MB_pw_", "fu_")
        arrays[f"{layer}/{variable}"] = tensors[name]
    path = tmp_path / "kecam.h5"
    _write_h5(path, arrays)
    _assert_golden(path, variant, images, logits, preprocessing)


@pytest.mark.backends
def test_lukemelas(official, tmp_path):
    torch = pytest.importorskip("torch")
    tensors, images, logits = official["efficientnet-b0"]
    outside = {
        "stem conv2d": "_conv_stem",
        "stem tpu_batch_normalization": "_bn0",
        "head conv2d": "_conv_head",
        "head tpu_batch_normalization": "_bn1",
        "head dense": "_fc",
    }
    inside = {
        "expand": "_expand_conv",
        "expand bn": "_bn0",
        "depthwise": "_depthwise_conv",
        "depthwise bn": "_bn1",
        "reduce": "_se_reduce",
        "excite": "_se_expand",
        "project": "_project_conv",
        "project bn": "_bn2",
    }
    variables = {
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
        "beta": "bias",
        "bias": "bias",
    }
    state = {}
    for name, (block, role, variable) in _roles(tensors).items():
        layer = outside[role] if block is None else f"_blocks.{block}.{inside[role]}"
        array = tensors[name]
        if array.ndim == 4:
            array = array.transpose((2, 3, 0, 1) if role == "depthwise" else (3, 2, 0, 1))
        elif array.ndim == 2:
            array = array.T
        state[f"{layer}.{variables.get(variable, 'weight')}"] = torch.tensor(array)
        if variable == "moving_mean":
            state[f"{layer}.num_batches_tracked"] = torch.tensor(3)
    path = tmp_path / "efficientnet-b0-355c32eb.pth"
    torch.save(state, path)
    _assert_golden(path, "efficientnet-b0", images, logits, "torch")

    state["_fc.weight"] = state["_fc.weight"][:, :-1]
    state["_blocks.16._bn0.weight"] = state.pop("_blocks.3._bn2.weight")
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"missing: _blocks\.3\._bn2\.weight") as error:
        load.read(path, resolve("efficientnet-b0"))
    assert "not part of the network: _blocks.16._bn0.weight" in str(error.value)
    assert "shape: _fc.weight" in str(error.value)
