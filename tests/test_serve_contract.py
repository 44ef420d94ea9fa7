"""TensorFlow Serving's contract, by clients that are not ours.

TFS_URL=host:port (REST), TFS_GRPC=host:port and TFS_MODEL point the same tests at any server, such
as tensorflow/serving, that serves what `python tests/serve_models.py FOLDER` writes.
"""

import base64

import numpy as np
import pytest
import serve_models
import tensorflow as tf

grpc = pytest.importorskip("grpc", reason="gRPC's tests need tensorflow-serving-api")
apis = pytest.importorskip("tensorflow_serving.apis")

from google.protobuf import text_format  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

X = [[1.0, 2.0, 3.0], [-4.5, 0.25, 1e6]]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """(REST, gRPC, model) of a server with version 1."""
    with serve_models.contract(tmp_path_factory.mktemp("models")) as address:
        yield address


@pytest.fixture(scope="module")
def url(address):
    return f"http://{address[0]}/v1/models/{address[2]}"


@pytest.fixture(scope="module")
def channel(address):
    with grpc.insecure_channel(address[1]) as channel:
        yield channel


@pytest.fixture(scope="module")
def predictor(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def _predict(address, signature="", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = address[2]
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def _code(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    return caught.value.code(), caught.value.details()


# REST


def test_row_form_answers_row_by_row(url):
    status, answer = serve_models.ask(f"{url}:predict", {"instances": X})
    assert status == 200
    assert list(answer) == ["predictions"]
    np.testing.assert_array_equal(np.float32(answer["predictions"]), serve_models.expected(X, 1))


def test_row_form_with_named_inputs_answers_with_named_outputs(url):
    rows = [{"a": [1, 2], "x": X[0]}, {"x": X[1], "a": [3, 4]}]
    document = {"signature_name": "two", "instances": rows}
    status, answer = serve_models.ask(f"{url}:predict", document)
    assert status == 200, answer
    assert answer["predictions"][0] == {"product": [10, 20], "total": 7.0}
    assert answer["predictions"][1]["product"] == [30, 40]


@pytest.mark.parametrize("inputs", [X, {"x": X}])
def test_column_form_answers_in_columns(url, inputs):
    status, answer = serve_models.ask(f"{url}/versions/1:predict", {"inputs": inputs})
    assert status == 200
    np.testing.assert_array_equal(np.float32(answer["outputs"]), serve_models.expected(X, 1))


def test_several_outputs_are_named_in_column_form(url):
    document = {"signature_name": "two", "inputs": {"a": [[1, 2]], "x": [X[0]]}}
    _, answer = serve_models.ask(f"{url}:predict", document)
    assert answer == {"outputs": {"product": [[10, 20]], "total": [7.0]}}


def test_bytes_go_as_base64_and_come_back_so_where_the_name_says_bytes(url):
    raw = bytes(range(256))
    document = {
        "signature_name": "echo",
        "instances": ["héllo", {"b64": base64.b64encode(raw).decode()}],
    }
    status, answer = serve_models.ask(f"{url}:predict", {**document, "instances": ["héllo"]})
    assert status == 200
    coded = base64.b64encode("héllo".encode()).decode()
    assert answer["predictions"] == [{"said": "héllo", "said_bytes": {"b64": coded}}]
    pixels = tf.io.encode_png(np.full((4, 5, 3), (10, 20, 30), np.uint8)).numpy()
    b64 = {"b64": base64.b64encode(pixels).decode()}
    for instances in ([b64], [{"image_bytes": b64}]):
        document = {"signature_name": "picture", "instances": instances}
        _, answer = serve_models.ask(f"{url}:predict", document)
        assert answer == {"predictions": [[10.0, 20.0, 30.0]]}


def test_kinds_of_numbers_keep_their_value(url):
    inputs = {"flag": [True], "small": [254], "large": [2**53], "double": [1.0]}
    document = {"signature_name": "kinds", "inputs": inputs}
    _, answer = serve_models.ask(f"{url}:predict", document)
    want = {"not": [False], "small": [255], "large": [2**53 + 1], "double": [1 / 3]}
    assert answer == {"outputs": want}


def test_nan_and_infinity_pass_as_tokens(url):
    document = {"instances": [[float("nan"), float("inf"), -float("inf")]]}
    status, answer = serve_models.ask(f"{url}:predict", document)
    assert status == 200
    got = answer["predictions"][0]
    assert np.isnan(got[0])
    assert got[1:] == [float("inf"), -float("inf")]


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"instances": X, "inputs": X},
        {"instances": []},
        {"instances": 1},
        {"instances": [[1, 2, 3], [1, 2]]},
        {"instances": [[1, 2]]},
        {"instances": [["a", "b", "c"]]},
        {"instances": [[True, 1, 2]]},
        {"instances": [{"wrong": [1, 2, 3]}]},
        {"instances": [[1, 2, 3], {"x": [1, 2, 3]}]},
        {"inputs": {"wrong": X}},
        {"inputs": {"x": X, "more": X}},
        {"instances": X, "signature_name": "nowhere"},
        {"instances": X, "signature_name": 3},
        {"signature_name": "two", "instances": X},
        {"signature_name": "two", "inputs": X},
        {"signature_name": "total", "instances": X},
        {"signature_name": "kinds", "inputs": {"flag": [True], "small": [1.5], "large": [1]}},
        {"signature_name": "echo", "instances": [{"b64": "%%%"}]},
        {"signature_name": "echo", "instances": [1]},
        {"signature_name": "picture", "instances": ["no picture"]},
    ],
)
def test_wrong_requests_are_400_with_an_error(url, document):
    status, answer = serve_models.ask(f"{url}:predict", document)
    assert status == 400, answer
    assert list(answer) == ["error"]
    assert answer["error"]


