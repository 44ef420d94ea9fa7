"""Official checkpoints: golden logits, averages or last values, and strictness."""

import tarfile

import numpy as np
import pytest

from efficientnet_tf.arch import BlockArgs, Variant, resolve
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.weights import load
from efficientnet_tf.weights.source import WeightsError

# Every kind of block: depthwise without and with expansion and squeeze-excite, fused with and
# without expansion.
TINY = Variant(
    "tiny",
    (
        BlockArgs("mbconv", 1, 3, 1, 1, 8, 8, 0.25),
        BlockArgs("mbconv", 1, 5, 2, 4, 8, 8, 0.25),
        BlockArgs("fused", 1, 3, 2, 1, 8, 8),
        BlockArgs("fused", 1, 3, 1, 4, 8, 8),
    ),
    width=1.0,
    depth=1.0,
    resolution=32,
    train_resolution=32,
    dropout_rate=0.0,
    stem_filters=8,
    head_filters=16,
    classes=5,
)


def _bn(scope, filters):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return {f"{scope}/{name}": (filters,) for name in names}


# Written by hand after the names in the published V1 and V2 checkpoints.
TINY_SHAPES = {
    "stem/conv2d/kernel": (3, 3, 3, 8),
    **_bn("stem/tpu_batch_normalization", 8),
    "blocks_0/depthwise_conv2d/depthwise_kernel": (3, 3, 8, 1),
    **_bn("blocks_0/tpu_batch_normalization", 8),
    "blocks_0/se/conv2d/kernel": (1, 1, 8, 2),
    "blocks_0/se/conv2d/bias": (2,),
    "blocks_0/se/conv2d_1/kernel": (1, 1, 2, 8),
    "blocks_0/se/conv2d_1/bias": (8,),
    "blocks_0/conv2d/kernel": (1, 1, 8, 8),
    **_bn("blocks_0/tpu_batch_normalization_1", 8),
    "blocks_1/conv2d/kernel": (1, 1, 8, 32),
    **_bn("blocks_1/tpu_batch_normalization", 32),
    "blocks_1/depthwise_conv2d/depthwise_kernel": (5, 5, 32, 1),
    **_bn("blocks_1/tpu_batch_normalization_1", 32),
    "blocks_1/se/conv2d/kernel": (1, 1, 32, 2),
    "blocks_1/se/conv2d/bias": (2,),
    "blocks_1/se/conv2d_1/kernel": (1, 1, 2, 32),
    "blocks_1/se/conv2d_1/bias": (32,),
    "blocks_1/conv2d_1/kernel": (1, 1, 32, 8),
    **_bn("blocks_1/tpu_batch_normalization_2", 8),
    "blocks_2/conv2d/kernel": (3, 3, 8, 8),
    **_bn("blocks_2/tpu_batch_normalization", 8),
    "blocks_3/conv2d/kernel": (3, 3, 8, 32),
    **_bn("blocks_3/tpu_batch_normalization", 32),
    "blocks_3/conv2d_1/kernel": (1, 1, 32, 8),
    **_bn("blocks_3/tpu_batch_normalization_1", 8),
    "head/conv2d/kernel": (1, 1, 8, 16),
    **_bn("head/tpu_batch_normalization", 16),
    "head/dense/kernel": (16, 5),
    "head/dense/bias": (5,),
}
EMA = "/ExponentialMovingAverage"


def _save(prefix, tensors):
    import tensorflow as tf

    names = list(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )
    return prefix


def _tensors(value, suffix="", shapes=TINY_SHAPES):
    return {f"tiny/{k}{suffix}": np.full(s, value, "float32") for k, s in shapes.items()}


def _read(path, **kwargs):
    return load.read(path, resolve(TINY), **kwargs)


def _values(arrays):
    return {float(value) for array in arrays.values() for value in np.unique(array)}


@pytest.mark.parametrize(
    ("archive", "variant", "preprocessing"),
    [
        ("efficientnet-b0.tar.gz", "efficientnet-b0", "torch"),
        ("efficientnetv2-b0.tgz", "efficientnetv2-b0", "v2"),
        ("efficientnet-lite0.tar.gz", "efficientnet-lite0", "lite"),
        ("efficientnet-edgetpu-S.tar.gz", "efficientnet-edgetpu-s", "lite"),
    ],
)
def test_golden_logits_of_averages_and_last_values(shared_dir, archive, variant, preprocessing):
    # qubvel/efficientnet#19, tensorflow/tpu#818: converters took the last values.
    folder = shared_dir / "fixtures"
    golden = np.load(folder / (archive.split(".")[0] + ".golden.npz"))
    model = build(variant, classifier_activation=None, preprocessing=preprocessing)
    network, num_classes = resolve(variant), model.output_shape[-1]
    for ema, name in ((True, "logits_ema"), (False, "logits_raw")):
        load.load_weights(model, network, folder / archive, classes=num_classes, ema=ema)
        logits = np.asarray(model(golden["images"], training=False))
        assert np.abs(logits - golden[name]).max() <= 1e-4 * np.ptp(golden[name])


