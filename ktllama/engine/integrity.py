"""Proof that the books are right: requests, sequences, the tree and the executor's cells agree.

Tests run it after every step, the engine process whenever it falls idle. Its cost is that of the tree, not of the
context: nodes and sequences are counted, tokens are compared only where `deep` says so.
"""

from __future__ import annotations

from collections.abc import Iterator

from ktllama.engine.core import Engine
from ktllama.engine.generation import NO_SEQUENCE
from ktllama.engine.lifecycle import Phase
from ktllama.engine.prefix_cache import Node, PrefixCache


class IntegrityError(Exception):
    """What does not agree, one line each. The engine's memory cannot be trusted any more."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def check(engine: Engine, *, deep: bool = False) -> None:
    """Raise IntegrityError if anything does not agree. `deep` compares the tokens of every path as well."""
    problems = (*_tree(engine.cache), *_cells(engine), *_generations(engine))
    if deep and not problems:
        problems = tuple(_paths(engine.cache))
    if problems:
        raise IntegrityError(problems)


def path(cache: PrefixCache, sequence: int) -> list[Node]:
    """The nodes that a sequence holds, from its end up to below the root."""
    nodes = []
    node = cache.ends[sequence]
    while node.parent is not None:
        nodes.append(node)
        node = node.parent
    return nodes


def _tree(cache: PrefixCache) -> Iterator[str]:
    """Each node's holders are the sequences whose paths go through it; neighbours touch; no node is without holder."""
    holders: dict[Node, int] = {}
    running: dict[Node, int] = {}
    for sequence, end in cache.ends.items():
        if sequence not in end.ends:
            yield f"sequence {sequence} ends at a node that does not know it"
        for node in path(cache, sequence):
            holders[node] = holders.get(node, 0) + 1
            running[node] = running.get(node, 0) + (sequence in cache.running)
    todo = [cache.root]
    n_used = n_held = n_ends = 0
    while todo:
        node = todo.pop()
        n_ends += len(node.ends)
        for child in node.children:
            if child.parent is not node or child.start != node.end or child.end <= child.start:
                yield f"a node at {child.start} to {child.end} does not continue its parent, which ends at {node.end}"
            if (child.n_holders, child.n_running) != (holders.get(child, 0), running.get(child, 0)):
                yield (
                    f"a node at {child.start} to {child.end} counts {child.n_holders} holders, {child.n_running} "
                    f"running; there are {holders.get(child, 0)}, {running.get(child, 0)}"
                )
            n_used += child.end - child.start
            n_held += (child.end - child.start) * (child.n_running > 0)
        todo += node.children
    if n_ends != len(cache.ends):
        yield f"{n_ends} sequences end in the tree, {len(cache.ends)} are in use"
    if (n_used, n_held) != (cache.n_used, cache.n_held):
        yield f"the tree has {n_used} cells, {n_held} held; the books say {cache.n_used}, {cache.n_held}"


def _cells(engine: Engine) -> Iterator[str]:
    cache = engine.cache
    used = engine.executor.used_cells()
    if used != cache.n_used:
        yield f"the executor uses {used} cells, the tree has {cache.n_used}"
    if not 0 <= cache.n_held <= cache.n_used <= cache.n_cells:
        yield f"{cache.n_held} cells held, {cache.n_used} used, {cache.n_cells} there are"
    known = sorted([*cache.free, *cache.running, *cache.cached])
    if known != list(range(engine.executor.n_sequences)) or {*cache.running, *cache.cached} != {*cache.ends}:
        yield f"sequences free {sorted(cache.free)}, running {sorted(cache.running)}, cached {sorted(cache.cached)}"


def _generations(engine: Engine) -> Iterator[str]:
    scheduler, cache = engine.scheduler, engine.cache
    there = {*scheduler.queue, *scheduler.running}
    if there != {*engine.generations.values()} or len(there) != len(scheduler.queue) + len(scheduler.running):
        yield "the requests are not those that are queued or running"
    sequences = {generation.sequence: generation for generation in scheduler.running}
    if sequences.keys() != cache.running.keys():
        yield f"running requests have sequences {sorted(sequences)}, the tree has {sorted(cache.running)}"
        return
    for generation in scheduler.queue:
        if generation.phase is not Phase.QUEUED or generation.sequence != NO_SEQUENCE:
            yield f"{generation.request.request_id} is queued and {generation.phase.value}"
    for sequence, generation in sequences.items():
        name = generation.request.request_id
        if generation.phase not in (Phase.PREFILLING, Phase.DECODING, Phase.PREEMPTED):
            yield f"{name} is running and {generation.phase.value}"
        if cache.ends[sequence].end != generation.n_computed or cache.running[sequence] is not generation.tokens:
            yield f"{name} has computed {generation.n_computed} tokens, the tree {cache.ends[sequence].end}"
        if not 0 <= generation.n_computed < len(generation.tokens) <= generation.limit:
            yield f"{name}: {generation.n_computed} computed of {len(generation.tokens)}, limit {generation.limit}"
        if generation.phase is Phase.DECODING and generation.n_pending != 1:
            yield f"{name} decodes with {generation.n_pending} tokens to compute"


def _paths(cache: PrefixCache) -> Iterator[str]:
    """The tokens of a path are those of the sequence that holds it."""
    for sequence, tokens in cache.running.items():
        for node in path(cache, sequence):
            if node.tokens[node.start : node.end] != tokens[node.start : node.end]:
                yield f"sequence {sequence} holds other tokens at {node.start} to {node.end} than it thinks"
