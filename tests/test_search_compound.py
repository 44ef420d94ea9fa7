"""Compound scaling's two steps, with trials that only pretend to train."""

import itertools
import json
import math

import pytest
from killing import Killed, Moments

from efficientnet_tf.arch import files
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.arch.compound import compound_scale
from efficientnet_tf.config import override
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.search import compound, report
from efficientnet_tf.search import trial as trial_lib
from efficientnet_tf.search.trial import Trial
from efficientnet_tf.train import workdir

CONFIG = override(
    RECIPES["digits"],
    "model.blocks=r1_k3_s11_e1_i16_o16_c1,r2_k3_s22_e4_i16_o32_se0.25,r2_k3_s22_e4_i32_o64_se0.25",
    "model.stem_filters=16",
    "model.head_filters=64",
)
BASE = trial_lib.base_of(CONFIG, 10)
BASE_MACS = count(BASE).total.macs
ASKED = compound.Search(step=0.2, tolerance=0.1, slack=1.2, phis=(1.0, 2.0), seeds=(0, 1))


class Source:
    num_classes = 10


@pytest.fixture
def trained(monkeypatch):
    """Pretends to train: wider is better, deeper ones fail. Returns (folder, px) of each."""
    calls = []

    def run(variant, config, folder, *, seeds, source, strategy):
        calls.append((folder.name, config.model.image_size))
        cost = count(variant).total
        if variant.depth > 2.5:
            return Trial(cost.trainable, cost.macs, failed="FloatingPointError: x")
        value = variant.width / 10
        return Trial(cost.trainable, cost.macs, (value, value + 0.02), seconds=1.0)

    monkeypatch.setattr(trial_lib, "run", run)
    return calls


def search(folder, asked=ASKED, config=CONFIG, told=None):
    tell = (lambda _: None) if told is None else told.append
    return compound.search(config, asked, folder, source=Source, tell=tell)


@pytest.mark.parametrize(("step", "tolerance"), [(0.2, 0.1), (0.1, 0.05), (0.05, 0.1)])
def test_grid_is_that_of_brute_force(step, tolerance):
    values = [round(1 + step * index, 10) for index in range(round(1.2 / step) + 1)]
    expected = {
        (a, b, c)
        for a, b, c in itertools.product(values, values, values)
        if abs(a * b * b * c * c - 2) <= tolerance + 1e-9
    }
    found = compound.coefficients(step, tolerance)
    assert set(found) == expected
    assert len(found) == len(expected) > 3
    assert ((1.2, 1.1, 1.15) in found) == (step == 0.05)  # 1.92, which is the papers' choice


def test_an_empty_grid_tells_what_to_do():
    with pytest.raises(ValueError, match=r"in steps of 0\.7 have .* within 0 of 2\. Take smaller"):
        compound.coefficients(0.7, 0.0)


def test_both_steps(trained, tmp_path):
    result = search(tmp_path / "work")
    best = result.coefficients
    # The made-up accuracy is the width: of the grid, (1, 1.4, 1) is the widest.
    assert best == (1.0, 1.4, 1.0)
    accuracies = [one.trial.accuracy for one in result.grid]
    assert accuracies == sorted(accuracies, reverse=True)
    for one in result.grid:
        a, b, c = one.coefficients
        assert abs(a * b**2 * c**2 - 2) <= 0.1 + 1e-9
        assert count(one.variant).total.macs <= 2 * 1.2 * BASE_MACS
        assert one.macs_ratio == pytest.approx(count(one.variant).total.macs / BASE_MACS)
    for how, networks in result.scaled.items():
        assert networks[0].variant == BASE
        for phi, one in zip(ASKED.phis, networks[1:], strict=False):
            macs = count(compound_scale(BASE, phi, *best)).total.macs
            assert 0.75 * macs < one.trial.macs <= macs
            changed = {
                name
                for name in ("depth", "width", "resolution")
                if getattr(one.variant, name) != getattr(BASE, name)
            }
            assert changed == {"width"} if how == "compound" else changed == {how}
    assert len(result.scaled["width"]) == 3
    assert len(result.scaled["depth"]) == 2  # the deepest one failed, and the search went on
    # Each network once, at its own picture size.
    sizes = dict(trained)
    assert len(sizes) == len(trained)
    assert sizes["base"] == 32
    assert sizes["phi-2-resolution"] == result.scaled["resolution"][2].variant.resolution > 55
    assert "phi-1-compound" not in sizes  # the grid's best is the same network
    assert result.scaled["compound"][1].note.startswith("the same as grid 1 1.4 1")
    lines = [
        json.loads(line) for line in (tmp_path / "work" / compound.TRIALS).read_text().splitlines()
    ]
    names = [line["trial"] for line in lines]
    assert names[0] == "base"
    assert names[-8:] == [f"phi {p} {how}" for p in (1, 2) for how in compound.HOW]
    assert [line["trial"] for line in lines if line["state"] == "failed"] == ["phi 2 depth"]
    expected = compound_scale(BASE, 2, *best)
    assert files.read(tmp_path / "work" / compound.BEST) == expected


