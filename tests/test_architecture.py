"""The shape of the code base: imports go downward, files stay short, names agree."""

import ast
import pathlib

import efficientnet_tf
from efficientnet_tf.arch import VARIANTS

PACKAGE = pathlib.Path(efficientnet_tf.__file__).parent
LEVELS = (
    {"columns", "stores"},
    {"paths"},
    {"version", "writing"},
    {"arch", "preprocessing", "labels", "scores"},
    {"config"},
    {"stages", "recipes"},
    {"weights", "data", "page"},
    {"models"},
    {"classifier", "timed"},
    {"evaluate", "cam", "measure"},
    {"predict", "train", "export", "convert", "serve"},
    {"figures", "search"},
)
HEAVY = {"tensorflow", "tensorflow_datasets", "keras_cv", "torch", "jax", "sklearn", "matplotlib"}


def _level(part: str) -> int:
    return next(level for level, parts in enumerate(LEVELS) if part in parts)


def _imports(path: pathlib.Path, top_level_only: bool = False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _part(path: pathlib.Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def test_sub_packages_import_downward_only():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = _part(path)
        if part == "__init__":
            continue
        for name in _imports(path):
            pieces = name.split(".")
            if pieces[0] != "efficientnet_tf" or len(pieces) == 1:
                continue
            other = pieces[1]
            if other != part and _level(other) >= _level(part) and other != "__version__":
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, wrong


def test_model_code_and_public_import_stay_light():
    for part in ("arch", "models", "weights", "preprocessing.py", "labels.py", "__init__.py"):
        path = PACKAGE / part
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            heavy = {name.split(".")[0] for name in _imports(file, top_level_only=True)} & HEAVY
            assert not heavy, f"{file} imports {heavy} at the top"


def test_files_stay_short_and_there_is_no_utils():
    for path in sorted(PACKAGE.rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 400, path
        assert "utils" not in path.name


def test_constructors_variants_and_exports_agree():
    constructors = [name for name in efficientnet_tf.__all__ if name.startswith("EfficientNet")]
    by_name = {}
    for name in constructors:
        key = name.lower().replace("efficientnet", "", 1)
        by_name[key] = getattr(efficientnet_tf, name)
    keys = {name.replace("-", "").replace("efficientnet", "", 1) for name in VARIANTS}
    assert set(by_name) == keys - {"v2sfirst"}
    for name in efficientnet_tf.__all__:
        assert hasattr(efficientnet_tf, name)
    for name in constructors:
        function = getattr(efficientnet_tf, name)
        assert function.__name__ == name
        assert "Args:" in function.__doc__
