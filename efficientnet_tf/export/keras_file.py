"""`.keras` files that are the same for the same model."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path

import keras

from efficientnet_tf import writing

_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can tell


def write(model: keras.Model, path: str | os.PathLike) -> None:
    """Saves a model as Keras does, without the time at which it was saved.

    Args:
        model: to save; what it was compiled with is left out.
        path: of the file, ending in `.keras`.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=writing.ASIDE, dir=path.parent) as folder:
        saved = Path(folder) / path.name
        model.save(saved)
        with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
            for name in sorted(source.namelist()):
                content = source.read(name)
                if name == "metadata.json":
                    metadata = json.loads(content)
                    metadata.pop("date_saved", None)
                    content = json.dumps(metadata).encode()
                if name == "config.json":
                    config = json.loads(content)
                    config["compile_config"] = None
                    content = json.dumps(config).encode()
                target.writestr(zipfile.ZipInfo(name, _TIME), content)
