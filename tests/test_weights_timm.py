"""timm's `tf_` models of random weights give the same logits here."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest

from efficientnet_tf.arch import resolve
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.weights import load
from efficientnet_tf.weights.source import WeightsError

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.backends

SIZE = 64  # pixels


@pytest.fixture(scope="module")
def timm():
    """The package. It imports torchvision, of which it needs only the Python part here.

    Where torchvision's compiled operators do not load (a CPU build of PyTorch beside a CUDA build
    of torchvision), torchvision fails to import because it registers shapes for operators that are
    not there; declaring their names is enough.
    """
    spec = importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision")
    if spec is None:
        pytest.skip("timm or torchvision is not installed.")
    try:
        torch.ops.load_library(next(pathlib.Path(spec.origin).parent.glob("_C*.so")))
    except (OSError, StopIteration):
        source = pathlib.Path(spec.origin).with_name("_meta_registrations.py").read_text()
        names = re.findall(r'"torchvision::(\w+)"|register_meta\("(\w+)"', source)
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in sorted({"".join(pair) for pair in names}):
            library.define(f"{name}(Tensor x) -> Tensor")
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def theirs(timm):
    """timm's model of a name, with values that show when two variables are mixed up."""
    made = {}

    def get(name):
        if name in made:
            return made[name]
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        gain = (0.7, 1.8) if name == "tf_efficientnet_b0" else (0.35, 1.05)
        norms = [p for p, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
        # The last of each block (blocks.STAGE.PLACE.NAME) belongs to its projection.
        last = {path.rsplit(".", 1)[0]: path for path in norms if "." in path}.values()
        for path, module in model.named_modules():
            if path in norms:
                torch.nn.init.uniform_(module.weight, *(gain if path in last else (0.5, 1.5)))
                torch.nn.init.normal_(module.bias, 0, 0.1)
                torch.nn.init.normal_(module.running_mean, 0, 0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
                torch.nn.init.normal_(module.bias, 0, 0.1)
        torch.nn.init.normal_(model.classifier.bias, 0, 0.1)
        return made.setdefault(name, model)

    return get


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("efficientnet-b0", "tf_efficientnet_b0"),
        ("efficientnetv2-b0", "tf_efficientnetv2_b0"),
        ("efficientnet-lite0", "tf_efficientnet_lite0"),
        ("efficientnet-edgetpu-s", "tf_efficientnet_es"),
    ],
)
def test_logits_equal_timm(theirs, tmp_path, variant, name):
    model = theirs(name)
    images = np.random.default_rng(0).normal(0, 1, (2, 4, 4, 3)).astype("float32")
    images = images.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
    with torch.no_grad():
        wanted = model(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3
    state = model.state_dict()
    assert any("num_batches_tracked" in key for key in state)
    safetensors.save_file(state, tmp_path / "model.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "model.pth")
    for file in ("model.safetensors", "model.pth"):
        ours = build(
            variant,
            weights=str(tmp_path / file),
            include_preprocessing=False,
            classes=1000,
            classifier_activation=None,
            input_shape=(SIZE, SIZE, 3),
        )
        found = np.array(ours(images, training=False))
        assert np.abs(found - wanted).max() <= 1e-5 * max(1, np.ptp(wanted))


def test_what_does_not_fit_is_named(theirs, tmp_path):
    state = dict(theirs("tf_efficientnet_b0").state_dict())
    state["blocks.7.0.conv_pw.weight"] = state.pop("blocks.3.1.se.conv_reduce.bias")
    state["blocks.0.0.conv_dw.weight"] = torch.zeros(32, 1, 5, 5)
    safetensors.save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(
        WeightsError, match=r"missing: blocks\.3\.1\.se\.conv_reduce\.bias"
    ) as error:
        load.read(tmp_path / "bad.safetensors", resolve("efficientnet-b0"))
    assert "not part of the network: blocks.7.0.conv_pw.weight" in str(error.value)
    assert "shape: blocks.0.0.conv_dw.weight" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(theirs, tmp_path, dtype):
    state = {k: v.to(dtype) for k, v in theirs("tf_efficientnet_lite0").state_dict().items()}
    safetensors.save_file(state, tmp_path / "half.safetensors")
    arrays = load.read(tmp_path / "half.safetensors", resolve("efficientnet-lite0"))
    assert {array.dtype.name for array in arrays.values()} == {"float32"}
    wanted = state["conv_stem.weight"].float().permute(2, 3, 1, 0).numpy()
    assert np.array_equal(arrays["stem_conv/kernel"], wanted)


class _Unpickled:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (pathlib.Path.touch, (self.mark,))


@pytest.mark.parametrize(("ema", "factor"), [(True, 3), (False, 1)])
def test_averages_in_a_training_checkpoint_are_preferred(theirs, tmp_path, ema, factor):
    # timm's train.py; the complaint is qubvel/efficientnet#19.
    state = theirs("tf_efficientnet_b0").state_dict()
    averages = {key: 3 * value for key, value in state.items()}
    content = {"epoch": 3, "state_dict": state, "state_dict_ema": averages}
    torch.save(content, tmp_path / "trained.pth")
    found = load.read(tmp_path / "trained.pth", resolve("efficientnet-b0"), ema=ema)
    np.testing.assert_array_equal(found["top_bn/gamma"], factor * state["bn2.weight"].numpy())


def test_nothing_is_unpickled(tmp_path):
    import pickle

    mark = tmp_path / "mark"
    torch.save({"conv_stem.weight": _Unpickled(mark)}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Unpickled(mark)))
    for file in ("evil.pth", "plain.pth"):
        with pytest.raises(WeightsError, match="damaged or not a weight file") as error:
            load.read(tmp_path / file, resolve("efficientnet-b0"))
        assert "weights_only" not in str(error.value)  # PyTorch's advice: switch the check off
    assert not mark.exists()


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    import sys

    torch.save({}, tmp_path / "a.pth")
    (tmp_path / "a.safetensors").write_bytes(b"x" * 20)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for file, package in (("a.pth", "torch"), ("a.safetensors", "safetensors")):
        with pytest.raises(ImportError, match=f"pip install {package}"):
            load.read(tmp_path / file, resolve("efficientnet-b0"))


def test_old_versions_of_pytorch_are_refused(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ImportError, match=r"PyTorch 2\.6 or newer"):
        load.read(tmp_path / "a.pth", resolve("efficientnet-b0"))


def test_damaged_safetensors_are_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.save_file({"conv_stem.weight": torch.zeros(32, 3, 3, 3)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        load.read(path, resolve("efficientnet-b0"))
