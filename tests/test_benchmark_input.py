"""The benchmark of the input pipeline: that it measures every stage and divides rightly."""

import re

import pytest
import tensorflow as tf


def test_every_stage_and_ratio_is_shown(root, monkeypatch, capsys):
    monkeypatch.syspath_prepend(root / "scripts")
    import benchmark_input

    monkeypatch.setattr(benchmark_input, "BATCHES", 1)
    benchmark_input.main(None, 32, 2, rounds=1)
    shown = capsys.readouterr().out
    assert shown.startswith("64 pictures (generated) to 32 px, batch 2\n")
    rows = {
        name: float(value) for name, value in re.findall(r"^\| (.+) \| ([\d.]+) \|$", shown, re.M)
    }
    augmenting = (benchmark_input.OPS, benchmark_input.RELEASED, "keras:RandAugment")
    stages = ["read", "decode", *benchmark_input.CONFIGS, *augmenting]
    assert all(rows[stage] > 0 for stage in stages)
    ratios = [(above, below) for above, below in benchmark_input.RATIOS if below in rows]
    assert {(benchmark_input.OPS, other) for other in augmenting[1:]} <= set(ratios)
    for above, below in ratios:
        # Of one round, the ratio of medians is the median of ratios; rates are shown as integers.
        ratio = pytest.approx(rows[above] / rows[below], abs=0.01, rel=0.05)
        assert rows[f"{above} / {below}"] == ratio


def test_pictures_of_a_folder_are_found_at_any_depth(root, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(root / "scripts")
    import benchmark_input

    (tmp_path / "a" / "b").mkdir(parents=True)
    content = tf.io.encode_jpeg(tf.fill((40, 50, 3), tf.constant(77, tf.uint8))).numpy()
    (tmp_path / "a" / "b" / "x.JPEG").write_bytes(content)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    source = benchmark_input._source(tmp_path)
    assert source.num_examples["train"] == 1
    image, label = source.decode(*next(iter(source.records("train", 0))))
    assert image.shape == (40, 50, 3)
    assert int(label) == 0
    with pytest.raises(ValueError, match="has no pictures"):
        benchmark_input._source(tmp_path / "none")
    with pytest.raises(ValueError, match=r"--data expects \"folder:PATH\". Received: 'csv:x'"):
        benchmark_input.main("csv:x", 32, 2, 1)
