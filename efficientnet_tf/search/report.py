"""What a search found, for people: tables, pictures, pages."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from efficientnet_tf import columns, writing
from efficientnet_tf.page import charts, document
from efficientnet_tf.search import nas
from efficientnet_tf.search.compound import Scaled
from efficientnet_tf.search.nas import Found
from efficientnet_tf.search.reward import pareto

PAGE = "search.html"
PARETO = "pareto.png"
SCALING = "scaling.png"
_NAS_COLUMNS = ("trial", "reward", "accuracy", "±", "step", "ms", "parameters", "MACs", "stages")
_COMPOUND_COLUMNS = (
    "network", "depth", "width", "px", "MACs", "of the base", "parameters", "accuracy", "±", "",
)  # fmt: skip


def front(found: Sequence[Found]) -> list[Found]:
    """The networks that no other one beats in accuracy, step time and parameters at once."""
    good = [one for one in found if not one.trial.failed]
    points = [(one.trial.accuracy, one.trial.step, one.trial.params) for one in good]
    members = [good[index] for index in pareto(points)]
    return sorted(members, key=lambda one: -one.reward)


def nas_rows(found: Sequence[Found]) -> list[tuple[object, ...]]:
    """Rows of a table, see `table`."""
    return [
        (
            one.number,
            f"{one.reward:.4f}",
            f"{one.trial.accuracy:.2%}",
            f"{one.trial.spread:.2%}",
            f"{one.trial.step:.2f}",
            f"{1000 * one.trial.step_seconds:.1f}",
            f"{one.trial.params:,}",
            f"{one.trial.macs / 1e6:.2f} M",
            ", ".join(map(str, one.choice)),
        )
        for one in found
    ]


def nas_text(found: Sequence[Found]) -> str:
    """The front and what failed, as text."""
    failed = [one for one in found if one.trial.failed]
    lines = [table(_NAS_COLUMNS, nas_rows(front(found)))]
    lines += [f"trial {one.number} failed: {one.trial.failed}" for one in failed]
    return "\n".join(lines)


def write_nas(found: Sequence[Found], folder: Path, title: str, settings: Mapping[str, object]):
    """Writes pareto.png and search.html; at least one trial must have succeeded.

    Args:
        found: from `nas.search`.
        folder: to write to.
        title: of the page.
        settings: names and values to show.
    """
    good = [one for one in found if not one.trial.failed]
    members = front(found)
    _draw_nas(good, members, folder / PARETO)
    best = nas.best(found)
    others = [one for one in good if one not in members]

    def chart(title: str, x_title: str, x) -> str:
        def points(networks):
            return [(x(one), one.trial.accuracy, _told(one)) for one in networks]

        series = {"Pareto front": points(members), "others": points(others)}
        series = {name: members_ for name, members_ in series.items() if members_}
        return charts.scatter(title, x_title, "validation accuracy", series)

    drawn = [
        chart("accuracy and step time", "step over the base's", lambda one: one.trial.step),
        chart("accuracy and size", "million parameters", lambda one: one.trial.params / 1e6),
        charts.line_chart(
            "reward",
            "trials ended",
            range(1, len(good) + 1),
            {
                "best so far": list(itertools.accumulate((o.reward for o in good), max)),
                "trial": [one.reward for one in good],
            },
        ),
    ]
    everything = document.folded(
        f"All {len(good)} networks",
        document.table(_NAS_COLUMNS, nas_rows(sorted(good, key=lambda one: -one.reward))),
    )
    failed = [(one.number, one.trial.failed) for one in found if one.trial.failed]
    sections = [
        document.section("Networks", "\n".join(['<div class="charts">', *drawn, "</div>"])),
        document.section(
            "Pareto front",
            document.paragraph(
                "Networks that no other one beats in accuracy, step time and parameters at once."
                " Stages are layers × kind and expansion, kernel; MB is MBConv, F Fused-MBConv."
            ),
            document.table(_NAS_COLUMNS, nas_rows(members)),
            everything,
        ),
        document.section("Settings", document.mapping_table(settings)),
        document.section("Environment", document.mapping_table(document.environment())),
    ]
    if failed:
        sections.insert(2, document.section("Failed", document.table(("trial", "why"), failed)))
    result = f"Best of {len(good)} networks: {_told(best)}"
    document.write(folder / PAGE, document.document(title, result, sections))


def compound_text(scaled: Sequence[Scaled]) -> str:
    """The table of a compound search, as text."""
    return table(_COMPOUND_COLUMNS, compound_rows(scaled))


def compound_rows(scaled: Sequence[Scaled]) -> list[tuple[object, ...]]:
    """Rows of a table, see `table`."""
    return [
        (
            one.name,
            f"{one.variant.depth:.3g}",
            f"{one.variant.width:.3g}",
            one.variant.resolution,
            f"{one.trial.macs / 1e6:.2f} M",
            f"{one.macs_ratio:.2f}",
            f"{one.trial.params:,}",
            "" if one.trial.failed else f"{one.trial.accuracy:.2%}",
            "" if one.trial.failed else f"{one.trial.spread:.2%}",
            one.trial.failed or one.note,
        )
        for one in scaled
    ]


def write_compound(
    grid: Sequence[Scaled],
    scaled: Mapping[str, Sequence[Scaled]],
    folder: Path,
    title: str,
    result: str,
    settings: Mapping[str, object],
) -> None:
    """Writes scaling.png and search.html.

    Args:
        grid: networks of step 1, the best first.
        scaled: how to networks of step 2, the base first; of trials that did not fail.
        folder: to write to.
        title: of the page.
        result: its most important line.
        settings: names and values to show.
    """
    _draw_compound(scaled, folder / SCALING)
    series = {
        how: [(one.trial.macs / 1e6, one.trial.accuracy, _said(one)) for one in networks]
        for how, networks in scaled.items()
    }
    chart = charts.scatter(
        "scaling the base", "million multiply-adds", "validation accuracy", series, joined=True
    )
    networks = {one.name: one for members in scaled.values() for one in members}
    sections = [
        document.section("Scaling", f'<div class="charts">{chart}</div>'),
        document.section(
            "Step 2: depth, width and resolution alone, and all together",
            document.table(_COMPOUND_COLUMNS, compound_rows(list(networks.values()))),
        ),
        document.section(
            "Step 1: the grid", document.table(_COMPOUND_COLUMNS, compound_rows(grid))
        ),
        document.section("Settings", document.mapping_table(settings)),
        document.section("Environment", document.mapping_table(document.environment())),
    ]
    document.write(folder / PAGE, document.document(title, result, sections))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligns a table as text: the first and the last column to the left, numbers to the right."""
    cells = [[str(value) for value in row] for row in (headers, *rows)]
    return columns.align(cells, right=range(1, len(headers) - 1))


