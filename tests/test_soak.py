"""A long run, in a process of its own, holds no more at its end than near its beginning."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import soak

STEPS = 2400
KIB = 3 * 1024  # in 1,000 steps; one batch kept at each would be 96 times that


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_open_files_and_threads_do_not_grow_over_thousands_of_steps():
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    program = [sys.executable, soak.__file__, f"--steps={STEPS}"]
    found = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=1800)
    assert found.returncode == 0, found.stderr[-3000:]
    samples = json.loads(found.stdout.splitlines()[-1])["samples"]
    assert samples[-1]["step"] == STEPS
    assert soak.growth(samples) < KIB
    late = [sample for sample in samples if sample["step"] > STEPS / 3]
    for name in ("files", "threads"):
        assert max(sample[name] for sample in late) == min(sample[name] for sample in late), name


def test_the_slope_is_that_of_what_is_kept_whatever_else_comes_and_goes():
    kept = [
        {"step": step, "rss": 500_000 + 4 * step + (90_000 if step % 70 == 0 else 0)}
        for step in range(10, 2000, 10)
    ]
    flat = [{**sample, "rss": 500_000 + min(sample["step"], 600) * 300} for sample in kept]
    assert soak.growth(kept) == pytest.approx(4000, rel=0.05)
    assert soak.growth(flat) == 0
