"""Derives how training scales to more devices, from a step's time and the networks between them.

python scripts/scaling.py --pictures_per_second=950 --batch=460 --report=scaling.html
python scripts/scaling.py --variant=efficientnet-b0 --size=224 --measure --batch=32

The step's time is given (--pictures_per_second of one device at --batch), or measured on one device
of this machine (--measure). Nothing here runs on more than one.
"""

import os
import sys
import time
from collections.abc import Sequence

from absl import app, flags
from command_line import fail, parse_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_VARIANT = flags.DEFINE_string("variant", "efficientnetv2-s", "Network.")
_SIZE = flags.DEFINE_integer("size", 300, "Side of the pictures, pixels.", lower_bound=32)
_BATCH = flags.DEFINE_integer("batch", 64, "Pictures per device and step.", lower_bound=1)
_SPEED = flags.DEFINE_float(
    "pictures_per_second", None, "Of training on one device, at --batch.", lower_bound=1e-9
)
_MEASURE = flags.DEFINE_bool("measure", False, "Measure them here, on random pictures.")
_PRECISION = flags.DEFINE_string("precision", "auto", "For --measure: as train.precision.")
_ATTAINED = flags.DEFINE_float("attained", 0.8, "Share of the bandwidths that is reached.")
_OVERLAP = flags.DEFINE_float("overlap", 0.0, "Share of the all-reduce beside the backward pass.")
_PER_CORE = flags.DEFINE_float(
    "pictures_per_core",
    828.0,
    "Pictures that a core prepares per second, from scripts/benchmark.py --input.",
)
_CORES = flags.DEFINE_integer("cores", 64, "Processor cores of a host.", lower_bound=1)
_REPORT = flags.DEFINE_string("report", None, "HTML page to write, e.g. scaling.html.")
_ROUNDS = 5


def main(argv: Sequence[str]) -> int:
    """Prints the table, and writes the page."""
    if len(argv) > 1:
        return fail(f"flags start with --. Received: {argv[1]!r}")
    if (_SPEED.value is None) == (not _MEASURE.value):
        return fail("give one of --pictures_per_second and --measure.")
    from efficientnet_tf.arch.complexity import count
    from efficientnet_tf.page import document
    from efficientnet_tf.train import scaling

    try:
        parameters = count(_VARIANT.value, _SIZE.value).total.trainable
        if _MEASURE.value:
            step, origin = measured()
        else:
            step, origin = _BATCH.value / _SPEED.value, "given"
        given = scaling.Assumptions(
            step=step,
            batch=_BATCH.value,
            gradient=4 * parameters,
            attained=_ATTAINED.value,
            overlap=_OVERLAP.value,
            pictures_per_core=_PER_CORE.value,
            cores=_CORES.value,
        )
        print(f"{_VARIANT.value}, {_SIZE.value} px, {4 * parameters / 1e6:.1f} MB of gradients,")
        print(f"{1e3 * step:.4g} ms for {_BATCH.value} pictures ({origin})\n")
        print(f"| {' | '.join(scaling.COLUMNS)} |\n|---|{'---:|' * 7}---|")
        for row in scaling.rows(given):
            print(f"| {' | '.join(row)} |")
        if _REPORT.value:
            title = f"{_VARIANT.value} at {_SIZE.value} px"
            document.write(_REPORT.value, scaling.page(title, given, origin))
            print(f"\nThe page is {_REPORT.value}.")
    except (ValueError, OSError) as error:
        return fail(error)
    return 0


def measured() -> tuple[float, str]:
    """Seconds of a training step on one device of this machine, and what it is."""
    import statistics

    import benchmark_costs
    import tensorflow as tf

    from efficientnet_tf.config import Config, override
    from efficientnet_tf.train import precision

    settings = (
        f"model.image_size={_SIZE.value}",
        f"data.batch_size={_BATCH.value}",
        f"train.precision={_PRECISION.value}",
    )
    config = precision.resolved(override(Config(), *settings), tf.distribute.get_strategy())
    with precision.policy(config.train.precision):
        step, _ = benchmark_costs.step(_VARIANT.value, *settings)
    step()
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    devices = tf.config.list_logical_devices()
    where = f"{config.train.precision} on {devices[-1].name}"
    return statistics.median(seconds), f"measured here, {where}"


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)), flags_parser=parse_flags)
