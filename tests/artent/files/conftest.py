"""Saved models that a test may damage."""

import shutil

import pytest
from saved_models import save_all


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def files(originals, tmp_path):
    return shutil.copytree(originals, tmp_path / "files")
