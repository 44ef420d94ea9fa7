"""HTML pages of runs and evaluations."""

import base64
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from efficientnet_tf import config as config_lib
from efficientnet_tf import scores, stages
from efficientnet_tf.page import charts, document, evaluation, run

EVIL = "<script>alert(1)</script> & \"quoted\" 'name'"
VOID = {"meta", "img", "br"}  # that HTML never closes


class _Page(html.parser.HTMLParser):
    """Reads a page strictly: tags that do not match, and anything from outside, are errors."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.rows, self.images = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value.startswith("data:"), value
                self.images.append(base64.b64decode(value.partition("base64,")[2]))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert "svg" in self.open  # HTML itself does not know such tags
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += text

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def _read(text):
    page = _Page(text)
    assert page.count("script") == page.count("link") == page.count("iframe") == 0
    assert "url(" not in text
    assert "@import" not in text
    return page


def _history(epochs=6):
    return [
        {
            "epoch": epoch,
            "stage": 1 + (epoch > 3),
            "image_size": 128 if epoch <= 3 else 185,
            "step": 40 * epoch,
            "learning_rate": 0.1 / epoch,
            "train_loss": 2.0 / epoch,
            "train_accuracy": 0.1 * epoch,
            "images_per_second": 512.5,
            "validation_loss": float("nan") if epoch == 2 else 3.0 / epoch,
            "validation_accuracy": 0.09 * epoch,
            "validation_top5": 0.15 * epoch,
            "ema_loss": 2.5 / epoch,
            "ema_accuracy": 0.095 * epoch,
            "seconds": 3.5 * epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


def _config():
    return config_lib.override(
        config_lib.Config(),
        "train.epochs=6",
        "progressive.stages=2",
        "progressive.image_size=16",
        "model.image_size=32",
        f"data.source=folder:{EVIL}",
    )


def _jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def _evaluation(classes=3, names=None, multi_label=False):
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 5, (classes, classes)) * (rng.random((classes, classes)) < 0.2)
    np.fill_diagonal(matrix, np.arange(classes) + 1)
    matrix[0, 1] = 7
    counts = matrix.sum(1)
    return scores.Evaluation(
        class_names=tuple(names or (f"class-{i}" for i in range(classes))),
        multi_label=multi_label,
        count=int(counts.sum()),
        loss=1.25,
        top1=0.625,
        top5=0.875 if classes > 5 else None,
        class_counts=counts,
        class_scores=np.diag(matrix) / counts,
        mean_average_precision=0.5 if multi_label else None,
        confusion=None if multi_label else matrix,
        mistakes=(
            scores.Mistake("a/red.jpg", (EVIL,), "blue", 0.75, 0.0125, 4.38, _jpeg((250, 0, 0))),
            scores.Mistake("", (), EVIL, 0.5, 0.0, 2.0, _jpeg((0, 250, 0))),
        ),
        unreadable=("b/<i>broken</i>.jpg",),
    )


def test_a_run_is_told_on_one_page_that_needs_nothing_else():
    config = _config()
    page = _read(
        run.run_page(
            title=EVIL,
            result="Test accuracy 62.50 %",
            history=_history(),
            stages=stages.expand(config, 6),
            config=config,
            environment={"TensorFlow": "2.21", "devices": ["CPU", EVIL], "seconds": 21.0},
            sections=evaluation.evaluation_sections(_evaluation(names=["ant", EVIL, "cat"])),
        )
    )
    assert EVIL in page.text
    assert "Test accuracy 62.50 %" in page.text
    rows = page.rows
    assert ["2/2", "4-6", "32", "0.2", "0.2", "-", "0", "0", "all"] in rows
    assert ["train.epochs", "6", "10"] in rows
    assert ["data.source", f"folder:{EVIL}", "digits"] in rows
    assert ["train.optimizer", "rmsprop"] in rows
    assert ["TensorFlow", "2.21"] in rows
    assert ["devices", f"CPU, {EVIL}"] in rows
    (header,) = [row for row in rows if row[:2] == ["epoch", "stage"]]
    second = rows[rows.index(header) + 2]
    values = dict(zip(header, second, strict=True))
    assert values["validation loss"] == ""  # not a number
    assert (values["train loss"], values["learning rate"], values["step"]) == ("1", "0.05", "80")
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert labels[:3] == ["loss (nats)", "accuracy", "top-5 accuracy"]
    assert "size of training pictures (px)" in labels
    assert len(page.images) == 2
    settings = {f.name for s in dataclasses.fields(config) for f in dataclasses.fields(s.type)}
    told = {row[0].partition(".")[2] for row in rows if "." in row[0]}
    assert settings <= told


def test_stages_are_marked_in_the_curves():
    history = _history()
    assert run.boundaries(history) == [(3.5, "185 px")]
    same = [row | {"image_size": 185} for row in history]
    assert run.boundaries(same) == [(3.5, "stage 2")]
    assert run.boundaries([{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "train_loss": 1.0}]) == []


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_runs_of_any_length_have_a_page(epochs):
    config = _config()
    page = _read(
        run.run_page(
            title="run",
            result="",
            history=_history(epochs),
            stages=stages.expand(config, 6)[:1],
            config=config,
            environment={},
        )
    )
    assert len([row for row in page.rows if len(row) == len(_history()[0])]) == epochs + 1
    assert (f"All {epochs} epochs" in page.text) == (epochs > 30)


def _chart(**changes):
    arguments = {
        "title": "loss",
        "x_title": "epoch",
        "x": [1, 2, 3, 5],
        "series": {"a": [10.0, 20.0, None, 40.0], EVIL: [15.0, float("nan"), 25.0, 30.0]},
    }
    return charts.line_chart(**(arguments | changes))


def test_curves_are_where_the_numbers_are():
    page = _Page(_chart())
    circles = [attributes for tag, attributes in page.tags if tag == "circle"]
    places = [(float(c["cx"]), float(c["cy"])) for c in circles]
    values = [(1, 10), (2, 20), (5, 40), (1, 15), (3, 25), (5, 30)]
    # One linear map takes values to places on either axis; upwards is downwards in SVG.
    for axis, falling in ((0, False), (1, True)):
        slope, offset = np.polyfit([v[axis] for v in values], [p[axis] for p in places], 1)
        assert (slope < 0) == falling
        fitted = [slope * v[axis] + offset for v in values]
        np.testing.assert_allclose(fitted, [p[axis] for p in places], atol=0.06)
    paths = [attributes["d"] for tag, attributes in page.tags if tag == "path"]
    assert [re.sub(r"[^ML]", "", d) for d in paths] == ["MLM", "MML"]  # gaps
    # Numbers at the axis stand at the height of their lines.
    lines = [a for tag, a in page.tags if tag == "line"]
    texts = re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', _chart())
    ticks = [(float(text), float(line["y1"])) for (_, text), line in zip(texts, lines, strict=True)]
    for value, height in ticks:
        assert height == pytest.approx(slope * value + offset, abs=0.1)
    assert len(ticks) >= 3


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors():
    page = _Page(_chart(series={"a": [0.01, 0.1, 0.0, 1.0]}, log=True))
    heights = [float(a["cy"]) for tag, a in page.tags if tag == "circle"]
    assert len(heights) == 3  # 0 cannot be drawn
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.15)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [[1.0] * 4, [0.0] * 4, [None] * 4, [-1.0, 2.0, 0.0, 1e-9], [1e-5, 9e4, 3.0, 1e-3], [0.97] * 4],
)
def test_any_numbers_can_be_drawn_inside_the_chart(values, log):
    page = _Page(_chart(series={"a": values}, log=log, marks=[(2.5, EVIL)]))
    for tag, attributes in page.tags:
        if tag == "circle":
            assert 0 <= float(attributes["cx"]) <= 420
            assert 0 <= float(attributes["cy"]) <= 260
    assert EVIL in page.text


def test_an_evaluation_is_told_with_pictures():
    found = _evaluation(classes=7)
    page = _read(
        evaluation.evaluation_page(
            title="b0", evaluation=found, settings={"data": EVIL}, environment={"Keras": "3"}
        )
    )
    assert f"Top-1 62.50%, top-5 87.50%, loss 1.2500, on {found.count} pictures" in page.text
    (start,) = [i for i, row in enumerate(page.rows) if row[:2] == ["class", "pictures"]]
    rows = page.rows[start + 1 : start + 8]
    expected = sorted(range(7), key=lambda i: (found.class_scores[i], i))
    assert [row[:3] for row in rows] == [
        [f"class-{i}", str(found.class_counts[i]), f"{found.class_scores[i]:.1%}"] for i in expected
    ]
    bars = [a["style"] for tag, a in page.tags if tag == "div" and "width" in a.get("style", "")]
    assert bars == [f"width:{100 * found.class_scores[i]:.1f}%" for i in expected]
    colours = [np.asarray(Image.open(io.BytesIO(image)))[8, 8] for image in page.images]
    np.testing.assert_allclose(colours, [(250, 0, 0), (0, 250, 0)], atol=6)
    assert f"{EVIL} (1.2%) taken for blue (75.0%) a/red.jpg" in page.text
    assert f"no class (0.0%) taken for {EVIL} (50.0%)" in page.text
    assert ["b/<i>broken</i>.jpg"] in page.rows


def test_a_confusion_matrix_is_drawn_cell_by_cell():
    names = ["ant", EVIL, "a name that is longer than twenty letters"]
    matrix = np.array([[8, 2, 0], [0, 0, 0], [1, 3, 4]])
    page = _read(charts.heat_map(matrix, names))
    told = [t for t in page.texts if " taken for " in t]
    assert told == [
        "ant taken for ant: 8 (80.0%)",
        f"ant taken for {EVIL}: 2 (20.0%)",
        f"{names[2]} taken for ant: 1 (12.5%)",
        f"{names[2]} taken for {EVIL}: 3 (37.5%)",
        f"{names[2]} taken for {names[2]}: 4 (50.0%)",
    ]
    cells = [a for tag, a in page.tags if tag == "rect" and "fill-opacity" in a]
    assert [c["fill"] for c in cells] == [
        f"var(--{kind})" for kind in ("good", "bad", "bad", "bad", "good")
    ]
    assert [float(c["fill-opacity"]) for c in cells] == pytest.approx(
        [0.12 + 0.88 * share for share in (0.8, 0.2, 0.125, 0.375, 0.5)], abs=0.006
    )
    assert cells[0]["y"] == cells[1]["y"] != cells[2]["y"] == cells[4]["y"]
    assert cells[0]["x"] == cells[2]["x"] != cells[1]["x"] == cells[3]["x"]


def test_many_classes_are_told_by_their_confusions():
    found = _evaluation(classes=80)
    page = _read(
        evaluation.evaluation_page(title="", evaluation=found, settings={}, environment={})
    )
    assert page.count("svg") == 0
    share = f"{7 / found.class_counts[0]:.1%}"
    (start,) = [i for i, row in enumerate(page.rows) if row[:2] == ["class", "taken for"]]
    assert page.rows[start + 1] == ["class-0", "class-1", "7", share]
    counts = [int(row[2]) for row in page.rows[start + 1 : start + 41]]
    wrong = found.confusion - np.diag(np.diag(found.confusion))
    assert counts == sorted(wrong.ravel().tolist(), reverse=True)[:40]
    assert "40 better classes" in page.text
    # Of a model with many classes, those that the pictures show are drawn.
    matrix = np.zeros((80, 80), int)
    matrix[[3, 9], [9, 9]] = 5
    few = dataclasses.replace(found, confusion=matrix)
    page = _read("\n".join(evaluation.evaluation_sections(few)))
    assert "class-3 taken for class-9: 5 (100.0%)" in page.texts
    assert page.count("svg") == 1


def test_several_labels_are_told_by_average_precision():
    found = _evaluation(7, multi_label=True)
    assert "mean average precision 50.00%" in evaluation.result_line(found)
    page = _read("\n".join(evaluation.evaluation_sections(found)))
    assert "Average precision by class" in page.texts
    assert "Confusions" not in page.text


def test_classes_without_pictures_are_counted():
    found = _evaluation(3)
    counts = np.array([0, *found.class_counts[1:]])
    values = np.array([np.nan, *found.class_scores[1:]])
    found = dataclasses.replace(found, class_counts=counts, class_scores=values)
    assert 0 not in evaluation.worst_classes(found)
    page = _read("\n".join(evaluation.evaluation_sections(found)))
    assert "Classes of the model that have no pictures here: 1." in page.text


def test_a_page_is_written_whole(tmp_path, monkeypatch):
    document.write(tmp_path / "page.html", "äöü")
    document.write(str(tmp_path / "page.html"), "ß")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "ß"
    document.write(tmp_path / "page.html", "a\udcff")  # of a path that is not UTF-8
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "a\\udcff"
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        document.write(tmp_path / "page.html", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "a\\udcff"


def test_the_environment_names_versions_and_devices():
    import keras
    import tensorflow as tf

    found = document.environment(replicas=4)
    assert found["TensorFlow"] == tf.__version__
    assert found["Keras"] == keras.__version__
    assert found["replicas"] == 4
    assert "CPU" in found["devices"]
