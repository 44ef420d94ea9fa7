"""Searches networks by training many for a short time on your pictures.

python scripts/search.py nas --data=folder:flowers --trials=50 --set=train.epochs=5
python scripts/search.py nas --data=folder:flowers --minutes=60 --method=random --max_macs=20e6
python scripts/search.py compound --data=folder:flowers --seeds=0,1 --set=train.epochs=5

`nas` chooses each stage of the network that --recipe and --set describe (V2 Sec. 3.3); `compound`
finds how that network is scaled (V1 Sec. 3.3). What is found is best.json in --workdir, which
--set=model.variant=FILE, scripts/profile.py and `efficientnet_tf.build` take.

A search that was stopped or killed goes on when it is started again with the same flags. Exit code:
0 when all is done, 1 after an error, 2 for wrong usage, 75 when SIGTERM stopped it.
"""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from command_line import end_at_once, fail, parse_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_RECIPE = flags.DEFINE_string(
    "recipe", "digits", "Base network and training, as in scripts/train.py."
)
_DATA = flags.DEFINE_string(
    "data", None, "Pictures instead of the recipe's: folder:PATH, digits, …"
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets keeps its files; its own default if not given."
)
_SET = flags.DEFINE_multi_string(
    "set",
    [],
    "Change a setting of the base or of its short training, e.g. --set=train.epochs=3"
    " --set=model.image_size=64 --set=model.variant=efficientnetv2-s.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write to; runs/<command> if not given.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of each network's trainings, e.g. 0,1.")

_METHOD = flags.DEFINE_enum(
    "method", "evolution", ["evolution", "random"], "nas: how the next network is chosen."
)
_TRIALS = flags.DEFINE_integer("trials", None, "nas: networks to try, those of before included.")
_MINUTES = flags.DEFINE_float(
    "minutes", None, "nas: minutes of all trials together, after which none begins."
)
_POPULATION = flags.DEFINE_integer("population", 16, "nas: networks alive in evolution.")
_SAMPLE = flags.DEFINE_integer(
    "sample", 4, "nas: networks that compete for being the next one's parent."
)
_CONVS = flags.DEFINE_list("convs", ["mbconv", "fused"], "nas: kinds of blocks.")
_LAYERS = flags.DEFINE_list(
    "layers", None, "nas: blocks of a stage, e.g. 1,2,3; up to two less or more than the base's."
)
_KERNELS = flags.DEFINE_list("kernels", ["3", "5"], "nas: sizes.")
_EXPANSIONS = flags.DEFINE_list("expansions", ["1", "4", "6"], "nas: expansions.")
_MAX_PARAMS = flags.DEFINE_float("max_params", None, "nas: most parameters, e.g. 2e6.")
_MAX_MACS = flags.DEFINE_float("max_macs", None, "nas: most multiply-adds, e.g. 120e6.")
_RESOLUTION = flags.DEFINE_integer(
    "resolution",
    None,
    "nas: pixels that the network is for, at which multiply-adds are counted; model.image_size, the"
    " size of the short training, if not given.",
    lower_bound=1,
)
_STEP_EXPONENT = flags.DEFINE_float("step_exponent", -0.07, "nas: w of A * S**w * P**v.")
_PARAMS_EXPONENT = flags.DEFINE_float("params_exponent", -0.05, "nas: v of A * S**w * P**v.")
_SEARCH_SEED = flags.DEFINE_integer("search_seed", 0, "nas: seed of the choices.")
_STORAGE = flags.DEFINE_string(
    "storage",
    None,
    "nas: the study's, to share it between machines that have a --workdir each: mysql://…, "
    'postgresql://…, sqlite:///FILE, or a path that ends in ".log"; a file in --workdir if not'
    " given.",
)
_STUDY = flags.DEFINE_string("study", "nas", "nas: name of the study in --storage.")

_GRID_STEP = flags.DEFINE_float("grid_step", 0.1, "compound: step of alpha, beta and gamma.")
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 0.1, "compound: largest distance of alpha * beta**2 * gamma**2 from 2."
)
_SLACK = flags.DEFINE_float(
    "slack", 1.1, "compound: how many times 2 the multiply-adds of the grid may grow at most."
)
_PHIS = flags.DEFINE_list("phis", ["1", "2"], "compound: steps of scaling, rising.")

# fmt: off
_NAS = (
    "method", "trials", "minutes", "population", "sample", "convs", "layers", "kernels",
    "expansions", "max_params", "max_macs", "resolution", "step_exponent", "params_exponent",
    "search_seed", "storage", "study",
)
# fmt: on
_OF = {"nas": _NAS, "compound": ("grid_step", "tolerance", "slack", "phis")}