def test_broken_json_is_400(url):
    for data in (b"", b"{", b'{"instances": [1,}', b"\xff\xfe", b"[" * 100_000):
        status, answer = serve_models.ask(f"{url}:predict", data=data)
        assert status == 400
        assert "JSON" in answer["error"]


def test_a_result_without_batch_is_given_in_column_form(url):
    _, answer = serve_models.ask(
        f"{url}:predict", {"signature_name": "total", "inputs": [[1, 2, 3]]}
    )
    assert answer == {"outputs": 6.0}


def test_an_error_of_the_model_is_400_with_its_words(url):
    inputs = {"a": [[1, 1], [1, -1]], "x": X}
    status, answer = serve_models.ask(f"{url}:predict", {"signature_name": "two", "inputs": inputs})
    assert status == 400
    assert "row 1 is negative" in answer["error"]


def test_unknown_models_and_versions_are_404_and_labels_400(url):
    other = url.rsplit("/", 1)[0] + "/absent"
    for path in (f"{other}:predict", f"{url}/versions/99:predict"):
        status, answer = serve_models.ask(path, {"instances": X})
        assert status == 404
        assert answer["error"].startswith("Servable not found for request: ")
    for path in (other, f"{url}/versions/99"):
        status, answer = serve_models.ask(path)
        assert status == 404
        assert answer["error"].startswith("Could not find")
    status, answer = serve_models.ask(f"{url}/labels/stable:predict", {"instances": X})
    assert status == 400
    assert answer["error"] == "Unrecognized servable version label: stable"


def test_malformed_paths_are_400(url):
    base = url.rsplit("/v1/", 1)[0]
    for path in ("/v1/models/", "/v1/elsewhere", "/v1/models/any/versions/x"):
        status, answer = serve_models.ask(base + path)
        if path == "/v1/models/" and status == 200:
            continue  # our list of models
        assert status == 400
        assert "error" in answer
    status, answer = serve_models.ask(f"{url}:explode", {"instances": X})
    assert status == 400
    assert answer["error"].startswith("Malformed request: POST /v1/models/")


def test_paths_are_read_without_case(url):
    base, name = url.rsplit("/v1/models/", 1)
    status, _ = serve_models.ask(f"{base}/V1/Models/{name}:PREDICT", {"instances": X})
    assert status == 200


def test_status_and_metadata(url, address):
    status, answer = serve_models.ask(url)
    assert status == 200
    row = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    assert answer == {"model_version_status": [row]}
    assert serve_models.ask(f"{url}/versions/1")[1] == answer
    for path in (f"{url}/metadata", f"{url}/versions/1/metadata"):
        status, answer = serve_models.ask(path)
        assert status == 200
        assert answer["model_spec"] == {"name": address[2], "signature_name": "", "version": "1"}
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        assert {"serving_default", "two", "classify"} <= set(signatures)
        x = signatures["serving_default"]["inputs"]["x"]
        assert x["dtype"] == "DT_FLOAT"
        assert [dim["size"] for dim in x["tensor_shape"]["dim"]] == ["-1", "3"]
        assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"


def test_classify_and_regress_over_rest(url):
    examples = [{"x": [0.5, 0.25, 0.125]}, {"x": [1.0, 2.0, 4.0]}]
    document = {"signature_name": "classify", "examples": examples}
    status, answer = serve_models.ask(f"{url}:classify", document)
    assert status == 200, answer
    first = [["ant", 0.5], ["bee", 0.25], ["cow", 0.125]]
    assert answer == {"results": [first, [["ant", 1.0], ["bee", 2.0], ["cow", 4.0]]]}
    document = {"signature_name": "regress", "context": {"x": [1.0, 1.0, 1.0]}, "examples": [{}]}
    assert serve_models.ask(f"{url}:regress", document) == (200, {"results": [3.0]})