def test_directory_prefix_and_archive_hold_the_same(shared_dir, tmp_path):
    archive = shared_dir / "fixtures/efficientnet-lite0.tar.gz"
    network = resolve("efficientnet-lite0")
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python < 3.11.4
        tar.extractall(tmp_path)
    directory = tmp_path / "efficientnet-lite0"
    (directory / "checkpoint").write_text('model_checkpoint_path: "/another/machine/model.ckpt"\n')
    wanted = load.read(archive, network)
    for path in (directory, tmp_path, directory / "model.ckpt", directory / "model.ckpt.index"):
        found = load.read(path, network)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("ema", [True, False])
def test_a_checkpoint_with_averages_only_or_without_any_is_read(tmp_path, ema):
    # As L2's is, and as one's own may be (tensorflow/tpu#818, lukemelas/EfficientNet-PyTorch#315).
    averages = _save(tmp_path / "averages", _tensors(1.0, EMA))
    last = _save(tmp_path / "last", _tensors(2.0))
    assert _values(_read(averages, ema=ema)) == {1.0}
    assert _values(_read(last, ema=ema)) == {2.0}


def test_the_choice_of_averages_is_said(tmp_path):
    partly = {k: v for k, v in _tensors(1.0, EMA).items() if "moving_" not in k}
    prefix = _save(tmp_path / "both", {**_tensors(2.0), **partly})
    with load.open_weights(prefix) as found:
        num_moving = sum("moving_" in name for name in TINY_SHAPES)
        total = len(TINY_SHAPES)
        assert found.notes[1] == (
            f"{total - num_moving} of {total} variables from their exponential moving average, "
            f"{num_moving} from their last value"
        )
    arrays = _read(prefix)
    assert _values({k: v for k, v in arrays.items() if "moving_" in k}) == {2.0}
    assert _values({k: v for k, v in arrays.items() if "moving_" not in k}) == {1.0}


def test_counters_and_optimizer_slots_are_left_out(tmp_path):
    slots = {}
    for name, value in _tensors(7.0).items():
        slots |= {f"{name}/RMSProp": value, f"{name}/RMSProp_1": value, f"{name}/Momentum": value}
    counters = {"global_step": np.int64(3), "tiny/beta1_power": np.float32(0.9)}
    prefix = _save(tmp_path / "trained", {**_tensors(2.0), **slots, **counters})
    assert _values(_read(prefix)) == {2.0}


@pytest.mark.parametrize(
    "extra", ["tiny/blocks_4/conv2d/kernel", "other/kernel", "global_stepper", "none/RMSProp"]
)
def test_unknown_variables_are_named(tmp_path, extra):
    prefix = _save(tmp_path / "extra", {**_tensors(2.0), extra: np.zeros(3, "float32")})
    with pytest.raises(WeightsError, match=f"not part of the network: .*{extra.split('/')[-1]}"):
        _read(prefix)


def test_missing_and_misshaped_variables_are_named(tmp_path):
    tensors = _tensors(2.0)
    del tensors["tiny/blocks_1/se/conv2d_1/bias"]
    tensors["tiny/blocks_3/conv2d/kernel"] = np.zeros((1, 1, 8, 32), "float32")
    prefix = _save(tmp_path / "bad", tensors)
    with pytest.raises(WeightsError, match="missing: blocks_1/se/conv2d_1/bias") as error:
        _read(prefix)
    assert "blocks_3/conv2d/kernel (expected (3, 3, 8, 32)" in str(error.value)
    assert "found (1, 1, 8, 32)" in str(error.value)


def test_another_variant_is_named(shared_dir):
    path = shared_dir / "fixtures/efficientnet-lite0.tar.gz"
    with pytest.raises(WeightsError, match="The file fits efficientnet-lite0"):
        load.read(path, resolve("efficientnet-b0"))


def test_the_classifier_is_left_out_on_request_only(tmp_path):
    # keras-hub#3014, #1747: the head was missing.
    shapes = {k: v for k, v in TINY_SHAPES.items() if "dense" not in k}
    prefix = _save(tmp_path / "no_top", _tensors(2.0, shapes=shapes))
    with pytest.raises(WeightsError, match="pass include_top=False"):
        _read(prefix)
    arrays = _read(prefix, include_top=False)
    assert not any(key.startswith("predictions") for key in arrays)


def test_other_checkpoints_are_refused(tmp_path):
    import tensorflow as tf

    objects = tf.train.Checkpoint(v=tf.Variable(1.0)).write(str(tmp_path / "objects"))
    with pytest.raises(WeightsError, match="object-based"):
        _read(objects)
    two = {**_tensors(1.0), **{f"b/{k}": v for k, v in _tensors(2.0).items()}}
    with pytest.raises(WeightsError, match="one EfficientNet"):
        _read(_save(tmp_path / "two", two))
    with pytest.raises(WeightsError, match="must hold one checkpoint"):
        _read(tmp_path)
    _save(tmp_path / "cut", _tensors(1.0))
    (tmp_path / "cut.index").write_bytes(b"x" * 100)
    with pytest.raises(WeightsError, match="damaged"):
        _read(tmp_path / "cut")
