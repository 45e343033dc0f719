"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: a copy of the package is built with both and tested."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.need import need

ROOT = Path(__file__).parents[3]


@pytest.mark.system
@pytest.mark.usefixtures("kernels")
def test_kernels_are_clean_under_sanitizers(tmp_path: Path) -> None:
    preload = [subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, timeout=30).stdout.strip()
               for name in ("libasan.so", "libubsan.so")]  # fmt: skip
    need("sanitizers", all(Path(path).is_absolute() for path in preload), "g++ has no sanitizer libraries here")
    for part in ("hpcnmt", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for part in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / part, tmp_path)
    environment = os.environ | {"HPCNMT_SANITIZE": "1", "HPCNMT_CUDA": "0", "PYTHONPATH": str(tmp_path)}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=tmp_path, env=environment, check=True, timeout=600, capture_output=True)
    (built,) = (tmp_path / "hpcnmt/ops").glob("_kernels*.so")
    assert b"__asan_init" in built.read_bytes()
    environment |= {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/unit/ops/test_kernels.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
