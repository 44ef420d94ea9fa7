"""Tables, notation, scaling and complexity against the published numbers."""

import dataclasses
import subprocess
import sys

import pytest

from efficientnet_tf.arch import VARIANTS, BlockArgs, resolve
from efficientnet_tf.arch.complexity import count

# fmt: off
PUBLISHED = {
    # tpu efficientnet, efficientdet/backbone tests, lite and edgetpu builder tests, automl
    # effnetv2_model_test.py: trainable and total parameters, and multiply-adds in units of 1e9.
    "efficientnet-b0": (5_288_548, 5_330_564, 0.386),
    "efficientnet-b1": (7_794_184, 7_856_232, 0.687),
    "efficientnet-b2": (9_109_994, 9_177_562, 0.994),
    "efficientnet-b3": (12_233_232, 12_320_528, 1.827),
    "efficientnet-b4": (19_341_616, 19_466_816, 4.394),
    "efficientnet-b5": (30_389_784, 30_562_520, 10.266),
    "efficientnet-b6": (43_040_704, 43_265_136, 19.068),
    "efficientnet-b7": (66_347_960, 66_658_680, 37.746),
    "efficientnet-b8": (87_413_142, 87_793_174, 62.597),
    "efficientnet-l2": (480_309_308, 481_399_996, 475.704),
    "efficientnet-lite0": (4_652_008, 4_694_024, 0.385),
    "efficientnet-lite1": (5_416_680, 5_470_344, 0.600),
    "efficientnet-lite2": (6_092_072, 6_150_168, 0.860),
    "efficientnet-lite3": (8_197_096, 8_273_768, 1.383),
    "efficientnet-lite4": (13_006_568, 13_118_936, 2.553),
    "efficientnet-edgetpu-s": (5_439_673, None, 1.789),
    "efficientnet-edgetpu-m": (6_900_777, None, 3.013),
    "efficientnet-edgetpu-l": (10_591_249, None, 7.936),
    "efficientnetv2-b0": (7_139_704, 7_200_312, 0.718),
    "efficientnetv2-b1": (8_141_052, 8_212_124, 1.197),
    "efficientnetv2-b2": (10_096_086, 10_178_374, 1.698),
    "efficientnetv2-b3": (14_358_406, 14_467_622, 3.011),
    "efficientnetv2-s": (21_458_488, 21_612_360, 8.366),
    "efficientnetv2-m": (54_139_356, 54_431_388, 24.582),
    "efficientnetv2-l": (118_515_272, 119_027_848, 56.080),
    "efficientnetv2-xl": (208_119_808, 208_896_832, 93.353),
    "efficientnetv2-s-first": (None, None, None),
}
WITHOUT_TOP = {  # trainable parameters: the published tables' "no-top" column
    "efficientnet-b0": 4_007_548,
    "efficientnet-b1": 6_513_184,
    "efficientnet-b2": 7_700_994,
    "efficientnet-b3": 10_696_232,
    "efficientnet-b4": 17_548_616,
    "efficientnet-b5": 28_340_784,
    "efficientnet-b6": 40_735_704,
    "efficientnet-b7": 63_786_960,
    "efficientnet-b8": 84_596_142,
    "efficientnet-l2": 474_804_308,
    "efficientnetv2-b0": 5_858_704,
    "efficientnetv2-b1": 6_860_052,
    "efficientnetv2-b2": 8_687_086,
    "efficientnetv2-b3": 12_821_406,
    "efficientnetv2-s": 20_177_488,
    "efficientnetv2-m": 52_858_356,
    "efficientnetv2-l": 117_234_272,
    "efficientnetv2-xl": 206_838_808,
}
# Millions, of EN-B0 to EN-B5 in pycls' model zoo.
ACTIVATIONS = [6.7, 10.9, 13.8, 23.8, 49.5, 98.9]
HEAD_21K = {  # trainable, total with 21,843 classes
    "efficientnetv2-b0": (33_839_587, 33_900_195),
    "efficientnetv2-b1": (34_840_935, 34_912_007),
    "efficientnetv2-b2": (39_463_873, 39_546_161),
    "efficientnetv2-b3": (46_394_097, 46_503_313),
    "efficientnetv2-s": (48_158_371, 48_312_243),
    "efficientnetv2-m": (80_839_239, 81_131_271),
    "efficientnetv2-l": (145_215_155, 145_727_731),
    "efficientnetv2-xl": (234_819_691, 235_596_715),
}
EXPANDED = {  # stem, output filters per stage, repeats per stage, head
    "efficientnet-b3": (40, "24-32-48-96-136-232-384", "2-3-3-5-5-6-2", 1536),
    "efficientnet-b7": (64, "32-48-80-160-224-384-640", "4-7-7-10-10-13-4", 2560),
    "efficientnet-l2": (136, "72-104-176-344-480-824-1376", "6-11-11-16-16-22-6", 5504),
    "efficientnet-lite3": (32, "24-32-48-96-136-232-384", "1-3-3-5-5-6-1", 1280),
    "efficientnet-edgetpu-l": (40, "32-40-56-112-176-232", "2-3-6-7-6-3", 1536),
    "efficientnetv2-b3": (40, "16-40-56-112-136-232", "2-3-3-5-7-12", 1536),
    "efficientnetv2-xl": (32, "32-64-96-192-256-512-640", "4-8-8-16-24-32-8", 1280),
}
# fmt: on


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    trainable, params, gmacs = PUBLISHED[name]
    total = count(name).total
    if trainable is None:  # V2 paper, first version, Table 4: 24M parameters, 8.8B FLOPs
        assert round(total.trainable / 1e6) == 24
        assert total.macs / 1e9 == pytest.approx(8.8, rel=0.03)
        return
    assert total.trainable == trainable
    assert params is None or total.params == params
    assert round(total.macs / 1e9, 3) == gmacs