def main(argv: Sequence[str]) -> int:
    """Runs the search of the command line."""
    if len(argv) != 2 or argv[1] not in _OF:
        return fail("which search? Usage: search.py nas|compound --data=KIND:PATH")
    command = argv[1]
    for other, names in _OF.items():
        for name in names if other != command else ():
            if flags.FLAGS[name].present:
                return fail(f"--{name} is used by `search.py {other}` only")
    from efficientnet_tf import config as config_lib  # takes seconds: after the usage is right
    from efficientnet_tf import recipes
    from efficientnet_tf.train.interruption import Interrupted, at_once

    named = {"data.source": _DATA.value, "data.data_dir": _DATA_DIR.value}
    settings = [f"{name}={value}" for name, value in named.items() if value is not None]
    folder = Path(_WORKDIR.value or f"runs/{command}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # not every training's settings
    try:
        asked = _asked_nas() if command == "nas" else _asked_compound()
    except ValueError as error:
        return fail(error)
    try:
        config = config_lib.override(recipes.get(_RECIPE.value), *settings, *_SET.value)
        with at_once():  # a training saves itself first
            (_nas if command == "nas" else _compound)(config, folder, *asked)
    except Interrupted:
        end_at_once("\nStopped and saved. The same command goes on.", os.EX_TEMPFAIL)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        logging.debug("Where it happened:", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        end_at_once("\nInterrupted. The same command goes on.", 130)
    return 0


def _asked_nas() -> tuple:
    """What the flags ask for: how networks are searched, and what the stages may be."""
    from efficientnet_tf.search import nas
    from efficientnet_tf.search.space import Limits, check_options

    options = {
        "convs": _CONVS.value,
        "layers": _LAYERS.value and _numbers(_LAYERS, int),
        "kernels": _numbers(_KERNELS, int),
        "expansions": _numbers(_EXPANSIONS, int),
    }
    check_options(**options)
    asked = nas.Search(
        method=_METHOD.value,
        trials=_TRIALS.value,
        minutes=_MINUTES.value,
        population=_POPULATION.value,
        sample=_SAMPLE.value,
        step_exponent=_STEP_EXPONENT.value,
        params_exponent=_PARAMS_EXPONENT.value,
        seeds=_numbers(_SEEDS, int),
        seed=_SEARCH_SEED.value,
    )
    return asked, {**options, "limits": Limits(_limit(_MAX_PARAMS), _limit(_MAX_MACS))}


def _nas(config, folder: Path, asked, options: dict) -> None:
    from efficientnet_tf.search import nas, report, study, trial
    from efficientnet_tf.search.space import Space
    from efficientnet_tf.train import strategy as strategy_lib

    study.require_optuna()
    strategy = strategy_lib.create()
    source = trial.opened(config)
    base = trial.base_of(config, source.num_classes, _RESOLUTION.value)
    space = Space(base, **options)
    _tell(f"{space.size:,} networks in the space over {space.base.name}.")
    found = nas.search(
        config,
        space,
        asked,
        folder,
        source=source,
        strategy=strategy,
        storage=_STORAGE.value,
        name=_STUDY.value,
        tell=_tell,
    )
    title = f"Search over {space.base.name}, {source.name}"
    report.write_nas(found, folder, title, _shown(config, asked, space.limits))
    print(
        f"\n{report.nas_text(found)}\n\nThe highest reward is that of trial"
        f" {nas.best(found).number}, in {folder / nas.BEST}; {folder / report.PAGE} shows all."
    )


def _asked_compound() -> tuple:
    """What the flags ask for."""
    from efficientnet_tf.search import compound

    asked = compound.Search(
        step=_GRID_STEP.value,
        tolerance=_TOLERANCE.value,
        slack=_SLACK.value,
        phis=_numbers(_PHIS, float),
        seeds=_numbers(_SEEDS, int),
    )
    return (asked,)


def _compound(config, folder: Path, asked) -> None:
    from efficientnet_tf.search import compound, report, trial
    from efficientnet_tf.train import strategy as strategy_lib

    strategy = strategy_lib.create()
    source = trial.opened(config)
    result = compound.search(config, asked, folder, source=source, strategy=strategy, tell=_tell)
    alpha, beta, gamma = result.coefficients
    told = f"alpha {alpha:g}, beta {beta:g}, gamma {gamma:g}"
    title = f"Compound scaling, {source.name}"
    best = f"Best of the grid: {told}"
    report.write_compound(result.grid, result.scaled, folder, title, best, _shown(config, asked))
    networks = {one.name: one for members in result.scaled.values() for one in members}
    print(
        f"\nStep 1\n{report.compound_text(result.grid)}\n\nStep 2, {told}\n"
        f"{report.compound_text(list(networks.values()))}\n\n"
        f"{folder / report.PAGE} and {folder / report.SCALING} show it."
    )


def _tell(line: str) -> None:
    print(line, flush=True)


def _shown(config, *parts) -> dict[str, object]:
    """What the page tells about a search."""
    import dataclasses

    from efficientnet_tf import config as config_lib

    shown = {name: value for part in parts for name, value in dataclasses.asdict(part).items()}
    for setting in config_lib.differences(config, config_lib.Config()):
        name, _, value = setting.partition("=")
        shown[name] = value.rpartition(" (")[0]
    return shown


def _limit(flag) -> int | None:
    if flag.value is not None and not math.isfinite(flag.value):
        raise ValueError(f"--{flag.name} must be finite. Received: {flag.value}")
    return None if flag.value is None else int(flag.value)


def _numbers(flag, kind) -> tuple:
    try:
        return tuple(kind(text) for text in flag.value)
    except ValueError:
        raise ValueError(
            f"--{flag.name} expects numbers separated by commas. Received: {flag.value}"
        ) from None


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
