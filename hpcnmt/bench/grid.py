"""The grid of an ablation: policies by name in one YAML file, checked before anything is trained; and the runs that it asks for.

    recipe: multi30k-transformer                  # shipped, or a YAML file
    set: [training.max_target_words=1500000]      # of all policies, as --set
    baseline: async                               # the policy that the others are compared with
    target: {cross_entropy: 2.8, bleu: 20}        # optional
    policies:
      async: {workers: 4}
      beta1-0: {workers: 4, set: [optimizer.beta1=0.0]}
      synchronous: {workers: 4, mode: sync-equivalent}
      synchronous-lr2: {workers: 4, mode: sync-equivalent, set: [schedule.learning_rate=2.0e-3], trial_of: synchronous}   # for tuning

Invariant: all policies get the same words and the same validations. Used by ablation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from hpcnmt.bench.runs import Run, plan_run, refuse_own_options
from hpcnmt.bench.variants import NAME
from hpcnmt.config import from_mapping, load_recipe, override, read_yaml
from hpcnmt.training.recipe import build_recipe

TRAINED_AS = {"virtual": "virtual", "plain": "plain", "sync-equivalent": "plain"}
SAME_FOR_ALL = ("training.max_target_words", "validation.")
OF_VIRTUAL_TIME = "clock."


@dataclass(frozen=True)
class Target:
    """What a policy has to reach; 0: what the baseline reaches at its end."""

    cross_entropy: float = 0.0
    bleu: float = 0.0

    def __post_init__(self) -> None:
        if self.cross_entropy < 0 or not 0 <= self.bleu <= 100:
            raise ValueError(
                f"found the target cross_entropy {self.cross_entropy}, bleu {self.bleu}, expected a positive number of nats per word "
                "and a BLEU score of at most 100; leave out what the baseline's end shall decide"
            )


@dataclass(frozen=True)
class Policy:
    """One way of training."""

    workers: int = 0
    mode: Literal["virtual", "plain", "sync-equivalent"] = "virtual"
    """virtual: logical workers in virtual time; plain: one process without an engine; sync-equivalent: one process that sums the
    worker.delay batches of each of `workers` workers before every update, as synchronous workers do."""
    set: tuple[str, ...] = ()
    trial_of: str = ""
    """Name of the method that this policy is a trial of: only what is tuned differs between its trials."""


@dataclass(frozen=True)
class Grid:
    """What the file says."""

    recipe: str = ""
    set: tuple[str, ...] = ()
    baseline: str = ""
    target: Target = field(default_factory=Target)
    policies: dict[str, Policy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("recipe", "baseline", "policies"):
            if not getattr(self, name):
                raise ValueError(f"found no {name}, expected the options recipe, baseline and policies")
        _check_settings(self.set, "set")
        for name, policy in self.policies.items():
            _check_policy(name, policy)
        if self.baseline not in self.policies:
            raise ValueError(f"found baseline {self.baseline!r}, expected one of the policies {', '.join(self.policies)}")

    @property
    def methods(self) -> dict[str, list[str]]:
        """Names of the policies that are trials, by the method that they are trials of."""
        found: dict[str, list[str]] = {}
        for name, policy in self.policies.items():
            if policy.trial_of:
                found.setdefault(policy.trial_of, []).append(name)
        return found

    def settings(self, name: str) -> list[str]:
        """The --set options of a policy, its mode among them, seeds not."""
        policy = self.policies[name]
        mode = TRAINED_AS[policy.mode]
        shared = [setting for setting in self.set if mode == "virtual" or not setting.startswith(OF_VIRTUAL_TIME)]
        settings = [*shared, f"training.mode={mode}", *policy.set]
        if policy.mode == "sync-equivalent":
            settings.append(f"worker.delay={policy.workers * self.delay(settings)}")
        return settings

    def delay(self, settings: Sequence[str]) -> int:
        """tau of these settings."""
        return build_recipe(override(load_recipe(self.recipe), list(settings))).worker.delay

    def plan(self, name: str, seed: int, data: Path, work: Path) -> Run:
        """The run of a policy and a seed; ValueError that names the policy for what cannot be trained."""
        policy, virtual = self.policies[name], self.policies[name].mode == "virtual"
        try:
            workers, shards = (policy.workers, 1) if virtual else (1, 0)
            run = plan_run(name, self.recipe, self.settings(name), seed, data, work, workers, shards)
        except ValueError as error:
            raise ValueError(f"policy {name}: {error}") from error
        window = run.recipe.worker.delay
        delay = window // policy.workers if policy.mode == "sync-equivalent" else window
        batch_words = run.recipe.loader.batch_words
        return replace(run, stands_for={"mode": policy.mode, "workers": policy.workers, "delay": delay, "batch_words": batch_words})


def _check_settings(settings: Sequence[str], where: str) -> None:
    refuse_own_options(settings, where)
    names = [setting.partition("=")[0] for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"found {name} {names.count(name)} times in {where}, expected it once")


def _check_policy(name: object, policy: Policy) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"found the policy name {name!r}, expected letters, digits, . _ - (in quotes where YAML reads something else)")
    if policy.workers < 1:
        raise ValueError(f"found workers {policy.workers} of policy {name}, expected at least 1")
    if policy.mode == "plain" and policy.workers != 1:
        raise ValueError(f"found workers {policy.workers} of policy {name}, expected 1 with mode plain; or mode sync-equivalent")
    _check_settings(policy.set, f"set of policy {name}")
    for setting in policy.set:
        if setting.startswith(SAME_FOR_ALL):
            raise ValueError(f"found {setting} in set of policy {name}: words and validations are the same for all, set it for the grid")


def read_grid(path: Path) -> Grid:
    """The grid in the YAML file `path`; ValueError that names the file for anything but one."""
    if not path.is_file():
        raise ValueError(f"found no grid {path}, expected a YAML file with recipe, baseline and policies")
    content = read_yaml(path)
    try:
        return from_mapping(Grid, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
