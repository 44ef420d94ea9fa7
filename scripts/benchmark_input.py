"""Pictures per second and core of each stage of the input pipeline: `benchmark.py --input`.

    python scripts/benchmark.py --input --data=folder:~/pictures

The seconds are CPU seconds of the process, so that what else runs on the machine counts little. All
stages are measured in turn, round by round, on one thread; the numbers are medians, and the ratios
medians of the rounds' ratios.
"""

import dataclasses
import pathlib
import random
import statistics
import tempfile
import time

import benchmark_released
import numpy as np
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import augment, images, pipeline, plugged
from efficientnet_tf.data.folder import EXTENSIONS
from efficientnet_tf.data.records import SPLITS, Source, gather

PLAIN, RANDAUGMENT, FULL = "decode, crop, resize", "+ flip, RandAugment", "full"
OPS, RELEASED = "RandAugment(2, 15) of uint8", "RandAugment(2, 15) as released"
CLASSES = 1000
BATCHES = 4  # in each measurement

CONFIGS = {
    PLAIN: DataConfig(crop="v2"),
    "+ flip": DataConfig(crop="v2", flip=True),
    RANDAUGMENT: DataConfig(crop="v2", flip=True, augment="randaugment", magnitude=15),
    "+ flip, AutoAugment": DataConfig(crop="v2", flip=True, augment="autoaugment"),
    "+ flip, mixup": DataConfig(crop="v2", flip=True, mixup=0.2),
    FULL: DataConfig(
        crop="v2",
        flip=True,
        augment="randaugment",
        magnitude=15,
        random_erasing=0.25,
        mixup=0.2,
        cutmix=0.2,
    ),
}
RATIOS = (  # what is shown: numerator, denominator
    (RANDAUGMENT, PLAIN),
    ("+ flip, AutoAugment", PLAIN),
    ("+ flip, mixup", "+ flip"),
    (FULL, PLAIN),
    (f"{PLAIN}, unchecked", PLAIN),
    (OPS, RELEASED),
    (OPS, "keras:RandAugment"),
    (OPS, "keras_cv:RandAugment"),
)


def main(data: str | None, size: int, batch_size: int, rounds: int) -> None:
    """Prints a table of stages and a table of ratios.

    Args:
        data: "folder:PATH" with pictures at any depth; None for generated JPEGs.
        size: pixels, side of the pictures that come out.
        batch_size: pictures per batch.
        rounds: measurements of each stage.
    """
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            _generate(pathlib.Path(folder))
        kind, _, path = (data or f"folder:{folder}").partition(":")
        if kind != "folder":
            raise ValueError(f'--data expects "folder:PATH". Received: {data!r}')
        source = _source(pathlib.Path(path).expanduser())
        stages = _stages(source, size, batch_size)
        rates = _measure(stages, batch_size, rounds)
    count = source.num_examples["train"]
    print(f"{count} pictures{'' if data else ' (generated)'} to {size} px, batch {batch_size}\n")
    print("| stage | pictures/s and core |\n|---|---:|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.0f} |")
    print("\n| ratio | |\n|---|---:|")
    for above, below in RATIOS:
        if below in rates:
            ratio = statistics.median(
                a / b for a, b in zip(rates[above], rates[below], strict=True)
            )
            print(f"| {above} / {below} | {ratio:.2f} |")


def _source(root: pathlib.Path) -> Source:
    paths = sorted(str(path) for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise ValueError(f"{root} has no pictures.")
    labels = np.arange(len(paths), dtype=np.int64) % CLASSES
    return Source(
        name="benchmark",
        class_names=tuple(map(str, range(CLASSES))),
        num_examples=dict.fromkeys(SPLITS, len(paths)),
        records=gather((np.array(paths, object), labels), {"train": np.arange(len(paths))})[0],
        decode=lambda path, label: (images.decode(tf.io.read_file(path)), label),
        encoded=lambda path, label: (tf.io.read_file(path), label),
        describe=lambda path, label: path,
        checked=True,
    )


def _generate(folder: pathlib.Path) -> None:
    """Writes JPEGs with detail at every scale, of the usual size of ImageNet's."""
    rng = np.random.default_rng(0)
    for number in range(64):
        picture = np.full((375, 500, 3), 128.0, np.float32)
        for cells in (4, 12, 40, 120, 375):
            noise = rng.normal(0, 90 / np.sqrt(cells), (cells, cells, 3)).astype(np.float32)
            picture += tf.image.resize(noise, picture.shape[:2], "bicubic").numpy()
        content = tf.io.encode_jpeg(np.clip(picture, 0, 255).astype(np.uint8), quality=90)
        (folder / f"{number}.jpg").write_bytes(content.numpy())


def _stages(source: Source, size: int, batch_size: int) -> dict[str, tf.data.Dataset]:
    """Endless batches of each stage."""
    records = source.records("train", 0)
    stages = {
        "read": records.map(lambda *r: tf.strings.length(source.encoded(*r)[0])).batch(batch_size),
        # Pictures differ in size: one number of each makes a batch.
        "decode": records.map(lambda *r: source.decode(*r)[0][0, 0, 0]).batch(batch_size),
    }
    for name, config in CONFIGS.items():
        stages[name] = pipeline.training(source, config, size, batch_size, num_parallel_calls=1)
    unchecked = dataclasses.replace(source, checked=False)
    stages[f"{PLAIN}, unchecked"] = pipeline.training(
        unchecked, CONFIGS[PLAIN], size, batch_size, num_parallel_calls=1
    )

    pixels, targets = next(iter(stages[PLAIN]))
    pixels = tf.cast(pixels, tf.uint8)

    def ours(index: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([tf.constant(0, tf.int64), index])
        image = tf.gather(pixels, index % batch_size)
        return augment.randaugment(image, seed, num_layers=2, magnitude=15)

    def released(index: tf.Tensor) -> tf.Tensor:
        image = tf.gather(pixels, index % batch_size)
        return benchmark_released.randaugment(image, num_layers=2, magnitude=15)

    numbers = tf.data.Dataset.range(tf.int64.max)
    for name, function in ((OPS, ours), (RELEASED, released)):
        mapped = numbers.map(tf.autograph.experimental.do_not_convert(function))
        stages[name] = mapped.batch(batch_size)
    for name in ("keras:RandAugment", "keras_cv:RandAugment"):
        try:
            layer = plugged.layer(DataConfig(augment=name, magnitude=15), seed=0)
        except ImportError:
            continue
        stages[name] = numbers.map(
            lambda _, layer=layer: layer(tf.cast(pixels, tf.float32), targets)[0]
        )
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return {name: dataset.with_options(options) for name, dataset in stages.items()}


def _measure(
    stages: dict[str, tf.data.Dataset], batch_size: int, rounds: int
) -> dict[str, list[float]]:
    """Pictures per CPU second of each stage, round by round, in an order drawn anew each round."""
    rates: dict[str, list[float]] = {name: [] for name in stages}
    rng = random.Random(0)
    for number in range(-1, rounds):  # the first one warms up
        for name in rng.sample(list(stages), len(stages)):
            batches = 1 if ":" in name else BATCHES
            rate = batches * batch_size / _seconds(stages[name], batches)
            if number >= 0:
                rates[name].append(rate)
    return rates


def _seconds(dataset: tf.data.Dataset, batches: int) -> float:
    """CPU seconds of some batches, without those of the first one and of the start."""
    iterator = iter(dataset)
    next(iterator)
    start = time.process_time()
    for _ in range(batches):
        next(iterator)
    return time.process_time() - start
