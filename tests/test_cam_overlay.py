"""Maps on pictures: where they lie, whatever the crop rule, and what stays plain."""

import keras
import numpy as np
import pytest

from efficientnet_tf import cam
from efficientnet_tf.cam.overlay import colors
from efficientnet_tf.data import images as images_lib
from efficientnet_tf.preprocessing import Preprocessing

SIZE = 64
CELLS = 8  # of a map, on each side
RULES = {
    "squash": ("squash", None),
    "pad32": ("pad32", None),
    "pad32_floor": ("pad32_floor", None),
    "fraction": ("fraction", 0.8),
}
SHAPES = [(90, 151), (151, 90), (64, 64), (33, 200)]


def rule_of(name, resize_method="bilinear"):
    crop, fraction = RULES[name]
    ones = (1.0, 1.0, 1.0)
    return Preprocessing("test", ones, ones, SIZE, resize_method, crop, fraction)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_covered_is_what_the_pipeline_cuts_out(name, shape):
    rows, columns = np.indices(shape, np.float32)
    numbered = np.stack([rows, columns, np.zeros(shape, np.float32)], -1)
    cut = images_lib.center_crop(numbered, rule_of(name)).numpy()
    top, left, height, width = cam.covered(shape, rule_of(name))
    assert cut.shape[:2] == (height, width)
    assert (top, left) == tuple(cut[0, 0, :2])
    assert (top + height - 1, left + width - 1) == tuple(cut[-1, -1, :2])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_what_the_network_finds_is_marked_where_it_is_in_the_picture(name, shape):
    # A net that finds white; a white rectangle of a cell's size, off the centre.
    inputs = keras.Input((SIZE, SIZE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(
        keras.layers.AveragePooling2D(SIZE // CELLS)(inputs)
    )
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    model.layers[-1].set_weights([np.ones((3, 1)), np.zeros(1)])
    rule = rule_of(name)
    top, left, height, width = cam.covered(shape, rule)
    places = [top + height * 2 // CELLS, left + width * 5 // CELLS]
    sides = [-(-height // CELLS), -(-width // CELLS)]
    picture = np.zeros((*shape, 3), np.uint8)
    picture[places[0] : places[0] + sides[0], places[1] : places[1] + sides[1]] = 255
    batch = images_lib.resize_and_crop(picture, rule).numpy()[None]
    heat = cam.cam(model, batch, 0)[0]
    assert np.unravel_index(heat.argmax(), heat.shape) == (2, 5)
    whole = cam.placed(heat, shape, rule)
    assert whole.shape == shape
    peak = np.unravel_index(whole.argmax(), shape)
    for at, start, side in zip(peak, places, sides, strict=True):
        assert start <= at < start + side
    # The middle of the evidence is the rectangle's middle, within a pixel of rounding.
    for axis in (0, 1):
        middle = (whole.sum(1 - axis) * (np.arange(shape[axis]) + 0.5)).sum() / whole.sum()
        assert abs(middle - places[axis] - sides[axis] / 2) < 1.5
    inside = np.zeros(shape, bool)
    inside[top : top + height, left : left + width] = True
    assert (whole[~inside] == 0).all()


def test_overlay_mixes_the_map_s_colour_by_its_value():
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[1:3, 2:4] = 1
    shown = cam.overlay(picture, heat, strength=0.5)
    assert shown.dtype == np.uint8
    assert shown.shape == picture.shape
    whole = cam.placed(heat, (40, 60))
    np.testing.assert_array_equal(shown[whole == 0], picture[whole == 0])
    hot = whole == 1
    want = (picture[hot] + colors(np.ones(())) * 1.0) / 2
    assert np.abs(shown[hot] - want).max() <= 0.5
    np.testing.assert_array_equal(cam.overlay(picture, heat, strength=0), picture)


def test_outside_the_crop_the_picture_stays_plain():
    picture = np.full((60, 100, 3), 128, np.uint8)
    rule = rule_of("pad32")
    shown = cam.overlay(picture, np.ones((8, 8), np.float32), rule)
    side = int(60 * 64 / 96)
    changed = (shown != picture).any(-1)
    assert changed.sum() == side**2
    assert changed[10:50, 30:70].all()


def test_colours_rise_in_brightness():
    # So that they can be read without colour vision and in gray prints.
    red, green, blue = np.moveaxis(colors(np.linspace(0, 1, 50)), -1, 0)
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) > 0).all()


@pytest.mark.parametrize(
    ("picture", "heat", "strength", "message"),
    [
        (np.zeros((4, 4, 3)), np.zeros((2, 2)), 0.5, "picture must be uint8"),
        (np.zeros((4, 4), np.uint8), np.zeros((2, 2)), 0.5, r"Received: uint8 of shape \(4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 2, 2)), 0.5, r"one map \(h, w\)"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2)), 2, "strength must lie in"),
    ],
)
def test_mistakes_of_overlay(picture, heat, strength, message):
    with pytest.raises(ValueError, match=message):
        cam.overlay(picture, heat, strength=strength)
