"""How much memory training takes, and what `train.memory` expects: `scripts/benchmark.py --memory`.

Peak resident memory of a process that takes three steps of `train.loop`, over that of the imports.
On a processor; what a GPU takes differs by its kernels' workspaces.
"""

import json
import subprocess
import sys

ROWS = {
    "float32": (),
    "float32, batch in 4 parts": ("train.accumulate=4",),
    "float32, rematerialised": ("train.rematerialise=true",),
    "mixed_bfloat16": ("train.precision=mixed_bfloat16",),
    "mixed_bfloat16, rematerialised": (
        "train.precision=mixed_bfloat16",
        "train.rematerialise=true",
    ),
}
_STEPS = 3
_CLASSES = 1000


def report(variant: str, size: int, batch_size: int) -> None:
    """Prints a row for each way to train a variant."""
    from efficientnet_tf.arch import VARIANTS
    from efficientnet_tf.config import Config, override
    from efficientnet_tf.train import memory

    for name, settings in ROWS.items():
        common = (f"model.image_size={size}", f"data.batch_size={batch_size}")
        config = override(Config(), "train.precision=float32", *common, *settings)
        part = batch_size // config.train.accumulate
        expected = memory.training_memory(config, VARIANTS[variant], _CLASSES, part)
        command = [sys.executable, __file__, variant, str(size), str(batch_size), *settings]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        taken, seconds = json.loads(done.stdout.splitlines()[-1])
        ratio = taken / expected
        print(
            f"| {variant} | {size} | {batch_size} | {name} | {taken / 2**20:.0f} |"
            f" {expected / 2**20:.0f} | {ratio:.2f} | {1e3 * seconds / batch_size:.0f} |",
            flush=True,
        )


def peak(variant: str, size: int, batch_size: int, settings=()) -> tuple[int, float]:
    """Bytes that three steps add to the imports, and the last one's seconds; once in a process."""
    import time

    import benchmark_costs
    import resident

    from efficientnet_tf.config import Config, override
    from efficientnet_tf.train import precision

    settings = (
        "train.precision=float32",
        f"model.image_size={size}",
        f"data.batch_size={batch_size}",
        *settings,
    )
    before = resident.read("VmHWM")
    with precision.policy(override(Config(), *settings).train.precision):
        step, _ = benchmark_costs.step(variant, *settings)
    for _ in range(_STEPS):
        start = time.perf_counter()
        step()
    return resident.read("VmHWM") - before, time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
