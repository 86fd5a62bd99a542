"""A process that is not dead and not well: counted in beats, and with real processes that are stopped."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from ktllama.engine import wire
from ktllama.engine.client import EngineClient, State
from ktllama.engine.core import Engine
from ktllama.engine.errors import EngineRequestError
from ktllama.engine.generation import Generation
from ktllama.engine.heartbeat import Finding, Heartbeat, Occupied, Pulse
from ktllama.engine.intake import Intake
from ktllama.engine.launch import Launch
from ktllama.engine.messages import (
    Cancel,
    Drain,
    Event,
    Failed,
    Finished,
    Generate,
    Ping,
    Pong,
    Report,
    Request,
    Segment,
    Tokenize,
    Tokenized,
)
from ktllama.engine.process import StepLoop
from ktllama.engine.reader import Inbox, Outbox, Reader, Work
from tests.engine.driver import ask
from tests.engine.fake_executor import FakeExecutor, FakeOptions
from tests.engine.test_process import QUICK, answer, first_text, is_alive, run

PATIENT = Heartbeat(beat_seconds=1, silent_seconds=3, step_seconds=10, hung_seconds=2)
#: Quick to find an engine unresponsive. A slow machine may make it find so of a healthy one; it never ends it.
NERVOUS = Heartbeat(beat_seconds=0.05, silent_seconds=1, step_seconds=600, hung_seconds=None)


def launched(heartbeat: Heartbeat, **options: object) -> Launch:
    return Launch(executor="tests.engine.fake_executor:open_fake", options=options, backoff=QUICK, heartbeat=heartbeat)


def test_silence_is_unresponsive_then_hung_and_a_word_ends_it() -> None:
    pulse = Pulse(PATIENT)
    assert {pulse.beat() for _ in range(100)} == {"well"}  # it has not begun
    pulse.heard()
    findings: list[Finding] = []
    for _ in range(5):
        findings.append(pulse.beat())
    assert findings == ["well", "well", "well", "unresponsive", "unresponsive"]
    assert pulse.complaint == "it has said nothing for 4 s"
    assert pulse.beat() == "hung"
    pulse.heard()
    assert pulse.beat() == "well"
    assert [pulse.beat() for _ in range(3)] == ["well", "well", "unresponsive"]


@pytest.mark.parametrize(
    ("busy", "complaint"),
    [("step_seconds", "one step has taken 12 s"), ("reading_seconds", "a request has been read for 12 s")],
)
def test_who_is_busy_for_too_long_is_unresponsive_though_the_process_answers(busy: str, complaint: str) -> None:
    pulse = Pulse(PATIENT)
    findings: list[Finding] = []
    idle = {"step_seconds": 0.0, "reading_seconds": 0.0}
    for seconds in (0.0, 9.9, 10.0, 11.0, 12.0):
        pulse.told(**(idle | {busy: seconds}))
        findings.append(pulse.beat())
    assert findings == ["well", "well", "unresponsive", "unresponsive", "hung"]
    assert pulse.complaint == complaint
    pulse.told(step_seconds=0.1, reading_seconds=0.1)
    assert pulse.beat() == "well"


def test_a_thread_is_occupied_from_the_beginning_of_a_thing_to_its_end() -> None:
    now = 5.0
    occupied = Occupied(lambda: now)
    seen = [occupied.seconds]
    occupied.begin()
    now = 7.0
    seen.append(occupied.seconds)
    occupied.begin()
    now = 8.0
    seen.append(occupied.seconds)
    occupied.end()
    seen.append(occupied.seconds)
    assert seen == [0.0, 2.0, 1.0, 0.0]


def test_the_main_thread_is_occupied_but_while_it_waits_for_work() -> None:
    class Told(Occupied):
        def begin(self) -> None:
            told.append("begin")

        def end(self) -> None:
            told.append("end")
            inbox.put(Drain())

    told: list[str] = []
    inbox: Inbox = queue.SimpleQueue()
    fake = FakeExecutor(FakeOptions(parking_bytes=1000, end_chance=0))
    engine = Engine(fake, queue_limit=1)
    generation = Intake(fake).generation(ask("a", "q" * 40, max_tokens=1))
    assert isinstance(generation, Generation)
    engine.submit(generation)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        StepLoop(engine, inbox, Outbox(theirs), Told()).run()
    step, parking, rest = ["begin"], ["begin", "begin"], ["end", "begin"]
    assert told == step + parking + rest
    assert engine.stats().parked_bytes


def test_without_a_limit_nothing_is_ever_hung() -> None:
    pulse = Pulse(Heartbeat(beat_seconds=1, silent_seconds=1, step_seconds=1, hung_seconds=None))
    pulse.heard()
    pulse.beat()
    assert {pulse.beat() for _ in range(10_000)} == {"unresponsive"}


@pytest.mark.parametrize("wrong", [{"beat_seconds": 0}, {"silent_seconds": 0.5}, {"step_seconds": 0.5}, {"hung_seconds": 0}])  # fmt: skip
def test_a_heartbeat_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a heartbeat needs"):
        Heartbeat(**wrong)


def test_a_stopped_process_is_unresponsive_until_it_goes_on() -> None:
    async def scenario() -> None:
        client = EngineClient(launched(NERVOUS, end_chance=0, seconds_per_step=0.001))
        await client.start()
        try:
            await client.wait_ready()
            begun = asyncio.Event()
            running = asyncio.create_task(first_text(client, ask("a", "x", max_tokens=300), begun))
            await begun.wait()
            assert client.pid is not None
            os.kill(client.pid, signal.SIGSTOP)
            await until(client, "unresponsive")
            assert client.complaint is not None
            assert client.complaint.startswith("it has said nothing for")
            _, refused = await answer(client, ask("b", "x"))
            assert isinstance(refused, Failed)
            assert (refused.code, refused.fields) == ("engine_unresponsive", {"retry_after": 5})
            with pytest.raises(EngineRequestError, match="the engine does not answer: it has said nothing for"):
                await client.tokenize([Segment("x", False)])
            assert client.state == "unresponsive"
            os.kill(client.pid, signal.SIGCONT)
            await until(client, "ready")
            text, end = await running
            assert isinstance(end, Finished)
            assert len(text) == 300
            assert client.restarts == 0
        finally:
            await client.close()

    run(scenario())


async def until(client: EngineClient, state: State) -> None:
    while client.state != state:
        await asyncio.sleep(0.001)


#: As patient as it takes for a slow machine not to end a healthy process.
ENDING = Heartbeat(beat_seconds=0.05, silent_seconds=3, step_seconds=600, hung_seconds=0.5)


def test_a_process_that_stays_stopped_is_ended_also_in_a_drain() -> None:
    async def ended_and_started_anew() -> None:
        client = EngineClient(launched(ENDING, end_chance=0, seconds_per_step=0.001))
        await client.start()
        try:
            await client.wait_ready()
            begun = asyncio.Event()
            running = asyncio.create_task(first_text(client, ask("a", "x", max_tokens=4000), begun))
            await begun.wait()
            pid = client.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            _, end = await running
            assert isinstance(end, Failed)
            assert end.code == "engine_died"
            assert end.message.startswith("the engine hung and was ended: it has said nothing for ")
            assert client.failure == end.message
            assert not is_alive(pid)
            await client.wait_ready()
            assert client.restarts >= 1
        finally:
            await client.close()

    async def drained() -> None:
        client = EngineClient(launched(ENDING))
        await client.start()
        try:
            await client.wait_ready()
            assert client.pid is not None
            os.kill(client.pid, signal.SIGSTOP)
            await client.drain()
            assert client.state == "stopped"
        finally:
            await client.close()

    async def scenario() -> None:
        await asyncio.gather(ended_and_started_anew(), drained())

    run(scenario())


@pytest.mark.parametrize(
    ("stuck", "complaint"),
    [
        ({"seconds_per_row": 100}, "one step has taken "),
        ({"seconds_per_copy": 100, "parking_bytes": 1000}, "one step has taken "),
        ({"seconds_per_text": 100}, "a request has been read for "),
    ],
)
def test_a_thread_that_hangs_is_told_though_the_process_answers(stuck: dict[str, object], complaint: str) -> None:
    heartbeat = Heartbeat(beat_seconds=0.02, silent_seconds=600, step_seconds=0.3, hung_seconds=0.1)

    async def scenario() -> None:
        client = EngineClient(launched(heartbeat, end_chance=0, **stuck))
        await client.start()
        try:
            await client.wait_ready()
            stream = client.generate(ask("a", "x" * 100, max_tokens=1))
            while client.failure is None:
                await asyncio.sleep(0.001)
            assert client.failure.startswith(f"the engine hung and was ended: {complaint}")
            stream.close()
        finally:
            await client.close()

    run(scenario())


def test_a_long_text_that_is_being_tokenized_does_not_hold_up_the_answer_to_a_ping() -> None:
    class SlowIntake(Intake):
        def tokenize(self, request: Tokenize) -> Tokenized:
            begun.set()
            assert go_on.wait(timeout=300)
            return super().tokenize(request)

    begun, go_on = threading.Event(), threading.Event()
    sent: queue.SimpleQueue[list[Request]] = queue.SimpleQueue()  # its end would end this process
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(300)
        reader = Reader(iter(sent.get, []), queue.SimpleQueue(), Outbox(theirs), Occupied(), queue_limit=9)
        reader.intake = SlowIntake(FakeExecutor(FakeOptions()))
        reader.start()
        sent.put([Tokenize(request_id="a", segments=(Segment("x", False),))])
        assert begun.wait(timeout=300)
        sent.put([Ping()])
        splitter = wire.FrameSplitter()

        def received() -> list[Event]:
            return [event for body in splitter.feed(ours.recv(65536)) for event in wire.events(body)]

        (pong,) = received()
        assert isinstance(pong, Pong)
        assert pong.step_seconds == 0 < pong.reading_seconds
        go_on.set()
        assert received() == [Tokenized(request_id="a", tokens=(ord("x"),), pieces=())]


class Interrupted(Intake):
    """Reads one request, and finds that everything else has come meanwhile."""

    def __init__(self, came: Callable[[], None], options: FakeOptions | None = None) -> None:
        super().__init__(FakeExecutor(options or FakeOptions()))
        self.came = came
        self.n_read = 0

    def generation(self, request: Generate) -> Generation | Failed:
        self.n_read += 1
        if self.n_read == 1:
            self.came()
        return super().generation(request)


def test_a_cancel_is_heard_while_a_long_text_is_read_and_takes_back_what_is_unread() -> None:
    def came() -> None:
        begun.set()
        heard.extend(inbox.get(timeout=300) for _ in range(2))
        read_on.set()

    begun, read_on = threading.Event(), threading.Event()
    heard: list[Work] = []
    inbox: Inbox = queue.SimpleQueue()
    sent: queue.SimpleQueue[list[Request]] = queue.SimpleQueue()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = Reader(iter(sent.get, []), inbox, Outbox(theirs), Occupied(), queue_limit=9)
        intake = reader.intake = Interrupted(came)
        reader.start()
        running, being_read, unread = (Cancel(request_id=name) for name in ("running", "being read", "unread"))
        sent.put([ask("being read", "x"), ask("unread", "x"), ask("kept", "x"), Drain()])
        assert begun.wait(timeout=300)
        sent.put([being_read, unread, ask("unread", "once more"), running, Report(request_id="report")])
        assert read_on.wait(timeout=300)
        heard += [inbox.get(timeout=300) for _ in range(3)]
    *others, again = [work.request for work in heard if isinstance(work, Generation)]
    assert [work for work in heard if not isinstance(work, Generation)] == [
        running,
        Report(request_id="report"),
        Drain(),
    ]
    assert (others, again) == ([ask("kept", "x")], ask("unread", "once more"))
    assert intake.n_read == 3


def test_what_waits_to_be_read_is_bounded_like_what_waits_to_run() -> None:
    def came() -> None:
        begun.set()
        assert read_on.wait(timeout=300)

    begun, read_on = threading.Event(), threading.Event()
    inbox: Inbox = queue.SimpleQueue()
    sent: queue.SimpleQueue[list[Request]] = queue.SimpleQueue()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(300)
        reader = Reader(iter(sent.get, []), inbox, Outbox(theirs), Occupied(), queue_limit=2)
        reader.intake = Interrupted(came, FakeOptions(n_parallel=3))
        reader.start()
        sent.put([ask(f"r{i}", "x") for i in range(6)])
        assert begun.wait(timeout=300)
        (refused,) = (event for body in wire.FrameSplitter().feed(ours.recv(65536)) for event in wire.events(body))
        assert isinstance(refused, Failed)
        assert (refused.request_id, refused.code, refused.fields) == (
            "r5",
            "queue_full",
            {"queued": 5, "retry_after": 1},
        )
        read_on.set()
        assert all(isinstance(inbox.get(timeout=300), Generation) for _ in range(5))
        sent.put([ask("later", "x")])
        assert isinstance(inbox.get(timeout=300), Generation)
