"""Converts weights between formats, or shows what a weight file holds.

python scripts/convert.py efficientnet-b0.tar.gz efficientnet-b0.keras
python scripts/convert.py noisy-student b0.safetensors --variant=efficientnet-b0
python scripts/convert.py --inspect efficientnet-b0.tar.gz
"""

import sys

from absl import app, flags

from efficientnet_tf import preprocessing
from efficientnet_tf.convert import TARGETS, convert, describe
from efficientnet_tf.weights.load import open_weights

_INSPECT = flags.DEFINE_bool("inspect", False, "Show what SRC holds instead of converting it.")
_VARIANT = flags.DEFINE_string(
    "variant", None, "What SRC holds, e.g. efficientnetv2-s. Needed where SRC is a tag."
)
_EMA = flags.DEFINE_bool(
    "ema", True, "Prefer the moving averages in a training checkpoint to the last values."
)
_TOP = flags.DEFINE_bool("include_top", True, "Convert the classifier too.")
_PREPROCESSING = flags.DEFINE_enum(
    "preprocessing",
    None,
    sorted(preprocessing.NORMALIZATIONS),
    "Normalisation that the weights expect, e.g. inception for AdvProp. The default is the one "
    "recorded with the weights, else the variant's.",
)


def main(argv: list[str]) -> None:
    """Runs the command line."""
    paths = argv[1:]
    if len(paths) != (1 if _INSPECT.value else 2):
        raise app.UsageError(
            f"Expected SRC DST (ending in {', '.join(TARGETS)}), or --inspect SRC."
        )
    unused = [flag.name for flag in (_VARIANT, _TOP, _PREPROCESSING) if flag.present]
    if _INSPECT.value and unused:
        raise app.UsageError(f"--inspect SRC does not take --{unused[0]}.")
    try:
        if _INSPECT.value:
            with open_weights(paths[0], ema=_EMA.value) as found:
                print("\n".join(describe(found)))
            return
        convert(
            *paths,
            variant=_VARIANT.value,
            include_top=_TOP.value,
            ema=_EMA.value,
            preprocessing=_PREPROCESSING.value,
        )
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"Wrote {paths[1]}")


if __name__ == "__main__":
    app.run(main)
