"""Compares a variant with keras.applications: build, training step, inference, memory.

Inference is a compiled function on both sides; one picture goes through `predict.compiled` here and
through `model.predict` there.

    python scripts/benchmark.py --variant=efficientnetv2-b0 --size=128 --batch_size=32

    python scripts/benchmark.py --input --data=folder:~/pictures

measures the stages of the input pipeline instead (`benchmark_input.py`), and

    python scripts/benchmark.py --costs

what parts of a training step cost and how it grows with pictures and batch (`benchmark_costs.py`),

    python scripts/benchmark.py --memory

how much memory training takes and is expected to (`benchmark_memory.py`), and

    python scripts/benchmark.py --artefacts

exports the variants and measures the files in their runtimes (`benchmark_artefacts.py`).

Both sides run in one process, in turn and in random order; the table has medians and the median of
the rounds' ratios. Peak memory is that of a process of its own for each side.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("variant", ["efficientnet-b0", "efficientnetv2-b0"], "Variants.")
flags.DEFINE_integer("size", 128, "Side of the pictures, pixels.", lower_bound=32)
flags.DEFINE_integer("batch_size", 32, "Pictures per batch.", lower_bound=1)
flags.DEFINE_integer("rounds", 20, "Rounds of training steps and inference.", lower_bound=3)
flags.DEFINE_bool("input", False, "Measure the input pipeline; --size is 224 unless given.")
flags.DEFINE_bool("costs", False, "Measure what parts of a training step cost.")
flags.DEFINE_bool("memory", False, "Measure the memory of training.")
flags.DEFINE_bool("artefacts", False, "Measure exported files; --size is 224 unless given.")
flags.DEFINE_string("data", None, "For --input: folder:PATH; generated pictures if not given.")
flags.DEFINE_string("memory_of", None, "For the child processes: ours or keras.applications.")

OURS, PEER = "efficientnet_tf", "keras.applications"


def make(side: str, variant: str):
    """Builds the network of one side with random weights and a static input size."""
    import keras

    import efficientnet_tf

    shape = (FLAGS.size, FLAGS.size, 3)
    if side == OURS:
        return efficientnet_tf.build(variant, input_shape=shape)
    name = variant.replace("efficientnetv2-", "EfficientNetV2").replace(
        "efficientnet-", "EfficientNet"
    )
    head, tail = name.rsplit("t", 1)
    constructor = getattr(keras.applications, f"{head}t{tail.upper()}", None)
    if constructor is None:
        raise app.UsageError(f"keras.applications has no {variant}.")
    return constructor(weights=None, input_shape=shape)


def batch():
    """One batch of random pictures and labels."""
    from efficientnet_tf import timed

    return timed.batch(FLAGS.size, FLAGS.batch_size, 1000)


def inference(side: str, model):
    """Returns one call of the compiled inference function: ours, or a plain tf.function."""
    import tensorflow as tf

    from efficientnet_tf.predict import compiled

    images, _ = batch()
    if side == OURS:
        function = compiled(model)
        return lambda: function(images)
    function = tf.function(lambda x: model(x, training=False))
    return lambda: function(images).numpy()


def one_picture(side: str, model):
    """Returns the prediction of one picture: `predict.compiled`, or the model's own `predict`."""
    from efficientnet_tf.predict import compiled

    images = batch()[0][:1]
    if side == OURS:
        function = compiled(model)
        return lambda: function(images)
    return lambda: model.predict(images, verbose=0)


def interleave(functions: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round, in an order that is drawn anew each round."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    rng = random.Random(0)
    for _ in range(rounds):
        names = list(functions)
        rng.shuffle(names)
        for name in names:
            start = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(variant: str) -> dict[str, dict[str, list[float]]]:
    """Times both sides of a variant, and measures their memory in processes of their own."""
    from efficientnet_tf.timed import training_step

    sides = (OURS, PEER)
    builds = {side: lambda side=side: make(side, variant) for side in sides}
    interleave(builds, 1)  # imports and first calls
    results = {"build, s": interleave(builds, max(3, FLAGS.rounds // 4))}
    models = {side: make(side, variant) for side in sides}
    for name, functions in (
        ("training step, ms", {side: training_step(models[side], *batch()) for side in sides}),
        ("inference, ms", {side: inference(side, models[side]) for side in sides}),
        ("one picture, ms", {side: one_picture(side, models[side]) for side in sides}),
    ):
        interleave(functions, 2)  # traces
        times = interleave(functions, FLAGS.rounds)
        results[name] = {side: [1e3 * t for t in values] for side, values in times.items()}
    results["training memory, MiB"] = {side: [peak_memory(side, variant)] for side in sides}
    return results


def peak_memory(side: str, variant: str) -> float:
    """Peak resident memory of a process that trains three steps, over that of the imports."""
    flags_ = [f"--{name}={FLAGS[name].value}" for name in ("size", "batch_size")]
    command = [sys.executable, __file__, f"--memory_of={side}", f"--variant={variant}", *flags_]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_memory(side: str, variant: str) -> None:
    """Prints, for `peak_memory`, what three training steps added to the imports, in MiB."""
    import resident

    import efficientnet_tf.predict  # noqa: F401
    from efficientnet_tf.timed import training_step

    before = resident.read("VmHWM")
    step = training_step(make(side, variant), *batch())
    for _ in range(3):
        step()
    print((resident.read("VmHWM") - before) / 2**20)


def main(argv: list[str]) -> None:
    """Prints one table for all variants."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    if FLAGS.data and not FLAGS.input:
        raise app.UsageError("--data is used only with --input.")
    if FLAGS.input:
        import benchmark_input

        size = FLAGS.size if FLAGS["size"].present else 224
        benchmark_input.main(FLAGS.data, size, FLAGS.batch_size, FLAGS.rounds)
        return
    if FLAGS.costs:
        import benchmark_costs

        for variant in FLAGS.variant:
            benchmark_costs.report(variant, FLAGS.size, FLAGS.batch_size, FLAGS.rounds, interleave)
        return
    if FLAGS.memory:
        import benchmark_memory

        print("| variant | px | batch | training | MiB | expected | of it | ms per picture |")
        print("|---|---:|---:|---|---:|---:|---:|---:|")
        for variant in FLAGS.variant:
            benchmark_memory.report(variant, FLAGS.size, FLAGS.batch_size)
        return
    if FLAGS.artefacts:
        import benchmark_artefacts

        FLAGS.size = FLAGS.size if FLAGS["size"].present else benchmark_artefacts.INPUT_SIZE
        for variant in FLAGS.variant:
            has_peer = "-b" in variant
            peer = make(PEER, variant) if has_peer else None
            benchmark_artefacts.report(variant, FLAGS.size, FLAGS.rounds, peer)
        return
    if FLAGS.memory_of:
        print_memory(FLAGS.memory_of, FLAGS.variant[-1])
        return
    print(f"{FLAGS.size} px, batch {FLAGS.batch_size}, {os.cpu_count()} cores, medians\n")
    print(f"| variant | measure | {OURS} | {PEER} | ratio |\n|---|---|---:|---:|---:|")
    for variant in FLAGS.variant:
        for name, values in measure(variant).items():
            ours, peer = (statistics.median(values[side]) for side in (OURS, PEER))
            ratios = [b / a for a, b in zip(values[OURS], values[PEER], strict=True)]
            ratio = statistics.median(ratios)
            print(f"| {variant} | {name} | {ours:.4g} | {peer:.4g} | {ratio:.2f}× |", flush=True)


if __name__ == "__main__":
    app.run(main)
