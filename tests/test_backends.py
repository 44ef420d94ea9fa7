"""The same weights give the same logits on JAX and PyTorch."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

import efficientnet_tf as et
from efficientnet_tf import cam

NAMES = ["efficientnet-b0", "efficientnet-lite0", "efficientnet-edgetpu-s", "efficientnetv2-b0"]
READER = """
import sys
import keras
import numpy as np
import efficientnet_tf as et
folder = sys.argv[1]
images = np.load(f"{folder}/images.npy")
for name in sys.argv[2:]:
    model = et.build(name, weights=f"{folder}/{name}.weights.h5", classifier_activation=None)
    logits = keras.ops.convert_to_numpy(model(images))
    expected = np.load(f"{folder}/{name}.npy")
    spread = expected.max() - expected.min()
    assert np.abs(logits - expected).max() <= 1e-4 * spread, (name, np.abs(logits - expected).max())
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 224, 224, 3)).astype("uint8")
    np.save(folder / "images.npy", images)
    for name in NAMES:
        model = et.build(name, classifier_activation=None)
        for variable in model.variables:
            if variable.path.endswith(("gamma", "moving_variance")):
                variable.assign(rng.uniform(0.8, 1.2, variable.shape))
            elif variable.path.endswith(("beta", "moving_mean")):
                variable.assign(rng.normal(0, 0.1, variable.shape))
        model.save_weights(folder / f"{name}.weights.h5")
        np.save(folder / f"{name}.npy", np.asarray(model(images)))
    return folder


@pytest.mark.backends
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_logits_agree_with_tensorflow(backend, saved):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed.")
    subprocess.run(
        [sys.executable, "-c", READER, str(saved), *NAMES],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )


EXPLAINER = """
import sys
import keras
import numpy as np
import efficientnet_tf as et
from efficientnet_tf import cam
folder = sys.argv[1]
images = np.load(f"{folder}/images.npy")
model = et.build("efficientnetv2-b0", weights=f"{folder}/efficientnetv2-b0.weights.h5")
found = cam.cam(model, images, [3, 7])
np.testing.assert_allclose(found, np.load(f"{folder}/maps.npy"), atol=1e-3)
try:
    cam.cam(model, images, method="gradcam")
    sys.exit("derivatives were not refused")
except NotImplementedError as error:
    assert keras.backend.backend() in str(error), error
"""


@pytest.mark.backends
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_class_activation_maps_agree_with_tensorflow(backend, saved):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed.")
    model = et.build("efficientnetv2-b0", weights=str(saved / "efficientnetv2-b0.weights.h5"))
    np.save(saved / "maps.npy", cam.cam(model, np.load(saved / "images.npy"), [3, 7]))
    subprocess.run(
        [sys.executable, "-c", EXPLAINER, str(saved)],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
