"""`hpcnmt slurm`: writes a filled-in job script from the templates in slurm/, checked by what `hpcnmt train` checks, so that wrong input
fails here and not after hours in a queue.

Invariants: the script needs no other file (common.sh is written into it); what comes from the user enters it through shlex only, or, in
#SBATCH lines, which know no shell quoting, after a check of its form; Slurm is started with an argument list.
Called by the command line.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SBATCH_LIMIT_S = 120.0
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+-]*")
TIME = re.compile(r"\d+(:\d{2}){0,2}|\d+-\d+(:\d{2}){0,2}")
SEEDS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*(%\d+)?")
DIRECTIVE = re.compile(r"#{1,2}SBATCH --([a-z-]+)=(\S+)")
SETTING = re.compile(r"([a-z]+)=(?:\([^)]*\)|\S+)(\s*#.*)?")
EXAMPLES = """The script saves, requeues itself and goes on (docs/slurm.md). training.mode=sync gives one for synchronous training.

examples:
  hpcnmt slurm multi30k-transformer --data prepared --run run1 --workers 8 --shards 2 --nodes 2 --gpus-per-node 4 --time 1-00:00:00
  hpcnmt slurm sample --data prepared --run seeds/run --workers 2 --shards 1 --array 1-5 --out seeds.sh --submit
  hpcnmt slurm sample --data prepared --run run1 --workers 4 --shards 2 --hetjob --gpu-partition gpu --cpu-partition cpu --gpus-per-node 4
