"""TensorFlow Serving's contract by ovmsclient, Intel's client; see test_serve_contract.py."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import serve_models

X = [[1.0, 2.0, 3.0], [-4.5, 0.25, 1e6]]

_OVMS = """
import json, sys
import numpy as np
rest, grpc_address, model, x = json.loads(sys.argv[1])
from ovmsclient import make_grpc_client, make_http_client
found = {}
for name, client in (
    ("rest", make_http_client(rest)), ("grpc", make_grpc_client(grpc_address))
):
    row = {}
    for version in (0, 1):
        inputs = {"x": np.array(x, np.float32)}
        answer = client.predict(inputs=inputs, model_name=model, model_version=version)
        row[f"predict{version}"] = np.asarray(answer).tolist()
    status = client.get_model_status(model_name=model)
    row["state"] = {str(k): [v["state"], v["error_code"]] for k, v in status.items()}
    metadata = client.get_model_metadata(model_name=model)
    row["metadata"] = json.dumps(metadata, default=str)
    try:
        client.predict(inputs=inputs, model_name="absent")
    except Exception as error:
        row["error"] = type(error).__name__
    found[name] = row
print(json.dumps(found))
"""


@pytest.mark.backends
def test_ovmsclient_gets_the_same_answers(tmp_path):
    """In a process of its own: its protos have the names of the official ones."""
    python = os.environ.get("OVMS_PYTHON", sys.executable)
    probe = subprocess.run([python, "-c", "import ovmsclient"], capture_output=True, timeout=120)
    if probe.returncode:
        pytest.skip(f"{python} (OVMS_PYTHON) has no ovmsclient.")
    pytest.importorskip("tensorflow_serving.apis", reason="gRPC needs tensorflow-serving-api")
    with serve_models.contract(tmp_path) as address:
        command = [python, "-c", _OVMS, json.dumps([*address, X])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for row in found.values():
        for version in (0, 1):
            got = np.float32(row[f"predict{version}"])
            np.testing.assert_array_equal(got, serve_models.expected(X, 1))
        assert row["state"] == {"1": ["AVAILABLE", 0]}
        assert "serving_default" in row["metadata"] or '"x"' in row["metadata"]
        assert row["error"] == "ModelNotFoundError"
