"""What networks cost, as rows, beside the papers' numbers, and from the command."""

import csv
import dataclasses
import io
import json
import subprocess
import sys

import pytest

import efficientnet_tf as et
from efficientnet_tf.arch import files, profile
from efficientnet_tf.arch.compound import scale
from efficientnet_tf.arch.published import PEERS, TABLES, V1_TABLE_2, V2_TABLE_3, V2_TABLE_7
from efficientnet_tf.arch.tables import ABLATIONS, VARIANTS


def test_rows_of_stages_and_layers_add_up_to_the_network():
    (whole,) = profile.rows("efficientnet-b0", 96, batch_size=3)
    stages = profile.rows("efficientnet-b0", 96, by="stage", batch_size=3)
    layers = profile.rows("efficientnet-b0", 96, by="layer", batch_size=3)
    for name in ("parameters", "statistics", "multiply-adds", "activations", "weights int8"):
        assert sum(row[name] for row in stages) == whole[name]
        assert sum(row[name] for row in layers) == whole[name]
    for name in ("inference bfloat16", "training float32"):
        assert max(row[name] for row in stages) == whole[name]
        assert max(row[name] for row in layers) == whole[name]
    assert whole["parameters"] == 5_288_548
    assert whole["weights float32"] == 4 * 5_330_564
    assert whole["inference int8"] * 4 == whole["inference float32"]
    assert whole["training float32"] == 2 * whole["training bfloat16"]
    assert "training int8" not in whole


def test_drop_rates_are_those_of_the_built_model():
    rows = profile.rows("efficientnetv2-b0", 64, by="layer")
    model = et.build("efficientnetv2-b0", input_shape=(64, 64, 3))
    rates = {layer.name: layer.rate for layer in model.layers if hasattr(layer, "rate")}
    columns = "drop_connect_rate", "dropout_rate"
    for row in rows:
        assert {type(row[name]) for name in columns} <= {float, type(None)}
    found = {row["layer"]: row[name] for row in rows for name in columns if row[name]}
    assert found == rates
    (top,) = [row["layer"] for row in rows if row["dropout_rate"]]
    assert top == "top_dropout"
    *_, last, head = profile.rows("efficientnetv2-b0", by="stage")
    assert last["stage"] == "stage6"
    assert [last[name] for name in columns] == ["0.133–0.190", None]  # 0.2 * 14, 20 / 21
    assert [head[name] for name in columns] == ["", 0.2]
    # Of 55 blocks, of which the first of each stage has nothing to drop: 0.2 / 55, 0.2 * 54 / 55.
    (whole,) = profile.rows("efficientnet-b7")
    assert [whole[name] for name in columns] == ["0.004–0.196", 0.5]
    assert [profile.rows("resnet-50")[0][name] for name in columns] == ["", None]


def test_published_numbers_are_near_the_counted_ones():
    # The papers round; V2's S in Table 7 is the first version.
    for row in profile.compare([row.network for row in V1_TABLE_2]):
        assert abs(row["FLOPs, difference %"]) < 6, row
        assert abs(row["parameters, difference %"]) < 2.5, row
    assert round(sum(row.params for row in V1_TABLE_2), 1) == 192.3
    (first,) = [row for row in V2_TABLE_7 if row.network == "efficientnetv2-s"]
    assert et.count("efficientnetv2-s-first").total.trainable / 1e6 == pytest.approx(
        first.params, rel=0.02
    )
    (plain,) = profile.compare(["efficientnetv2-b0"])  # in no table
    assert plain["parameters"] == 7_139_704
    assert "paper's FLOPs" not in plain


def test_fused_variants_are_those_of_v2_table_3():
    plain, *fused = V2_TABLE_3
    assert [row.network for row in fused] == list(ABLATIONS)
    unit = et.count(plain.network).total.macs
    for row in V2_TABLE_3:
        total = et.count(row.network).total
        assert total.trainable / 1e6 == pytest.approx(row.params, rel=0.01)
        assert total.macs / unit == pytest.approx(row.flops / plain.flops, rel=0.01)
        # Its FLOPs of B4 itself are 2.4 % more than the multiply-adds.
        assert total.macs / 1e9 == pytest.approx(row.flops, rel=0.03)
    for stages, variant in zip((3, 5, 7), ABLATIONS.values(), strict=True):
        convs = [block.conv for block in variant.blocks]
        assert convs == ["fused"] * stages + ["mbconv"] * (7 - stages)


def test_tables_name_networks_that_exist():
    for table in TABLES:
        rows = profile.beside(table)
        assert len(rows) == len(TABLES[table])
        assert all(row["multiply-adds"] > 0 for row in rows)
    assert not {peer.network for peer in PEERS} & set(VARIANTS)


