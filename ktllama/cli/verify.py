"""``ktllama verify``."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ktllama.cli import options as shared
from ktllama.cli.translate import report
from ktllama.diagnostics import Diagnostic
from ktllama.errors import ModelFileError
from ktllama.model.sources import is_remote
from ktllama.translation import Translation, translate
from ktllama.units import counted, format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from ktllama.runtime.context_options import ContextOptions
    from ktllama.runtime.verify import Tally, Verification


@click.command("verify")
@shared.rules_argument
@shared.model_options
@shared.config_options
@shared.placement_options
@shared.context_options
@click.option(
    "--target",
    type=click.Choice(("python", "llama-server")),
    default="python",
    show_default=True,
    help="Whose settings to prove.",
)
@click.option("--no-stand-ins", is_flag=True, help="Fail where this build lacks a device, instead of standing in.")
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True)
def command(
    rules: str,
    model: str | None,
    preset: str | None,
    config: str | None,
    quant: str | None,
    device_map: tuple[str, ...],
    default_device: str,
    budgets: tuple[str, ...],
    load_mode: str,
    target: str,
    no_stand_ins: bool,
    form: str,
    **context: object,
) -> int:
    """Prove that llama.cpp does what RULES say, in its own dry run: no weights are read.

    Every layer, every layer's KV cache and every tensor is compared with the plan. Devices that this machine lacks are
    stood in for by the CPU behind llama.cpp's RPC backend. A sparse or header-only model file is enough; with --preset,
    --config or a remote model such a file is made for the occasion. Exit status 0 only if all is as planned.
    """
    chosen = shared.make_options(target, device_map, default_device, budgets, load_mode)
    model = shared.model_for(rules, model, preset, config)
    chosen = shared.with_model(chosen, model, preset, config, quant)
    translation = translate(rules, model, preset=preset, config=config, options=chosen)
    if form == "text":
        report(tuple(found for found in translation.diagnostics if found.severity != "note"))
    verification = _verify(translation, model, shared.context_of(context), stand_ins=not no_stand_ins)
    if form == "json":
        click.echo(json.dumps(verification_document(verification), indent=1))
    else:
        _print(translation, verification)
    over = _over_budget(translation, verification)
    report(over)
    return 0 if verification.ok and not over else 1


def _over_budget(translation: Translation, verification: Verification) -> tuple[Diagnostic, ...]:
    """Devices on which weights, KV cache and compute buffer together are more than the budget."""
    found = []
    parts = (verification.weight_bytes, verification.kv_bytes, verification.compute_bytes)
    for device, budget in translation.options.budgets.items():
        taken = sum(part.get(translation.options.device_map.llama_name(device), 0) for part in parts)
        if taken > budget:
            message = (
                f"weights, KV cache and compute buffer on {device} take {format_bytes(taken)}, "
                f"{format_bytes(taken - budget)} more than its budget of {format_bytes(budget)}"
            )
            found.append(Diagnostic(code="over-budget", severity="error", message=message))
    return tuple(found)


def _verify(translation: Translation, model: str | None, context: ContextOptions, *, stand_ins: bool) -> Verification:
    from ktllama.runtime.verify import verify

    with _model_file(translation, model) as path:
        return verify(
            translation.placement,
            translation.settings,
            path,
            context,
            device_map=translation.options.device_map,
            stand_ins=stand_ins,
        )


@contextmanager
def _model_file(translation: Translation, model: str | None) -> Iterator[str]:
    """The model's path; for a preset and a remote model, a sparse file that lives as long as the block."""
    if model is not None and not is_remote(model):
        yield model
        return
    from ktllama.model import sparse

    n_vocab = translation.model.integer("vocab_size") if model is None else None
    with tempfile.TemporaryDirectory(prefix="ktllama-") as folder:
        path = Path(folder) / "model.gguf"
        try:
            sparse.write(translation.model, path, vocabulary_size=n_vocab)
        except OSError as fault:
            raise ModelFileError(str(path), f"a sparse file could not be written: {fault.strerror}") from fault
        yield str(path)


def verification_document(verification: Verification) -> dict[str, object]:
    """The outcome as JSON; devices are llama.cpp's."""
    return {
        "ok": verification.ok,
        **{
            what: {"checked": tally.checked, "matched": tally.matched} for what, tally in _tallies(verification).items()
        },
        "mismatches": [
            {"what": found.what, "expected": found.expected, "found": found.found} for found in verification.mismatches
        ],
        "weight_bytes": dict(verification.weight_bytes),
        "kv_bytes": dict(verification.kv_bytes),
        "compute_bytes": dict(verification.compute_bytes),
        "stand_ins": list(verification.dry_run.stand_ins),
    }


def _tallies(verification: Verification) -> dict[str, Tally]:
    return {
        "layers": verification.layers,
        "kv": verification.kv,
        "tensors": verification.tensors,
        "overrides": verification.overrides,
    }


_SHOWN_MISMATCHES = 20


def _print(translation: Translation, verification: Verification) -> None:
    from ktllama.cli.text import make_console, print_lines, print_title

    console = make_console(sys.stdout)
    print_title(console, translation.model.name, counted(len(translation.model.tensors), "tensor"))
    console.print(_tally_table(verification))
    console.print()
    console.print(_memory_table(verification))
    if verification.dry_run.stand_ins:
        names = ", ".join(verification.dry_run.stand_ins)
        console.print(f"\n{names}: not on this machine; the CPU stood in, so its compute buffer is the CPU's")
    for found in verification.mismatches[:_SHOWN_MISMATCHES]:
        print_lines(console, str(found), style="bold red")
    if len(verification.mismatches) > _SHOWN_MISMATCHES:
        print_lines(console, f"… and {len(verification.mismatches) - _SHOWN_MISMATCHES} more", style="bold red")
    differing = counted(len(verification.mismatches), "mismatch", "mismatches")
    verdict = "as planned: 100%" if verification.ok else f"NOT as planned: {differing}"
    console.print(f"\n{verdict}", style=f"bold {'green' if verification.ok else 'red'}")


def _tally_table(verification: Verification) -> Table:
    from ktllama.cli.text import plain_table

    table = plain_table("", "checked", "as planned", right=(1, 2))
    for what, tally in (
        ("layers", verification.layers),
        ("KV caches", verification.kv),
        ("tensors", verification.tensors),
        ("overrides", verification.overrides),
    ):
        table.add_row(what, str(tally.checked), str(tally.matched))
    return table


def _memory_table(verification: Verification) -> Table:
    from ktllama.cli.text import plain_table

    table = plain_table("device", "weights", "KV cache", "compute", "together", right=(1, 2, 3, 4))
    parts = (verification.weight_bytes, verification.kv_bytes, verification.compute_bytes)
    for device in dict.fromkeys(name for part in parts for name in part):
        sizes = [part.get(device, 0) for part in parts]
        table.add_row(device, *(format_bytes(size) for size in (*sizes, sum(sizes))))
    return table
