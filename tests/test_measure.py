"""Measuring networks here: that it runs, on which cores, and without TensorFlow."""

import json
import math
import os
import subprocess
import sys

import keras
import pytest

from efficientnet_tf import measure
from efficientnet_tf.arch import BlockArgs, Variant, files

ROWS = (BlockArgs("fused", 1, 3, 2, 1, 8, 8), BlockArgs("mbconv", 2, 3, 2, 4, 8, 16, 0.25))
TINY = Variant("tiny", ROWS, 1.0, 1.0, 64, 32, 0.1, stem_filters=8, head_filters=16, classes=5)
QUICK = {"seconds": 0.01}


@pytest.fixture(scope="module")
def measured():
    return measure.measure(TINY, batch_size=2, precision="mixed_bfloat16", **QUICK)


def test_sizes_are_the_variants_and_shares_fit_the_times(measured):
    assert (measured.px, measured.train_px, measured.batch) == (64, 32, 2)
    assert (measured.network, measured.backend) == ("tiny", "tensorflow")
    macs = 2 * 1e3 * measure.count(TINY, 64).total.macs
    assert measured.inference_share == pytest.approx(macs / measured.inference_ms / measured.peak)
    assert measured.training_ms > 0
    assert keras.config.dtype_policy().name == "float32"  # as before
    row = measured.row()
    assert row["pictures/s"] == round(2000 / measured.inference_ms, 2)


def test_inference_alone_has_no_training():
    found = measure.measure(TINY, resolution=32, training=False, **QUICK)
    assert (found.px, found.training_ms, found.training_share) == (32, None, None)
    assert "training step, ms" not in found.row()


def test_a_process_of_its_own_uses_one_core():
    found = measure.in_process(TINY, one_thread=True, timeout=300, training=False, **QUICK)
    assert found.threads == 1
    assert math.isfinite(found.inference_ms)


def test_wrong_requests_are_errors():
    with pytest.raises(ValueError, match="precision must be one of"):
        measure.measure(TINY, precision="float16")
    with pytest.raises(ValueError, match="Measured are v2-3, v2-7 and v2-10"):
        measure.beside("v1-3")
    with pytest.raises(ValueError, match="No network of v2-10: tiny"):
        measure.beside("v2-10", ["tiny"])


def test_rows_beside_the_paper_have_ratios_to_the_first(monkeypatch):
    times = {"efficientnet-b7": (40.0, 400.0), "efficientnetv2-m": (10.0, 100.0)}

    def pretended(network, batch_size, **options):
        inference, training = times[network]
        return measure.Measured(
            network, "jax", "GPU", "float32", 0, batch_size, 600, inference, 600, training,
            0.1, 0.1, 1e12,
        )  # fmt: skip

    monkeypatch.setattr(measure, "in_process", pretended)
    first, second = measure.beside("v2-10")
    assert first["inference, ms, times"] == 1.0
    assert second["inference, ms, times"] == 0.25
    assert second["paper's ms, times"] == round(57 / 170, 2)
    assert second["paper's hours, times"] == round(13 / 54, 2)
    assert second["trained pictures/s, times"] == 4.0
    assert "paper's TPU" not in second


WITHOUT_TENSORFLOW = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
runpy.run_module("efficientnet_tf.measure", run_name="__main__", alter_sys=True)
"""


@pytest.mark.backends
@pytest.mark.parametrize("precision", measure.PRECISIONS)
def test_jax_measures_where_tensorflow_is_missing(precision):
    pytest.importorskip("jax")
    request = {"network": files.to_dict(TINY), "batch_size": 2, "precision": precision, **QUICK}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, json.dumps(request)],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = measure.Measured(**json.loads(done.stdout.splitlines()[-1]))
    assert (found.backend, found.network, found.precision) == ("jax", "tiny", precision)
    assert found.training_ms > 0
