"""Scaling on paper, against a ring that is played through and arithmetic by hand."""

import html.parser
import os
import subprocess
import sys

import numpy as np
import pytest

from efficientnet_tf.train import scaling
from efficientnet_tf.train.scaling import Assumptions, Cluster, Link

GIVEN = Assumptions(step=0.1, batch=50, gradient=100_000_000, attained=0.5)


def _play(members, size, bandwidth, latency):
    """Sums vectors around a ring: (seconds, whether every member has the sum)."""
    chunks = np.random.default_rng(0).integers(0, 9, (members, members))  # one number for each
    expected, seconds = chunks.sum(0), 0.0
    for turn in range(2 * (members - 1)):
        sent = [(m, (m - turn) % members) for m in range(members)]
        values = [chunks[m, c] for m, c in sent]
        for (m, c), value in zip(sent, values, strict=True):
            target = (m + 1) % members
            chunks[target, c] = value + (chunks[target, c] if turn < members - 1 else 0)
        seconds += latency + size / members / bandwidth
    return seconds, (chunks == expected).all()


@pytest.mark.parametrize("members", [1, 2, 3, 8])
def test_an_all_reduce_takes_as_long_as_a_ring(members):
    seconds, summed = _play(members, 1e8, 1e10, 1e-5)
    assert summed
    found = scaling.all_reduce(1e8, (Link(members, 1e10, 1e-5),))
    assert found == pytest.approx(seconds)


def test_hosts_send_what_their_devices_have_summed():
    inner, outer = Link(8, 2e11, 1e-6), Link(4, 1e10, 1e-5)
    # Each of 8 devices sends an eighth to the other hosts, over an eighth of the card: as a whole
    # vector over the whole card. 2 * 7/8 * 1e8 / 2e11 + 14e-6, 2 * 3/4 * 1e8 / 1e10 + 6e-5.
    found = scaling.all_reduce(1e8, (inner, outer))
    assert found == pytest.approx(0.000875 + 0.000014 + 0.015 + 0.00006)


def test_a_torus_has_fewer_hops():
    ring, torus = Link(32, 1e11, 1e-3), Link(32, 1e11, 1e-3, hops=14)
    difference = scaling.all_reduce(1, (ring,)) - scaling.all_reduce(1, (torus,))
    assert difference == pytest.approx(48e-3)


def test_efficiency_is_the_share_of_the_step_that_is_not_waited():
    cluster = Cluster("two", (Link(2, 1e10, 0),), 1, "")
    found = scaling.estimate(cluster, GIVEN)
    # 2 * 1/2 * 1e8 bytes at half of 1e10 per second
    assert found.all_reduce == pytest.approx(0.02)
    assert found.waiting == pytest.approx(0.02)
    assert found.efficiency == pytest.approx(0.1 / 0.12)
    assert found.pictures == pytest.approx(2 * 50 / 0.12)


@pytest.mark.parametrize(("size", "waiting"), [(1e8, 0.0), (5e8, 0.1 - 2 / 30)])
def test_what_overlaps_is_no_longer_than_the_backward_pass(size, waiting):
    cluster = Cluster("two", (Link(2, 5e9, 0),), 1, "")
    given = Assumptions(step=0.1, batch=50, gradient=int(size), attained=1.0, overlap=1.0)
    assert scaling.estimate(cluster, given).waiting == pytest.approx(waiting, abs=1e-12)


@pytest.mark.parametrize(("cores", "starved"), [(4, True), (5, False)])
def test_the_input_is_the_limit_where_the_cores_prepare_less(cores, starved):
    cluster = Cluster("two", (Link(2, 1e10, 0),), 1, "")
    given = Assumptions(0.1, 50, 100_000_000, attained=0.5, pictures_per_core=180, cores=cores)
    found = scaling.estimate(cluster, given)  # 833.3 pictures/s
    assert found.cores_needed == 5
    assert found.starved == starved
    assert found.fastest_fed == pytest.approx(cores * 180 / 2)


def test_stated_clusters_have_their_devices():
    assert [cluster.replicas for cluster in scaling.CLUSTERS] == [8, 8, 32, 32]
    assert all(cluster.source for cluster in scaling.CLUSTERS)


def test_what_nvidia_measured_is_below_the_bound():
    """V2-S, 300 px, 460 pictures per A100: 950/s on one, 6600/s on eight (DeepLearningExamples)."""
    given = Assumptions(step=460 / 950, batch=460, gradient=4 * 21_458_488)
    assert 6600 < scaling.estimate(scaling.CLUSTERS[0], given).pictures < 8 * 950


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"step": 0.0}, "step must be > 0"), ({"overlap": 1.5}, r"overlap must be in \[0, 1\]")],
)
def test_impossible_assumptions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Assumptions(**{"step": 0.1, "batch": 1, "gradient": 1} | changes)


class _Text(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.parts, self.loaded = [], []

    def handle_data(self, data):
        self.parts.append(data)

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href")]


def test_the_script_prints_the_table_and_writes_the_page(root, tmp_path):
    command = [sys.executable, str(root / "scripts/scaling.py"), "--variant=efficientnet-b0"]
    flags = [
        "--size=224",
        "--pictures_per_second=1000",
        "--batch=50",
        f"--report={tmp_path}/a.html",
    ]
    environment = os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "-1"}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*command, *flags], check=True, **options)
    assert "21.2 MB of gradients" in done.stdout  # 5,288,548 parameters (V1 Table 2: 5.3 M)
    page = _Text()
    page.feed((tmp_path / "a.html").read_text())
    text = " ".join(page.parts)
    assert not page.loaded
    for row in scaling.rows(Assumptions(0.05, 50, 4 * 5_288_548)):
        assert f"| {' | '.join(row)} |" in done.stdout
        assert all(cell in text for cell in row)
    failed = subprocess.run(command, check=False, **options)
    assert failed.returncode == 2
    assert "error: give one of --pictures_per_second and --measure" in failed.stderr
