"""The CUDA sources compile where nvcc is, also without a GPU: kernels for every target, and the binding against torch's headers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.need import need

ROOT = Path(__file__).parents[3]
CUDA = ROOT / "hpcnmt" / "ops" / "csrc" / "cuda"
TARGETS = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]


def compile_file(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize("source", sorted(path.name for path in CUDA.glob("*.cu")))
def test_kernels_compile_for_every_target_without_spilling(source: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    need("nvcc", nvcc is not None, "no nvcc found")
    command = [str(nvcc), "-std=c++20", "-O3", *TARGETS, "-Xptxas", "-v", "-c", str(CUDA / source), "-o", str(tmp_path / "out.o")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    spills = [line for line in result.stderr.splitlines() if "spill" in line]
    assert spills and all("0 bytes spill stores, 0 bytes spill loads" in line for line in spills)


def test_the_binding_compiles_against_the_headers_of_torch(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    need("nvcc", nvcc is not None, "no nvcc found")
    dry = subprocess.run([str(nvcc), "--dryrun", str(CUDA / "kernels.cu")], capture_output=True, text=True, timeout=60).stderr
    (include,) = (line.split("=", 1)[1].strip() for line in dry.splitlines() if " INCLUDES=" in line)
    macros = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"  # a CPU build of torch comes without this one
    macros.parent.mkdir(parents=True)
    macros.write_text("#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
    headers = Path(torch.__file__).parent / "include"
    paths = [f"-I{tmp_path}", f"-I{headers}", f"-I{headers / 'torch/csrc/api/include'}", *include.replace('"', "").split()]
    compile_file(["g++", "-std=c++20", "-fsyntax-only", *paths, str(CUDA / "bind.cpp")])
