"""`python -m tests.server.serving_process JSON`: what `ktllama serve` does once it knows its model, over the fake.

The JSON holds `settings` (fields of ServeSettings), `options` (of the fake executor), `keys` and `backoff`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ktllama.cli.serve import Terminal
from ktllama.engine.launch import Backoff, Launch
from ktllama.server import logs
from ktllama.server.access import Keys
from ktllama.server.serving import serve
from ktllama.server.settings import ServeSettings

FAKE = f"{Path(__file__).parents[1] / 'engine' / 'fake_executor.py'}:open_fake"


def main() -> int:
    told = json.loads(sys.argv[1])
    settings = ServeSettings(port=0, **told.get("settings", {}))
    launch = Launch(
        executor=FAKE,
        options=told.get("options", {}),
        queue_limit=settings.queue_limit,
        text_interval=settings.stream_interval,
        backoff=Backoff(**told.get("backoff", {"first_seconds": 0.05})),
    )
    keys = Keys(told["keys"]) if "keys" in told else None
    logs.configure(settings.log_level, "json", sys.stderr)
    return serve(launch, settings, keys=keys, audience=Terminal(keyed=keys is not None))


if __name__ == "__main__":
    sys.exit(main())