"""


@dataclass(frozen=True)
class JobRequest:
    """What the script is filled with, except the training's own arguments. None: as the cluster or the template has it."""

    nodes: int = 1
    shard_nodes: int = 1
    """Nodes of the shards in a heterogeneous job; the workers have `nodes`."""
    cpus_per_task: int = 1
    time_limit: str = "24:00:00"
    gpus_per_node: int = 0
    partition: str | None = None
    cpu_partition: str | None = None
    gpu_partition: str | None = None
    account: str | None = None
    hetjob: bool = False
    seeds: str | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "shard_nodes", "cpus_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"found {getattr(self, name)} for {name.replace('_', '-')}, expected at least 1")
        if self.gpus_per_node < 0:
            raise ValueError(f"found --gpus-per-node {self.gpus_per_node}, expected 0 (none) or more")
        if not TIME.fullmatch(self.time_limit):
            raise ValueError(f"found --time {self.time_limit!r}, expected minutes, HH:MM:SS or D-HH:MM:SS")
        for name in ("partition", "cpu_partition", "gpu_partition", "account"):
            value = getattr(self, name)
            if value is not None and not WORD.fullmatch(value):
                raise ValueError(f"found --{name.replace('_', '-')} {value!r}, expected a name of letters, digits and _ . , : @ + -")
        if self.seeds is not None and not SEEDS.fullmatch(self.seeds):
            raise ValueError(f"found --array {self.seeds!r}, expected seeds as in 1-5, 1,2,7 or 1-10%2 (two at a time)")
        if self.hetjob and self.seeds is not None:
            raise ValueError("found --array with --hetjob, expected one of them: submit a --hetjob script for each seed")
        if self.hetjob and self.partition is not None:
            raise ValueError("--partition has no effect with --hetjob: use --gpu-partition (workers) and --cpu-partition (shards)")
        if not self.hetjob and (self.cpu_partition or self.gpu_partition or self.shard_nodes != 1):
            raise ValueError("--cpu-partition, --gpu-partition and --shard-nodes need --hetjob: use --partition and --nodes")

    def components(self, workers: int, shards: int, name: str) -> list[dict[str, str | None]]:
        """#SBATCH options of each component; None switches a line off."""
        if self.hetjob:
            parts = [(workers, self.nodes, self.gpu_partition, self.gpus_per_node), (shards, self.shard_nodes, self.cpu_partition, 0)]
        else:
            parts = [(workers + shards, self.nodes, self.partition, self.gpus_per_node)]
        found: list[dict[str, str | None]] = []
        for tasks, nodes, partition, gpus in parts:
            if nodes > tasks:
                raise ValueError(f"found {nodes} nodes for {tasks} ranks, expected at least one rank a node: use fewer nodes")
            options: dict[str, str | None] = {
                "job-name": name, "nodes": str(nodes), "ntasks": str(tasks), "ntasks-per-node": str(-(-tasks // nodes)),
                "cpus-per-task": str(self.cpus_per_task), "time": self.time_limit,
            }  # fmt: skip
            options |= {"partition": partition, "account": self.account, "gpus-per-node": str(gpus) if gpus else None}
            found.append(options)
        return found


def template(name: str) -> str:
    """The text of slurm/NAME: in the package when installed, beside it in the source tree."""
    package = Path(__file__).parent
    for folder in (package / "slurm_scripts", package.parent / "slurm"):
        if (folder / name).is_file():
            return (folder / name).read_text("utf-8")
    raise RuntimeError(f"found no job script {name} beside {package}: the installation is incomplete, install hpcnmt again")


def _filled_directive(line: str, options: dict[str, str | None]) -> str:
    match = DIRECTIVE.match(line)
    if not match or match[1] not in options:
        return line
    value = options[match[1]]
    return f"##SBATCH --{match[1]}={match[2]}" if value is None else f"#SBATCH --{match[1]}={value}"


def fill(text: str, components: list[dict[str, str | None]], settings: dict[str, str], exports: dict[str, str]) -> str:
    """The template `text` with its #SBATCH lines, its settings (as shell words) and common.sh put in."""
    lines: list[str] = []
    left, component, inside = dict(settings), 0, False
    for line in text.splitlines():
        if line == "#SBATCH hetjob":
            component += 1
        elif line == "# end of settings":
            lines += [f"export {name}={value}" for name, value in exports.items()]
            inside = False
        elif inside and (match := SETTING.fullmatch(line)):
            line = f"{match[1]}={left.pop(match[1])}{match[2] or ''}" if match[1] in left else line
        elif line.startswith("# shellcheck source="):
            continue
        elif line.startswith("source ") and "common.sh" in line:
            line = "# ---- common.sh\n" + template("common.sh") + "# ---- end of common.sh"
        else:
            line = _filled_directive(line, components[component])
        inside = inside or line == "# settings"
        lines.append(line)
    if left or component != len(components) - 1:
        raise RuntimeError(f"the template has no place for {', '.join(left) or 'all components'}")
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `hpcnmt slurm`."""
    parser.formatter_class, parser.description = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument("recipe", help="name of a shipped recipe, or a YAML file")
    parser.add_argument("--data", type=Path, required=True, help="folder of hpcnmt prepare, seen by all nodes")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, seen by all nodes; with --array the beginning of names")
    parser.add_argument("--workers", type=int, default=2, help="default 2")
    parser.add_argument("--shards", type=int, help="default 1; not in mode sync")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="change an option of the recipe")
    parser.add_argument("--nodes", type=int, default=1, help="default 1; with --hetjob those of the workers")
    parser.add_argument("--gpus-per-node", type=int, default=0, metavar="G", help="default 0; the workers of a node share them out")
    parser.add_argument("--time", default="24:00:00", help="time limit of one start of the job (default 24:00:00)")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--site", type=Path, metavar="FILE", help="your copy of env/site-example.sh, sourced first in the job")
    parser.add_argument("--array", metavar="SEEDS", help="one run for each seed, 1-5 or 1,2,7; bash starts that script, not sbatch")
    parser.add_argument("--hetjob", action="store_true", help="workers on GPU nodes, shards on CPU nodes, in one job (MPICH only)")
    parser.add_argument("--gpu-partition", help="of the workers, with --hetjob")
    parser.add_argument("--cpu-partition", help="of the shards, with --hetjob")
    parser.add_argument("--shard-nodes", type=int, default=1, help="nodes of the shards, with --hetjob (default 1)")
    parser.add_argument("--out", default=None, metavar="FILE", help="the script, a new file (default hpcnmt-RUN.sh); - is standard output")
    parser.add_argument("--submit", action="store_true", help="submit it at once")


def script(arguments: argparse.Namespace) -> str:
    """The filled-in script. Raises ValueError for whatever the training would refuse."""
    from hpcnmt.config import load_recipe, override
    from hpcnmt.training.recipe import build_recipe
    from hpcnmt.training.setup import check_sizes

    recipe = build_recipe(override(load_recipe(arguments.recipe), arguments.set))
    mode, shards = recipe.training.mode, 1 if arguments.shards is None else arguments.shards
    if mode not in ("async", "sync"):
        raise ValueError(f"training.mode={mode} is one process, expected async or sync: sbatch --wrap starts hpcnmt train as it is")
    if mode == "sync" and (arguments.shards is not None or arguments.hetjob):
        raise ValueError("--shards and --hetjob have no effect with training.mode=sync, whose workers all hold the parameters: remove them")
    check_sizes(recipe, arguments.data, arguments.workers, shards)
    shards = 0 if mode == "sync" else shards
    request = JobRequest(
        arguments.nodes, arguments.shard_nodes, recipe.training.threads, arguments.time, arguments.gpus_per_node, arguments.partition,
        arguments.cpu_partition, arguments.gpu_partition, arguments.account, arguments.hetjob, arguments.array,
    )  # fmt: skip
    if arguments.site is not None and not arguments.site.is_file():
        raise ValueError(f"found no file {arguments.site}, expected your copy of env/site-example.sh as --site")
    kind = "array" if request.seeds else "hetjob" if request.hetjob else "sync" if mode == "sync" else "train"
    own_recipe = Path(arguments.recipe)
    name = str(own_recipe.absolute()) if own_recipe.suffix and own_recipe.is_file() else arguments.recipe
    options = [part for setting in arguments.set for part in ("--set", setting)]
    settings = {
        "recipe": shlex.quote(name), "data": shlex.quote(str(arguments.data.absolute())), "run": shlex.quote(str(arguments.run.absolute())),
        "workers": str(arguments.workers), "options": f"({shlex.join(options)})",
    }  # fmt: skip
    settings |= {"shards": str(shards)} if kind != "sync" else {}
    settings |= {"seeds": request.seeds} if request.seeds else {}
    exports = {"HPCNMT_PYTHON": shlex.quote(sys.executable)}
    if arguments.site is not None:
        exports["HPCNMT_SITE"] = shlex.quote(str(arguments.site.absolute()))
    components = request.components(arguments.workers, shards, _job_name(arguments.run))
    return fill(template(f"{kind}.sbatch"), components, settings, exports)


def _job_name(run: Path) -> str:
    return "hpcnmt-" + re.sub(r"[^A-Za-z0-9._-]", "_", run.name)


def write_job_script(arguments: argparse.Namespace) -> int:
    """The command. Raises ValueError for wrong input."""
    text = script(arguments)
    if arguments.out == "-":
        if arguments.submit:
            raise ValueError("found --submit with --out -, expected a file: give --out FILE")
        sys.stdout.write(text)
        return 0
    path = Path(arguments.out or f"{_job_name(arguments.run)}.sh").absolute()
    if path.exists():
        raise ValueError(f"{path} exists already, expected a new file: choose another --out or remove it")
    command = ["bash" if arguments.array else "sbatch", str(path)]
    if arguments.submit and shutil.which("sbatch") is None:
        raise ValueError("found no sbatch on PATH: submit on a login node of the cluster")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(0o755)
    print(f"wrote {path}; submit it: {shlex.join(command)}", flush=True)
    return subprocess.run(command, timeout=SBATCH_LIMIT_S).returncode if arguments.submit else 0
