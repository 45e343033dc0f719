"""The operators torch.ops.hpcnmt.*: schemas, fake implementations, and which implementation runs where.

The schemas and the reference (any device) are registered here; the compiled library, where it was built, adds its kernels for CPU and CUDA.
It is loaded only when it was compiled against the running torch: another one would crash at best. Imported once, by hpcnmt/ops/__init__.py.
HPCNMT_KERNELS=reference leaves the compiled library out.
"""

from __future__ import annotations

import ctypes
import os
import re
import sysconfig
from pathlib import Path

import torch

from hpcnmt.ops import reference

_SCHEMAS = {
    "accumulate": "(Tensor(a!) accumulator, Tensor(b!) gradient, Tensor(c!) stats, float scale, bool zero_gradient) -> ()",
    "sum_squares": "(Tensor values, Tensor(a!) stats) -> ()",
    "step": "(Tensor(a!) gradient, Tensor(b!) parameters, Tensor(c!) moment1, Tensor(d!)? moment2, Tensor factors, Tensor(e!) stats, "
    "Tensor(f!)? accumulator=None, Tensor(g!)? out=None, Tensor(h!)? ema=None, bool zero_gradient=False) -> ()",
    "pack": "(Tensor(a!) accumulator, Tensor(b!) wire, Tensor(c!)? residual, Tensor(d!) stats, float words, float clip_norm) -> ()",
    "select": "(Tensor(a!) gradient, Tensor(b!) residual, Tensor(c!) values, Tensor(d!) indices, Tensor(e!) stats, float threshold) -> ()",
}
_library = torch.library.Library("hpcnmt", "DEF")  # type: ignore[no-untyped-call]


def _fake(*_arguments: object, **_options: object) -> None:
    """Every operator changes its arguments and returns nothing."""


def _register() -> None:
    for name, schema in _SCHEMAS.items():
        _library.define(name + schema)  # type: ignore[no-untyped-call]
        _library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"hpcnmt::{name}", _fake, lib=_library)


def _built_for(library: Path) -> str:
    """The torch version that `library` was compiled against, read from the file without loading it."""
    found = re.search(rb"hpcnmt-built-for-torch=([^;\0]+);", library.read_bytes())
    return found.group(1).decode() if found else "an unknown version"


def _load() -> str:
    """Loads the compiled kernels; returns what is in use, in words."""
    if os.environ.get("HPCNMT_KERNELS") == "reference":
        return "torch reference (HPCNMT_KERNELS=reference)"
    library = Path(__file__).with_name(f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}")  # of this Python and this processor
    if not library.exists():
        return "torch reference (no kernels were built: install a C++ compiler, then hpcnmt again)"
    if (built_for := _built_for(library)) != str(torch.__version__):
        return f"torch reference (the kernels were built for torch {built_for}, found {torch.__version__}: install hpcnmt again)"
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        name = ctypes.CDLL(str(library)).hpcnmt_cpu_kernels
    except OSError as error:
        return f"torch reference (the kernels could not be loaded: {error})"
    name.restype = ctypes.c_char_p
    cuda = ", CUDA" if torch._C._dispatch_has_kernel_for_dispatch_key("hpcnmt::step", "CUDA") else ""
    return f"compiled: CPU {name().decode()}{cuda}"


_register()
IN_USE = _load()
"""Which kernels run, for logs and `hpcnmt doctor`."""
COMPILED = IN_USE.startswith("compiled")
