"""The packages keep apart: models and the engine never import each other, and meet only in what trains."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hpcnmt"
FORBIDDEN = {
    "models": {"data", "distributed", "inference", "training"},
    "distributed": {"data", "inference", "models", "training"},
    "data": {"distributed", "inference", "models", "training"},
    "ops": {"data", "distributed", "inference", "models", "optim", "training"},
    "optim": {"data", "distributed", "inference", "models", "training"},
}


def imported_parts(code: str) -> set[str]:
    """Names of the hpcnmt subpackages that `code` imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would hide from this rule"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("hpcnmt.")}


def test_import_rules() -> None:
    for part, forbidden in FORBIDDEN.items():
        files = sorted((PACKAGE / part).rglob("*.py"))
        assert files, part
        for path in files:
            assert not imported_parts(path.read_text("utf-8")) & forbidden, path


def test_a_violation_is_seen() -> None:
    assert imported_parts("from hpcnmt import models\nimport hpcnmt.data.corpus") == {"models", "data"}
    with pytest.raises(AssertionError, match="relative imports"):
        imported_parts("from ..models import gru")
