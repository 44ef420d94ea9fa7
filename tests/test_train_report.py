"""The progress line, metrics for TensorBoard and the curves."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.train import report


class _Terminal(io.StringIO):
    def isatty(self):
        return True


METRICS = {
    "epoch": 1,
    "stage": 1,
    "image_size": 128,
    "step": 40,
    "learning_rate": 0.1,
    "train_loss": 1.5,
    "train_accuracy": 0.25,
    "images_per_second": 512.4,
    "validation_loss": 1.25,
    "validation_accuracy": 0.5,
    "seconds": 3.5,
}


@pytest.fixture
def clock(monkeypatch):
    """Makes time pass as told."""

    def tell(*times):
        left = iter(times)
        monkeypatch.setattr(report.time, "perf_counter", lambda: next(left))

    monkeypatch.setenv("COLUMNS", "100")
    return tell


def test_a_terminal_sees_a_moving_bar_with_speed_and_results(clock):
    clock(0.0, 2.0, 2.01, 4.0)
    stream = _Terminal()
    progress = report.Progress("epoch 1/3", 8, 16, stream)
    progress.update(2, 2.25)  # 32 pictures in 2 s, 6 steps of 16 left
    progress.update(3, 2.0)  # too soon to draw again
    progress.update(4, 1.75)
    progress.finish(METRICS)
    lines = stream.getvalue().split("\r")
    drawn = " ".join(lines[1].split())
    assert drawn == "epoch 1/3 [====== ] 2/8 16 images/s loss 2.2500 6 s left"
    assert len(lines) == 4
    assert "4/8" in lines[2]
    assert lines[3].endswith("\n")
    assert "512 images/s" in lines[3]
    assert "validation_accuracy 0.5000" in lines[3]
    # A shorter line must cover the longer one before it.
    assert len(lines[3].rstrip("\n")) >= len(lines[2])


def test_compiling_does_not_count_for_the_speed(clock):
    clock(0.0, 100.0, 102.0)
    stream = _Terminal()
    progress = report.Progress("epoch 1/3", 100, 16, stream)
    progress.update(10, 2.0)  # 10 s per step so far
    progress.update(20, 2.0)  # 10 steps in 2 s
    first, second = stream.getvalue().split("\r")[1:]
    assert "900 s left" in first.replace("15 min 0 s", "900 s")
    assert " 80 images/s" in second
    assert second.rstrip().endswith("16 s left")


def test_the_time_left_for_the_run_is_told(clock):
    clock(0.0, 10.0, 20.0, 250.0)
    stream = _Terminal()
    label = "epoch 2/5, stage 2/4, 185 px"
    progress = report.Progress(label, 100, 16, stream, steps_left=300)
    progress.update(10, 2.0)
    progress.update(20, 2.0)  # a second per step: 80 here, 300 after
    progress.finish(METRICS)  # 2.5 s per step with evaluation
    _, first, second, last = stream.getvalue().split("\r")
    assert "1 min 20 s left, run 6 min 20 s" in second
    assert last.startswith(label)
    assert last.endswith("run 12 min 30 s left\n")
    assert max(len(first), len(second)) < 100


def test_a_narrow_terminal_is_never_wrapped(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    clock(0.0, 10.0, 20.0)
    stream = _Terminal()
    progress = report.Progress("epoch 2/5, stage 2/4, 185 px", 100, 16, stream, steps_left=300)
    progress.update(10, 2.0)
    progress.update(20, 2.0)
    drawn = stream.getvalue().split("\r")[1:]
    assert [len(line) <= 71 for line in drawn] == [True, True]
    assert all("images/s  loss 2.0000" in line for line in drawn)


def test_a_log_file_gets_a_line_a_minute_and_one_per_epoch(clock):
    clock(0.0, 30.0, 61.0, 90.0, 122.0, 130.0)
    stream = io.StringIO()
    progress = report.Progress("epoch 1/3", 50, 16, stream)
    for step in (10, 20, 30, 40):
        progress.update(step, 1.75)
    progress.finish(METRICS)
    assert "\r" not in stream.getvalue()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert ["20/50" in lines[0], "40/50" in lines[1], "50/50" in lines[2]] == [True] * 3
    assert "validation_loss 1.2500" in lines[2]


def test_metrics_are_lines_and_a_table(tmp_path):
    for epoch in (1, 2):
        report.append_metrics(tmp_path, METRICS | {"epoch": epoch})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [METRICS, METRICS | {"epoch": 2}]
    header, first, second = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header.split(",") == list(METRICS)
    assert (first.split(",")[0], second.split(",")[0]) == ("1", "2")


def test_tensorboard_gets_every_number_at_its_step(tmp_path):
    writer = report.TensorBoard(tmp_path / "tensorboard")
    history = [METRICS | {"ema_loss": 1.125}, METRICS | {"ema_loss": 0.5, "step": 80, "epoch": 2}]
    for metrics in history:
        writer.write(metrics)
    writer.close()
    found = {}
    for run in ("train", "validation", "ema"):
        (path,) = (tmp_path / "tensorboard" / run).iterdir()
        assert path.name.startswith("events.out.tfevents.")
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                number = tf.make_ndarray(value.tensor)
                assert number.dtype == np.float32
                found.setdefault((run, value.tag), []).append((event.step, float(number)))
    expected = {}
    for metrics in history:
        for name, value in metrics.items():
            run, _, tag = name.partition("_")
            key = (run, tag) if run in ("train", "validation", "ema") else ("train", name)
            expected.setdefault(key, []).append((metrics["step"], float(np.float32(value))))
    del expected["train", "step"]
    assert found == expected
    assert found["ema", "loss"] == [(40, 1.125), (80, 0.5)]


def test_curves_are_drawn_whole(tmp_path):
    history = [{**METRICS, "epoch": epoch, "ema_accuracy": 0.4} for epoch in (1, 2)]
    report.draw_curves(history, tmp_path / "curves.png")
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.rstrip().endswith(b"IEND\xaeB`\x82")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_curves_show_stages_and_sizes(tmp_path, monkeypatch):
    from matplotlib import figure

    drawn = []
    save = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k))
    )
    history = [
        {**METRICS, "epoch": epoch, "stage": 1 + (epoch > 2), "image_size": 128 + 57 * (epoch > 2)}
        for epoch in (1, 2, 3, 4)
    ]
    report.draw_curves(history, tmp_path / "curves.png")
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == [
        "loss",
        "accuracy",
        "learning rate",
        "image size",
    ]
    assert list(panels[3].lines[0].get_ydata()) == [128, 128, 185, 185]
    for axes in panels:
        assert list(axes.lines[-1].get_xdata()) == [2.5, 2.5]


def test_missing_matplotlib_is_reported_before_training(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        report.require_matplotlib()
