"""Replays the requests that a SavedModel brings along, before it is served.

TensorFlow Serving looks for them in `assets.extra/tf_serving_warmup_requests`, a TFRecord file of
PredictionLog messages (saved_model_warmup_util.cc). The first run of each shape takes seconds; a
client should not be the one who waits.
"""

import logging
import os

import numpy as np
import tensorflow as tf

from efficientnet_tf.serve import examples, tensors
from efficientnet_tf.serve.errors import ServingError
from efficientnet_tf.serve.logs import log
from efficientnet_tf.serve.session import Session

PATH = os.path.join("assets.extra", "tf_serving_warmup_requests")
_MOST = 1000  # records, TensorFlow Serving's limit
_TIMEOUT = 300.0  # seconds for one
_BYTES = 2**30  # of a record's tensors


def replay(session: Session) -> int:
    """Runs the warm-up records of a session's folder.

    Args:
        session: freshly loaded.

    Returns:
        How many were run: 0 where there are none, or tensorflow-serving-api, which knows their
        format, is not installed.

    Raises:
        ServingError: one of them cannot be read, or the model fails on it; TensorFlow Serving does
            not serve such a version either.
    """
    path = os.path.join(session.path, PATH)
    if not os.path.exists(path):
        return 0
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        log(
            "warm-up skipped",
            level=logging.WARNING,
            path=path,
            error='needs tensorflow-serving-api: pip install "efficientnet_tf[serving]"',
        )
        return 0
    count = 0
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            count += 1
            if count > _MOST:
                raise ServingError("INVALID_ARGUMENT", f"there are more than {_MOST} records")
            _run(session, prediction_log_pb2.PredictionLog.FromString(record))
    except ServingError as error:
        raise ServingError(
            error.code, f"Warm-up record {count} in {path}: {error.message}"
        ) from None
    except Exception as error:
        raise ServingError("DATA_LOSS", f"Warm-up records in {path} are broken: {error}") from None
    return count


def _run(session: Session, record) -> None:
    kind = record.WhichOneof("log_type")
    if kind == "predict_log":
        request = record.predict_log.request
        signature = session.find(request.model_spec.signature_name)
        inputs = tensors.read_inputs(request.inputs, signature, _BYTES)
        outputs = tuple(request.output_filter) or tuple(signature.outputs)
    elif kind in ("classify_log", "regress_log"):
        request = getattr(record, kind).request
        signature = session.find(request.model_spec.signature_name)
        array = np.array(examples.from_proto(request.input), object)
        inputs = {name: array for name in signature.inputs}
        outputs = tuple(signature.outputs)
    else:
        raise ServingError("UNIMPLEMENTED", f"records of kind {kind} are not replayed")
    session.run(signature, inputs, outputs, timeout=_TIMEOUT)
