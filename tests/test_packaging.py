"""The wheel and the source distribution hold what the package needs."""

import subprocess
import sys
import tarfile
import zipfile

import pytest


def test_distributions_hold_code_and_class_names(root, tmp_path):
    pytest.importorskip("build")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, root],
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(n for n in names if n.endswith("METADATA"))).decode()
        classes = wheel.read("efficientnet_tf/data/imagenet_classes.tsv").decode()
    assert len(classes.splitlines()) == 1000
    modules = {str(p.relative_to(root)) for p in (root / "efficientnet_tf").rglob("*.py")}
    assert modules <= set(names)
    assert not [name for name in names if name.startswith(("tests", "scripts"))]
    pages = {f"efficientnet_tf/serve/page.{kind}" for kind in ("html", "css", "js")}
    assert pages <= set(names)
    runtimes = ("tflite", "onnx", "openvino", "serving", "tpu")
    sources = ("tfds", "hub", "torch", "jax", "remote")
    for extra in ("train", "tensorboard", "search", *runtimes, *sources, "test"):
        assert f"Provides-Extra: {extra}" in metadata
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        ends = {name.split("/", 1)[-1] for name in sdist.getnames()}
    assert {"setup.cfg", "setup.py", "README.md", "LICENSE"} <= ends
    assert "efficientnet_tf/data/imagenet_classes.tsv" in ends


def test_import_adds_little_to_keras():
    # The libraries that are forbidden cost seconds; what is left is a few hundredths of one.
    code = (
        "import sys, keras; before = set(sys.modules); import efficientnet_tf; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    allowed = {"efficientnet_tf", *sys.stdlib_module_names}
    assert set(done.stdout.split()) <= allowed, done.stdout
