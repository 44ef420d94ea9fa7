"""Metadata of TFLite files: what others wrote is read, what is written is read back, errors."""

import base64
import io
import json
import zipfile

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from efficientnet_tf import preprocessing
from efficientnet_tf.export import metadata, tflite, tflite_file

NAMES = ("ant", "bee, of honey", "größe", "dog")
RULE = preprocessing.lite_eval(40, labels=None)

# Written by the classes that MediaPipe 1.2.2 generates from the schema
# (mediapipe.tasks.metadata.metadata_schema_py_generated), not by ours.
FOREIGN = (
    "HAAAAE0wMDEUABwAGAAUABAADAAIAAAAAAAEABQAAAAYAAAAIAAAACgAAADEAQAAyAEAANQBAAAFAAAAMS4wLjAAAAAH"
    "AAAAc29tZW9uZQABAAAAEAAAAAwAEAAMAAAACAAEAAwAAAAMAAAAkAAAAHQBAAABAAAAGAAAAAAAEgAQAAwAAAAAAAgA"
    "AAAAAAQAEgAAAAwAAABEAAAAVAAAAAEAAAAQAAAAAAAKABAADAAIAAcACgAAAAAAAAIIAAAADAAAAAEAAABkAAAACQAA"
    "AG5hbWVzLnR4dAAAAFD///8MAAAAAAAAAQQABAAEAAAABQAAAHNjb3JlAAAAAQAAABQAAAAQABgAFAAAABAADAAIAAQA"
    "EAAAABQAAAAsAAAAYAAAAJAAAACwAAAAjP///wgAAAAMAAAAAQAAAAAAgL8BAAAAAACAPwEAAAAEAAAAxP///wgAAAAA"
    "AAABvP///wgAAAAUAAAAAwAAAAAAAD8AAABAAACAQAEAAAAAAP9C9P///xAAAAAAAAACCAAMAAsABAAIAAAAEAAAAAAA"
    "AAEIAAwACAAEAAgAAADIAAAALAEAAAIAAAAUAAAABAAAAAYAAABoZWlnaHQAAAUAAABiYXRjaAAAAAcAAABwaWN0dXJl"
    "AAQAAABtYWluAAAAAAEAAAA3AAAACwAAAHR3byBvZiB0aGVtAAcAAABmbG93ZXJzAA=="
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A file whose metadata is replaced in these tests."""
    images = keras.Input((40, 24, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3)(images))
    model = keras.Model(images, keras.layers.Dense(4, activation="softmax")(x), name="small")
    path = tmp_path_factory.mktemp("metadata") / "model.tflite"
    tflite.write(model, path, class_names=NAMES, rule=RULE, description="of animals")
    return path.read_bytes()


def test_metadata_of_others_is_read(plain):
    model = tflite_file.read(plain)
    entry = next(m for m in model.metadata if m.name == b"TFLITE_METADATA")
    model.buffers[entry.buffer].data = np.frombuffer(base64.b64decode(FOREIGN), np.uint8)
    stream = io.BytesIO(tflite_file.dump(model))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("names.txt", "rose\ntulip\n")
    value, labels = metadata.read(stream.getvalue())
    assert labels == ("rose", "tulip")
    assert value == {
        "name": "flowers",
        "description": "two of them",
        "version": "7",
        "author": "someone",
        "min_parser_version": "1.0.0",
        "subgraph_metadata": [
            {
                "name": "main",
                "input_tensor_metadata": [
                    {
                        "name": "picture",
                        "dimension_names": ["batch", "height"],
                        "content": {
                            "properties": {
                                "color_space": 1,
                                "default_size": {"width": 300, "height": 200},
                            }
                        },
                        "process_units": [{"options": {"mean": [127.5], "std": [0.5, 2.0, 4.0]}}],
                        "stats": {"max": [1.0], "min": [-1.0]},
                    }
                ],
                "output_tensor_metadata": [
                    {
                        "name": "score",
                        "content": {"properties": {}},
                        "associated_files": [{"name": "names.txt", "description": "d", "type": 2}],
                    }
                ],
            }
        ],
        "files": {"names.txt": "rose\ntulip\n"},
    }


def test_what_is_written_is_read_back(plain):
    value, labels = metadata.read(plain)
    assert labels == NAMES
    assert value["name"] == "small"
    assert value["description"] == "of animals"
    (graph,) = value["subgraph_metadata"]
    (images,), (scores,) = graph["input_tensor_metadata"], graph["output_tensor_metadata"]
    assert images["content"]["properties"] == {
        "color_space": 1,
        "default_size": {"width": 24, "height": 40},
    }
    assert images["process_units"] == [{"options": {"mean": [0.0], "std": [1.0]}}]
    assert images["stats"] == {"max": [255.0], "min": [0.0]}
    assert scores["stats"] == {"max": [1.0], "min": [0.0]}
    rule = json.loads(value["files"]["preprocessing.json"])
    assert preprocessing.Preprocessing.from_dict(rule) == RULE


def test_labels_are_stored_uncompressed_where_android_reads_them(plain):
    with zipfile.ZipFile(io.BytesIO(plain)) as archive:
        entry = archive.getinfo("labels.txt")
        assert entry.compress_type == zipfile.ZIP_STORED
        assert archive.testzip() is None
        assert archive.read(entry).decode().splitlines() == list(NAMES)
    text = "\n".join(NAMES).encode()
    assert plain.count(text) == 1
    assert plain.index(text) > entry.header_offset > 1000  # behind the model


def test_the_model_answers_as_before_and_metadata_is_replaced_not_added(plain):
    renamed = metadata.add(plain, class_names=("a", "b", "c", "d"), name="other")
    assert metadata.add(renamed, class_names=("a", "b", "c", "d"), name="other") == renamed
    value, labels = metadata.read(renamed)
    assert (value["name"], labels) == ("other", ("a", "b", "c", "d"))
    assert "description" not in value
    assert list(value["files"]) == ["labels.txt"]
    assert renamed.count(b"TFLITE_METADATA") == 1
    image = np.random.default_rng(0).uniform(0, 255, (1, 40, 24, 3)).astype(np.float32)
    answers = [_answers(content, image) for content in (plain, renamed)]
    assert np.array_equal(*answers)
    assert answers[0].std() > 0


def test_files_without_labels_and_without_metadata(plain):
    value, labels = metadata.read(metadata.add(plain))
    assert labels == ()
    assert value["files"] == {}
    model = tflite_file.read(plain)
    model.metadata = [m for m in model.metadata if m.name != b"TFLITE_METADATA"]
    with pytest.raises(ValueError, match=r"no metadata: its buffer TFLITE_METADATA is missing"):
        metadata.read(tflite_file.dump(model))
    assert metadata.read(metadata.add(tflite_file.dump(model), class_names=NAMES))[1] == NAMES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:3], r"must name 4 classes. Received: 3 names"),
        ((*NAMES, "fly"), r"must name 4 classes. Received: 5 names"),
        ((*NAMES[:3], " "), r"not empty. Received for class 3: ' '"),
        ((*NAMES[:3], "dog\r\ncat"), r"one line each"),
    ],
)
def test_wrong_names_are_refused(names, message, plain):
    with pytest.raises(ValueError, match=message):
        metadata.add(plain, class_names=names)


def test_other_files_are_refused(plain):
    with pytest.raises(ValueError, match=r"Not a TFLite file.*4 bytes"):
        metadata.add(b"1234")
    model = tflite_file.read(plain)
    model.subgraphs[0].outputs = [*model.subgraphs[0].outputs, model.subgraphs[0].inputs[0]]
    with pytest.raises(ValueError, match=r"one output \(batch, classes\). Received"):
        metadata.add(tflite_file.dump(model))


def test_a_size_that_is_open_is_not_claimed(tmp_path):
    images = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images))
    model = keras.Model(images, keras.layers.Dense(2)(x))
    tflite.write(model, tmp_path / "model.tflite")
    value, _ = metadata.read((tmp_path / "model.tflite").read_bytes())
    content = value["subgraph_metadata"][0]["input_tensor_metadata"][0]["content"]
    assert content == {"properties": {"color_space": 1}}


def test_weights_behind_the_flatbuffer_are_kept(plain):
    """There the converter puts them where a network comes near 2 GiB."""
    pictures = np.random.default_rng(0).uniform(0, 255, (1, 40, 24, 3)).astype(np.float32)
    model = tflite_file.read(plain)
    outside = [b for b in model.buffers if b.data is not None and len(b.data) >= 128]
    weights = [bytes(buffer.data) for buffer in outside]
    assert weights
    for _ in range(2):  # the first time to learn how long it is
        place = len(tflite_file.dump(model)) + 15 & ~15
        for buffer, content in zip(outside, weights, strict=True):
            buffer.data, buffer.offset, buffer.size = None, place, len(content)
            place += len(content) + 15 & ~15
    apart = bytearray(place)
    flat = tflite_file.dump(model)
    apart[: len(flat)] = flat
    for buffer, content in zip(outside, weights, strict=True):
        apart[buffer.offset : buffer.offset + buffer.size] = content
    expected = _answers(bytes(apart), pictures)  # as LiteRT reads it
    np.testing.assert_allclose(expected, _answers(plain, pictures), atol=1e-6)
    again = metadata.add(bytes(apart), class_names=NAMES, rule=RULE)
    np.testing.assert_array_equal(_answers(again, pictures), expected)


def _answers(content, pictures):
    interpreter = Interpreter(model_content=content)
    entry = interpreter.get_input_details()[0]
    interpreter.resize_tensor_input(entry["index"], pictures.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], pictures)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
