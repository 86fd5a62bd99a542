"""Tests that run in a process of their own.

llama.cpp cannot forget a device. After a test has stopped its stand-ins, a load that does not name its devices, as
``llama_cpp.Llama`` makes them, asks a dead one and aborts. So tests that make such loads get a fresh process, in which
no stand-in ever stops; an abort there is one failed test.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_TIMEOUT_SECONDS = 120.0


def in_own_process(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test function, whose arguments can be pickled, in the fixture ``own_process``."""

    @functools.wraps(test)
    def run(own_process: ProcessPoolExecutor, **arguments: Any) -> None:
        skipped = own_process.submit(_run, test.__module__, test.__name__, arguments).result(_TIMEOUT_SECONDS)
        if skipped is not None:
            pytest.skip(skipped)

    del run.__wrapped__  # or pytest would not see own_process
    run.__signature__ = _signature(test)  # type: ignore[attr-defined]
    run.original = test  # type: ignore[attr-defined]
    return run


@contextmanager
def process() -> Iterator[ProcessPoolExecutor]:
    """A pool of one fresh process that finds this package's modules."""
    root = str(Path(__file__).parents[2])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        sys.path.insert(0, root)  # a spawned process gets this path, and pytest's own way to find us is not on it
        try:
            pool.submit(os.getpid).result(_TIMEOUT_SECONDS)
        finally:
            sys.path.remove(root)
        yield pool


def _signature(test: Callable[..., None]) -> Any:
    own = inspect.Parameter("own_process", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = inspect.signature(test)
    return wanted.replace(parameters=[own, *wanted.parameters.values()])


def _run(module: str, name: str, arguments: dict[str, Any]) -> str | None:
    """Run the test; the reason where it skips itself, which pytest's own exception cannot bring to another process."""
    pytest.register_assert_rewrite(module)
    try:
        getattr(importlib.import_module(module), name).original(**arguments)
    except pytest.skip.Exception as skip:
        return str(skip)
    return None
