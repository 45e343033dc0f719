"""Where a worker stands in its data, as JSON; and the same data dealt anew to another number of workers.

A state says which batches a worker has still to hand out: first its `backlog`, a list of [epoch, index] in rising order, then batches
`next_index`, `next_index` + world, ... of `epoch`, then batches rank, rank + world, ... of every later epoch. Invariant of `pool`: over
all workers, what is still to be handed out is the same before and after, each batch once. Used by loader.py and by what resumes a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

State = dict[str, Any]
LARGEST = 2**62
MOST_EPOCHS_APART = 10_000
_DATA = ("seed", "batch_words", "sentences")


def check_state(state: object) -> State:
    """`state`, every field checked for type and range. Raises ValueError."""
    if not isinstance(state, dict):
        raise ValueError(f"found a {type(state).__name__} for the state of a loader, expected a mapping")
    for name in (*_DATA, "rank", "world", "epoch", "next_index"):
        value = state.get(name)
        if type(value) is not int or not 0 <= value < LARGEST:
            raise ValueError(f"the loader state has {name} = {_short(value)}, expected a number of at least 0")
    if not isinstance(state.get("vocabulary"), str):
        raise ValueError(f"the loader state has vocabulary = {_short(state.get('vocabulary'))}, expected a checksum")
    rank, world, next_index = state["rank"], state["world"], state["next_index"]
    if not rank < world or next_index % world != rank:
        raise ValueError(f"the loader state has rank = {rank}, world = {world}, next_index = {next_index}, which do not fit each other")
    _check_backlog(state.get("backlog"), state["epoch"])
    return state


def _check_backlog(backlog: object, epoch: int) -> None:
    if not isinstance(backlog, list):
        raise ValueError(f"the loader state has backlog = {_short(backlog)}, expected a list of [epoch, index]")
    last = [-1, -1]
    for item in backlog:
        if not isinstance(item, list) or [type(number) for number in item] != [int, int] or not 0 <= item[1] < LARGEST:
            raise ValueError(f"the loader state has {_short(item)} in its backlog, expected [epoch, index]")
        if not last < item or not 0 <= item[0] < epoch:
            raise ValueError(f"the loader state has {item} in its backlog, expected rising pairs [epoch, index] of epochs before {epoch}")
        last = item


def _short(value: object) -> str:
    return repr(value)[:60]


def pool(states: Sequence[State], world: int, batches_of: Callable[[int], int]) -> list[State]:
    """The states of `world` workers that go on where those of `states`, all workers of a run, stood.

    `batches_of(epoch)` is the number of batches of an epoch. Batches of epochs that anybody has begun are dealt round-robin, in order of
    (epoch, index), as backlogs; then all go on with the next epoch. Raises ValueError when `states` are not those of one run.
    """
    old = _check_together(states)
    if world < 1:
        raise ValueError(f"found {world} workers to deal the data to, expected at least 1")
    first_whole = max(_begun(state, batches_of) for state in states)
    if first_whole - min(state["epoch"] for state in states) > MOST_EPOCHS_APART:
        raise ValueError(f"found workers more than {MOST_EPOCHS_APART} epochs apart: their states are not of one run")
    left = [(epoch, index) for state in states for epoch, index in state["backlog"]]
    for epoch in range(min(state["epoch"] for state in states), first_whole):
        batches = batches_of(epoch)
        for state in states:
            if state["epoch"] <= epoch:
                begin = state["next_index"] if state["epoch"] == epoch else state["rank"]
                left += [(epoch, index) for index in range(begin, batches, old)]
    left.sort()
    if len(set(left)) < len(left):
        raise ValueError("found the same batch in the states of two loaders, expected each once: they are not of one cut")
    backlogs = [[list(item) for item in left[rank::world]] for rank in range(world)]
    return [
        states[0] | {"rank": rank, "world": world, "epoch": first_whole, "next_index": rank, "backlog": backlog}
        for rank, backlog in enumerate(backlogs)
    ]


def _begun(state: State, batches_of: Callable[[int], int]) -> int:
    """The first epoch of whose batches this worker has handed out none."""
    epoch: int = state["epoch"]
    return epoch if state["next_index"] == state["rank"] and batches_of(epoch) > state["rank"] else epoch + 1


def _check_together(states: Sequence[State]) -> int:
    """Checks that these are the states of all workers of one run; returns how many those are."""
    if not states:
        raise ValueError("found no states of loaders, expected those of all workers of a run")
    for state in states:
        check_state(state)
        for name in (*_DATA, "vocabulary", "world"):
            if state[name] != states[0][name]:
                raise ValueError(f"found loader states with {name} = {state[name]} and {states[0][name]}, expected those of one run")
    world: int = states[0]["world"]
    ranks = sorted(state["rank"] for state in states)
    if len(ranks) != world or ranks != list(range(world)):
        raise ValueError(f"found the loader states of the workers {ranks}, expected those of all {world} workers of the run")
    return world
