"""The page of an evaluation, and its sections for the page of a run."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np

from efficientnet_tf.page import charts, document
from efficientnet_tf.scores import Evaluation, Mistake, confusions

MOST_DRAWN = 60  # classes, above which a confusion matrix is told as a list
_MOST_LISTED = 40  # rows that are shown without asking


def evaluation_page(
    *,
    title: str,
    evaluation: Evaluation,
    settings: Mapping[str, object],
    environment: Mapping[str, object],
) -> str:
    """Makes the page of an evaluation.

    Args:
        title: e.g. "efficientnet-b0 on folder:flowers, test".
        evaluation: from `evaluate.evaluate`.
        settings: names and values: model, data, how pictures were prepared.
        environment: names and values, such as `document.environment()`.

    Returns:
        A whole HTML page, which needs no other file.
    """
    sections = [
        *evaluation_sections(evaluation),
        document.section("Settings", document.mapping_table(settings)),
        document.section("Environment", document.mapping_table(environment)),
    ]
    return document.document(title, result_line(evaluation), sections)


def result_line(evaluation: Evaluation) -> str:
    """The scores in a line: "Top-1 93.10 %, top-5 99.20 %, on 359 pictures"."""
    parts = [f"Top-1 {evaluation.top1:.2%}"]
    if evaluation.top5 is not None:
        parts.append(f"top-5 {evaluation.top5:.2%}")
    if evaluation.mean_average_precision is not None:
        parts.append(f"mean average precision {evaluation.mean_average_precision:.2%}")
    return ", ".join([*parts, f"loss {evaluation.loss:.4f}, on {evaluation.count:,} pictures"])


def evaluation_sections(evaluation: Evaluation) -> list[str]:
    """Makes the sections of an evaluation: classes, confusions, mistakes, unreadable pictures.

    Returns:
        HTML, for `document.document` and `run.run_page`, whose result `result_line` can be.
    """
    sections = [
        document.section(_measure(evaluation).capitalize() + " by class", *_classes(evaluation)),
    ]
    if evaluation.confusion is not None:
        drawn = _confusions(evaluation.confusion, evaluation.class_names)
        sections.append(document.section("Confusions", *drawn))
    if evaluation.mistakes:
        pictures = "\n".join(
            ['<div class="pictures">', *map(_picture, evaluation.mistakes), "</div>"]
        )
        note = document.paragraph(
            "Pictures that were taken for something else, largest loss first."
        )
        sections.append(document.section("Worst mistakes", note, pictures))
    if evaluation.unreadable:
        count = len(evaluation.unreadable)
        note = document.paragraph(f"Left out, because they could not be read: {count:,}.")
        names = document.table((), [(name,) for name in evaluation.unreadable])
        names = names if count <= _MOST_LISTED else document.folded("Their names", names)
        sections.append(document.section("Unreadable pictures", note, names))
    return sections


def worst_classes(evaluation: Evaluation) -> list[int]:
    """Indices of the classes that have pictures, the lowest score first, then by index."""
    present = np.flatnonzero(evaluation.class_counts)
    scores = evaluation.class_scores[present]
    return present[np.argsort(scores, kind="stable")].tolist()


def _measure(evaluation: Evaluation) -> str:
    return "average precision" if evaluation.multi_label else "accuracy"


def _classes(evaluation: Evaluation) -> list[str]:
    headers = ("class", "pictures", _measure(evaluation), "")
    rows = []
    for index in worst_classes(evaluation):
        score = float(evaluation.class_scores[index])
        count = int(evaluation.class_counts[index])
        name = evaluation.class_names[index]
        rows.append((name, count, f"{score:.1%}", document.Bar(score)))
    parts = [document.table(headers, rows[:_MOST_LISTED])]
    if len(rows) > _MOST_LISTED:
        rest = document.table(headers, rows[_MOST_LISTED:])
        parts.append(document.folded(f"{len(rows) - _MOST_LISTED:,} better classes", rest))
    absent = len(evaluation.class_names) - len(rows)
    if absent:
        note = f"Classes of the model that have no pictures here: {absent:,}."
        parts.append(document.paragraph(note))
    return parts


def _confusions(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    used = np.flatnonzero(matrix.sum(0) + matrix.sum(1))
    if len(used) <= MOST_DRAWN:
        note = "Rows are the true classes, columns what they were taken for."
        drawn = charts.heat_map(
            matrix[np.ix_(used, used)], [names[index] for index in used.tolist()]
        )
        return [document.paragraph(note), drawn]
    rows = [
        (names[label], names[predicted], count, f"{count / matrix[label].sum():.1%}")
        for label, predicted, count in confusions(matrix, _MOST_LISTED)
    ]
    if not rows:
        return [document.paragraph("No picture was taken for another class.")]
    return [document.table(("class", "taken for", "pictures", "share of the class"), rows)]


def _picture(mistake: Mistake) -> str:
    data = base64.b64encode(mistake.jpeg).decode("ascii")
    labels = html.escape(", ".join(mistake.labels) or "no class")
    predicted, name = html.escape(mistake.predicted), html.escape(mistake.name)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{labels}">'
        f"<figcaption>{labels} ({mistake.label_probability:.1%})<br>taken for"
        f" <strong>{predicted}</strong> ({mistake.probability:.1%})"
        + (f"<br>{name}" if name else "")
        + "</figcaption></figure>"
    )
