"""Contact sheets of augmentation, the papers' figures, curves and schedules."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from scripting import call_all

from efficientnet_tf import recipes
from efficientnet_tf.config import override
from efficientnet_tf.data import augment, policies
from efficientnet_tf.figures import augmentation, drawing, family, training


def pictures(*shapes):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def test_every_operation_is_shown_at_every_magnitude():
    (picture,) = pictures((64, 64))
    figure = augmentation.operations(picture, (0, 7, 15), image_size=64)
    rows = iter(figure.axes)
    for name in policies.OPERATIONS:
        np.testing.assert_array_equal(shown(next(rows)), picture)
        alike = name in ("AutoContrast", "Equalize", "Invert")
        for magnitude in (0,) if alike else (0, 7, 15):
            argument = policies.argument(name, magnitude, policies.RANDAUGMENT_SIZES)
            want = augment.apply(name, picture, argument, (0.45, 0.55)).numpy()
            np.testing.assert_array_equal(shown(next(rows)), want)
    assert next(rows, None) is None
    texts = [text.get_text() for text in figure.texts]
    assert set(policies.OPERATIONS) <= set(texts)
    assert {"21°", "× 1.36", "70 px", "56 px square", "inverts ≥ 179"} <= set(texts)


def test_what_is_told_beside_a_picture_is_so(tmp_path):
    gradient = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    figure = augmentation.operations(gradient, (4,), image_size=256)
    rows = {}
    for axes in figure.axes:
        rows.setdefault(round(axes.get_position().y0, 4), []).append(shown(axes))
    by_name = dict(zip(policies.OPERATIONS, rows.values(), strict=True))
    texts = {text.get_text() for text in figure.texts}
    assert len(np.unique(by_name["Posterize"][1])) == 2
    assert "1 bit" in texts
    changed = by_name["Solarize"][1][:, 0, 0] != gradient[:, 0, 0]
    assert changed.argmax() == 102
    assert "inverts ≥ 102" in texts
    blank = (by_name["Cutout"][1] == 128).all(-1) & (gradient[..., 0] != 128)
    assert blank.any(1).sum() + 1 == blank.any(0).sum() == 32
    assert "32 px square" in texts
    assert "below 128: + 44" in texts
    np.testing.assert_array_equal(by_name["SolarizeAdd"][1][:128, 0, 0], np.arange(128) + 44)


def progressive():
    return override(
        recipes.get("smoke"), "model.image_size=48", "data.flip=false", "data.crop=none",
        "data.cutmix=0", "progressive.cutmix=none", "progressive.magnitude=none",
        "data.augment=none", "data.mixup=1", "data.num_layers=2", "data.magnitude=10",
    )  # fmt: skip


def test_stages_show_the_batches_that_training_makes():
    two = pictures((40, 40), (70, 50))
    source = augmentation.from_pictures(("noise", "other"), two)
    figure = augmentation.stages(progressive(), source, 4)
    sizes = [shown(axes).shape for axes in figure.axes]
    assert sizes == [(24, 24, 3)] * 4 + [(48, 48, 3)] * 4
    widths = [axes.get_window_extent().width for axes in figure.axes]
    np.testing.assert_allclose(widths[4] / widths[0], 2, rtol=0.01)
    import tensorflow as tf

    for index in range(4):  # stage 1: no mixup
        want = tf.image.resize(two[index % 2], (24, 24)).numpy()
        assert np.abs(shown(figure.axes[index]) - want).max() <= 0.51
    texts = [text.get_text() for text in figure.texts]
    assert texts[:2] == ["stage 1 of 2", "epochs 1–1, 24 px\ndropout 0.1, drop connect 0.2"]
    assert texts[2:6] == ["noise", "other"] * 2
    assert "mixup 1" in texts[7]
    large = [tf.image.resize(picture, (48, 48)).numpy() for picture in two]
    for index, told in enumerate(texts[8:]):  # stage 2: the first with the last, and so on
        first = int(told.split("%")[0]) / 100 if "%" in told else 1.0
        own, partner = large[index % 2], large[1 - index % 2]
        want = own * first + partner * (1 - first)
        assert np.abs(shown(figure.axes[4 + index]) - want).max() < 4  # shares are whole percents
    assert any("%" in told for told in texts[8:])


def test_points_of_the_family_are_the_papers(tmp_path):
    # V1 Table 2 and V2 Table 7: millions, billions, percent.
    papers = {
        "V1": [(5.3, 0.39, 77.1), (7.8, 0.70, 79.1), (9.2, 1.0, 80.1), (12, 1.8, 81.6),
               (19, 4.2, 82.9), (30, 9.9, 83.6), (43, 19, 84.0), (66, 37, 84.3)],
        "V2": [(22, 8.8, 83.9), (54, 24, 85.1), (120, 53, 85.7)],
    }  # fmt: skip
    for curve, rows in papers.items():
        for point, (params, macs, top1) in zip(family.points(curve), rows, strict=True):
            assert point.params == pytest.approx(params, rel=0.04)
            assert point.flops == pytest.approx(macs, rel=0.07)
            assert point.top1 == pytest.approx(top1, abs=0.11)
    assert [p.network for p in family.points("V2, ImageNet-21k")] == ["S", "M", "L", "XL"]


def test_names_in_the_family_s_figure_do_not_cover_each_other(tmp_path):
    figure = family.family()
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer).padded(-0.5) for text in axes.texts]
        assert len(boxes) >= 18
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:index]), axes.texts[index]
        legend = axes.get_legend().get_window_extent(renderer)
        for line in axes.lines:
            marks = drawing._along(axes.transData.transform(line.get_xydata()))
            assert not any(legend.contains(*mark) for mark in marks), line.get_label()
    drawing.save(figure, tmp_path / "family.png")
    with Image.open(tmp_path / "family.png") as opened:
        assert opened.size == (1380, 1152)


def test_schedule_is_what_the_papers_say():
    recipe = recipes.get("imagenet-v2-s-paper")
    steps, epochs = 306, 350
    peak = 0.256 * 4096 / 4096  # V2 Sec. 5.1 at batch 4096
    at = np.array([0, 153, 1530, 3672, 30600])
    found = training.values(recipe, steps, epochs, at)
    epoch = at / steps
    want = np.where(epoch < 5, peak * epoch / 5, peak * 0.97 ** np.floor(epoch / 2.4))
    np.testing.assert_allclose(found["learning rate"], want, rtol=1e-4)
    ramp = np.minimum(0.9999, (2 + at) / (11 + at))
    np.testing.assert_allclose(found["its decay"], ramp, rtol=1e-6)
    figure = training.schedules(recipe, 1_256_144)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles == [
        "learning rate",
        "moving average: share of the new weights",
        "training pictures, px",
        "dropout",
        "drop connect (last block)",
        "magnitude of RandAugment",
    ]
    stairs = figure.axes[2].patches[0].get_data()
    np.testing.assert_array_equal(stairs.values, [128, 185, 242, 300])
    np.testing.assert_array_equal(stairs.edges, [0, 88, 175, 262, 350])
    assert figure.texts[0].get_text() == "350 epochs of 306 steps, 4,096 pictures each"


def history(count=3, average=True):
    rows = []
    for epoch in range(1, count + 1):
        row = {"epoch": epoch, "stage": 1 + (epoch > 2), "image_size": 32 if epoch > 2 else 24}
        row |= {"learning_rate": 0.1, "train_loss": 2 / epoch, "validation_loss": 1 / epoch}
        row |= {"validation_accuracy": 0.3 * epoch}
        rows.append(row | ({"ema_loss": 1.5, "ema_accuracy": 0.5} if average else {}))
    return rows


def test_curves_are_the_runs_numbers(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    rows = history()
    rows[1]["validation_loss"] = None
    text = "\n".join(map(json.dumps, rows))
    (folder / "metrics.jsonl").write_text(text + '\n{"epoch": 4, "tra')  # being written
    figure = training.curves({"a": training.read_history(folder), "b": history(2, False)})
    loss, accuracy, _, sizes = figure.axes
    lines = [line.get_ydata() for line in loss.lines if len(line.get_xdata()) == 3]
    np.testing.assert_array_equal(lines[0], [2, 1, 2 / 3])
    np.testing.assert_array_equal(lines[1], [1, np.nan, 1 / 3])
    lines = [line.get_ydata() for line in accuracy.lines]
    np.testing.assert_allclose(lines[0], [0.3, 0.6, 0.9])
    assert sizes.get_title(loc="left") == "training pictures (px)"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["a", "b", "training", "validation", "validation, moving average"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the metrics of a run"),
        ("[1]\n[2]\n", "line 1: not the metrics of an epoch"),
        ('{"loss": 1}\n', "not the metrics of a run"),
        (None, "is no run, or has not finished an epoch"),
    ],
)
def test_what_is_no_run(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        training.read_history(tmp_path)


def test_more_runs_than_colours():
    with pytest.raises(ValueError, match="From 1 to 6 runs"):
        training.curves({str(n): history() for n in range(7)})


def test_long_names_keep_both_ends():
    assert drawing.shortened("short", 5) == "short"
    long = drawing.shortened("n02089078_black-and-tan_coonhound.JPEG", 20)
    assert len(long) == 20
    assert long == "n02089078_bla…d.JPEG"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("figures")
    Image.fromarray(pictures((50, 80))[0]).save(path / "noise.png")
    for name in ("a", "b"):
        (path / name).mkdir()
        (path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, history())))
    return path


def test_plots_script(root, folder):
    calls = {
        "curves.png": ["curves", "a", "b"],
        "digits.svg": ["schedule", "digits", "--out=digits.svg"],
        "": ["schedule", "finetune"],
        "Usage: plots.py": ["schedule"],
        "for schedule": ["family", "--set=train.epochs=3"],
        "metrics.jsonl": ["curves", "."],
        "drawn once": ["curves", "a", "a"],
        "No recipe 'v2'": ["schedule", "v2"],
        "train.epochs expects int": ["schedule", "digits", "--set=train.epochs=x"],
    }
    answers = call_all(root, "plots", folder, list(calls.values()))
    for (told, _), (code, out, err) in zip(calls.items(), answers, strict=True):
        if told in ("curves.png", "digits.svg"):
            assert (code, out, err) == (0, f"{told}\n", "")
            assert (folder / told).stat().st_size > 10_000
        else:
            assert code == 2
            assert err.startswith("error: ")
            assert told in err
    assert "--set=data.batch_size=64" in answers[2][2]
    with Image.open(folder / "curves.png") as opened:
        assert opened.size == (1200, 804)


def test_augmentation_script(root, folder):
    calls = {
        "few.png": ["noise.png", "--magnitudes=0,10", "--image_size=32", "--out=few.png"],
        "stages.png": ["noise.png", "--recipe=smoke", "--count=2", "--out=stages.png"],
        "digits.png": ["--recipe=digits", "--data=digits", "--count=2", "--out=digits.png"],
        "--data is used only with --recipe": ["--data=digits"],
        "--count is used only with --recipe": ["noise.png", "--count=3"],
        "--magnitudes is used only without": ["--recipe=smoke", "--magnitudes=1"],
        "either pictures or --data": ["noise.png", "--recipe=digits", "--data=digits"],
        "one picture, or --recipe": ["noise.png", "noise.png"],
        "must lie in [0, 30]. Received: 31": ["noise.png", "--magnitudes=31"],
        "could not convert": ["noise.png", "--magnitudes=a"],
        "No such file": ["missing.png"],
    }
    answers = call_all(root, "show_augmentation", folder, list(calls.values()))
    for (told, _), (code, out, err) in zip(calls.items(), answers, strict=True):
        if told.endswith(".png"):
            assert (code, out, err) == (0, f"{told}\n", "")
            with Image.open(folder / told) as opened:
                assert min(opened.size) > 100
        else:
            assert code == 2
            assert err.startswith("error: ")
            assert told in err


def test_recipes_without_a_magnitude_are_shown_too():
    config = recipes.get("digits")
    source = augmentation.from_pictures(("a",), pictures((8, 8)))
    figure = augmentation.stages(config, source, 1)
    assert figure.texts[0].get_text() == "all epochs"
    with pytest.raises(ValueError, match="at least one picture"):
        augmentation.stages(dataclasses.replace(config), source, 0)
