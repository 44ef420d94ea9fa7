"""Rows about what networks cost, beside the papers' numbers; as a table, CSV or JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from efficientnet_tf.arch.baselines import Baseline
from efficientnet_tf.arch.complexity import Complexity, Cost, count
from efficientnet_tf.arch.compound import find_base, scaled
from efficientnet_tf.arch.published import TABLES, Scaled
from efficientnet_tf.arch.scaling import resolve
from efficientnet_tf.arch.tables import VARIANTS, Variant

By = Literal["network", "stage", "layer"]
Form = Literal["table", "csv", "json"]
Row = dict[str, Any]

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_CONNECT, _DROPOUT = "drop_connect_rate", "dropout_rate"
_TOP = "top_dropout"  # the layer before the classifier
_TRAINING = ("float32", "bfloat16")  # int8 is for inference


def rows(
    network: str | Variant | Baseline,
    resolution: int | None = None,
    *,
    by: By = "network",
    batch_size: int = 1,
) -> list[Row]:
    """Profiles a network.

    Args:
        network: name or path of a variant, a `Variant`, or a baseline.
        resolution: pixels, square; None is the network's own.
        by: one row for the whole, for each stage, or for each layer.
        batch_size: pictures at a time, for the memory.

    Returns:
        The rows. Parameters are trainable ones and moving statistics; multiply-adds and activations
        are those of one picture; weights are the bytes of all parameters; memory is the most bytes
        of activations at once (see `Complexity.memory`); drop_connect_rate is the probability with
        which blocks' branches are dropped, of the first and the last that are, and dropout_rate
        that before the classifier.

    Raises:
        ValueError: unknown name, or `by`, or a size below 1.
    """
    if by not in get_args(By):
        raise ValueError(f"by must be one of {get_args(By)}. Received: by={by!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1. Received: batch_size={batch_size!r}")
    base = find_base(network)
    cost = count(base, resolution)
    start = {"network": base.name, "px": resolution or base.resolution}
    drops = _drop_rates(base)
    if by == "layer":
        return _layer_rows(start, cost, drops, batch_size)
    modes = _modes(batch_size)
    if by == "network":
        memory = {key: cost.peak_memory(*mode) for key, mode in modes.items()}
        return [{**start, **_sums(cost.total), **memory, **_rates(drops)}]
    peaks = {key: cost.stage_memory(*mode) for key, mode in modes.items()}
    stage_of = {layer.name: layer.stage for layer in cost.layers}
    found = []
    for stage, sums in cost.stages.items():
        own = {name: rate for name, rate in drops.items() if stage_of[name] == stage}
        memory = {key: peak[stage] for key, peak in peaks.items()}
        found.append({**start, "stage": stage, **_sums(sums), **memory, **_rates(own)})
    return found


def block_table(network: str | Variant | Baseline, resolution: int | None = None) -> str:
    """Lays a network out as V1 Table 1 and V2 Table 4 do: a line for each stage.

    Args:
        network: name or path of a variant, a `Variant`, or a baseline.
        resolution: pixels, square; None is the network's own.
    """
    base = find_base(network)
    cost = count(base, resolution)
    lines = []
    for name, sums in cost.stages.items():
        maps = [layer for layer in cost.layers if layer.stage == name and len(layer.shape) == 3]
        shape = maps[-1].shape if maps else (1, 1, cost.layers[-2].shape[-1])  # pooled
        operator, strides, repeats = _operator(base, name)
        lines.append(
            {
                "stage": name,
                "operator": operator,
                "strides": strides,
                "filters": shape[-1],
                "layers": repeats,
                "px": shape[0],
                "parameters": sums.trainable,
                "multiply-adds": sums.macs,
            }
        )
    return to_text(lines, "table")


def compare(networks: Sequence[str | Variant | Baseline]) -> list[Row]:
    """Puts networks beside V1 Table 2 and V2 Table 7; see `beside`.

    Args:
        networks: names or paths of variants, variants, or baselines; those that are not the
            published ones, or are in neither table, have no numbers of a paper.

    Raises:
        ValueError: unknown name.
    """
    found = []
    for network in map(find_base, networks):
        name, cost = network.name, count(network).total
        alone = {"network": name, "parameters": cost.trainable, "multiply-adds": cost.macs}
        tables = ("v1-2", "v2-7") if VARIANTS.get(name) == network else ()
        found += [row for table in tables for row in beside(table, only=name)] or [alone]
    return found


def beside(table: str, only: str | None = None) -> list[Row]:
    """Puts what is counted beside a table of the papers.

    Args:
        table: a key of `published.TABLES`.
        only: one network of it; None is all.

    Returns:
        The rows: what is counted, the paper's number, and the difference in percent of the paper's;
        of a whole table, also both multiply-adds as multiples of the first row's; in tables about
        scaling, of the same network's.
    """
    found: list[Row] = []
    first: dict[str, tuple[float, float]] = {}
    for row in TABLES[table]:
        if only not in (None, row.network):
            continue
        start: Row = {"table": f"{table[:2].upper()} Table {table[3:]}", "network": row.network}
        if isinstance(row, Scaled):
            start |= {"depth": row.depth, "width": row.width, "resolution": row.resolution}
            network = scaled(
                row.network, depth=row.depth, width=row.width, resolution=row.resolution
            )
            cost = count(network).total
            same = row.network
        else:
            cost = count(row.network).total
            if row.params is not None:
                start |= _difference("parameters", cost.trainable, "parameters", row.params * 1e6)
            same = table
        if row.flops is not None:
            unit, paper = first.setdefault(same, (cost.macs, row.flops))
            start |= _difference("multiply-adds", cost.macs, "FLOPs", row.flops * 1e9)
            if only is None:
                start |= {
                    "times": round(cost.macs / unit, 2),
                    "paper's times": round(row.flops / paper, 2),
                }
        found.append({**start, "paper's top-1": row.top1})
    return found


def to_text(found: Sequence[Mapping[str, Any]], form: Form = "table") -> str:
    """Writes rows.

    Args:
        found: the rows, which may have different columns.
        form: "table" is Markdown for people, with bytes in MiB; "csv" and "json" are exact.

    Raises:
        ValueError: unknown form.
    """
    names = list(dict.fromkeys(name for row in found for name in row))
    if form == "json":
        return json.dumps(list(found), indent=2)
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        return text.getvalue().rstrip("\n")
    if form != "table":
        raise ValueError(f"form must be one of {get_args(Form)}. Received: form={form!r}")
    heads = [f"{name}, MiB" if _is_bytes(name) else name for name in names]
    cells = [[_cell(name, row.get(name)) for name in names] for row in found]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    left = [any(isinstance(row.get(name), str) for row in found) for name in names]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.ljust(width) if is_left else value.rjust(width)
            for value, width, is_left in zip(values, widths, left, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if is_left else "-" * (width - 1) + ":"
        for width, is_left in zip(widths, left, strict=True)
    ]
    return "\n".join(map(line, (heads, rule, *cells)))


def _sums(cost: Cost) -> Row:
    sums = {
        "parameters": cost.trainable,
        "statistics": cost.statistics,
        "multiply-adds": cost.macs,
        "activations": cost.activations,
    }
    return sums | {f"weights {dtype}": size * cost.params for dtype, size in _BYTES.items()}


def _modes(batch_size: int) -> dict[str, tuple[int, str, bool]]:
    modes = {f"inference {dtype}": (batch_size, dtype, False) for dtype in _BYTES}
    return modes | {f"training {dtype}": (batch_size, dtype, True) for dtype in _TRAINING}


def _layer_rows(start: Row, cost: Complexity, drops: dict[str, float], batch_size: int) -> list:
    memory = {key: cost.memory(*mode) for key, mode in _modes(batch_size).items()}
    found = []
    for layer in cost.layers:
        params = layer.trainable + layer.statistics
        found.append(
            {
                **start,
                "stage": layer.stage,
                "layer": layer.name,
                "kind": layer.kind,
                "shape": "×".join(map(str, layer.shape)),
                "parameters": layer.trainable,
                "statistics": layer.statistics,
                "multiply-adds": layer.macs,
                "activations": layer.activations,
                **{f"weights {dtype}": size * params for dtype, size in _BYTES.items()},
                **{key: held[layer.name] for key, held in memory.items()},
                _CONNECT: None if layer.name == _TOP else drops.get(layer.name),
                _DROPOUT: drops.get(layer.name) if layer.name == _TOP else None,
            }
        )
    return found


def _drop_rates(base: Variant | Baseline) -> dict[str, float]:
    """Name of each dropout layer to its rate."""
    if isinstance(base, Baseline):
        return {}
    rates = {f"{block.name}_drop": block.drop_rate for block in resolve(base).blocks}
    rates[_TOP] = base.dropout_rate
    return {name: rate for name, rate in rates.items() if rate}


def _rates(drops: dict[str, float]) -> Row:
    blocks = [rate for name, rate in drops.items() if name != _TOP]
    ends = dict.fromkeys((*blocks[:1], *blocks[-1:]))
    return {_CONNECT: "–".join(f"{rate:.3f}" for rate in ends), _DROPOUT: drops.get(_TOP)}


def _operator(base: Variant | Baseline, stage: str) -> tuple[str, int | None, int]:
    """What a stage does, the strides of its first block, and its number of blocks."""
    if not stage.startswith("stage"):
        strides = 2 if stage == "stem" else None
        return {"stem": "convolution", "head": "1×1, pooling, dense"}[stage], strides, 1
    number = int(stage.removeprefix("stage"))
    row = base.blocks[number - 1]
    if isinstance(base, Baseline):
        return f"{row.conv}{row.expand_ratio}", row.strides, base.repeats(number - 1)
    blocks = [block for block in resolve(base).blocks if block.stage == number]
    block = blocks[0]
    name = "Fused-MBConv" if block.conv == "fused" else "MBConv"
    squeeze = ", SE" if block.se_filters else ""
    kernel = f"{block.kernel_size}×{block.kernel_size}"
    return f"{name}{block.expand_ratio}, {kernel}{squeeze}", block.strides, len(blocks)


def _difference(name: str, counted: int, theirs: str, paper: float) -> Row:
    percent = round(100 * (counted / paper - 1), 1)
    return {name: counted, f"paper's {theirs}": round(paper), f"{theirs}, difference %": percent}


def _is_bytes(name: str) -> bool:
    return name.startswith(("weights ", "inference ", "training ")) and name.endswith(tuple(_BYTES))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if _is_bytes(name):
        return f"{value / 2**20:,.2f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
