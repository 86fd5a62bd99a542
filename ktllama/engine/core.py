"""The engine: `step()` is schedule, run, take in; and nothing else.

It has no thread, no clock but the one it is given, and no I/O: messages go in by method, events come out by
`take_events`. ktllama.engine.process gives it a process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal

from ktllama.engine.embedding import Embedding, EmbeddingQueue
from ktllama.engine.executor import Executor, OutOfCellsError, Row, Sampled
from ktllama.engine.generation import Generation, rows_of
from ktllama.engine.lifecycle import Phase, Turn
from ktllama.engine.messages import Accepted, Event, Failed, Finished, Stats
from ktllama.engine.outgoing import Outgoing
from ktllama.engine.prefix_cache import PrefixCache
from ktllama.engine.scheduler import Scheduler
from ktllama.engine.throughput import Throughput
from ktllama.r1.repetition import RepetitionGuard

_log = logging.getLogger("ktllama.engine")

#: Steps in a row that may fail before the engine is given up; its process then ends and is started anew.
MAX_FAILED_STEPS = 3


class EngineBrokenError(Exception):
    """The executor fails whatever it is given."""


class Engine:
    """Works on many generations at once on one executor."""

    def __init__(
        self,
        executor: Executor,
        *,
        queue_limit: int,
        text_interval: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`text_interval`: seconds that a running generation's text may wait for more of it, see `take_events`."""
        model = executor.model
        self.executor = executor
        self.cache = PrefixCache(
            executor,
            n_cells=model.n_ctx,
            n_sequences=executor.n_sequences,
            can_share=model.can_share_prefix,
            parking_bytes=executor.parking_bytes,
        )
        # a ubatch with all of them decoding has room for a prompt's row
        self._n_parallel = min(model.n_parallel, executor.n_sequences, max(1, model.n_ubatch - 1))
        self.scheduler = Scheduler(self.cache, n_ubatch=model.n_ubatch, n_parallel=self._n_parallel)
        self.generations: dict[str, Generation] = {}
        self.embeddings = EmbeddingQueue()
        self.draining = False
        self._queue_limit = queue_limit
        self._clock = clock
        self._guards: dict[Generation, RepetitionGuard] = {}
        self._outgoing = Outgoing(clock, text_interval)
        self._failed_steps = 0
        self._empty_steps = 0
        self._throughput = Throughput()
        self._steps = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._generated_tokens = 0
        self._reasoning_tokens = 0
        self._step_seconds = 0.0
        self._scheduling_seconds = 0.0

    # ── messages in ──────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, generation: Generation) -> None:
        """Queue a generation, or refuse it."""
        request_id = generation.request.request_id
        if self._refused(request_id, n_generations=1):
            return
        self.generations[request_id] = generation
        self._guards[generation] = RepetitionGuard()
        self.scheduler.submit(generation)
        self._outgoing.add(Accepted(request_id=request_id, prompt_tokens=generation.n_prompt))
        if len(generation.tokens) >= generation.limit:  # max_tokens is 0
            self._finish(generation, "length")

    def embed(self, embedding: Embedding) -> None:
        """Queue an embedding, or refuse it."""
        if not self._refused(embedding.request_id, n_embeddings=1):
            self.embeddings.add(embedding)

    def cancel(self, request_id: str) -> None:
        """End a request now; nothing if it has ended."""
        generation = self.generations.get(request_id)
        if generation is not None:
            self._finish(generation, "cancelled")
        if self.embeddings.remove(request_id):
            self._fail_id(request_id, "engine_error", "cancelled")

    def _refused(self, request_id: str, *, n_generations: int = 0, n_embeddings: int = 0) -> bool:
        """Whether a newcomer, one of either kind, was refused."""
        if self.draining:
            self._fail_id(request_id, "draining", "the server is shutting down")
        elif request_id in self.generations:
            self._fail_id(request_id, "engine_error", f"request id {request_id!r} is in use")
        elif self._n_left_waiting(n_generations, n_embeddings) > self._queue_limit:
            n_queued = len(self.scheduler.queue) + len(self.embeddings)
            retry_after = self._throughput.retry_after(n_queued)
            message = f"{n_queued} requests are waiting already"
            fields: dict[str, int | float | str] = {"queued": n_queued, "retry_after": retry_after}
            self._outgoing.add(Failed(request_id=request_id, code="queue_full", message=message, fields=fields))
        else:
            return False
        return True

    def _n_left_waiting(self, n_generations: int, n_embeddings: int) -> int:
        """Requests that would wait with those, once the free places are taken; one embedding is made at a time."""
        n_free = self._n_parallel - len(self.scheduler.running)
        n_generations += len(self.scheduler.queue)
        n_embeddings += len(self.embeddings)
        return max(0, n_generations - n_free) + max(0, n_embeddings - 1)

    # ── events out ───────────────────────────────────────────────────────────────────────────────────────────────

    def take_events(self, *, at_once: bool = False) -> list[Event]:
        """What has happened since the last call, each request's text in one event.

        Text waits up to `text_interval` for more, unless it is to leave `at_once`, while the next step can only be a
        decode step. What a longer one would hold up does not wait.
        """
        if not at_once and self._outgoing.may_wait() and not self.embeddings and self.scheduler.only_decodes:
            return []
        return self._outgoing.take()

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to step for."""
        return bool(self.generations or self.embeddings)

    def stats(self, request_id: str | None = None) -> Stats:
        """Where the engine stands."""
        scheduler, cache = self.scheduler, self.cache
        phases = [generation.phase.value for generation in scheduler.running]
        return Stats(
            request_id=request_id,
            queued=len(scheduler.queue) + len(self.embeddings),
            running=len(phases) - phases.count("preempted"),
            prefilling=phases.count("prefilling"),
            preempted=phases.count("preempted"),
            cells_total=cache.n_cells,
            cells_running=cache.n_held,
            cells_cached=cache.n_used - cache.n_held,
            sequences_cached=len(cache.cached) + len(cache.lot),
            parked_bytes=cache.lot.n_bytes,
            evictions=cache.evictions + cache.lot.evictions,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            reasoning_tokens=self._reasoning_tokens,
            step_seconds=self._step_seconds,
            scheduling_seconds=self._scheduling_seconds,
        )

    def tidy(self) -> bool:
        """Park one sequence that nobody runs; False if there is none. For between steps: no request waits for it."""
        try:
            return self.cache.park()
        except Exception as error:  # a copy that cannot be made must not end the requests that run
            _log.exception("a sequence cannot be parked: %s", error)
            return self.cache.evict()

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> None:
        """Compute one batch. Raises EngineBrokenError when the executor has failed several times in a row."""
        start = self._clock()
        plan = self._schedule()
        rows = rows_of(plan)
        run_start = run_end = self._clock()
        if rows:
            sampled = self._run(plan, rows)
            run_end = self._clock()
            if sampled is not None:
                self._take_in(plan, sampled)
        self._watch_for_standstill(bool(rows or self.embeddings))
        if self.embeddings and (event := self.embeddings.compute(self.executor)) is not None:
            self._outgoing.add(event)
        self._steps += 1
        end = self._clock()
        self._step_seconds += end - start
        self._scheduling_seconds += (end - start) - (run_end - run_start)

    def _schedule(self) -> dict[Generation, int]:
        for newcomer in self.scheduler.admit():
            newcomer.admitted_at = self._clock()
            try:
                self._open(newcomer)
            except Exception as error:  # one request's sampler must not end the others
                _log.exception("request %s cannot begin: %s", newcomer.request.request_id, error)
                self._fail(newcomer, "engine_error", f"the request cannot begin: {error}")
        return self.scheduler.schedule()

    def _open(self, generation: Generation) -> None:
        """Make the sampler chain, and close the thinking at once where its budget is nothing."""
        request = generation.request
        self.executor.open(
            generation.sequence,
            request.sampling,
            generation.tokens,
            request.logprobs,
            request.ignore_eos,
            generation.checked,
        )
        generation.is_open = True
        self._force_or_constrain(generation)

    def _run(self, plan: dict[Generation, int], rows: list[Row]) -> list[Sampled] | None:
        """The executor's answer, or None: then its requests can be tried again, or have failed."""
        try:
            sampled = self.executor.run(rows)
        except OutOfCellsError:
            self._make_room(plan)
            return None
        except Exception as error:
            self._failed_steps += 1
            _log.exception("a step of %d rows failed: %s", len(rows), error)
            for generation in plan:
                self._fail(generation, "engine_error", f"the step failed: {error}")
            if self._failed_steps >= MAX_FAILED_STEPS:
                raise EngineBrokenError(f"{self._failed_steps} steps in a row failed: {error}") from error
            return None
        self._failed_steps = 0
        return sampled

    def _watch_for_standstill(self, did_something: bool) -> None:
        """Steps without work while requests wait would be a bug of the scheduler; spinning would hide it."""
        self._empty_steps = 0 if did_something else self._empty_steps + 1
        if self._empty_steps > 2 * len(self.generations) + 2:
            raise EngineBrokenError(f"{len(self.generations)} requests, and none of them can go on")

    def _make_room(self, plan: dict[Generation, int]) -> None:
        """The executor has less room than the books say: give up the cache, then generations, one by one."""
        _log.warning(
            "the context has no room for a batch; %d of %d cells are in use", self.cache.n_used, self.cache.n_cells
        )
        if self.cache.cached:
            while self.cache.evict():
                pass
        elif not self.scheduler.preempt_youngest():
            for generation in plan:
                self._fail(generation, "engine_error", "the context has no room for this request")

    def _take_in(self, plan: dict[Generation, int], sampled: list[Sampled]) -> None:
        """Record what was computed and what was sampled."""
        answers = iter(sampled)
        extend = self.cache.extend
        for generation, n_rows in plan.items():
            was_prompt = generation.n_computed < generation.n_prompt
            extend(generation.sequence, n_rows)
            generation.n_computed += n_rows
            if was_prompt:
                self._prompt_tokens += n_rows
            if generation.n_computed == len(generation.tokens):
                try:
                    self._hear(generation, next(answers))
                except Exception as error:  # one request's text or sampler must not end the others
                    _log.exception("request %s failed: %s", generation.request.request_id, error)
                    self._fail(generation, "engine_error", f"the request failed: {error}")

    def _hear(self, generation: Generation, sampled: Sampled) -> None:
        """Take a sampled token into a generation, and end it where it ends."""
        if sampled.error is not None:
            raise sampled.error
        if generation.phase is Phase.PREFILLING:
            self._begin_decoding(generation)
        if sampled.ends:
            self._finish(generation, "stop")
            return
        transcript = generation.transcript
        if sampled.logprob is None:
            self._say(generation, sampled.token, sampled.piece)
        else:
            start, kind = transcript.n_characters, transcript.phase
            self._say(generation, sampled.token, sampled.piece)
            if transcript.stopped != "eos":
                generation.held_logprobs.append((start, sampled.logprob, kind))
                self._release_logprobs(generation)
        if transcript.stopped is not None:
            self._finish(generation, "stop")
        elif self._guards[generation].feed(sampled.token):
            self._finish(generation, "length", repetition=True)
        elif len(generation.tokens) >= generation.limit:
            self._finish(generation, "length")
        else:
            self._force_or_constrain(generation)

    def _begin_decoding(self, generation: Generation) -> None:
        if generation.first_token_at is None:
            generation.first_token_at = self._clock()
            self._cached_tokens += generation.n_cached or 0
        generation.turn(Turn.SAMPLE)

    def _release_logprobs(self, generation: Generation) -> None:
        """Let go the logprobs of tokens whose text is no stop string's, however little of it shows."""
        held, is_settled = generation.held_logprobs, generation.transcript.is_settled
        while held and is_settled(held[0][0]):
            _, logprob, kind = held.popleft()
            generation.logprobs.append(logprob)
            generation.logprob_kinds.append(kind)
            self._outgoing.speak(generation)

    def _say(self, generation: Generation, token: int, piece: bytes) -> None:
        """Add a token to a generation's tokens and to its text."""
        transcript = generation.transcript
        thought = transcript.reasoning_tokens
        generation.tokens.append(token)
        deltas = transcript.feed(token, piece)
        generation.n_unsent += 1
        self._generated_tokens += 1
        self._reasoning_tokens += transcript.reasoning_tokens - thought
        if deltas:
            generation.deltas += deltas
            self._outgoing.speak(generation)

    def _force_or_constrain(self, generation: Generation) -> None:
        """Close the thinking where its budget is spent; begin the grammar where the answer begins."""
        transcript = generation.transcript
        if transcript.budget_spent:
            self._close_thinking(generation)
        if not generation.constrained and not generation.has_ended and transcript.phase == "content":
            generation.constrained = True
            self.executor.constrain(generation.sequence)

    def _close_thinking(self, generation: Generation) -> None:
        generation.forced_closed = True
        if generation.phase is Phase.DECODING:
            generation.turn(Turn.FORCE)
        for token in generation.transcript.forced_tokens():
            self.executor.accept(generation.sequence, token)
            self._say(generation, token, self.executor.piece(token))
            if generation.transcript.stopped is not None:
                self._finish(generation, "stop")
                return
            if len(generation.tokens) >= generation.limit:
                self._finish(generation, "length")
                return

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(
        self, generation: Generation, reason: Literal["stop", "length", "cancelled"], *, repetition: bool = False
    ) -> None:
        transcript = generation.transcript
        stopped = transcript.stopped
        thought = transcript.reasoning_tokens
        generation.deltas += transcript.finish(cut_off=reason != "stop")
        self._release_logprobs(generation)
        self._reasoning_tokens += transcript.reasoning_tokens - thought
        generation.turn(Turn.CANCEL if reason == "cancelled" else Turn.END)
        self._outgoing.end(generation)
        now = self._clock()
        first = generation.first_token_at
        admitted = generation.admitted_at
        self._outgoing.add(
            Finished(
                request_id=generation.request.request_id,
                reason=reason,
                usage=generation.usage(),
                stop=transcript.stop_string if stopped == "stop" else None,
                repetition=repetition,
                thinking_forced_closed=generation.forced_closed,
                ttft_seconds=0.0 if first is None else first - generation.received_at,
                decode_seconds=0.0 if first is None else now - first,
                queue_seconds=(now if admitted is None else admitted) - generation.received_at,
            )
        )
        self._leave(generation)

    def _fail(self, generation: Generation, code: str, message: str) -> None:
        generation.turn(Turn.FAIL)
        self._outgoing.end(generation)
        self._fail_id(generation.request.request_id, code, message)
        self._leave(generation)

    def _fail_id(self, request_id: str, code: str, message: str) -> None:
        self._outgoing.add(Failed(request_id=request_id, code=code, message=message))

    def _leave(self, generation: Generation) -> None:
        """Free what an ended generation holds."""
        if generation.is_open:
            self.executor.close(generation.sequence)
        self.scheduler.leave(generation)
        del self.generations[generation.request.request_id]
        del self._guards[generation]
        self._throughput.ended(self._clock())
