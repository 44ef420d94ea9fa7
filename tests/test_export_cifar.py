"""int8 of networks that are really trained: random weights hide what it costs swish."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf import preprocessing
from efficientnet_tf.arch import BlockArgs
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.models.efficientnet import build

pytestmark = pytest.mark.slow

SIZE = 32  # pixels
TRAIN, CALIBRATION, TEST = 1200, 200, 300  # pictures of each of the ten classes
EPOCHS, BATCH = 6, 128
BLOCKS = (
    "r1_k3_s11_e1_i24_o16",
    "r2_k3_s11_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r2_k3_s22_e6_i40_o80",
)
NETWORKS = {  # like: what is added to each block
    "efficientnet-b0": "_se0.25",  # swish
    "efficientnet-lite0": "",  # relu6
}


@pytest.fixture(scope="module")
def cifar(shared_dir, tmp_path_factory):
    """Class folders: to train on (`learn`), to calibrate with and to test on (`pictures`)."""
    folder = tmp_path_factory.mktemp("cifar")
    places = {
        "train": (("learn", TRAIN), ("pictures/train", CALIBRATION)),
        "test": (("pictures/test", TEST),),
    }
    with tarfile.open(shared_dir / "data" / "cifar10-jpeg.tar.gz", "r|gz") as archive:
        for member in archive:
            if not member.isfile():
                continue
            split, name, file = member.name.removeprefix("./").split("/")
            number = int(file.partition(".")[0])
            first = 0
            for place, count in places[split]:
                if first <= number < first + count:
                    path = folder / place / name / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.extractfile(member).read())
                first += count
    return folder


def trained(like: str, folder) -> keras.Model:
    """A narrow network of the family, after a few passes through the pictures."""
    keras.utils.set_random_seed(0)
    blocks = tuple(BlockArgs.parse(f"{block}{NETWORKS[like]}") for block in BLOCKS)
    variant = dataclasses.replace(
        find(like),
        name=f"small-{like}",
        blocks=blocks,
        stem_filters=24,
        head_filters=320,
        dropout_rate=0.1,
        drop_connect_rate=0.0,
        bn_momentum=0.9,
    )
    model = build(variant, classes=10, input_shape=(SIZE, SIZE, 3))
    files = sorted((folder / "learn").rglob("*.jpg"))
    names = sorted({file.parent.name for file in files})
    images = np.stack([tf.io.decode_jpeg(file.read_bytes()).numpy() for file in files])
    labels = np.array([names.index(file.parent.name) for file in files])

    def augment(image, label):
        image = tf.image.random_flip_left_right(tf.cast(image, tf.float32))
        image = tf.pad(image, [[3, 3], [3, 3], [0, 0]], "REFLECT")
        return tf.image.random_crop(image, (SIZE, SIZE, 3)), label

    pairs = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(files), seed=0)
    pairs = pairs.map(augment).batch(BATCH, drop_remainder=True).prefetch(2)
    steps = EPOCHS * (len(files) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps, alpha=0.01)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(pairs, epochs=EPOCHS, verbose=0)
    return model


@pytest.fixture(scope="module")
def sources(cifar):
    """Trains each network once; the folder of its file, with what training leaves beside one."""
    rule = preprocessing.v1_eval(SIZE, labels=None)
    rule = dataclasses.replace(rule, name="own", crop="squash", crop_fraction=None)
    names = sorted(path.name for path in (cifar / "learn").iterdir())
    done: dict[str, pathlib.Path] = {}

    def source(like: str) -> pathlib.Path:
        if like not in done:
            folder = done[like] = cifar / like
            folder.mkdir()
            trained(like, cifar).save(folder / "model.keras")
            (folder / "labels.txt").write_text("\n".join(names) + "\n")
            (folder / "preprocessing.json").write_text(json.dumps(rule.to_dict()))
        return done[like]

    return source


@pytest.mark.parametrize(
    ("like", "remedy"),
    [("efficientnet-b0", "auto"), ("efficientnet-b0", "qat"), ("efficientnet-lite0", "none")],
)
def test_int8_stays_within_a_point_of_float(like, remedy, sources, cifar, root):
    """Of B0's kind with whichever remedy, and with training; of Lite's as it is."""
    source = sources(like)
    to = source / remedy
    command = [
        *(sys.executable, "scripts/export.py", str(source / "model.keras"), f"--to={to}"),
        *("--format=tflite-int8", f"--remedy={remedy}", f"--verify_count={10 * TEST}"),
        *(f"--verify=folder:{cifar / 'pictures'}", f"--calibrate=folder:{cifar / 'pictures'}"),
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads((to / "report.json").read_text())
    assert report["failure"] is None
    assert report["count"] == 10 * TEST
    assert report["model_accuracy"] > 0.5  # it has learned: a tenth is chance
    assert report["accuracy"] >= report["model_accuracy"] - 0.01
    options = json.loads((to / "model-int8.tflite.manifest.json").read_text())["options"]
    found = {"auto": ("plain", "percentile", "qat"), "qat": ("qat",), "none": ("plain",)}
    assert options["remedy"] in found[remedy]
