"""Serves a SavedModel with NVIDIA Triton, or asks one that is served; see test_triton.py.

It runs under a Python that has nvidia-pytriton and TensorFlow, and imports nothing of this project:

    triton_model.py serve FOLDER HTTP_PORT GRPC_PORT METRICS_PORT   until its input ends
    triton_model.py ask HTTP_PORT GRPC_PORT IN.npz OUT.npz
"""

import sys

import numpy as np

SIGNATURES = {"bytes": ("serving_default", "image_bytes"), "pixels": ("images", "images")}


def serve(folder, http_port, grpc_port, metrics_port):
    import tensorflow as tf
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    loaded = tf.saved_model.load(folder)
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        allow_metrics=True,
    )
    with Triton(config=config) as triton:
        for name, (signature, argument) in SIGNATURES.items():
            function = loaded.signatures[signature]
            spec = function.structured_input_signature[1][argument]
            text = spec.dtype == tf.string
            shape = (1,) if text else spec.shape.as_list()[1:]
            outputs = [
                Tensor(
                    name=key,
                    dtype=np.bytes_ if value.dtype == tf.string else value.dtype.as_numpy_dtype,
                    shape=[-1 if size is None else size for size in value.shape.as_list()[1:]],
                )
                for key, value in function.structured_outputs.items()
            ]
            triton.bind(
                model_name=name,
                infer_func=_answer(function, argument, text),
                inputs=[
                    Tensor(
                        name=argument,
                        dtype=np.bytes_ if text else spec.dtype.as_numpy_dtype,
                        shape=[-1 if size is None else size for size in shape],
                    )
                ],
                outputs=outputs,
                config=ModelConfig(max_batch_size=8),
                strict=True,
            )
        triton.run()
        print("ready", flush=True)
        sys.stdin.read()


def _answer(function, argument, text):
    import tensorflow as tf
    from pytriton.decorators import batch

    @batch
    def answer(**inputs):
        value = inputs[argument]
        tensor = tf.constant(value[:, 0]) if text else tf.constant(value)
        answers = function(**{argument: tensor})
        return {
            key: np.char.array(output.numpy()) if output.dtype == tf.string else output.numpy()
            for key, output in answers.items()
        }

    return answer


def ask(http_port, grpc_port, questions, answers):
    """Asks over both protocols: everything at once, picture by picture at a time, and rubbish."""
    import tritonclient.grpc
    import tritonclient.http

    given = np.load(questions, allow_pickle=True)
    pictures = given["bytes"][:, np.newaxis]
    got = {}
    for protocol, library, port, options in (
        ("http", tritonclient.http, http_port, {"concurrency": len(pictures)}),
        ("grpc", tritonclient.grpc, grpc_port, {}),
    ):
        client = library.InferenceServerClient(f"127.0.0.1:{port}", **options)
        got[f"{protocol}/ready"] = np.array(client.is_server_ready())
        for name, values in (("bytes", pictures), ("pixels", given["pixels"])):
            question = _question(library, name, values)
            got |= _arrays(f"{protocol}/{name}", client.infer(name, question))
        if protocol == "http":
            running = [
                client.async_infer("bytes", _question(library, "bytes", pictures[i : i + 1]))
                for i in range(len(pictures))
            ]
            for index, request in enumerate(running):
                got |= _arrays(f"single/{index}", request.get_result())
        rubbish = np.array([[pictures[0, 0]], [b"no picture"]], object)
        try:
            client.infer("bytes", _question(library, "bytes", rubbish))
        except tritonclient.utils.InferenceServerException as error:
            got[f"{protocol}/error"] = np.array(error.message())
        client.close()
    np.savez(answers, **got)


def _question(library, name, values):
    kind = "BYTES" if values.dtype == object else "FP32"
    tensor = library.InferInput(SIGNATURES[name][1], values.shape, kind)
    tensor.set_data_from_numpy(values)
    return [tensor]


def _arrays(prefix, result):
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    names = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
    arrays = {f"{prefix}/{name}": result.as_numpy(name) for name in names}
    return {
        key: np.char.decode(array.astype(bytes)) if array.dtype == object else array
        for key, array in arrays.items()
    }


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        ask(*map(int, sys.argv[2:4]), *sys.argv[4:])
