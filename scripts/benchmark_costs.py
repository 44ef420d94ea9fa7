"""What parts of a training step cost, and how it grows: `scripts/benchmark.py --costs`.

Steps are those of `train.loop`, on random pictures in memory, on one device. Every row is compared
with the first one in one process, in turn and in random order.
"""

import statistics

import numpy as np
import tensorflow as tf

from efficientnet_tf import stages
from efficientnet_tf.config import Config, override
from efficientnet_tf.config.model import describe
from efficientnet_tf.train import average, loop, network
from efficientnet_tf.train import optimizer as optimizer_lib


def rows(size: int, batch_size: int) -> dict[str, list[str]]:
    """Names of the rows to the settings that they change; the first is what others compare to."""
    found: dict[str, list[str]] = {
        f"{size} px, batch {batch_size}": [],
        "moving average": ["train.ema_decay=0.9999"],
        "L2 in the loss": ["train.weight_decay=1e-5"],
        "clipping": ["train.clip_norm=1"],
        "batch in 2 parts": ["train.accumulate=2"],
        "classifier only": ["finetune.unfreeze=head"],
    }
    for other in (size * 3 // 4, size * 5 // 4, size * 3 // 2, size * 7 // 4):
        found[f"{other} px"] = [f"model.image_size={other}"]
    for other in (batch_size // 4, batch_size // 2, batch_size * 2):
        found[f"batch {other}"] = [f"data.batch_size={other}"]
    return found


def report(variant: str, size: int, batch_size: int, rounds: int, interleave) -> None:
    """Prints a table of milliseconds per picture.

    Args:
        variant: name of the network.
        size: pixels of the pictures that everything is compared with.
        batch_size: pictures per step of the same.
        rounds: of measurement.
        interleave: (functions by name, rounds) to seconds of each call by name.
    """
    calls, pictures = {}, {}
    for name, settings in rows(size, batch_size).items():
        base = (f"model.image_size={size}", f"data.batch_size={batch_size}")
        calls[name], pictures[name] = step(variant, *base, *settings)
    interleave(calls, 2)  # traces
    seconds = interleave(calls, rounds)
    first, *_ = calls
    each = {
        name: [1e3 * second / pictures[name] for second in values]
        for name, values in seconds.items()
    }
    print(f"\n| {variant} | ms per picture | times the first row |\n|---|---:|---:|")
    for name, values in each.items():
        ratio = statistics.median(a / b for a, b in zip(values, each[first], strict=True))
        print(f"| {name} | {statistics.median(values):.3g} | {ratio:.2f} |", flush=True)


def step(variant: str, *settings: str):
    """Returns a training step, ready to be called, and the pictures that it takes."""
    config = override(Config(), f"model.variant={variant}", "train.warmup_epochs=1", *settings)
    described = describe(config.model)
    (stage,) = stages.expand(config, config.train.epochs)
    model = network.trained(config.model, described, 1000, (stage,))
    network.set_rates(model, described, stage)
    unfreeze = config.finetune.unfreeze
    network.set_trainable(model, described, unfreeze, config.finetune.freeze_batch_norm)
    optimizer = optimizer_lib.create(config, model.trainable_variables, 100, 10)
    moving = (
        average.MovingAverage(model, config.train.ema_decay) if config.train.ema_decay else None
    )
    trainee = loop.Trainee(model, optimizer, moving)
    run = loop.training_steps(
        tf.distribute.get_strategy(), trainee, config.batch_size, config.train
    )
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.train_size, config.train_size, 3)
    images = tf.constant(rng.integers(0, 256, shape).astype(np.float32))
    targets = tf.one_hot(rng.integers(0, 1000, config.batch_size), 1000)
    batches = iter(tf.data.Dataset.from_tensors((images, targets)).repeat())
    one = tf.constant(1)

    def call():
        run(batches, one)
        return optimizer.iterations.numpy()  # waits for the step

    return call, config.batch_size