@pytest.mark.parametrize("name", WITHOUT_TOP)
def test_parameters_without_the_classifier(name):
    assert count(name, include_top=False).total.trainable == WITHOUT_TOP[name]


def test_activations_are_the_published_ones():
    counted = [count(f"efficientnet-b{i}").total.activations / 1e6 for i in range(6)]
    assert [round(millions, 1) for millions in counted] == ACTIVATIONS


@pytest.mark.parametrize("name", HEAD_21K)
def test_parameters_with_the_21k_classifier(name):
    total = count(name, classes=21843).total
    assert (total.trainable, total.params) == HEAD_21K[name]


def test_parameters_of_b0s_trunk_and_of_edgetpu_with_1000_classes():
    without_head = count("efficientnet-b0").stages
    assert sum(c.trainable for name, c in without_head.items() if name != "head") == 3_595_388
    counts = [count(f"efficientnet-edgetpu-{size}", classes=1000).total.trainable for size in "sml"]
    assert counts == [5_438_392, 6_899_496, 10_589_712]


@pytest.mark.parametrize("name", EXPANDED)
def test_expanded_stages_are_the_published_ones(name):
    stem, filters, repeats, head = EXPANDED[name]
    network = resolve(name)
    stages = range(1, 1 + max(block.stage for block in network.blocks))
    by_stage = [[b for b in network.blocks if b.stage == stage] for stage in stages]
    assert network.stem_filters == stem
    assert "-".join(str(blocks[-1].output_filters) for blocks in by_stage) == filters
    assert "-".join(str(len(blocks)) for blocks in by_stage) == repeats
    assert network.head_filters == head


@pytest.mark.parametrize("name", VARIANTS)
def test_drop_connect_ramp_is_linear_over_the_scaled_blocks(name):
    # keras#16144, tensorflow#45916, keras-applications#200: ramps over unscaled repeats.
    blocks = resolve(name).blocks
    for index, block in enumerate(blocks):
        expected = 0.2 * index / len(blocks) if block.skip else 0.0
        assert block.drop_rate == pytest.approx(expected, abs=1e-12)
    assert max(block.drop_rate for block in blocks) < 0.2


@pytest.mark.parametrize("name", VARIANTS)
def test_every_row_survives_the_string_notation(name):
    for row in VARIANTS[name].blocks:
        assert BlockArgs.parse(row.encode()) == row


def test_the_string_notation_keeps_every_digit():
    row = BlockArgs("mbconv", 2, 3, 2, 6, 16, 24, 1 / 24)
    assert BlockArgs.parse(row.encode()) == row


@pytest.mark.parametrize(
    ("string", "row"),
    [
        ("r2_k3_s22_e6_i16_o24_se0.25", BlockArgs("mbconv", 2, 3, 2, 6, 16, 24, 0.25)),
        ("r2_k3_s2_e4_i16_o32_c1", BlockArgs("fused", 2, 3, 2, 4, 16, 32)),
        ("r1_k3_s11_e4_i24_o24_c1_noskip", BlockArgs("fused", 1, 3, 1, 4, 24, 24, skip=False)),
    ],
)
def test_official_strings_are_read(string, row):
    assert BlockArgs.parse(string) == row