@pytest.mark.parametrize(
    ("verb", "word"), [("classify", "classification"), ("regress", "regression")]
)
def test_signatures_of_another_method_are_refused(url, verb, word):
    status, answer = serve_models.ask(f"{url}:{verb}", {"examples": [{"x": [1.0, 2.0, 3.0]}]})
    assert status == 400
    assert answer["error"] == (
        f"Expected {word} signature method_name to be tensorflow/serving/{verb}. Was:"
        " tensorflow/serving/predict"
    )


# gRPC, by the official stubs


def test_grpc_predict(predictor, address):
    response = predictor.Predict(_predict(address, x=np.float32(X)), timeout=60)
    got = tf.make_ndarray(response.outputs["y"])
    np.testing.assert_array_equal(got, serve_models.expected(X, 1))
    assert response.model_spec.name == address[2]
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"


def test_grpc_output_filter(predictor, address):
    request = _predict(address, "two", a=np.int32([[1, 2]]), x=np.float32(X[:1]))
    assert set(predictor.Predict(request, timeout=60).outputs) == {"product", "total"}
    request.output_filter.append("total")
    assert set(predictor.Predict(request, timeout=60).outputs) == {"total"}
    request.output_filter.append("nothing")
    code, details = _code(predictor.Predict, request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "output tensor alias not found in signature: nothing" in details


def test_grpc_strings(predictor, address):
    request = _predict(address, "echo", text=np.array([b"\xff\x00", b""], object))
    response = predictor.Predict(request, timeout=60)
    assert list(response.outputs["said"].string_val) == [b"\xff\x00", b""]


def test_grpc_errors_have_tensorflow_servings_codes(predictor, address):
    x = np.float32(X)
    status = grpc.StatusCode
    unknown = _predict((0, 0, "absent"), x=x)
    assert _code(predictor.Predict, unknown)[0] == status.NOT_FOUND
    assert "Servable not found for request: Latest(absent)" in _code(predictor.Predict, unknown)[1]
    version = _predict(address, x=x)
    version.model_spec.version.value = 99
    assert _code(predictor.Predict, version)[0] == status.NOT_FOUND
    label = _predict(address, x=x)
    label.model_spec.version_label = "stable"
    assert _code(predictor.Predict, label)[0] == status.INVALID_ARGUMENT
    code, details = _code(predictor.Predict, _predict(address, "nowhere", x=x))
    assert code == status.FAILED_PRECONDITION
    assert 'Serving signature key "nowhere" not found' in details
    for wrong in ({"y": x}, {"x": x, "y": x}, {}, {"x": x.astype(np.float64)}, {"x": x[:, :2]}):
        assert _code(predictor.Predict, _predict(address, **wrong))[0] == status.INVALID_ARGUMENT
    assert _code(predictor.Predict, predict_pb2.PredictRequest())[0] == status.INVALID_ARGUMENT
    assert _code(predictor.MultiInference, inference_pb2.MultiInferenceRequest())[0] in (
        status.UNIMPLEMENTED,
        status.INVALID_ARGUMENT,
    )


def test_grpc_classify_and_regress(predictor, address):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = address[2]
    assert _code(predictor.Classify, request)[0] == grpc.StatusCode.INVALID_ARGUMENT  # empty
    values = request.input.example_list.examples.add().features.feature["x"].float_list.value
    values.extend([0.5, 0.25, 0.125])
    code, details = _code(predictor.Classify, request)  # serving_default is for Predict
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "Expected classification signature method_name" in details
    request.model_spec.signature_name = "classify"
    (row,) = predictor.Classify(request, timeout=60).result.classifications
    assert [(c.label, c.score) for c in row.classes] == [
        ("ant", 0.5),
        ("bee", 0.25),
        ("cow", 0.125),
    ]
    request = regression_pb2.RegressionRequest(input=request.input, model_spec=request.model_spec)
    request.model_spec.signature_name = "regress"
    (row,) = predictor.Regress(request, timeout=60).result.regressions
    assert row.value == 0.875


def test_grpc_metadata(predictor, address):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = address[2]
    assert _code(predictor.GetModelMetadata, request)[0] == grpc.StatusCode.INVALID_ARGUMENT
    request.metadata_field.append("weights")
    assert _code(predictor.GetModelMetadata, request)[0] == grpc.StatusCode.INVALID_ARGUMENT
    request.metadata_field[:] = ["signature_def"]
    response = predictor.GetModelMetadata(request, timeout=60)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    shape = signatures.signature_def["serving_default"].inputs["x"].tensor_shape
    assert (
        text_format.MessageToString(shape, as_one_line=True) == "dim { size: -1 } dim { size: 3 }"
    )
    assert response.model_spec.version.value == 1


def test_grpc_status(channel, address):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = address[2]
    (row,) = stub.GetModelStatus(request, timeout=60).model_version_status
    assert (row.version, row.state, row.status.error_code) == (1, row.AVAILABLE, 0)
    request.model_spec.version.value = 99
    assert _code(stub.GetModelStatus, request)[0] == grpc.StatusCode.NOT_FOUND
