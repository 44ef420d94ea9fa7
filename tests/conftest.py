"""Fixtures for all tests."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

# Programs for environments of their own, which lack what is here and the other way round.
collect_ignore = ["mediapipe_classify.py", "triton_model.py"]

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """Folder of checkpoints and pictures beside the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("The folder `shared` is not beside the repository.")
    return folder


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """Folder of the repository."""
    return ROOT
