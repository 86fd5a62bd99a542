"""A real engine process with the fake in it: what clients see when it works, dies, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TypeVar

import pytest

from ktllama.engine import wire
from ktllama.engine.client import EngineClient, State
from ktllama.engine.errors import EngineFailedError, EngineRequestError
from ktllama.engine.launch import Backoff, Launch
from ktllama.engine.messages import Accepted, Emitted, Failed, Finished, Generate, Load, ModelInfo, Segment
from ktllama.engine.supervisor import _environment
from tests.engine.driver import ask

T = TypeVar("T")
QUICK = Backoff(first_seconds=0.01, longest_seconds=0.05)


def run(coroutine: Coroutine[object, object, T], timeout: float = 300) -> T:
    """Run a test's coroutine; nothing here takes so long unless it hangs."""
    return asyncio.run(asyncio.wait_for(coroutine, timeout=timeout))


def launch(queue_limit: int = 256, backoff: Backoff = QUICK, **options: object) -> Launch:
    return Launch(
        executor="tests.engine.fake_executor:open_fake", options=options, queue_limit=queue_limit, backoff=backoff
    )


@contextlib.asynccontextmanager
async def running(launch: Launch) -> AsyncIterator[EngineClient]:
    """A client whose engine is ready."""
    client = EngineClient(launch)
    await client.start()
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.close()


async def answer(client: EngineClient, request: Generate) -> tuple[str, Finished | Failed]:
    """A request's text and its end."""
    text = ""
    end: Finished | Failed | None = None
    async for event in client.generate(request):
        assert end is None, "an event after the end"
        if isinstance(event, Emitted):
            text += "".join(piece for _, piece in event.deltas)
        elif isinstance(event, Finished | Failed):
            end = event
    assert end is not None
    return text, end


async def first_text(client: EngineClient, request: Generate, started: asyncio.Event) -> tuple[str, Finished | Failed]:
    """The same, telling when the first text has come."""
    text = ""
    async for event in client.generate(request):
        if isinstance(event, Emitted):
            text += "".join(piece for _, piece in event.deltas)
            started.set()
        elif isinstance(event, Finished | Failed):
            return text, event
    raise AssertionError("the stream ended without an end")


