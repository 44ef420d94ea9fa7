"""`scripts/evaluate.py` from the command line to its page."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from efficientnet_tf import preprocessing

RULE = preprocessing.Preprocessing("own", (0,) * 3, (1,) * 3, 16)


def _run(root, *arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, str(root / "scripts" / "evaluate.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        check=False,
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A folder as a run leaves it, whose model tells red from green from blue, and pictures."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "run").mkdir()
    images = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 32)(images))
    dense = keras.layers.Dense(3, activation="softmax", kernel_initializer="identity")
    keras.Model(images, dense(x)).save(folder / "run" / "best.keras")
    (folder / "run" / "labels.txt").write_text("red\ngreen\nblue\n")
    (folder / "run" / "preprocessing.json").write_text(json.dumps(RULE.to_dict()))
    rng = np.random.default_rng(0)
    for label, name in enumerate(("red", "green", "blue")):
        for split, count in (("train", 4), ("test", 10)):
            (folder / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                colour = rng.integers(0, 100, 3)
                # In the test split, the first two of blue are green.
                channel = 1 if split == "test" and name == "blue" and index < 2 else label
                colour[channel] = 200
                picture = Image.new("RGB", (20, 30), tuple(colour.tolist()))
                picture.save(folder / "data" / split / name / f"{index}.png")
    return folder


def test_script_scores_a_run_on_a_folder(root, run_folder):
    done = _run(root, "run", "--data=folder:data", "--report=page.html", cwd=run_folder)
    assert done.returncode == 0, done.stderr
    first, _, heading, *classes = done.stdout.splitlines()
    assert first.startswith(f"Top-1 {28 / 30:.2%}, loss ")
    assert first.endswith("on 30 pictures")
    assert heading == "The 3 of 3 classes with the lowest accuracy:"
    assert [line.split() for line in classes[:3]] == [
        ["80.00%", "of", "10", "blue"],
        ["100.00%", "of", "10", "red"],
        ["100.00%", "of", "10", "green"],
    ]
    page = (run_folder / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "data/test/blue/0.png" in page
    # The run's own data, if nothing else is said.
    (run_folder / "run" / "config.json").write_text('{"data": {"source": "folder:data"}}')
    done = _run(root, "run", "--json", "--split=all", cwd=run_folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["count"], found["top1"]) == (42, 40 / 42)
    assert found["classes"][2] == {"name": "blue", "count": 14, "score": 12 / 14}
    assert (found["data"], found["size"], found["weights"]) == ("folder:data", 16, None)


def test_script_uses_the_settings_of_published_weights(root, shared_dir, run_folder):
    weights = shared_dir / "fixtures" / "efficientnet-b0.tar.gz"
    for index, (wnid, name) in enumerate((("n01440764", "red"), ("n02123045", "green"))):
        place = run_folder / "imagenet" / wnid
        place.mkdir(parents=True)
        for picture in sorted((run_folder / "data/test" / name).iterdir())[: 3 + index]:
            (place / picture.name).write_bytes(picture.read_bytes())
    done = _run(
        root,
        "efficientnet-b0",
        f"--weights={weights}",
        "--data=folder:imagenet",
        "--split=all",
        "--json",
        cwd=run_folder,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(c["name"], c["count"]) for c in found["classes"]] == [("tench", 3), ("tabby", 4)]
    assert (found["size"], found["crop"], found["resize_method"]) == (
        224,
        "pad32",
        "bicubic_legacy",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one model"),
        (["run/best.keras"], "Give --data"),
        (
            ["run", "--data=digits", "--report=no/page.html"],
            "no/page.html: there is no such folder",
        ),
        (["data", "--data=digits"], "data is no run: it has no best.keras"),
        (["run/best.keras", "--data=digits"], "Only in the model: 'red', 'green', 'blue'"),
        (["run", "--data=digits", "--split=half"], "--split=half"),
    ],
)
def test_script_explains_mistakes(root, run_folder, arguments, message):
    done = _run(root, *arguments, cwd=run_folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
