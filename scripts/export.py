"""Writes a classifier for TF Serving, phones, ONNX, … and proves that the files answer as it does.

python scripts/export.py runs/flowers --to=served --format=saved_model,tflite,onnx
python scripts/export.py efficientnetv2-b0 --weights=imagenet --to=served --verify=folder:photos
python scripts/export.py model.keras --to=phone --format=tflite-int8 --calibrate=folder:photos

The source is the folder of a run, a .keras file, a .weights.h5 file beside a run's config.json, or
the name of a network. Nothing is put in place unless every format passes.

Exit code: 0 when all formats are proved and in place, 1 when one of them does not give the model's
answers (the report is kept as failed-….json), 2 when nothing could be done: wrong usage, no such
model, pictures that cannot be read, a folder that cannot be written to.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

from absl import app, flags
from command_line import fail, parse_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_TO = flags.DEFINE_string("to", None, "Folder to write to, e.g. --to=served.")
_FORMAT = flags.DEFINE_list(
    "format",
    ["saved_model"],
    "Formats, e.g. --format=saved_model,tflite: saved_model, tflite, tflite-float16,"
    " tflite-dynamic, tflite-int8, tflite-int16x8, onnx, openvino, keras.",
)
_WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "For the name of a network: tag of published weights, e.g. imagenet21k-ft1k, or path of a "
    'checkpoint in any published format; by default "imagenet". "none" is random weights.',
)
_LABELS = flags.DEFINE_string(
    "labels",
    None,
    "File of class names in index order, `name` or `wnid<TAB>name` a line. By default labels.txt "
    "beside a file, or the names of the classes that the weights were trained on.",
)
_VERIFY = flags.DEFINE_string(
    "verify",
    None,
    "Pictures to check on: folder:PATH (class folders, or pictures themselves), tfds:NAME,"
    " tfrecord:PATH, digits, … or run for those that a run was tested with. By default sample"
    " pictures of scikit-learn. Of splits, test.",
)
_VERIFY_COUNT = flags.DEFINE_integer(
    "verify_count", 512, "Most pictures to check on, from all over the split.", lower_bound=1
)
_CALIBRATE = flags.DEFINE_string(
    "calibrate",
    None,
    "Pictures for the ranges of int8 and int16x8, as for --verify, which should be others. Of"
    " splits, train.",
)
_CALIBRATION_COUNT = flags.DEFINE_integer(
    "calibration_count", 200, "Most pictures to calibrate with.", lower_bound=1
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets keeps its files; its own default if not given."
)
_MAX_BAD = flags.DEFINE_float(
    "max_bad", 0.01, "Largest share of unreadable pictures, which are left out and named."
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance",
    None,
    "Largest difference allowed from the model, as a share of its outputs' spread, of formats that"
    " keep the network as it is; 1e-4 if not given.",
)
_MIN_AGREEMENT = flags.DEFINE_float(
    "min_agreement",
    None,
    "Share of pictures that must keep their most likely class in quantised formats; float16 0.99,"
    " dynamic, int16x8 and bfloat16 0.97, int8 0.9 if not given.",
)
_MAX_ERROR = flags.DEFINE_float(
    "max_error",
    None,
    "Mean over the pictures of the largest difference allowed in quantised formats, as a share of"
    " the outputs' spread; float16 0.01, dynamic, int16x8 and bfloat16 0.05, int8 0.1 if not"
    " given.",
)
_FOLD = flags.DEFINE_boolean(
    "fold", True, "Whether batch normalization goes into the convolutions before it."
)
_FROZEN = flags.DEFINE_boolean(
    "frozen", False, "Whether the SavedModel's weights are constants: faster, and more memory."
)
_PRECISION = flags.DEFINE_enum(
    "precision", "float32", ["float32", "bfloat16"], "Of the SavedModel's convolutions."
)
_VERSION = flags.DEFINE_integer(
    "version", None, "Of the SavedModel; the next one if not given.", lower_bound=1
)
_WARM_UP = flags.DEFINE_list(
    "warmup",
    [],
    "Batch sizes that TensorFlow Serving runs before it takes requests, e.g. --warmup=1,8.",
)
_SERVING_NAME = flags.DEFINE_string(
    "serving_name",
    None,
    "Name of the model: writes models.config, batching and monitoring parameters and a compose file"
    " for TensorFlow Serving.",
)
_REMEDY = flags.DEFINE_enum(
    "remedy",
    "none",
    ["none", "percentile", "qat", "auto"],
    "Against what int8 costs: clip ranges at a percentile, quantisation-aware training, or the"
    " cheapest that passes.",
)
_QAT_EPOCHS = flags.DEFINE_integer(
    "qat_epochs", 1, "Passes through --calibrate's pictures in training.", lower_bound=1
)
_DIAGNOSE = flags.DEFINE_boolean(
    "diagnose",
    False,
    "Whether to print what int8 does to each layer, on --calibrate's pictures, and write"
    " diagnosis.txt.",
)
_INPUT = flags.DEFINE_enum("int8_input", "uint8", ["uint8", "float32"], "Input of int8 files.")
_OUTPUT = flags.DEFINE_enum("int8_output", "float32", ["uint8", "float32"], "Output of int8 files.")
_BATCH = flags.DEFINE_integer(
    "batch", None, "Pictures per call of TFLite files, fixed; any if not given.", lower_bound=1
)
_EDGETPU = flags.DEFINE_boolean(
    "edgetpu",
    False,
    "Whether to list what stands in the way of the EdgeTPU compiler in the int8 file; it wants"
    " --batch=1 --int8_output=uint8.",
)
_ONLY_WITH = {  # flag: formats of which one must be asked for
    "frozen": ("saved_model",),
    "precision": ("saved_model",),
    "version": ("saved_model",),
    "warmup": ("saved_model",),
    "serving_name": ("saved_model",),
    "calibrate": ("tflite-int8", "tflite-int16x8"),
    "calibration_count": ("tflite-int8", "tflite-int16x8"),
    "remedy": ("tflite-int8",),
    "qat_epochs": ("tflite-int8",),
    "diagnose": ("tflite-int8",),
    "edgetpu": ("tflite-int8",),
    "int8_input": ("tflite-int8",),
    "int8_output": ("tflite-int8",),
    "batch": tuple(f"tflite{kind}" for kind in ("", "-float16", "-dynamic", "-int8", "-int16x8")),
}


def main(argv: Sequence[str]) -> int:
    """Exports the model named on the command line."""
    if len(argv) != 2:
        return fail("one model. Usage: export.py RUN|FILE|NAME --to=DIR --format=FORMAT,…")
    if not _TO.value:
        return fail("where to? Give --to=DIR")
    for flag, formats in _ONLY_WITH.items():
        if flags.FLAGS[flag].present and not set(formats) & set(_FORMAT.value):
            return fail(f"--{flag} needs --format={' or '.join(formats)}")
    from efficientnet_tf import classifier as classifier_lib  # seconds: after the usage is right
    from efficientnet_tf import paths
    from efficientnet_tf.export import artifacts, verify

    weights = _WEIGHTS.value
    try:
        path = classifier_lib.file_of(argv[1])
        if path is None:
            weights = {"none": None, None: "imagenet"}.get(weights, weights)
        model = classifier_lib.load(argv[1], weights, labels=_LABELS.value)
        calibration = _pictures(_CALIBRATE.value, "train", _CALIBRATION_COUNT.value, path, model)
        options = _options(calibration)
        pictures = _pictures(_VERIFY.value, "test", _VERIFY_COUNT.value, path, model)
        if _DIAGNOSE.value:
            _diagnose(model, calibration)
        reports = artifacts.export(
            model,
            _TO.value,
            _FORMAT.value,
            pictures,
            origin=classifier_lib.origin(argv[1], weights),
            options=options,
        )
    except verify.GateError as error:
        print(f"{verify.table(error.reports)}\n\nerror: {error}", file=sys.stderr)
        print(f"Nothing is put in place. The report is in {_TO.value}.", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError, RuntimeError, FloatingPointError) as error:
        return fail(error)
    print(f"On {pictures.name}:\n\n{verify.table(reports)}\n\nEverything is in {_TO.value}.")
    if _EDGETPU.value:
        _print_edgetpu(paths.of(_TO.value) / "model-int8.tflite")
    return 0


def _options(calibration):
    from efficientnet_tf.export import artifacts

    try:
        warm_up = tuple(int(size) for size in _WARM_UP.value)
    except ValueError:
        given = ",".join(_WARM_UP.value)
        raise ValueError(f"--warmup is whole numbers, e.g. 1,8. Received: {given}") from None
    return artifacts.Options(
        tolerance=_TOLERANCE.value,
        min_agreement=_MIN_AGREEMENT.value,
        max_error=_MAX_ERROR.value,
        fold=_FOLD.value,
        frozen=_FROZEN.value,
        precision=_PRECISION.value,
        version=_VERSION.value,
        warm_up=warm_up,
        serving_name=_SERVING_NAME.value,
        batch=_BATCH.value,
        calibration=calibration,
        remedy=_REMEDY.value,
        qat_epochs=_QAT_EPOCHS.value,
        int8_input=_INPUT.value,
        int8_output=_OUTPUT.value,
    )


def _pictures(text: str | None, split: str, count: int, path, model):
    """What --verify or --calibrate names; sample pictures to check on, where nothing is named."""
    from efficientnet_tf import config
    from efficientnet_tf.export import pictures

    if text is None:
        return pictures.samples() if split == "test" else None
    if text == "run":
        run = path.with_name("config.json") if path else None
        if run is None or not run.is_file():
            raise ValueError("run stands for the pictures of a run, and this source is none")
        data = config.from_json(run.read_text(encoding="utf-8")).data  # with the splits it had
    else:
        data = config.DataConfig(source=text)
    data = dataclasses.replace(
        data, data_dir=_DATA_DIR.value or data.data_dir, max_bad=_MAX_BAD.value
    )
    labels = model.labels if split == "test" else None  # to calibrate takes none
    return pictures.named(data, split, labels, count)


def _diagnose(model, calibration) -> None:
    from efficientnet_tf.export import artifacts

    text = artifacts.diagnosis(model, _TO.value, calibration)
    print(f"{text}\n", flush=True)


def _print_edgetpu(path) -> None:
    from efficientnet_tf.export import edgetpu

    findings = edgetpu.check(path.read_bytes())
    print("\nEdgeTPU:", "" if findings else "nothing stands in the way.")
    for finding in findings:
        print(f"  {finding}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
