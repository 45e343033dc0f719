"""What `hpcnmt doctor` says of Horovod: absent, built for another MPI, broken, sound."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from hpcnmt.doctor import HOROVOD_MPI, Check, check_synchronous
from tests.need import need_backend


def install_pretended(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, library: bytes) -> None:
    """A package horovod on the search path, of this process and of those it starts."""
    (folder / "horovod" / "torch").mkdir(parents=True)
    (folder / "horovod" / "__init__.py").write_text("")
    (folder / "horovod" / "torch" / "__init__.py").write_text(code)
    (folder / "horovod" / "torch" / "mpi_lib_v2.cpython.so").write_bytes(b"\x7fELF" + library)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.28.1")
    monkeypatch.delitem(sys.modules, "horovod", raising=False)


def test_an_absent_one_is_advice_that_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    check = check_synchronous("openmpi")
    assert (check.level, check.found) == ("advice", "not installed")
    assert "bash env/horovod.sh openmpi" in check.fix and "sync.backend=torch" in check.fix


def test_one_for_another_mpi_and_one_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_pretended(tmp_path, monkeypatch, "raise ImportError('undefined symbol: of another torch')", HOROVOD_MPI["mpich"])
    check = check_synchronous("openmpi")
    assert check.level == "advice" and "built for mpich, but the MPI here is openmpi" in check.found
    check = check_synchronous("mpich")
    assert check.level == "advice" and "does not load: ImportError: undefined symbol" in check.found, check


def test_a_sound_one_is_fine() -> None:
    need_backend("horovod")
    checks = {family: check_synchronous(family) for family in HOROVOD_MPI}  # one of them is the MPI of this environment
    assert [check.found for family, check in checks.items() if check == Check("horovod", f"Horovod 0.28.1, built for {family}")], checks