def _told(one: Found) -> str:
    return (
        f"trial {one.number}: reward {one.reward:.4f}, accuracy {one.trial.accuracy:.2%},"
        f" {one.trial.step:.2f} of the base's step, {one.trial.params:,} parameters;"
        f" {', '.join(map(str, one.choice))}"
    )


def _said(one: Scaled) -> str:
    return f"{one.name}: {one.trial.accuracy:.2%}, {one.trial.macs / 1e6:.2f} M multiply-adds"


def _draw_nas(good: Sequence[Found], members: Sequence[Found], path: Path) -> None:
    from matplotlib.figure import Figure  # not pyplot, which holds global state and may need X

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    by_step, by_params, over_time = figure.subplots(1, 3)
    best = nas.best(good)
    for axes, label, x in (
        (by_step, "training step over the base's", lambda one: one.trial.step),
        (by_params, "million parameters", lambda one: one.trial.params / 1e6),
    ):
        for networks, style in (
            (good, {"color": "0.7", "marker": "o", "label": "tried"}),
            (members, {"color": "tab:blue", "marker": "o", "label": "Pareto front"}),
            ([best], {"color": "tab:orange", "marker": "*", "s": 160, "label": "highest reward"}),
        ):
            places = [x(one) for one in networks], [100 * one.trial.accuracy for one in networks]
            axes.scatter(*places, **style)
        axes.set(xlabel=label, ylabel="validation accuracy, %")
        axes.grid(alpha=0.3)
    by_step.legend()
    ended = range(1, len(good) + 1)
    over_time.plot(ended, [one.reward for one in good], ".", color="0.7", label="trial")
    running = list(itertools.accumulate((one.reward for one in good), max))
    over_time.plot(ended, running, color="tab:orange", label="best so far")
    over_time.set(xlabel="trials ended", ylabel="reward")
    over_time.grid(alpha=0.3)
    over_time.legend()
    with writing.whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw_compound(scaled: Mapping[str, Sequence[Scaled]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for how, networks in scaled.items():
        axes.errorbar(
            [one.trial.macs / 1e6 for one in networks],
            [100 * one.trial.accuracy for one in networks],
            [100 * one.trial.spread for one in networks],
            marker="o",
            capsize=3,
            linewidth=2.5 if how == "compound" else 1.2,
            label=how,
        )
    axes.set(xlabel="million multiply-adds", ylabel="validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    with writing.whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
