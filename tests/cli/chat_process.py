"""`python -m tests.cli.chat_process OPTIONS WORD…`: `ktllama chat WORD…` with the fake model in its engine process."""

from __future__ import annotations

import json
import sys
from typing import Any

from ktllama.cli import engine as shared
from ktllama.cli.main import main
from ktllama.engine.launch import Launch
from ktllama.errors import DeviceError
from ktllama.translation import Options
from tests.server.serving_process import FAKE

OPTIONS = json.loads(sys.argv.pop(1))


def planned(settings: Any, model: str, rules: str | None) -> shared.Plan:
    if rules == "bad":
        raise DeviceError("no such device")
    return shared.Plan(model=model, rules=rules, options=Options(), translation=None)


def launch_of(made: shared.Plan, settings: Any) -> Launch:
    failure = {"fail_load": "no room"} if made.rules == "failing" else {}
    return Launch(executor=FAKE, options={**OPTIONS, "name": f"fake under {made.rules}", **failure})


if __name__ == "__main__":
    shared.plan = lambda settings: planned(settings, "fake.gguf", "first")
    shared.planned = planned
    shared.launch_of = launch_of
    sys.argv[1:1] = ["chat"]
    main()
