"""Two replicas, in one process or in two, against one device with the same global batch."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import replicas
import tensorflow as tf
from resuming import finish, tf_configs

from efficientnet_tf.config import Config, override

KINDS = ["mirrored", "multiworker"]


@pytest.fixture(scope="module")
def alone():
    """What one device finds."""
    return replicas.report(tf.distribute.get_strategy())


@pytest.fixture(scope="module")
def reports(root, tmp_path_factory):
    """What the processes of each kind find."""
    folder = tmp_path_factory.mktemp("reports")
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    variables = [{"TF_CONFIG": text} for text in tf_configs(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, pathlib.Path(replicas.__file__), kind, folder / kind],
            env=environment | more,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for kind, more in [("mirrored", {}), *(("multiworker", each) for each in variables)]
    ]
    finish(*processes)
    return {
        kind: [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}.*"))]
        for kind in KINDS
    }


def _difference(found, others):
    pairs = zip(found["weights"], others["weights"], strict=True)
    return max(np.abs(np.subtract(one, other)).max() for one, other in pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", ["plain", "synchronized"])
def test_they_train_as_one_device_does(alone, reports, kind, net):
    """12 steps with L2, smoothing, clipping and moving average; with and without synchronised BN.

    Gradients that were clipped before they are summed miss this by 1e-2 (`global_clipnorm` of
    Keras), and so do batch statistics of each replica's own.
    """
    for found in (report[net] for report in reports[kind]):
        assert _difference(found, alone[net]) <= 1e-5
        assert found["moved"] > 1e-3  # training did something
        assert found["trained"][0] == alone[net]["trained"][0] == 192
        assert found["trained"][1] == pytest.approx(alone[net]["trained"][1], rel=1e-5)
    assert len(reports[kind]) == 1 + (kind == "multiworker")


def test_all_workers_come_to_the_same_bits(reports):
    first, second = reports["multiworker"]
    for net in ("plain", "synchronized"):
        assert _difference(first[net], second[net]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_is_scored_once(alone, reports, kind):
    assert alone["plain"]["scores"][0] == 359  # which 16 does not divide
    for report in reports[kind]:
        for net in ("plain", "synchronized"):
            assert report[net]["scores"] == pytest.approx(alone[net]["scores"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_statistics_are_averaged_before_evaluation(reports, kind):
    before, after = np.concatenate([report["means"] for report in reports[kind]], 1).tolist()
    assert before == [0, 1]
    assert after == [0.5, 0.5]
    for report in reports[kind]:
        first, second = report["losses"]  # which has nothing left to average
        assert first == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_masks_differ(alone, reports, kind):
    first, second = (mask for report in reports[kind] for mask in report["masks"])
    assert first != second
    assert [first] == alone["masks"]


@pytest.mark.parametrize("kind", KINDS)
def test_runs_start_with_seeds_of_each_replicas_own(alone, reports, kind):
    first, second = (seeds for report in reports[kind] for seeds in report["prepared"]["seeds"])
    assert [first] == alone["prepared"]["seeds"]
    assert len(first) == 3  # block2b and block3a, and before the classifier
    assert not [seed for seed, other in zip(first, second, strict=True) if seed == other]


FACTORS = {"stem": 1 / 32, "block1a": 1 / 16, "block2a": 1 / 8, "block2b": 1 / 8, "block3a": 1 / 4}
FACTORS |= {"top": 1 / 2, "predictions": 1}


@pytest.mark.parametrize("kind", ["alone", *KINDS])
def test_runs_start_with_slower_rates_for_earlier_layers(alone, reports, kind):
    for report in [alone] if kind == "alone" else reports[kind]:
        factors = report["prepared"]["factors"]
        layers = {path: path.partition("/")[0].partition("_")[0] for path in factors}
        assert set(layers.values()) == set(FACTORS)
        for path, layer in layers.items():
            assert factors[path] == pytest.approx(FACTORS[layer], rel=1e-5), path


def test_parts_of_a_batch_cannot_be_synchronised():
    settings = "model.sync_batch_norm=true", "train.accumulate=2"
    with pytest.raises(ValueError, match=r"sync_batch_norm needs train.accumulate=1.*=2"):
        override(Config(), *settings)


def test_workers_tell_each_other(reports):
    told = [report["told"] for report in reports["multiworker"]]
    assert [each.pop("chief") for each in told] == [True, False]
    assert told[0] == told[1]
    assert told[0]["texts"] == ["", "é\udcff"]
    assert told[0]["empty"] == ["", ""]
    assert told[0]["any"] == [True, False]
    assert told[0]["differ"].endswith("Others than the chief's have worker 1 of 2.")
