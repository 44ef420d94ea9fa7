"""What networks cost: counted, beside the papers' numbers, and measured on this machine.

python scripts/profile.py efficientnet-b0 efficientnetv2-s found.json --batch=8
python scripts/profile.py efficientnet-b0 --by=stage --format=csv
python scripts/profile.py efficientnet-b0 efficientnet-b3 --compare
python scripts/profile.py --paper=v1-3,v1-7
python scripts/profile.py efficientnet-b0 --measure --batch=8
python scripts/profile.py efficientnet-b0 --scale=macs=120e6 --blocks --write=phone.json

Networks are names of variants and of baselines (mobilenet-v1, mobilenet-v2, resnet-50), and files.
Exit code: 0, or 2 when something is wrong.
"""

import sys

if __name__ != "__main__":  # for programs beside this one, `import profile` means Python's own
    import importlib.util
    import sysconfig

    _spec = importlib.util.spec_from_file_location(
        "profile", f"{sysconfig.get_path('stdlib')}/profile.py"
    )
    sys.modules["profile"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["profile"])
else:
    import os
    import subprocess
    from collections.abc import Sequence

    from absl import app, flags
    from command_line import fail, parse_flags

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    from efficientnet_tf.arch import Variant, compound, files, profile
    from efficientnet_tf.arch.published import TABLES

    _RESOLUTION = flags.DEFINE_integer(
        "resolution", None, "Side of the pictures, pixels; each network's own if not given."
    )
    _BATCH = flags.DEFINE_integer(
        "batch", None, "Pictures at a time; 1, and 16 for measured tables of the papers.", 1
    )
    _BY = flags.DEFINE_enum("by", "network", ["network", "stage", "layer"], "A row for each.")
    _FORMAT = flags.DEFINE_enum(
        "format", "table", ["table", "csv", "json"], "How rows are written."
    )
    _COMPARE = flags.DEFINE_bool("compare", False, "Put V1 Table 2 and V2 Table 7 beside.")
    _PAPER = flags.DEFINE_list(
        "paper", [], f"Tables of the papers, e.g. --paper=v1-3,v2-3: {', '.join(TABLES)}."
    )
    _BLOCKS = flags.DEFINE_bool("blocks", False, "Lay the stages out as the papers' tables do.")
    _SCALE = flags.DEFINE_list(
        "scale",
        [],
        "Scale the networks up to budgets, e.g. --scale=macs=120e6,params=4e6,how=compound: params,"
        " macs, memory (bytes), latency (seconds, measured here), resolution, cap_resolution,"
        " alpha, beta, gamma, how (compound, depth, width, resolution), later_stages (true).",
    )
    _WRITE = flags.DEFINE_string("write", None, "File (.json) for the network, e.g. a scaled one.")
    _MEASURE = flags.DEFINE_bool(
        "measure",
        False,
        "Measure inference and training here, on Keras' backend; as CSV or JSON that alone.",
    )
    _PRECISION = flags.DEFINE_enum(
        "precision", "float32", ["float32", "mixed_bfloat16"], "For --measure."
    )

_INTEGERS = ("params", "macs", "memory", "resolution", "cap_resolution")
_NOT_WITH_PAPER = ("scale", "write", "blocks", "by", "compare")
_FLOATS = ("latency", "alpha", "beta", "gamma")


def main(argv: "Sequence[str]") -> int:
    """Prints the tables; returns the exit code."""
    names = list(argv[1:])
    try:
        wrong = _usage(names)
        if wrong:
            return fail(wrong)
        networks = [compound.find_base(name) for name in names]
        if _SCALE.value:
            networks = [compound.scale(network, **_budgets()) for network in networks]
        for network in networks:
            if not isinstance(network, Variant) and (_WRITE.value or _MEASURE.value):
                return fail(f"{network.name} can be counted and scaled, not built")
        if _WRITE.value:
            files.write(networks[0], _WRITE.value)
        for text in _tables(networks):
            print(f"{text}\n", flush=True)
    except (OSError, ValueError, RuntimeError, subprocess.TimeoutExpired) as error:
        return fail(error)
    return 0


