"""The README: its Python runs, its shell commands exist, its tables are true.

`python tests/test_readme.py` writes the table of models anew.
"""

import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import efficientnet_tf as et
from efficientnet_tf import config as config_lib
from efficientnet_tf import recipes, stages
from efficientnet_tf.arch import files
from efficientnet_tf.config.model import describe
from efficientnet_tf.weights import load, registry

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language == "sh"]
HEADER = (
    "| variant | constructor | px | parameters | multiply-adds | weights (`weights=`) | top-1 |"
)


def _table() -> str:
    lines = [HEADER, "|---|---|---:|---:|---:|---|---:|"]
    constructors = {
        re.match(r"Builds ([\w-]+)", getattr(et, name).__doc__).group(1): name
        for name in et.__all__
        if name.startswith("EfficientNet")
    }
    for name, variant in et.VARIANTS.items():
        cost = et.count(name).total
        records = et.list_weights(name)
        tags = [r.tag for r in records if "/" not in r.tag]
        others = len(records) - len(tags)
        text = ", ".join(f"`{tag}`" for tag in tags) + (f", *{others} more*" if others else "")
        top1 = next((r.top1 for r in records if r.top1 is not None), None)
        constructor = constructors.get(name)
        lines.append(
            f"| {name} | {f'`{constructor}`' if constructor else '`build`'} | {variant.resolution} "
            f"| {cost.trainable:,} | {cost.macs / 1e9:.3f} G | {text or '–'} | {top1 or '–'} |"
        )
    return "\n".join(lines)


def test_table_of_models_is_generated_from_the_tables():
    assert _table() in README.read_text(), f"Run: python {pathlib.Path(__file__).name}"


def test_number_of_checkpoints_is_right():
    stated = int(re.search(r"(\d+) checkpoints of", README.read_text()).group(1))
    assert stated == len(et.list_weights())


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Tags load files of random weights, made on the spot, instead of downloads."""

    def locate(record, **kwargs):
        path = tmp_path / f"{record.variant}-{record.tag}.weights.h5"
        if not path.exists():
            et.build(record.variant, classes=record.classes).save_weights(path)
        return path

    monkeypatch.setattr(load, "locate", locate)
    monkeypatch.chdir(tmp_path)
    import PIL.Image

    noise = np.random.default_rng(0).integers(0, 256, (80, 100, 3)).astype("uint8")
    PIL.Image.fromarray(noise).save("cat.jpg")


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_runs(code, offline):
    exec(compile(code, "README.md", "exec"), {})


def _commands():
    for text in SHELL:
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.split("#")[0].split("&&"):
                words = shlex.split(command)
                if len(words) > 1 and re.fullmatch(r"scripts/\w+\.py", words[1]):
                    yield words


def test_shell_commands_name_scripts_and_flags_that_exist():
    commands = list(_commands())
    assert len(commands) >= 6
    for script in {words[1] for words in commands}:
        path = README.parent / script
        done = subprocess.run(
            [sys.executable, path, "--helpfull"], capture_output=True, text=True, cwd=README.parent
        )
        known = set(re.findall(r"^  --(?:\[no\])?([a-z_0-9]+)", done.stdout, re.MULTILINE))
        used = {
            word[2:].split("=")[0]
            for words in commands
            for word in words
            if words[1] == script and word.startswith("--")
        }
        assert used <= known, (script, used - known)


def test_training_commands_are_valid_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/nas").mkdir(parents=True)
    found, searched = et.VARIANTS["efficientnet-b0"], []
    files.write(found, "runs/nas/best.json")  # what a search leaves
    flags = {
        "--data": "data.source",
        "--data_dir": "data.data_dir",
        "--augment": "data.augment",
        "--weights": "model.weights",
        "--teacher": "student.teacher",
        "--unlabeled": "student.unlabeled",
        "--distill": "student.distill",
    }
    commands = [words for words in _commands() if words[1] == "scripts/train.py"]
    assert len(commands) >= 8
    for words in commands:
        given = [word.partition("=")[::2] for word in words[2:]]
        settings = [f"{flags[flag]}={value}" for flag, value in given if flag in flags]
        settings += [value for flag, value in given if flag == "--set"]
        config = config_lib.override(recipes.get(dict(given).get("--recipe", "digits")), *settings)
        if "model.variant=runs/nas/best.json" in settings:
            assert describe(config.model).blocks == found.blocks
            searched.append(words)
    assert searched


def test_settings_of_the_text_are_valid():
    sections = "--set=model|(?:--set=)?(?:data|train|progressive|finetune|student)"
    settings = re.findall(rf"`((?:{sections})\.[\w=:.]+)`", README.read_text())
    assert len(settings) >= 30
    # What some settings need beside them.
    base = "data.augment=randaugment", "progressive.stages=2", "train.label_smoothing=0"
    for setting in settings:
        path, equals, _ = setting.removeprefix("--set=").partition("=")
        section, _, name = path.partition(".")
        assert hasattr(getattr(config_lib.Config(), section), name), setting
        if equals:
            change = setting.removeprefix("--set=")
            config_lib.override(recipes.get("finetune"), *base, change)


def test_table_of_recipes_has_all_families():
    table = re.search(r"^\| recipes \|.*\n\|-.*\n((?:\|.*\n)+)", README.read_text(), re.MULTILINE)
    column = "".join(line.split("|")[1] for line in table.group(1).splitlines())
    named = set(re.findall(r"`([\w-]+)`", column))
    assert named <= set(recipes.RECIPES)

    def families(names):  # ranges of variants name their first and last one
        return {re.sub(r"-(b\d|s|m|l|xl)(?=-|$)", "", name) for name in names}

    assert families(named) == families(recipes.RECIPES)


def test_stage_table_is_that_of_the_recipe():
    recipe = recipes.get("imagenet-v2-s-paper")
    assert stages.table(stages.expand(recipe, recipe.train.epochs)) in README.read_text()


def test_gate_runs_the_readmes_test_command():
    gate = (README.parent / ".ci" / "run").read_text()
    command = next(text for text in SHELL if "pytest" in text)
    for part in command.strip().split(" && "):
        assert part.split()[0] in gate
    assert '-e ".[test]"' in gate
    assert '-e ".[test]"' in command


def test_tags_of_the_readme_exist():
    tags = {record.tag for record in et.list_weights()}
    used = set(re.findall(r'weights="([^"]+)"|--weights=([^\s`]+)', README.read_text()))
    assert used
    assert {a or b for a, b in used} <= tags
    assert registry.find("efficientnetv2-s", "timm/tf_efficientnetv2_s.in21k_ft_in1k").hub


if __name__ == "__main__":
    page = README.read_text()
    new = re.sub(re.escape(HEADER) + r"\n(\|.*\n)+", lambda _: _table() + "\n", page)
    README.write_text(new)
