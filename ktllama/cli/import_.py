"""``ktllama import``."""

from __future__ import annotations

from pathlib import Path

import click

from ktllama.cli.translate import fails
from ktllama.devices import parse_device_map
from ktllama.importing.command_line import CommandLine, parse
from ktllama.importing.importer import import_command
from ktllama.model import gguf, presets
from ktllama.model.model_file import ModelFile
from ktllama.pages import page as pages


@click.command("import", context_settings={"allow_interspersed_args": False})
@click.argument("command_line", metavar="COMMAND...", nargs=-1, required=True)
@click.option("-m", "--model", metavar="FILE.gguf", type=click.Path(), help="The model.  [default: the command's -m]")
@click.option("--preset", metavar="NAME", help="Assume a known model where there is no file.")
@click.option("-o", "--output", metavar="RULES.yaml", type=click.Path(), help="Write here.  [default: standard output]")
@click.option("--force", is_flag=True, help="Overwrite the file of --output.")
@click.option(
    "--gpus", type=click.IntRange(0, 16), help="How many GPUs there are.  [default: as many as the command names]"
)
@click.option(
    "--device-map",
    "device_map",
    multiple=True,
    metavar="RULE_DEVICE=LLAMA_DEVICE",
    help="What a device of llama.cpp is to be called in the rules, such as cuda:0=Vulkan1.",
)
@click.option("--strict", is_flag=True, help="Write nothing if there are warnings.")
def command(
    command_line: tuple[str, ...],
    model: str | None,
    preset: str | None,
    output: str | None,
    gpus: int | None,
    device_map: tuple[str, ...],
    *,
    force: bool,
    strict: bool,
) -> int:
    """Turn a llama.cpp command line into a rule file that places the same tensors and KV caches.

    COMMAND is what you run today, as words behind -- or as one quoted string:

        ktllama import -o rules.yaml -- llama-server -m model.gguf -ngl 99 -ot exps=CPU

    The rules are analysed before they are written, and must place what the command places. What they cannot say is
    reported on standard error and noted in the file.
    """
    if model is not None and preset is not None:
        raise click.UsageError("--model and --preset exclude each other.")
    parsed = parse(command_line)
    if output is not None:
        pages.check(output, overwrite=force, inputs=[name for name in (model, parsed.model) if name is not None])
    read = _model(parsed, model, preset)
    if output is not None:
        pages.check(output, overwrite=force, inputs=read.paths)  # every part of a split model
    done = import_command(
        parsed,
        read,
        gpus=gpus,
        device_map=parse_device_map(device_map),
        shown=command_line,
    )
    for found in done.diagnostics:
        click.echo(str(found), err=True)
    if fails(done.diagnostics, strict=strict):
        return 1
    if output is None:
        click.echo(done.text, nl=False)
    else:
        pages.write(output, done.text, overwrite=force)
        click.echo(f"wrote {output}", err=True)
    return 0


def _model(parsed: CommandLine, model: str | None, preset: str | None) -> ModelFile:
    if preset is not None:
        return presets.load(preset)
    path = model if model is not None else parsed.model
    if path is None or (model is None and not Path(path).exists()):
        named = "the command names none" if path is None else f"the command's {path} does not exist here"
        raise click.UsageError(f"which model? {named}; give --model FILE.gguf or --preset NAME.")
    return gguf.read(path, header_only=True)
