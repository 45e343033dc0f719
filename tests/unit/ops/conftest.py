"""A fixture for tests that mean nothing without the compiled kernels."""

from __future__ import annotations

import pytest

from hpcnmt import ops
from tests.need import need


@pytest.fixture
def kernels() -> None:
    need("kernels", ops.COMPILED, f"no compiled kernels here: {ops.IN_USE}")