def open_descriptors() -> list[str]:
    """What this process has open, by what it is."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()).split(":")[0])
    return sorted(found)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_text_of_short_steps_comes_in_few_events() -> None:
    async def scenario() -> None:
        async with running(launch(end_chance=0)) as client:
            expected, _ = await answer(client, ask("a", "x", max_tokens=50))
        async with running(dataclasses.replace(launch(end_chance=0), text_interval=3600.0)) as client:
            events = [event async for event in client.generate(ask("a", "x", max_tokens=50))]
        emitted = [event for event in events if isinstance(event, Emitted)]
        assert len(emitted) <= 2  # the first words, and all others with the end
        assert "".join(text for event in emitted for _, text in event.deltas) == expected

    run(scenario())


def test_a_request_is_answered_in_another_process() -> None:
    async def scenario() -> None:
        states: list[State] = []
        client = EngineClient(launch(say={"sky": "Rayleigh."}), on_state=states.append)
        await client.start()
        try:
            model = await client.wait_ready()
            assert isinstance(model, ModelInfo)
            assert (model.name, client.model, client.load_fraction) == ("fake", model, 1.0)
            assert client.pid not in (None, os.getpid())
            events = [event async for event in client.generate(ask("a", "Why is the sky blue?"))]
        finally:
            await client.close()
        assert events[0] == Accepted(request_id="a", prompt_tokens=20)
        text = "".join(piece for event in events if isinstance(event, Emitted) for _, piece in event.deltas)
        assert text == "Rayleigh."
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "stop"
        assert states == ["starting", "loading", "ready", "stopped"]

    run(scenario())


def test_tokens_embeddings_and_stats_are_asked_for() -> None:
    async def scenario() -> None:
        async with running(launch(n_ctx=512)) as client:
            tokenized = await client.tokenize([Segment("hi", False)], add_bos=True, with_pieces=True)
            assert (tokenized.tokens, tokenized.pieces[1:]) == ((256, 104, 105), (b"h", b"i"))
            assert await client.detokenize([104, 105]) == b"hi"
            embedded = await client.embed(["one", "two", (1, 2, 3)])
            assert [len(vector) for vector in embedded.vectors] == [8, 8, 8]
            assert embedded.prompt_tokens == 4 + 4 + 3
            stats = await client.stats()
            assert (stats.cells_total, stats.queued, stats.running) == (512, 0, 0)
            with pytest.raises(EngineRequestError) as caught:
                await client.detokenize([9999])
            assert (caught.value.code, caught.value.fields) == ("invalid_token", {"token": 9999})
            with pytest.raises(EngineRequestError) as caught:
                await client.embed(["x" * 600])
            assert caught.value.code == "context_length_exceeded"

    run(scenario())


def test_kill_nine_under_eight_requests_answers_all_and_restarts() -> None:
    async def scenario() -> None:
        async with running(launch(end_chance=0, seconds_per_step=0.002)) as client:
            begun = [asyncio.Event() for _ in range(8)]
            tasks = [
                asyncio.create_task(first_text(client, ask(f"r{i}", f"prompt {i}", max_tokens=3000), begun[i]))
                for i in range(8)
            ]
            await asyncio.gather(*(event.wait() for event in begun))
            pid = client.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            ends = await asyncio.gather(*tasks)
            assert all(text for text, _ in ends)
            for _, end in ends:
                assert isinstance(end, Failed)
                assert (end.code, end.message) == ("engine_died", "the engine ended by SIGKILL")
                assert end.fields["retry_after"] == 1
            assert client.state == "restarting"
            refused = await answer(client, ask("meanwhile", "x"))
            assert isinstance(refused[1], Failed)
            assert refused[1].code == "engine_died"
            await client.wait_ready()
            assert client.restarts == 1
            assert client.pid != pid
            _, end = await answer(client, ask("after", "x", max_tokens=5))
            assert isinstance(end, Finished)

    run(scenario())


def test_an_assertion_in_the_library_is_the_reason() -> None:
    async def scenario() -> None:
        async with running(launch(crash_on={"now crash": "abort"})) as client:
            _, end = await answer(client, ask("a", "now crash"))
            assert isinstance(end, Failed)
            reason = "the engine ended by SIGABRT: fake.c:1: GGML_ASSERT(n > 0) failed"
            assert (end.code, end.message, client.failure) == ("engine_died", reason, reason)
            await client.wait_ready()
            _, end = await answer(client, ask("b", "hello", max_tokens=5))
            assert isinstance(end, Finished)

    run(scenario())


def test_a_step_that_raises_fails_its_requests_and_the_process_lives() -> None:
    async def scenario() -> None:
        async with running(launch(crash_on={"boom": "raise"})) as client:
            pid = client.pid
            for i in range(10):  # not in a row: a good one stands between
                _, end = await answer(client, ask(f"bad{i}", "boom"))
                assert isinstance(end, Failed)
                assert end.code == "engine_error"
                _, end = await answer(client, ask(f"good{i}", "hello", max_tokens=5))
                assert isinstance(end, Finished)
            assert client.pid == pid

    run(scenario())


def test_an_executor_that_always_fails_is_started_anew() -> None:
    async def scenario() -> None:
        async with running(launch(crash_on={"": "raise"})) as client:
            pid = client.pid
            for i in range(3):
                _, end = await answer(client, ask(f"r{i}", "x"))
                assert isinstance(end, Failed)
                assert end.code == "engine_error"
            while client.restarts == 0:
                await asyncio.sleep(0.01)
            await client.wait_ready()
            assert client.pid != pid
            assert client.failure is not None
            assert "3 steps in a row failed" in client.failure

    run(scenario())


@pytest.mark.parametrize(
    ("executor", "options", "message"),
    [
        ("tests.engine.fake_executor:open_fake", {"fail_load": "m.gguf: not a model"}, "m.gguf: not a model"),
        ("tests.engine.fake_executor:nothing", {}, "the executor 'tests.engine.fake_executor:nothing' cannot be found"),
        ("no.such.module:open", {}, "the executor 'no.such.module:open' cannot be found"),
        ("tests.engine.fake_executor:open_fake", {"n_ctx": "many"}, "ValidationError"),
    ],
)
def test_a_load_failure_is_said_and_not_tried_again(executor: str, options: dict[str, object], message: str) -> None:
    async def scenario() -> None:
        states: list[State] = []
        client = EngineClient(Launch(executor=executor, options=options, backoff=QUICK), on_state=states.append)
        await client.start()
        with pytest.raises(EngineFailedError, match=message.replace("'", ".")):
            await client.wait_ready()
        assert (client.state, client.restarts, client.pid) == ("failed", 0, None)
        assert states[0] == "starting"
        assert states[-1] == "failed"
        _, end = await answer(client, ask("a", "x"))
        assert isinstance(end, Failed)
        assert message in end.message
        await client.close()
        assert client.state == "failed"

    run(scenario())


def test_an_executor_from_a_file_is_found() -> None:
    async def scenario() -> None:
        path = Path(__file__).with_name("fake_executor.py")
        async with running(Launch(executor=f"{path}:open_fake")) as client:
            assert client.state == "ready"

    run(scenario())


def test_a_process_that_dies_while_it_loads_is_given_up_after_some_attempts() -> None:
    async def scenario() -> None:
        client = EngineClient(launch(die_while_loading=True))
        await client.start()
        with pytest.raises(EngineFailedError, match="while loading, 5 times in a row"):
            await client.wait_ready()
        assert (client.state, client.restarts) == ("failed", 4)
        await client.close()

    run(scenario())


def test_before_it_is_loaded_requests_are_told_so() -> None:
    async def scenario() -> None:
        client = EngineClient(launch(load_seconds=0.2))
        await client.start()
        _, end = await answer(client, ask("a", "x"))
        assert isinstance(end, Failed)
        assert end.code == "loading"
        with pytest.raises(EngineRequestError) as caught:
            await client.tokenize([Segment("x", False)])
        assert caught.value.code == "loading"
        await client.wait_ready()
        await client.close()

    run(scenario())


def test_drain_lets_running_requests_end_and_takes_no_new_ones() -> None:
    async def scenario() -> None:
        async with running(launch(end_chance=0, seconds_per_step=0.001)) as client:
            begun = [asyncio.Event() for _ in range(4)]
            tasks = [
                asyncio.create_task(first_text(client, ask(f"r{i}", f"p{i}", max_tokens=100), begun[i]))
                for i in range(4)
            ]
            await asyncio.gather(*(event.wait() for event in begun))
            drained = asyncio.create_task(client.drain())
            await asyncio.sleep(0)
            assert client.state == "draining"
            _, refused = await answer(client, ask("late", "x"))
            assert isinstance(refused, Failed)
            assert refused.code == "draining"
            for text, end in await asyncio.gather(*tasks):
                assert isinstance(end, Finished)
                assert len(text) == 100
            await drained
            assert (client.state, client.pid) == ("stopped", None)

    run(scenario())


def test_close_answers_what_is_in_flight() -> None:
    async def scenario() -> None:
        async with running(launch(end_chance=0, seconds_per_step=0.002)) as client:
            begun = asyncio.Event()
            task = asyncio.create_task(first_text(client, ask("a", "x", max_tokens=3000), begun))
            await begun.wait()
            pid = client.pid
            assert pid is not None
            await client.close()
            _, end = await task
            assert isinstance(end, Failed)
            assert end.code == "engine_died"
            assert not is_alive(pid)

    run(scenario())


def test_close_ends_a_drain_that_takes_too_long() -> None:
    async def scenario() -> None:
        async with running(launch(end_chance=0, seconds_per_step=0.01)) as client:
            begun = asyncio.Event()
            task = asyncio.create_task(first_text(client, ask("a", "x", max_tokens=4000), begun))
            await begun.wait()
            drained = asyncio.create_task(client.drain())
            await asyncio.sleep(0)
            await client.close()
            await drained
            _, end = await task
            assert isinstance(end, Failed)
            assert end.code == "draining"
            assert client.state == "stopped"

    run(scenario())


def test_sigterm_to_the_engine_drains_it() -> None:
    async def scenario() -> None:
        async with running(launch(end_chance=0, seconds_per_step=0.001)) as client:
            begun = asyncio.Event()
            task = asyncio.create_task(first_text(client, ask("a", "x", max_tokens=100), begun))
            await begun.wait()
            assert client.pid is not None
            os.kill(client.pid, signal.SIGINT)  # is not for it
            os.kill(client.pid, signal.SIGTERM)
            text, end = await task
            assert isinstance(end, Finished)
            assert len(text) == 100

    run(scenario())


def test_a_reader_that_leaves_frees_its_cells() -> None:
    async def scenario() -> None:
        async with running(launch(end_chance=0, seconds_per_step=0.001)) as client:
            stream = client.generate(ask("a", "x", max_tokens=3000))
            async for event in stream:
                if isinstance(event, Emitted):
                    break
            stream.close()
            while (await client.stats()).running:
                await asyncio.sleep(0.01)
            stats = await client.stats()
            assert (stats.queued, stats.cells_running) == (0, 0)

    run(scenario())


def test_an_idle_engine_has_said_where_its_cached_prompts_are() -> None:
    async def scenario() -> None:
        async with running(launch(parking_bytes=1000, end_chance=0)) as client:
            await answer(client, ask("a", "a prompt that is parked", max_tokens=3))
            while client.last_stats is None or client.last_stats.cells_cached or not client.last_stats.parked_bytes:
                await asyncio.sleep(0.01)
            assert (await client.stats()).parked_bytes == client.last_stats.parked_bytes

    run(scenario())


def test_a_reader_that_falls_behind_gets_all_in_fewer_pieces() -> None:
    async def scenario() -> None:
        async with running(launch(end_chance=0)) as client:
            expected, _ = await answer(client, ask("a", "x", max_tokens=300, logprobs=0))
            stream = client.generate(ask("b", "x", max_tokens=300, logprobs=0))
            await anext(stream)
            while (await client.stats()).running:
                await asyncio.sleep(0.01)
            rest = [event async for event in stream]
            assert len(rest) <= 3
            emitted = [event for event in rest if isinstance(event, Emitted)]
            assert "".join(text for event in emitted for _, text in event.deltas) == expected
            assert sum(event.tokens for event in emitted) == 300
            assert sum(len(event.logprobs) for event in emitted) == 300
            assert sum(len(event.logprob_kinds) for event in emitted) == 300

    run(scenario())


def test_a_thousand_requests_queue_and_each_is_answered() -> None:
    async def scenario() -> None:
        async with running(launch(queue_limit=900, n_ctx=2048, n_ubatch=128)) as client:
            requests = [ask(f"r{i}", f"question {i}", max_tokens=3) for i in range(1000)]
            ends = [end for _, end in await asyncio.gather(*(answer(client, request) for request in requests))]
            refused = [end for end in ends if isinstance(end, Failed)]
            assert all(end.code == "queue_full" for end in refused)
            assert all(1 <= int(end.fields["retry_after"]) <= 600 for end in refused)
            assert 900 <= len(ends) - len(refused) <= 1000
            stats = await client.stats()
            assert (stats.queued, stats.running, stats.cells_running) == (0, 0, 0)

    run(scenario())


def test_noise_on_stdout_and_stderr_harms_nothing() -> None:
    async def scenario() -> None:
        async with running(launch(noise="\x00\xff" * 3000 + "a line\n")) as client:
            text, end = await answer(client, ask("a", "hello", max_tokens=50))
            assert isinstance(end, Finished)
            assert text
            while not any(line.endswith("a line") for line in client.log):  # it comes by a pipe of its own
                await asyncio.sleep(0.01)

    run(scenario())


def test_what_the_engine_logs_keeps_its_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="ktllama.engine")

    async def scenario() -> None:
        async with running(launch(crash_on={"boom": "raise"}, noise="a library\n")) as client:
            await answer(client, ask("a", "boom"))
            while not any("RuntimeError" in line for line in client.log):
                await asyncio.sleep(0.01)

    run(scenario())
    levels = {record.message: record.levelname for record in caplog.records}
    cause = "the fake was told to fail on 'boom'"
    assert levels[f"ERROR ktllama.engine: a step of 4 rows failed: {cause}"] == "ERROR"
    assert levels[f"ERROR ktllama.engine: RuntimeError: {cause}"] == "ERROR"  # the traceback keeps its level
    assert levels["a library"] == "DEBUG"


def test_the_end_of_an_abandoned_request_is_told_with_its_counts() -> None:
    async def scenario() -> None:
        abandoned: list[Finished] = []
        client = EngineClient(launch(end_chance=0, seconds_per_step=0.001), on_abandoned=abandoned.append)
        await client.start()
        try:
            await client.wait_ready()
            stream = client.generate(ask("a", "hello", max_tokens=3000))
            emitted = 0
            async for event in stream:
                if isinstance(event, Emitted):
                    emitted += event.tokens
                    if emitted >= 20:
                        break
            stream.close()
            while not abandoned:
                await asyncio.sleep(0.01)
            (end,) = abandoned
            assert (end.request_id, end.reason, end.usage.prompt_tokens) == ("a", "cancelled", 5)
            assert emitted <= end.usage.completion_tokens < 3000
            await answer(client, ask("b", "hello", max_tokens=3))
            assert len(abandoned) == 1
        finally:
            await client.close()

    run(scenario())


def test_an_end_that_nobody_came_for_is_told_too() -> None:
    async def scenario() -> None:
        abandoned: list[Finished] = []
        client = EngineClient(launch(end_chance=0), on_abandoned=abandoned.append)
        await client.start()
        try:
            await client.wait_ready()
            stream = client.generate(ask("a", "hello", max_tokens=5))
            assert isinstance(await anext(stream), Accepted)
            while (await client.stats()).generated_tokens < 5:
                pass
            await client.stats()  # which was asked for behind the end
            assert not abandoned
            stream.close()
            assert [(end.request_id, end.reason, end.usage.completion_tokens) for end in abandoned] == [
                ("a", "length", 5)
            ]
        finally:
            await client.close()

    run(scenario())


def test_fifty_deaths_leave_nothing_open() -> None:
    """Some die loaded, some as soon as they are there."""

    async def scenario() -> None:
        before: list[str] = []
        n_tasks = 0
        async with running(launch(backoff=Backoff(first_seconds=0.001, longest_seconds=0.001))) as client:
            for death in range(50):
                while client.pid is None:
                    await asyncio.sleep(0.001)
                if death % 4 == 3:
                    await client.wait_ready()
                    if death == 3:
                        before, n_tasks = open_descriptors(), len(asyncio.all_tasks())
                os.kill(client.pid, signal.SIGKILL)
                while client.restarts == death:
                    await asyncio.sleep(0.001)
            await client.wait_ready()
            assert open_descriptors() == before
            assert len(asyncio.all_tasks()) == n_tasks

    run(scenario(), timeout=600)


def test_the_engine_ends_with_its_parent() -> None:
    script = (
        "import asyncio, os, signal, sys\n"
        "from ktllama.engine.client import EngineClient\n"
        "from ktllama.engine.launch import Launch\n"
        "async def main():\n"
        "    client = EngineClient(Launch(executor='tests.engine.fake_executor:open_fake'))\n"
        "    await client.start()\n"
        "    await client.wait_ready()\n"
        "    print(client.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    for _ in range(1000):
        if not is_alive(pid):
            return
        subprocess.run(["sleep", "0.01"], check=True)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the engine outlived its parent")


def test_an_engine_that_is_told_nonsense_ends() -> None:
    ours, theirs = socket.socketpair()
    root = Path(__file__).parent.parent.parent
    arguments = [sys.executable, "-P", "-m", "ktllama.engine.process", str(theirs.fileno()), str(os.getpid())]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with (
        ours,
        subprocess.Popen(arguments, pass_fds=(theirs.fileno(),), env=environment, stderr=subprocess.DEVNULL) as engine,
    ):
        theirs.close()
        ours.sendall(wire.frame([Load(executor="tests.engine.fake_executor:open_fake")]) + b"\xff\xff\xff\xff")
        assert engine.wait(timeout=60) == 1


def test_the_engine_gets_large_pages_unless_somebody_has_decided_about_them(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(executor="nobody:asks")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    seen = [_environment(launch)["GLIBC_TUNABLES"]]
    for given in ("glibc.malloc.hugetlb=0", "glibc.malloc.check=1"):
        monkeypatch.setenv("GLIBC_TUNABLES", given)
        seen.append(_environment(launch)["GLIBC_TUNABLES"])
    seen.append(_environment(Launch(executor="nobody:asks", env={"GLIBC_TUNABLES": ""}))["GLIBC_TUNABLES"])
    expected = ["glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=0", "glibc.malloc.check=1:glibc.malloc.hugetlb=1", ""]
    assert seen == expected