@pytest.mark.parametrize(
    ("string", "token"),
    [
        ("r2_k3_s22_e6_i16_o24_x5", "'x5'"),
        ("r2_kx_s22_e6_i16_o24", "'kx'"),
        ("r2_k3_s21_e6_i16_o24", "'s21'"),
        ("r2_k3_s22_e6_i16", "'o'"),
        ("r2_r3_k3_s22_e6_i16_o24", "'r3'"),
        ("r2_k3_s22_e6_i16_o24_c2", "'c2'"),
        ("r2_k3.5_s22_e6_i16_o24", "'k3.5'"),
        ("r0_k3_s22_e6_i16_o24", "'r0'"),
        ("r2_k3_s33_e6_i16_o24", "'s33'"),
        ("r2_k3_s22_e6_i16_o24_se2.5", "'se2.5'"),
        ("", "''"),
    ],
)
def test_a_bad_string_names_the_token(string, token):
    with pytest.raises(ValueError, match=token):
        BlockArgs.parse(string)


def test_bad_values_are_errors_that_say_what_is_allowed():
    with pytest.raises(ValueError, match="Did you mean 'efficientnetv2-s'"):
        resolve("efficientnetv2_s")
    with pytest.raises(ValueError, match=r"drop_connect_rate must lie in \[0, 1\)"):
        resolve("efficientnet-b0", drop_connect_rate=1.0)
    with pytest.raises(ValueError, match="width must be > 0"):
        resolve("efficientnet-b0", width=0)
    with pytest.raises(ValueError, match="repeats must be an integer >= 1"):
        BlockArgs("mbconv", 0, 3, 1, 1, 8, 8)
    with pytest.raises(ValueError, match="strides must be 1 or 2"):
        BlockArgs("mbconv", 1, 3, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="squeeze-excite only with expand_ratio > 1"):
        BlockArgs("fused", 1, 3, 1, 1, 8, 8, 0.25)
    with pytest.raises(ValueError, match=r"a name in VARIANTS or a Variant .* Network"):
        resolve(resolve("efficientnet-b0"))
    for arguments in ({"resolution": 0}, {"classes": 0}, {"channels": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            count("efficientnet-b0", **arguments)
    with pytest.raises(ValueError, match="dtype must be one of"):
        count("efficientnet-b0").peak_memory(dtype="float8")


def test_width_and_depth_of_b0_give_b4():
    b4 = VARIANTS["efficientnet-b4"]
    scaled = resolve("efficientnet-b0", width=b4.width, depth=b4.depth)
    assert scaled.blocks == resolve("efficientnet-b4").blocks


def test_levels_are_the_last_blocks_at_each_stride():
    network = resolve("efficientnetv2-s")
    names = {level: network.blocks[index].name for level, index in network.levels.items()}
    assert names == {1: "block1b", 2: "block2d", 3: "block3d", 4: "block5i", 5: "block6o"}


def test_block_names_go_on_behind_z():
    names = [block.name for block in resolve("efficientnetv2-xl").blocks if block.stage == 6]
    assert names[25:28] == ["block6z", "block6aa", "block6ab"]
    assert len(names) == 32


def test_peak_memory_of_a_network_small_enough_to_do_by_hand():
    # One fused block at stride 1 on a 32 x 32 picture: rescaling works in the input's buffer
    # (32*32*3), the stem gives 16*16*8, the block 16*16*16 kept for the sum, and so on.
    row = BlockArgs("fused", 1, 3, 1, 4, 8, 8)
    variant = dataclasses.replace(
        VARIANTS["efficientnetv2-b0"], blocks=(row,), stem_filters=8, head_filters=16
    )
    cost = count(variant, 32, classes=10)
    pixels = 16 * 16
    # Widest moment: the block's input (8), its expansion (32) and the projection (8) are alive.
    assert cost.peak_memory(batch_size=2) == 4 * 2 * pixels * (8 + 32 + 8)
    assert cost.peak_memory(batch_size=2, dtype="int8") == 2 * pixels * (8 + 32 + 8)
    outputs = 32 * 32 * 3 * 2 + pixels * (8 * 3 + 32 * 3 + 8 * 2 + 8 + 16 * 3) + 16 + 16 + 10
    assert cost.peak_memory(training=True) == 4 * outputs
    stages = cost.stage_memory()
    assert list(stages) == ["stem", "stage1", "head"]
    assert stages == {
        "stem": 4 * (32 * 32 * 3 + pixels * 8),  # the picture and the stem's output
        "stage1": 4 * pixels * (8 + 32 + 8),
        "head": 4 * pixels * (8 + 16),
    }
    assert cost.memory()["predictions"] == 4 * (16 + 10)


def test_arch_imports_neither_tensorflow_nor_keras():
    code = (
        "import sys, importlib.util as u, types; "
        "p = types.ModuleType('efficientnet_tf'); "
        "p.__path__ = u.find_spec('efficientnet_tf').submodule_search_locations; "
        "sys.modules['efficientnet_tf'] = p; "
        "import efficientnet_tf.arch.complexity, efficientnet_tf.preprocessing; "
        "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
