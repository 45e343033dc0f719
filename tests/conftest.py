"""What tests of several kinds share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import prepare_sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small generated corpus (`prepare_sample`), for the tests of one file."""
    path = tmp_path_factory.mktemp("folder")
    prepare_sample(path)
    return path
