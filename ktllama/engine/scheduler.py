"""Which tokens the next step computes.

*Budget.* A step computes at most one ubatch. Every decoding generation gets its row first, so a running stream waits
for another's prompt at most one ubatch. Prompts share the rest: half goes to the oldest, so no prompt starves, and
the other half to those with the least left, so a short prompt behind a long one starts after a few steps. Among
prompts of one length that is first come, first served.

*Admission.* In order of arrival, when the cells that the running ones hold, what they have yet to compute, a reserve
for what each may still say, and the same of the newcomer fit the context together. Cached sequences do not count:
they are evicted for it. A request that does not fit may be passed by younger, smaller ones, a bounded number of times.

*When cells run out* nevertheless (a reserve is not the whole of `max_tokens`, or no context would be ever full):
cached sequences go first, the least recently used before others; then the youngest running generation loses its
cells and resumes later by computing them again. Nobody takes cells from an older one, so the oldest always
goes on, and since it alone fits the context there is no deadlock.

*Shared prefixes.* A newcomer whose prompt begins as one does that is still being computed follows it, and shares its
cells when they are there, instead of computing the same beside it.

*Deterministic* generations never share a batch: each has steps of its own, in turn with everybody else's, and in them
a batch whose shape depends on nothing but itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ktllama.engine.generation import NO_SEQUENCE, Generation
from ktllama.engine.lifecycle import Phase, Turn
from ktllama.engine.parking import Parked, common_length
from ktllama.engine.prefix_cache import Match, PrefixCache

#: Tokens in common from which following another's prompt pays. Below it are the turns' markers that all prompts share.
MIN_FOLLOWED_TOKENS = 32
#: Waiting requests that are looked at when the first does not fit, and how often one may be passed.
LOOKAHEAD = 4
MAX_PASSES = 16
#: Cells kept for a generation's answer at its admission, at most.
MAX_RESERVE = 256


class Scheduler:
    """The queue and the running generations of one context."""

    def __init__(self, cache: PrefixCache, *, n_ubatch: int, n_parallel: int) -> None:
        self.cache = cache
        self.queue: deque[Generation] = deque()
        self.running: list[Generation] = []  # by arrival, preempted ones included
        self.preemptions = 0
        self._n_ubatch = n_ubatch
        self._n_parallel = n_parallel
        self._reserve = max(1, min(MAX_RESERVE, cache.n_cells // (4 * n_parallel)))
        self._n_arrived = 0
        self._may_admit = False  # nothing has changed since the last try if false
        self._turn: Generation | None = None  # the deterministic one that had the last step, None for all others
        self._plan: dict[Generation, int] = {}
        self._n_planned = 0

    # ── coming and going ─────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, generation: Generation) -> None:
        """Put a new generation at the end of the queue."""
        self._n_arrived += 1
        generation.arrival = self._n_arrived
        self.queue.append(generation)
        self._may_admit = True

    def leave(self, generation: Generation) -> None:
        """Take out a generation that has ended; what it computed stays in the cache if that is of use."""
        assert generation.has_ended
        self._may_admit = True
        if generation.sequence == NO_SEQUENCE:
            self.queue.remove(generation)
            return
        self.running.remove(generation)
        keep = generation.may_share and generation.phase is not Phase.FAILED
        self.cache.retire(generation.sequence, keep=keep)
        generation.sequence = NO_SEQUENCE
        generation.leader = None

    def preempt(self, generation: Generation) -> None:
        """Take a generation's cells; it resumes when there is room."""
        generation.turn(Turn.PREEMPT)
        self.cache.reset(generation.sequence)
        generation.n_computed = 0
        generation.leader = None
        self.preemptions += 1
        self._n_planned -= self._plan.pop(generation, 0)

    def preempt_youngest(self) -> bool:
        """Make room by force, whatever the books say; False if only one is left to run."""
        able = [generation for generation in self.running if generation.phase is not Phase.PREEMPTED]
        if len(able) < 2:
            return False
        self.preempt(able[-1])
        return True

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self) -> list[Generation]:
        """Let in what fits: those that lost their cells, then the queue. The newcomers among them."""
        newcomers: list[Generation] = []
        if not self._may_admit:
            return newcomers
        self._may_admit = False
        for generation in self.running:
            if generation.phase is Phase.PREEMPTED and not self._enter(generation):
                return newcomers
        while len(self.running) < self._n_parallel and (admitted := self._admit_next()) is not None:
            newcomers.append(admitted)
        return newcomers

    @property
    def only_decodes(self) -> bool:
        """Whether nobody waits, and the next step is one token of each that runs unless something new comes."""
        return not self.queue and all(generation.phase is Phase.DECODING for generation in self.running)

    def schedule(self) -> dict[Generation, int]:
        """How many rows each generation gets in the next step; empty if there is nothing to do."""
        self._plan, self._n_planned = {}, 0
        if self._all_decode_freely():
            self._turn = None
            self._plan, self._n_planned = dict.fromkeys(self.running, 1), len(self.running)
            return self._plan
        group = self._next_group()
        budget = self._n_ubatch
        prefilling = []
        for generation in group:
            if generation.phase is Phase.DECODING:
                if budget:
                    budget -= self._grant(generation, 1)
            elif generation.phase is Phase.PREFILLING and not self._follows(generation):
                prefilling.append(generation)
        if prefilling:
            self._share_budget(prefilling, budget)
        return self._plan

    def _all_decode_freely(self) -> bool:
        """Whether each running generation has a token to compute, room for it, and nothing against a common batch.

        Nearly all steps are like that, and then nothing has to be shared out.
        """
        if len(self.running) > min(self._n_ubatch, self.cache.n_free):
            return False
        for generation in self.running:
            if generation.phase is not Phase.DECODING or generation.request.deterministic:
                return False
        return True

    def _share_budget(self, prefilling: list[Generation], budget: int) -> None:
        oldest = prefilling[0]
        if oldest.request.deterministic:
            self._grant_alone(oldest)
            return
        budget -= self._grant(oldest, min(oldest.n_pending, (budget + 1) // 2))
        for generation in sorted(prefilling, key=lambda other: other.n_pending - self._plan.get(other, 0)):
            wanted = min(generation.n_pending - self._plan.get(generation, 0), budget)
            if wanted > 0 and generation.phase is Phase.PREFILLING:
                budget -= self._grant(generation, wanted)

    def _grant_alone(self, generation: Generation) -> None:
        """Rows of a deterministic one: its prompt in whole ubatches, then token by token, also when computed again."""
        rest_of_prompt = generation.n_prompt - generation.n_computed
        wanted = min(rest_of_prompt, self._n_ubatch) if rest_of_prompt > 0 else 1
        if self._grant(generation, wanted) < wanted:
            self._n_planned -= self._plan.pop(generation, 0)

    def _grant(self, generation: Generation, wanted: int) -> int:
        """Plan up to `wanted` more rows, as far as cells can be had; how many."""
        if generation.phase is Phase.PREEMPTED:  # by an older one, in this step
            return 0
        room = self._room(generation, wanted)
        if room:
            self._plan[generation] = self._plan.get(generation, 0) + room
            self._n_planned += room
        return room

    def _room(self, generation: Generation, wanted: int) -> int:
        """Free cells, up to `wanted`, made free where that is allowed."""
        cache = self.cache
        while cache.n_cells - cache.n_used - self._n_planned < wanted:
            if cache.evict():
                continue
            victim = next((other for other in reversed(self.running) if other.phase is not Phase.PREEMPTED), None)
            if victim is None or victim.arrival <= generation.arrival:
                return max(0, min(wanted, cache.n_free - self._n_planned))
            self.preempt(victim)
        return wanted

    def _next_group(self) -> Iterable[Generation]:
        """Who may run in this step: one deterministic generation, or all others."""
        able = [generation for generation in self.running if generation.phase is not Phase.PREEMPTED]
        alone = [generation for generation in able if generation.request.deterministic]
        if not alone:
            self._turn = None
            return able
        others = [generation for generation in able if not generation.request.deterministic]
        last = 0 if self._turn is None else self._turn.arrival
        following = next((generation for generation in alone if generation.arrival > last), None)
        if following is None and not others:
            following = alone[0]
        self._turn = following
        return others if following is None else [following]

    # ── admission ────────────────────────────────────────────────────────────────────────────────────────────────

    def _admit_next(self) -> Generation | None:
        for place, generation in enumerate(self.queue):
            if place == LOOKAHEAD:
                return None
            if self._enter(generation):
                del self.queue[place]
                for passed in range(place):
                    self.queue[passed].n_passed += 1
                return generation
            if generation.n_passed >= MAX_PASSES:
                return None
        return None

    def _enter(self, generation: Generation) -> bool:
        """Give a queued or preempted generation what it needs to run, if it fits."""
        nothing = Match(self.cache.root, 0, 0)
        match = self._lookup(generation)
        leader, n_follow = self._leader(generation, match.n_tokens)
        n_shared = max(match.n_tokens, n_follow)
        most = len(generation.tokens) + self._growth(generation)
        parked, n_parked = self._parked(generation, n_shared)
        if parked is not None and self._fits(most):
            match, leader, n_follow = nothing, None, 0
        elif self._fits(most + match.n_unheld - n_shared):
            parked = None
        else:
            return False
        if generation.phase is Phase.QUEUED:
            generation.turn(Turn.ADMIT)
            generation.sequence = self.cache.open(generation.tokens, match if leader is None else nothing)
            self._insert(generation)
        else:
            generation.turn(Turn.RESUME)
            if leader is None:
                self.cache.share(generation.sequence, match)
        generation.leader, generation.n_follow = leader, n_follow
        if parked is not None and self.cache.restore(generation.sequence, parked, n_parked):
            self._took(generation, n_parked)
        elif leader is None:
            self._took(generation, match.n_tokens)
        return True

    def _insert(self, generation: Generation) -> None:
        place = len(self.running)
        while place and self.running[place - 1].arrival > generation.arrival:
            place -= 1
        self.running.insert(place, generation)

    def _fits(self, needed: int) -> bool:
        able = [generation for generation in self.running if generation.phase is not Phase.PREEMPTED]
        if not able:
            return True  # alone, every generation fits
        committed = self.cache.n_held
        for generation in able:
            shared = max(0, generation.n_follow - generation.n_computed) if generation.leader else 0
            committed += generation.n_pending - shared + self._growth(generation)
        return committed + needed <= self.cache.n_cells

    def _growth(self, generation: Generation) -> int:
        return min(generation.limit - len(generation.tokens), self._reserve)

    # ── shared prefixes ──────────────────────────────────────────────────────────────────────────────────────────

    def _lookup(self, generation: Generation) -> Match:
        """What of its tokens is in cells; never the last, which is computed for its logits."""
        limit = len(generation.tokens) - 1 if generation.may_share else 0
        return self.cache.lookup(generation.tokens, limit)

    def _parked(self, generation: Generation, n_have: int) -> tuple[Parked | None, int]:
        """A parked prompt that has enough more of its tokens than is in cells to be brought back, and how many."""
        if not generation.may_share:
            return None, 0
        parked, n_tokens = self.cache.lot.find(generation.tokens, len(generation.tokens) - 1)
        if parked is None or n_tokens - n_have < parked.least_gain or not self.cache.can_restore(parked):
            return None, 0
        return parked, n_tokens

    @staticmethod
    def _took(generation: Generation, n_tokens: int) -> None:
        generation.n_computed = n_tokens
        if generation.n_cached is None:
            generation.n_cached = min(n_tokens, generation.n_prompt)

    def _leader(self, generation: Generation, n_have: int) -> tuple[Generation | None, int]:
        """Who is computing more of this one's prefix than is there already, and how much of it."""
        if not generation.may_share or not self.cache.can_share:
            return None, 0
        best, best_tokens = None, n_have
        for other in self.running:
            if other.phase is not Phase.PREFILLING or other is generation or self._waits_for(other, generation):
                continue
            common = common_length(
                other.tokens, generation.tokens, 0, min(len(other.tokens), len(generation.tokens) - 1)
            )
            if common - best_tokens >= MIN_FOLLOWED_TOKENS:  # rather an older one than some tokens more
                best, best_tokens = other, common
        return (None, 0) if best is None else (best, best_tokens)

    @staticmethod
    def _waits_for(other: Generation, generation: Generation) -> bool:
        """Whether following `other` would wait for somebody younger that waits itself, or in a circle."""
        if other.leader is not None and other.arrival > generation.arrival:
            return True
        leader = other.leader
        while leader is not None:
            if leader is generation:
                return True
            leader = leader.leader
        return False

    def _follows(self, generation: Generation) -> bool:
        """Whether it still waits for its leader; if that is done or gone, it shares what there is and goes on."""
        leader = generation.leader
        if leader is None:
            return False
        if leader.phase is Phase.PREFILLING and leader.n_computed < generation.n_follow:
            return True
        match = self._lookup(generation)
        generation.leader, generation.n_follow = self._leader(generation, match.n_tokens)
        if generation.leader is not None:
            return True
        self.cache.share(generation.sequence, match)
        self._took(generation, match.n_tokens)
        return False
