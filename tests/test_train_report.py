"""The progress line and the curves."""

import io

import pytest

from efficientnet_tf.train import report


class _Terminal(io.StringIO):
    def isatty(self):
        return True


METRICS = {
    "epoch": 1,
    "learning_rate": 0.1,
    "train_loss": 1.5,
    "train_accuracy": 0.25,
    "images_per_second": 512.4,
    "validation_loss": 1.25,
    "validation_accuracy": 0.5,
}


def test_a_terminal_sees_a_moving_bar_with_speed_and_results(monkeypatch):
    clock = iter([0.0, 2.0, 2.01, 4.0])
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(clock))
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


def test_a_log_file_gets_one_line_per_epoch():
    stream = io.StringIO()
    progress = report.Progress("epoch 1/3", 8, 16, stream)
    progress.update(4, 1.75)
    progress.finish(METRICS)
    assert stream.getvalue().count("\n") == 1
    assert "\r" not in stream.getvalue()


def test_curves_are_drawn_whole(tmp_path):
    history = [{**METRICS, "epoch": epoch, "ema_accuracy": 0.4} for epoch in (1, 2)]
    report.draw_curves(history, tmp_path / "curves.png")
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.rstrip().endswith(b"IEND\xaeB`\x82")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_missing_matplotlib_is_reported_before_training(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        report.require_matplotlib()
