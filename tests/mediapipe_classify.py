"""Run by MediaPipe's Python: classifies pictures and reads the metadata, without our package.

Arguments: the TFLite file, and an .npy file of uint8 pictures (count, height, width, 3). Prints
JSON: the best class of each picture with its name and score, and the metadata as MediaPipe's own
generated schema reads it.
"""

import json
import sys

import mediapipe as mp
import numpy as np
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.metadata import schema_py_generated as tflite
from mediapipe.tasks.python import BaseOptions
from mediapipe.tasks.python.vision import ImageClassifier, ImageClassifierOptions


def _plain(value):
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if hasattr(value, "__dict__"):
        return {key: _plain(item) for key, item in vars(value).items()}
    return value


def _metadata(content):
    model = tflite.ModelT.InitFromObj(tflite.Model.GetRootAsModel(content, 0))
    for entry in model.metadata:
        if entry.name == b"TFLITE_METADATA":
            data = model.buffers[entry.buffer].data.tobytes()
            assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(data, 0)
            root = schema.ModelMetadata.GetRootAsModelMetadata(data, 0)
            return _plain(schema.ModelMetadataT.InitFromObj(root))
    return None


def _best(classifier, picture):
    result = classifier.classify(mp.Image(image_format=mp.ImageFormat.SRGB, data=picture))
    best = result.classifications[0].categories[0]
    return {"index": best.index, "name": best.category_name, "score": best.score}


path, pictures = sys.argv[1], np.load(sys.argv[2])
options = ImageClassifierOptions(base_options=BaseOptions(model_asset_path=path), max_results=1)
with ImageClassifier.create_from_options(options) as classifier:
    answers = [_best(classifier, np.ascontiguousarray(picture)) for picture in pictures]
with open(path, "rb") as file:
    print(json.dumps({"answers": answers, "metadata": _metadata(file.read())}))
