"""The search of networks: its study survives everything, with trials that only pretend to train."""

import dataclasses
import itertools
import json
import math
import socket

import pytest
from killing import Killed, Moments

from efficientnet_tf.arch import files
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.config import override
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.search import nas, report, study, timing
from efficientnet_tf.search import trial as trial_lib
from efficientnet_tf.search.space import Limits, Space
from efficientnet_tf.search.trial import Trial
from efficientnet_tf.train import workdir

pytest.importorskip("optuna")

CONFIG = override(
    RECIPES["digits"],
    "model.blocks=r1_k3_s11_e1_i8_o8_c1,r1_k3_s22_e4_i8_o16_se0.25",
    "model.stem_filters=8",
    "model.head_filters=32",
)
SPACE = Space(trial_lib.base_of(CONFIG, 10), layers=(1, 2))
WORKER_OF = study.worker_of


def accuracy_of(variant):
    """A made-up accuracy: the more multiply-adds, the better."""
    return 1 - 1e5 / (1e5 + count(variant).total.macs)


@pytest.fixture
def trained(monkeypatch):
    """Pretends to train; returns the folders of what was trained, and keeps results as files."""
    folders = []

    def run(variant, config, folder, *, seeds, source, strategy, base):
        folder.mkdir(parents=True, exist_ok=True)
        result = folder / "done"
        if not result.exists():
            folders.append(folder.name)
            result.write_text("")
        total = count(variant).total
        if variant.blocks[0].repeats == 2 and variant.blocks[1].repeats == 2:
            return Trial(total.trainable, total.macs, seconds=30.0, failed="FloatingPointError: x")
        value = accuracy_of(variant)
        return Trial(total.trainable, total.macs, (value, value), 0.1, 2.0, seconds=30.0)

    monkeypatch.setattr(trial_lib, "run", run)
    # By its name a worker draws networks; by default that is its folder's, another one each time.
    monkeypatch.setattr(study, "worker_of", lambda folder: folder.name)
    monkeypatch.setattr(timing, "stepper", lambda *_: None)
    return folders


def search(folder, space=SPACE, storage=None, **asked):
    asked = nas.Search(**{"population": 3, "sample": 2, **asked})
    storage = str(folder.parent / "study.log") if storage is None else storage
    return nas.search(CONFIG, space, asked, folder, source=None, storage=storage)


def test_trials_are_written_with_their_rewards(trained, tmp_path):
    found = search(tmp_path / "work", trials=8)
    lines = [json.loads(line) for line in (tmp_path / "work" / nas.TRIALS).read_text().splitlines()]
    assert [line["trial"] for line in lines] == list(range(8))
    base = count(SPACE.base).total.trainable
    for line, one in zip(lines, found, strict=True):
        if line["state"] == "failed":
            assert line["failed"] == "FloatingPointError: x"
            assert line["reward"] is None
            continue
        total = count(one.variant).total
        expected = accuracy_of(one.variant) * 2**-0.07 * (total.trainable / base) ** -0.05
        assert line["reward"] == pytest.approx(expected)
        assert (line["params"], line["macs"]) == (total.trainable, total.macs)
    states = [line["state"] for line in lines]
    assert 0 < states.count("failed") < 8  # and the search went on
    best = max((line for line in lines if line["reward"]), key=lambda line: line["reward"])
    assert files.read(tmp_path / "work" / nas.BEST) == found[best["trial"]].variant
    assert len({one.choice for one in found}) == 8


def test_nothing_is_lost_when_it_is_killed_at_any_moment(trained, tmp_path, monkeypatch):
    moments = Moments(monkeypatch)
    for module, name in (
        (study, "start"), (trial_lib, "run"), (study, "end"), (workdir, "write_text"),
    ):  # fmt: skip
        moments.watch(module, name)
    folder = tmp_path / "killed" / "work"
    kills = 0
    while True:
        # The next kill comes one moment later than the last: each kind of moment is hit.
        moments.kill_at(1 + kills % 9)
        try:
            found = search(folder, trials=5)
            break
        except Killed:
            kills += 1
        assert kills < 200
    assert kills > 10
    assert [one.number for one in found] == list(range(5))
    assert sorted(trained) == [f"{one.number:04d}" for one in found]  # each once
    lines = (folder / nas.TRIALS).read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == list(range(5))


