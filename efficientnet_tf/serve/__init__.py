"""A development server that speaks TensorFlow Serving's API over any SavedModel.

It is for trying an export, for writing and testing clients, and for demonstrations on one's own
machine. Production is `tensorflow/serving` on the same folder: it takes the same requests and
gives the same answers, and is faster, hardened and watched by many.

`server.start(folder, name=...)` starts it, `scripts/serve.py` does so from the command line.

    repository   versions of one model: found, loaded, served, unloaded
    session      one version: TensorFlow's C++ session, without Keras
    batching     a bounded queue in front of the sessions, which merges requests
    service      what REST and gRPC have in common: find, read, check, run
    rest, json_tensor, examples    /v1/models/... and its JSON
    http, http_messages, web    connections with limits; what is served beside the API
    grpc_api     PredictionService and ModelService
    limits, pictures     what a request may cost; a picture's size from its first bytes
    metrics, logs        Prometheus' text format; JSON lines

REST needs nothing but TensorFlow. gRPC and warm-up records need tensorflow-serving-api, which
`pip install "efficientnet_tf[serving]"` brings.
"""