def test_nothing_is_lost_when_it_is_killed_at_any_moment(trained, tmp_path, monkeypatch):
    whole = search(tmp_path / "whole")
    networks = sorted(trained)
    trained.clear()
    moments, train = Moments(monkeypatch), trial_lib.run

    def stored(variant, config, folder, **kwargs):
        result = folder / "done"
        known = trained[:]
        answer = train(variant, config, folder, **kwargs)
        if result.exists():
            trained[:] = known
        folder.mkdir(parents=True, exist_ok=True)
        result.write_text("")
        return answer

    moments.watch(trial_lib, "run", stored)
    moments.watch(workdir, "write_text")
    moments.watch(files, "write")
    folder = tmp_path / "killed"
    lines: list[str] = []
    for kills in itertools.count(2):
        # At each moment in turn; and after each, once more on the way back there.
        moments.kill_at(max(1, kills // (4 if kills % 2 else 2)))
        try:
            result = search(folder)
            break
        except Killed:
            path = folder / compound.TRIALS
            now = path.read_text().splitlines() if path.exists() else []
            assert now[: len(lines)] == lines
            lines = now
    assert kills > 4 * len(networks)
    assert result == whole
    assert sorted(trained) == networks  # each once
    for name in (compound.TRIALS, compound.BEST, compound.SETTINGS):
        assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_it_goes_on_with_the_same_settings_only(trained, tmp_path):
    search(tmp_path / "work")
    with pytest.raises(FileExistsError, match=r"other settings: step 0\.2, now 0\.1"):
        search(tmp_path / "work", compound.Search(step=0.1, slack=1.2))
    with pytest.raises(FileExistsError, match="other settings: train "):
        search(tmp_path / "work", config=override(CONFIG, "train.epochs=7"))
    further = compound.Search(step=0.2, slack=1.2, phis=(1.0, 2.0, 2.5))
    assert len(search(tmp_path / "work", further).scaled["width"]) == 4


def test_what_cannot_be_searched_is_refused(trained, tmp_path):
    tight = compound.Search(step=0.2, tolerance=0.01, slack=1.0)
    with pytest.raises(ValueError, match=r"None of the grid's \d+ networks .* smallest has"):
        search(tmp_path / "work", tight)
    with pytest.raises(ValueError, match=r"data\.train_size=64"):
        search(tmp_path / "work", config=override(CONFIG, "data.train_size=64"))
    for wrong in (
        {"step": 0},
        {"tolerance": -1},
        {"slack": 0.5},
        {"slack": math.nan},
        {"phis": (1.0, math.inf)},
        {"phis": (math.nan,)},
        {"phis": ()},
        {"phis": (2.0, 1.0)},
        {"phis": (1.0, 1.0)},
        {"seeds": (0, 0)},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
            compound.Search(**wrong)
    assert not trained


def test_all_of_the_grid_failing_is_an_error(monkeypatch, tmp_path):
    def run(variant, *_, **__):
        cost = count(variant).total
        if variant == BASE:
            return Trial(cost.trainable, cost.macs, (0.5, 0.5))
        return Trial(cost.trainable, cost.macs, failed="RuntimeError: y")

    monkeypatch.setattr(trial_lib, "run", run)
    with pytest.raises(RuntimeError, match="All networks of the grid failed: RuntimeError: y"):
        search(tmp_path / "work")


def test_page_and_table_show_both_steps(trained, tmp_path):
    result = search(tmp_path / "work")
    folder = tmp_path / "work"
    report.write_compound(result.grid, result.scaled, folder, "T", "R", {"seeds": (0, 1)})
    page = (folder / report.PAGE).read_text()
    points = sum(len(networks) for networks in result.scaled.values())
    assert page.count("<circle") == points
    assert page.count("<path") == 4
    assert (folder / report.SCALING).read_bytes().startswith(b"\x89PNG")
    text = report.compound_text(result.grid)
    assert len(text.splitlines()) == 1 + len(result.grid)
    # Mean of 0.14 and 0.16; their standard deviation is 0.02 / sqrt(2).
    assert "15.00%" in text.splitlines()[1]
    assert "1.41%" in text.splitlines()[1]