def test_ratios_are_printed_beside_the_papers():
    rows = profile.beside("v1-7")
    assert [row["paper's times"] for row in rows] == [1.0, 4.5, 4.5, 4.75, 4.5]
    doubled = rows[3]  # twice the resolution: four times the convolutions, not the classifier
    macs = et.count("efficientnet-b0").layers
    small = sum(y.macs for y in macs if y.shape[0] == 1 or y.kind == "dense")
    assert doubled["multiply-adds"] == 4 * (rows[0]["multiply-adds"] - small) + small


def test_block_table_is_that_of_the_paper():
    # V1 Table 1: stages 2 to 8, of which the resolution is that of the input, here the output.
    lines = profile.block_table("efficientnet-b0").splitlines()[3:-1]
    found = [[cell.strip() for cell in line.split("|")[2:7]] for line in lines]
    assert found == [
        ["MBConv1, 3×3, SE", "1", "16", "1", "112"],
        ["MBConv6, 3×3, SE", "2", "24", "2", "56"],
        ["MBConv6, 5×5, SE", "2", "40", "2", "28"],
        ["MBConv6, 3×3, SE", "2", "80", "3", "14"],
        ["MBConv6, 5×5, SE", "1", "112", "3", "14"],
        ["MBConv6, 5×5, SE", "2", "192", "4", "7"],
        ["MBConv6, 3×3, SE", "1", "320", "1", "7"],
    ]
    assert "Fused-MBConv4, 3×3 " in profile.block_table("efficientnetv2-s")
    assert "bottleneck4" in profile.block_table("resnet-50", 64)


def test_every_form_has_the_same_numbers():
    rows = profile.rows("efficientnet-b0", by="stage") + profile.rows("mobilenet-v1", by="stage")
    assert json.loads(profile.to_text(rows, "json")) == rows
    read = list(csv.DictReader(io.StringIO(profile.to_text(rows, "csv"))))
    assert [int(row["multiply-adds"]) for row in read] == [row["multiply-adds"] for row in rows]
    head, rule, *lines = profile.to_text(rows).splitlines()
    assert len({len(line) for line in (head, rule, *lines)}) == 1
    assert len(lines) == len(rows)
    assert "10,838,016" in lines[0]
    with pytest.raises(ValueError, match="form must be one of"):
        profile.to_text(rows, "xml")
    with pytest.raises(ValueError, match="by must be one of"):
        profile.rows("efficientnet-b0", by="block")


def run(root, *arguments):
    return subprocess.run(
        [sys.executable, str(root / "scripts" / "profile.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_scales_writes_and_profiles(root, tmp_path):
    path = tmp_path / "phone.json"
    done = run(
        root,
        "efficientnet-b0",
        "--scale=macs=120e6,cap_resolution=192,how=compound,later_stages=false",
        f"--write={path}",
        "--format=json",
    )
    assert done.returncode == 0, done.stderr
    expected = scale("efficientnet-b0", macs=120_000_000, cap_resolution=192)
    assert files.read(path) == expected
    (row,) = json.loads(done.stdout)
    assert row["multiply-adds"] == et.count(expected).total.macs


def test_the_command_says_what_is_wrong(root):
    done = run(root, "mobilenet-v1", "--measure")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "error: mobilenet-v1 can be counted and scaled, not built"
    )


def test_other_scripts_find_pythons_own_profile(root):
    # `python scripts/x.py` puts scripts/ first on the path, and cProfile imports profile.
    code = "import sys; sys.path.insert(0, 'scripts'); import cProfile; cProfile.Profile()"
    code += "; import profile; assert profile.Profile and 'scripts' not in profile.__file__"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_a_user_variant_is_profiled(tmp_path):
    own = dataclasses.replace(VARIANTS["efficientnet-b0"], name="own", width=0.5)
    files.write(own, tmp_path / "own.json")
    assert profile.rows(tmp_path / "own.json") == profile.rows(own)
    assert profile.rows(own)[0]["network"] == "own"


def test_a_network_of_ones_own_is_compared_with_no_paper(tmp_path):
    own = dataclasses.replace(VARIANTS["efficientnet-b0"], width=0.5)  # of the same name
    files.write(own, tmp_path / "own.json")
    cost = et.count(own).total
    expected = {
        "network": "efficientnet-b0",
        "parameters": cost.trainable,
        "multiply-adds": cost.macs,
    }
    assert profile.compare([tmp_path / "own.json"]) == profile.compare([own]) == [expected]
    (published,) = profile.compare(["efficientnet-b0"])
    assert published["paper's parameters"] == 5_300_000


def test_no_pictures_are_an_error():
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        profile.rows("efficientnet-b0", batch_size=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--blocks", "--format=json"), "--blocks is for people"),
        (("--compare", "--batch=8"), "--compare counts one picture"),
        (("--scale=macs=1e8", "--resolution=300"), "as --scale=macs=1e8,resolution=300"),
    ],
)
def test_options_that_would_mislead_are_refused(root, arguments, message):
    done = run(root, "efficientnet-b0", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
