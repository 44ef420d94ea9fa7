"""Trains a tiny network for thousands of steps, and watches what the process holds.

python tests/soak.py --steps=2400 --plot=soak.png

It reads picture files, augments, writes checkpoints, evaluates, writes pages and scalars, as a run
of days does. After each checkpoint it notes the memory, the open files and the threads; at the end
it prints them as JSON.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import tensorflow as tf

from efficientnet_tf.config import override
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.train import run

EVERY = 25  # steps between two checkpoints
EPOCH = 100  # steps
SETTINGS = (
    "model.blocks=r1_k3_s22_e1_i8_o8_c1,r1_k3_s22_e2_i8_o16_se0.25",
    "model.stem_filters=8",
    "model.head_filters=16",
    "model.image_size=32",
    "data.batch_size=8",
    "data.augment=randaugment",
    "train.warmup_epochs=0",
    f"train.steps_per_epoch={EPOCH}",
    f"train.checkpoint_steps={EVERY}",
)


def held() -> dict[str, int]:
    """Memory in KiB, open files and threads of this process."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    return {
        "rss": int(fields["VmRSS"].split()[0]),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(fields["Threads"]),
    }


def soak(folder: pathlib.Path, steps: int) -> list[dict[str, int]]:
    """Trains in a folder; gives one sample per checkpoint."""
    generator = np.random.default_rng(0)
    for label in range(4):
        (folder / "pictures" / str(label)).mkdir(parents=True)
        for index in range(40):
            image = generator.integers(0, 64, (40, 40, 3), np.uint8) + np.uint8(60 * label)
            path = folder / "pictures" / str(label) / f"{index}.png"
            path.write_bytes(tf.io.encode_png(image).numpy())
    samples, save = [], run.checkpoint.save

    def watched(*arguments):
        path = save(*arguments)
        progress = arguments[1]
        samples.append({"step": (progress.epoch - 1) * EPOCH + progress.done, **held()})
        return path

    run.checkpoint.save = watched
    config = override(
        RECIPES["digits"],
        f"data.source=folder:{folder / 'pictures'}",
        f"train.epochs={steps // EPOCH}",
        *SETTINGS,
    )
    run.train(config, folder / "run", tensorboard=True)
    return samples


def growth(samples: list[dict[str, int]], name: str = "rss") -> float:
    """What is held more after 1,000 further steps: the median of the slopes between all pairs.

    The first third is left out, in which caches fill.
    """
    late = [sample for sample in samples if sample["step"] > samples[-1]["step"] / 3]
    steps = np.array([sample["step"] for sample in late], float)
    values = np.array([sample[name] for sample in late], float)
    first, second = np.triu_indices(len(late), 1)
    return 1000 * float(
        np.median((values[second] - values[first]) / (steps[second] - steps[first]))
    )


def plot(samples: list[dict[str, int]], path: str) -> None:
    """Draws memory, open files and threads over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [sample["step"] for sample in samples]
    left.plot(steps, [sample["rss"] / 1024 for sample in samples])
    left.axvline(steps[-1] / 3, color="gray", linestyle=":")
    most = max(sample["rss"] for sample in samples) / 1024
    left.set(xlabel="step", ylabel="MiB", title="memory (RSS)", ylim=(0, 1.2 * most))
    for name in ("files", "threads"):
        right.plot(steps, [sample[name] for sample in samples], label=name)
    right.set(xlabel="step", title="open files and threads", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Prints the samples and the growth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--plot")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = soak(pathlib.Path(folder), options.steps)
    if options.plot:
        plot(samples, options.plot)
    print(json.dumps({"growth": growth(samples), "samples": samples}), file=sys.stdout)


if __name__ == "__main__":
    main()
