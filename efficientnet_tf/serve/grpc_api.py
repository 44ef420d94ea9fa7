"""TensorFlow Serving's gRPC services: PredictionService and ModelService.

The messages and stubs are those of tensorflow-serving-api. MultiInference and
HandleReloadConfigRequest are UNIMPLEMENTED.
"""

import concurrent.futures
import logging
import math
import time
from collections.abc import Callable

from efficientnet_tf.serve import examples, tensors
from efficientnet_tf.serve.errors import ServingError, invalid
from efficientnet_tf.serve.limits import Limits
from efficientnet_tf.serve.logs import log
from efficientnet_tf.serve.repository import STATES
from efficientnet_tf.serve.service import Service, Target

_LONGEST_MESSAGE = 4000  # bytes of an error: it travels in a header


def start(service: Service, *, host: str, port: int, limits: Limits):
    """Starts a gRPC server.

    Args:
        service: answers.
        host: address.
        port: 0 for any free one.
        limits: of requests.

    Returns:
        (grpc.Server, port). The server stops when nothing refers to it any more.

    Raises:
        ImportError: tensorflow-serving-api is not installed.
        OSError: the port is taken, or not allowed.
    """
    try:
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
    except ImportError as error:
        raise ImportError(
            'gRPC needs tensorflow-serving-api: pip install "efficientnet_tf[serving]", or serve'
            " REST alone"
        ) from error
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(limits.max_requests, "serve-grpc"),
        maximum_concurrent_rpcs=limits.max_requests,  # more are RESOURCE_EXHAUSTED
        options=(
            ("grpc.so_reuseport", 0),  # a second server on the port must fail
            ("grpc.max_receive_message_length", limits.max_body),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", limits.max_header),
            ("grpc.max_concurrent_streams", limits.max_requests),
            ("grpc.server_handshake_timeout_ms", round(1000 * limits.header_timeout)),
            ("grpc.max_connection_idle_ms", round(1000 * max(60.0, limits.idle_timeout))),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ),
    )
    prediction, model = _servicers(service)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(model, server)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"gRPC cannot listen on {host}:{port}: {error}") from None
    if not bound:
        raise OSError(f"gRPC cannot listen on {host}:{port}")
    server.start()
    return server, bound


def _servicers(service: Service):
    """Servicers of PredictionService and ModelService."""
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            return _answer(service, "Predict", _predict, request, context)

        def Classify(self, request, context):
            return _answer(service, "Classify", _classify, request, context)

        def Regress(self, request, context):
            return _answer(service, "Regress", _regress, request, context)

        def GetModelMetadata(self, request, context):
            return _answer(service, "GetModelMetadata", _metadata, request, context)

    class Model(model_service_pb2_grpc.ModelServiceServicer):
        def GetModelStatus(self, request, context):
            return _answer(service, "GetModelStatus", _status, request, context)

    return Prediction(), Model()


def _answer(service: Service, api: str, function: Callable, request, context):
    """Calls a function, logs it, and turns an error into a gRPC status."""
    import grpc

    start = time.perf_counter()
    target = _target(request.model_spec)
    code, message, response = "OK", "", None
    try:
        with service.measured(api, "GRPC", target):
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            response = function(service, target, request, context)
    except ServingError as error:
        code, message = error.code, error.message
    except Exception as error:
        log("request failed", level=logging.ERROR, exc_info=True, method=api)
        code, message = "INTERNAL", f"{type(error).__name__}: {error}"
    log(
        "request",
        method=f"grpc {api}",
        status=code,
        ms=round(1000 * (time.perf_counter() - start), 2),
        bytes_in=request.ByteSize(),
        peer=context.peer(),
    )
    if code != "OK":
        shown = message.encode("utf-8")[:_LONGEST_MESSAGE].decode("utf-8", "ignore")
        context.abort(getattr(grpc.StatusCode, code), shown)
    return response


def _target(spec) -> Target:
    version = spec.version.value if spec.HasField("version") else None
    label = spec.version_label if spec.WhichOneof("version_choice") == "version_label" else None
    return Target(spec.name, version, label, spec.signature_name)


def _waiting(context) -> dict:
    """The client's deadline, and its wish to cancel."""
    remaining = context.time_remaining()
    timeout = None if remaining is None or math.isinf(remaining) else max(0.0, remaining)

    def watch(future):
        # False: the call has ended already.
        if not context.add_callback(future.cancel):
            future.cancel()

    return {"timeout": timeout, "watch": watch}


def _name_spec(spec, target: Target, version: int, signature: str = "") -> None:
    spec.name = target.name
    spec.version.value = version
    spec.signature_name = signature


def _predict(service: Service, target: Target, request, context):
    from tensorflow_serving.apis import predict_pb2

    answer = service.predict(
        target,
        lambda signature: tensors.read_inputs(request.inputs, signature, service.limits.max_body),
        outputs=tuple(request.output_filter),
        **_waiting(context),
    )
    response = predict_pb2.PredictResponse()
    _name_spec(response.model_spec, target, answer.version, answer.signature.name)
    for name, array in answer.outputs.items():
        dtype = answer.signature.outputs[name].dtype
        response.outputs[name].CopyFrom(tensors.write(array, dtype))
    return response


def _classify(service: Service, target: Target, request, context):
    from tensorflow_serving.apis import classification_pb2

    serialized = examples.from_proto(request.input)
    answer, rows = service.classify(target, serialized, **_waiting(context))
    response = classification_pb2.ClassificationResponse()
    _name_spec(response.model_spec, target, answer.version, answer.signature.name)
    for row in rows:
        classes = response.result.classifications.add().classes
        for label, score in row:
            classes.add(label=label.decode("utf-8", "replace"), score=score)
    return response


def _regress(service: Service, target: Target, request, context):
    from tensorflow_serving.apis import regression_pb2

    serialized = examples.from_proto(request.input)
    answer, values = service.regress(target, serialized, **_waiting(context))
    response = regression_pb2.RegressionResponse()
    _name_spec(response.model_spec, target, answer.version, answer.signature.name)
    for value in values:
        response.result.regressions.add(value=value)
    return response


def _metadata(service: Service, target: Target, request, context):
    from tensorflow_serving.apis import get_model_metadata_pb2

    del context
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
    metadata = service.metadata(target)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, proto in metadata.signatures.items():
        signatures.signature_def[name].CopyFrom(proto)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    _name_spec(response.model_spec, target, metadata.version)
    response.metadata["signature_def"].Pack(signatures)
    return response


def _status(service: Service, target: Target, request, context):
    from tensorflow_serving.apis import get_model_status_pb2

    del request, context
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in service.statuses(target):
        row = response.model_version_status.add(version=status.version, state=STATES[status.state])
        if status.error:
            row.status.error_code = status.error.number
            row.status.error_message = status.error.message
    return response