def _usage(names: "Sequence[str]") -> str:
    if not names and not _PAPER.value:
        return "which networks? Name some, or a table of the papers (--paper)"
    for table in _PAPER.value:
        if table not in TABLES:
            return f"--paper is some of {', '.join(TABLES)}. Received: {table}"
    if flags.FLAGS["precision"].present and not _MEASURE.value:
        return "--precision needs --measure"
    if _WRITE.value and len(names) != 1:
        return "--write takes one network"
    if _SCALE.value and _RESOLUTION.value:
        return (
            "--scale keeps to its budgets at the resolution that it scales to: give it there, as"
            f" --scale={','.join(_SCALE.value)},resolution={_RESOLUTION.value}"
        )
    if _COMPARE.value and (_SCALE.value or flags.FLAGS["by"].present or _RESOLUTION.value):
        return "--compare is for published networks as they are: no --scale, --by, --resolution"
    if _COMPARE.value and _BATCH.value and not _MEASURE.value:
        return "--compare counts one picture: no --batch but with --measure"
    if _BLOCKS.value and _FORMAT.value != "table":
        return "--blocks is for people: no --format"
    if _PAPER.value:
        given = [name for name in _NOT_WITH_PAPER if flags.FLAGS[name].present]
        if given:
            return f"--paper has networks of its own: no --{given[0]}"
        if not _MEASURE.value and (names or _RESOLUTION.value or _BATCH.value):
            return "--paper takes networks, --resolution and --batch only with --measure"
    return ""


def _tables(networks):
    """Yields what is asked for, as text."""
    batch = _BATCH.value or 1
    if _PAPER.value:
        yield from _papers([network.name for network in networks])
        return
    if _BLOCKS.value:
        for network in networks:
            table = profile.block_table(network, _RESOLUTION.value)
            yield f"{network.name}\n\n{table}"
    for_people = _FORMAT.value == "table"
    if for_people or not _MEASURE.value:  # else one table, to be parsed
        yield _text(_counted(networks, batch))
    if _MEASURE.value:
        from efficientnet_tf import measure  # with Keras, which counting does not need

        options = {"resolution": _RESOLUTION.value, "precision": _PRECISION.value}
        found = [
            measured
            for network in networks
            for measured in measure.profile(network, batch_size=batch, **options)
        ]
        if for_people:
            yield _machine(found[0])
        yield _text([measured.row() for measured in found])


def _counted(networks, batch: int) -> list:
    if _COMPARE.value:
        return profile.compare(networks)
    rows = (
        profile.rows(network, _RESOLUTION.value, by=_BY.value, batch_size=batch)
        for network in networks
    )
    return [row for found in rows for row in found]


def _papers(names: "Sequence[str]"):
    for table in _PAPER.value:
        if not _MEASURE.value:
            yield _text(profile.beside(table))
            continue
        from efficientnet_tf import measure

        options = {"resolution": _RESOLUTION.value, "precision": _PRECISION.value}
        yield _text(measure.beside(table, names, batch_size=_BATCH.value or 16, **options))


def _machine(measured) -> str:
    return (
        f"{measured.device}, Keras on {measured.backend}, {measured.precision}; a large matrix"
        f" product reaches {measured.peak / 1e9:,.0f} G multiply-adds per second there."
    )


def _text(rows) -> str:
    return profile.to_text(rows, _FORMAT.value)


def _budgets() -> dict:
    """What --scale says, for `compound.scale`."""
    budgets: dict = {}
    for item in _SCALE.value:
        name, _, value = item.partition("=")
        try:
            if name in _INTEGERS:
                budgets[name] = int(float(value))
            elif name in _FLOATS:
                budgets[name] = float(value)
            elif name == "how":
                budgets[name] = value
            elif name == "later_stages" and value in ("true", "false"):
                budgets[name] = value == "true"
            else:
                raise ValueError
        except (ValueError, OverflowError):
            raise ValueError(
                f"--scale is NAME=VALUE with {', '.join((*_INTEGERS, *_FLOATS))}, how or"
                f" later_stages. Received: {item!r}"
            ) from None
    if "latency" in budgets:
        from efficientnet_tf import measure

        budgets["measure"] = measure.latency
    return budgets


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
