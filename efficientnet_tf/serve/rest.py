"""The paths of TensorFlow Serving's REST API (http_rest_api_handler.cc).

    GET   /v1/models/NAME[/versions/N|/labels/L]             state of the versions
    GET   /v1/models/NAME[/versions/N|/labels/L]/metadata    signatures
    POST  /v1/models/NAME[/versions/N|/labels/L]:predict, :classify, :regress

and one that TensorFlow Serving does not have, `GET /v1/models`, which names the models.
"""

import json
import logging
import re
from urllib.parse import unquote

from google.protobuf import json_format

from efficientnet_tf.serve import examples, json_tensor
from efficientnet_tf.serve.errors import ServingError, invalid
from efficientnet_tf.serve.http_messages import Request, Response
from efficientnet_tf.serve.logs import log
from efficientnet_tf.serve.service import Service, Target

_WHICH = r"(?i:/v1/models)/([^/:]+)(?:(?i:/versions)/([0-9]+)|(?i:/labels)/([^/:]+))?"
_ACT = re.compile(_WHICH + r":(?i:(classify|regress|predict))")
_ASK = re.compile(_WHICH + r"(?i:(/metadata))?")
_LIST = re.compile(r"(?i:/v1/models)/?")


def answer(service: Service, request: Request) -> Response:
    """Answers a request whose path starts with /v1/; a wrong one by {"error": ...}."""
    try:
        return Response(200, _route(service, request))
    except ServingError as error:
        return Response(error.http_status, json_tensor.write_error(error.message))
    except Exception as error:
        log("request failed", level=logging.ERROR, exc_info=True, path=request.path[:200])
        return Response(500, json_tensor.write_error(f"{type(error).__name__}: {error}"))


def _route(service: Service, request: Request) -> bytes:
    if request.method == "POST" and (match := _ACT.fullmatch(request.path)):
        *which, verb = match.groups()
        return _act(service, _target(*which), verb.lower(), request.body)
    if request.method in ("GET", "HEAD"):
        if _LIST.fullmatch(request.path):
            return _dump({"models": [{"name": service.model}]})
        if match := _ASK.fullmatch(request.path):
            *which, metadata = match.groups()
            target = _target(*which)
            return _metadata(service, target) if metadata else _status(service, target)
    raise invalid(f"Malformed request: {request.method} {request.path[:200]}")


def _target(name: str, version: str | None, label: str | None) -> Target:
    if version is not None and int(version) >= 2**63:
        raise invalid(f"Failed to convert version: {version} to numeric.")
    return Target(
        unquote(name),
        None if version is None else int(version),
        None if label is None else unquote(label),
    )


def _act(service: Service, target: Target, verb: str, body: bytes) -> bytes:
    api = verb.capitalize()
    with service.measured(api, "REST", target):
        document = json_tensor.parse(body, max_containers=service.limits.max_containers)
        signature = json_tensor.signature_name(document)
        target = Target(target.name, target.version, target.label, signature)
        if verb == "predict":
            predicted = service.predict(
                target, lambda signature: json_tensor.read_inputs(document, signature)
            )
            return json_tensor.write(predicted.outputs, row=json_tensor.is_row(document))
        serialized = examples.from_json(document)
        if verb == "regress":
            _, values = service.regress(target, serialized)
            return _dump({"results": values})
        _, results = service.classify(target, serialized)
        pairs = [[[label.decode("utf-8", "replace"), s] for label, s in row] for row in results]
        return _dump({"results": pairs})


def _status(service: Service, target: Target) -> bytes:
    statuses = [
        {
            "version": str(status.version),
            "state": status.state,
            "status": {
                "error_code": status.error.code if status.error else "OK",
                "error_message": status.error.message if status.error else "",
            },
        }
        for status in service.statuses(target)
    ]
    return _dump({"model_version_status": statuses})


def _metadata(service: Service, target: Target) -> bytes:
    with service.measured("GetModelMetadata", "REST", target):
        metadata = service.metadata(target)
        signatures = {
            name: json_format.MessageToDict(
                proto,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            for name, proto in metadata.signatures.items()
        }
        spec = {"name": target.name, "signature_name": "", "version": str(metadata.version)}
        return _dump(
            {
                "model_spec": spec,
                "metadata": {"signature_def": {"signature_def": signatures}},
            }
        )


def _dump(value) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8")