def test_a_killed_search_tries_the_same_networks(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "worker_of", lambda folder: "me")
    whole = search(tmp_path / "whole" / "work", trials=6)
    for trials in (1, 2, 4, 6):
        found = search(tmp_path / "parts" / "work", trials=trials)
        assert len(found) == trials
    assert [one.choice for one in found] == [one.choice for one in whole]


def test_several_share_a_study(trained, tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    search(tmp_path / "one", storage=storage, trials=2)
    # Another one's trial that goes on is left alone, and its network is not tried again.
    opened = study.begin(storage, "nas", nas._settings(CONFIG, SPACE, nas.Search(
        trials=1, population=3, sample=2)))  # fmt: skip
    tried = study.tried(opened)
    left = next(choice for choice in itertools.product(*SPACE.options) if choice not in tried)
    study.start(opened, SPACE, left, "elsewhere")
    found = search(tmp_path / "two", storage=storage, trials=5)  # that one included
    assert [one.number for one in found] == [0, 1, 3, 4]
    assert {one.worker for one in found} == {
        study.worker_of(tmp_path / "one"), study.worker_of(tmp_path / "two"),
    }  # fmt: skip
    assert left not in {one.choice for one in found}
    lines = (tmp_path / "two" / nas.TRIALS).read_text().splitlines()
    assert len(lines) == 4


@pytest.mark.parametrize("same", [True, False])
def test_what_two_begin_at_the_same_moment_is_trained_once(trained, tmp_path, monkeypatch, same):
    start, others = study.start, []

    def second(opened, space, choice, worker):
        if not others and (same or trained):  # another worker is a moment earlier
            tried = study.tried(opened) | {choice}
            left = next(each for each in itertools.product(*SPACE.options) if each not in tried)
            others.append(start(opened, space, choice if same else left, "elsewhere"))
        return start(opened, space, choice, worker)

    monkeypatch.setattr(study, "start", second)
    found = search(tmp_path / "work", trials=3 if same else 2)
    (other,) = others
    # Trial 1 has the network of trial 0; or trial 1 is the second one, and trial 2 one too many.
    assert other.number == (0 if same else 1)
    assert [one.number for one in found] == ([2, 3] if same else [0])
    assert study.choice_of(other) not in {one.choice for one in found}
    assert trained == [f"{one.number:04d}" for one in found]
    found = search(tmp_path / "work", trials=4)
    assert [one.number for one in found] == ([2, 3, 4] if same else [0, 3, 4])


def test_a_search_whose_trials_others_train_says_so(trained, tmp_path):
    asked = nas.Search(trials=1, population=3, sample=2)
    settings = nas._settings(CONFIG, SPACE, asked)
    opened = study.begin(str(tmp_path / "study.log"), "nas", settings)
    study.start(opened, SPACE, next(itertools.product(*SPACE.options)), "elsewhere")
    with pytest.raises(RuntimeError, match="No trial has ended yet: others are training"):
        search(tmp_path / "work", trials=1)


def test_a_worker_is_the_same_in_another_place_and_on_another_machine(
    trained, tmp_path, monkeypatch
):
    def killed(*_, **__):
        raise Killed

    space = Space(SPACE.base, layers=(1,))  # in which no trial fails, whatever the worker is called
    monkeypatch.setattr(study, "worker_of", WORKER_OF)
    monkeypatch.setattr(socket, "gethostname", lambda: "one")
    storage = str(tmp_path / "study.log")
    with monkeypatch.context() as patch:
        patch.setattr(trial_lib, "run", killed)
        with pytest.raises(Killed):
            search(tmp_path / "here", space, storage, trials=1)
    monkeypatch.setattr(socket, "gethostname", lambda: "other")
    (tmp_path / "here").rename(tmp_path / "there")
    (found,) = search(tmp_path / "there", space, storage, trials=1)
    assert trained == ["0000"]
    assert found.worker == f"one:{(tmp_path / 'here').resolve()}"  # as it was named before


def test_other_settings_are_refused(trained, tmp_path):
    search(tmp_path / "work", trials=1)
    with pytest.raises(ValueError, match=r"other settings: sample 2, now 3\. Give those"):
        search(tmp_path / "work", trials=1, sample=3)
    other = Space(SPACE.base, layers=(1, 2), limits=Limits(params=10_000))
    with pytest.raises(ValueError, match="other settings: limits"):
        search(tmp_path / "work", space=other, trials=1)
    asked, storage = nas.Search(trials=1, population=3, sample=2), str(tmp_path / "study.log")
    for setting in ("model.normalization=lite", "model.image_size=48"):
        changed = override(CONFIG, setting)
        with pytest.raises(ValueError, match="other settings: model"):
            nas.search(changed, SPACE, asked, tmp_path / "work", source=None, storage=storage)
    with pytest.raises(ValueError, match="cannot be opened"):
        search(tmp_path / "work", storage="nosuch://x", trials=1)


def test_budgets(trained, tmp_path):
    assert len(search(tmp_path / "time" / "work", minutes=1.2)) == 3  # of half a minute each
    with pytest.raises(ValueError, match="needs an end"):
        nas.Search()
    for wrong in ({"minutes": math.nan}, {"minutes": math.inf}, {"trials": 0}):
        with pytest.raises(ValueError, match="must be > 0 and finite, or None"):
            nas.Search(**wrong)
    for name in ("step_exponent", "params_exponent"):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            nas.Search(trials=1, **{name: math.nan})
    with pytest.raises(ValueError, match=r"sample must lie in \[1, population\]"):
        nas.Search(trials=1, population=3, sample=4)
    with pytest.raises(ValueError, match="seeds must be"):
        nas.Search(trials=1, seeds=(1, 1))


def test_a_space_that_is_used_up_ends_the_search(trained, tmp_path):
    space = Space(SPACE.base, layers=(1,), kernels=(3,), expansions=(1,))  # 4 networks
    found = search(tmp_path / "work", space=space, trials=10, method="random")
    assert len({one.choice for one in found}) == len(found) == 4


def test_all_trials_failing_is_an_error(trained, tmp_path):
    space = Space(SPACE.base, layers=(2,))
    with pytest.raises(RuntimeError, match="All 2 trials failed: FloatingPointError: x"):
        search(tmp_path / "work", space=space, trials=2)


def test_page_and_table_show_the_front(trained, tmp_path):
    found = search(tmp_path / "work", trials=10)
    report.write_nas(found, tmp_path / "work", "A <title>", {"seeds": (0,)})
    page = (tmp_path / "work" / report.PAGE).read_text()
    assert "A &lt;title&gt;" in page
    assert "FloatingPointError: x" in page
    assert page.count("<circle") >= 2 * sum(not one.trial.failed for one in found)
    assert "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "work" / report.PARETO).read_bytes().startswith(b"\x89PNG")
    text = report.nas_text(found)
    front = report.front(found)
    assert text.splitlines()[1].startswith(str(front[0].number))
    assert len([line for line in text.splitlines() if "failed" in line]) == sum(
        bool(one.trial.failed) for one in found
    )
    # All have the same step time here: a member has more accuracy or fewer parameters than any.
    for one in front:
        for other in found:
            if not other.trial.failed:
                better = other.trial.accuracy > one.trial.accuracy
                assert not (better and other.trial.params <= one.trial.params)


def test_networks_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="random weights"):
        trial_lib.base_of(override(CONFIG, "model.weights=imagenet"), 10)
    with pytest.raises(ValueError, match=r"one data\.batch_size"):
        trial_lib.base_of(override(CONFIG, "data.batch_size=none"), 10)
    base = trial_lib.base_of(CONFIG, 7, 64)
    assert (base.classes, base.resolution, base.stem_filters) == (7, 64, 8)
    trained = trial_lib.settings(CONFIG, dataclasses.replace(base, name="x"), 3)
    assert (trained.model.blocks, trained.model.image_size, trained.train.seed) == ((), 32, 3)
