"""``ktllama devices``."""

from __future__ import annotations

import sys

import click


@click.command("devices")
def command() -> int:
    """List the devices of this llama.cpp build, by the names that --device-map takes."""
    from ktllama.cli.text import make_console, plain_table
    from ktllama.runtime.device_list import available
    from ktllama.units import format_bytes

    table = plain_table("device", "kind", "memory", "free", "description", right=(2, 3))
    for device in available():
        table.add_row(
            device.name,
            device.kind,
            format_bytes(device.memory_total),
            format_bytes(device.memory_free),
            device.description,
        )
    make_console(sys.stdout).print(table)
    return 0
