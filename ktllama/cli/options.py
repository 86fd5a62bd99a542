"""Options that several commands share, turned into values of the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ktllama import devices
from ktllama.devices import parse_device_map
from ktllama.errors import DeviceError
from ktllama.lower.settings import Target
from ktllama.model.kv_cache import CACHE_TYPES
from ktllama.placement.resolve import DEFAULT_DEVICE
from ktllama.translation import Options
from ktllama.units import parse_bytes

if TYPE_CHECKING:
    from ktllama.runtime.context_options import ContextOptions

_Command = TypeVar("_Command", bound=Callable[..., Any])

TARGETS = ("python", "llama-server")
CACHE_TYPE_NAMES = tuple(CACHE_TYPES)


def rules_argument(command: _Command) -> _Command:
    """The rule file."""
    return click.argument("rules", metavar="RULES", type=click.Path())(command)


def model_options(command: _Command) -> _Command:
    """``--model`` or ``--preset``."""
    preset = click.option("--preset", metavar="NAME", help="Assume a known model where there is no file.")
    model = click.option(
        "-m", "--model", metavar="FILE.gguf", type=click.Path(), help="The model; of a split one, the first file."
    )
    return model(preset(command))


def placement_options(command: _Command) -> _Command:
    """What a translation may be told besides rules and model."""
    for option in (
        click.option(
            "--budget",
            "budgets",
            multiple=True,
            metavar="DEVICE=SIZE",
            help="Memory of a device, such as cuda:0=24G; tensors over it are an error.",
        ),
        click.option(
            "--default-device",
            default=DEFAULT_DEVICE,
            show_default=True,
            metavar="DEVICE",
            help="Where modules go that no rule matches.",
        ),
        click.option(
            "--device-map",
            "device_map",
            multiple=True,
            metavar="RULE_DEVICE=LLAMA_DEVICE",
            help="Name of a rule's device in llama.cpp, such as cuda:0=Vulkan1.",
        ),
    ):
        command = option(command)
    return command


def context_options(command: _Command) -> _Command:
    """What the llama.cpp context is asked for."""
    for option in (
        click.option("--threads", type=click.IntRange(1, 512), help="CPU threads.  [default: all]"),
        click.option("--flash-attn", type=click.Choice(("auto", "on", "off")), default="auto", show_default=True),
        click.option("--kv-type", type=click.Choice(CACHE_TYPE_NAMES), default="f16", show_default=True),
        click.option("--ubatch", type=click.IntRange(1, 65536), default=512, show_default=True, help="Tokens a graph."),
        click.option(
            "--ctx", type=click.IntRange(1, 1 << 24), default=4096, show_default=True, help="Context, in tokens."
        ),
    ):
        command = option(command)
    return command


def context_of(given: Mapping[str, Any]) -> ContextOptions:
    """The context that :func:`context_options` describe."""
    from ktllama.runtime.context_options import ContextOptions

    return ContextOptions(
        n_ctx=given["ctx"],
        n_batch=max(2048, given["ubatch"]),
        n_ubatch=given["ubatch"],
        type_k=given["kv_type"],
        type_v=given["kv_type"],
        flash_attn=given["flash_attn"],
        n_threads=given["threads"],
    )


strict_option = click.option("--strict", is_flag=True, help="Treat warnings as errors.")


def make_options(target: str, device_map: tuple[str, ...], default_device: str, budgets: tuple[str, ...]) -> Options:
    """The library's options.

    Raises:
        DeviceError: for devices or budgets that cannot be understood.
    """
    return Options(
        target=cast(Target, target),
        device_map=parse_device_map(device_map),
        default_device=_device("--default-device", default_device),
        budgets=dict(_budget(text) for text in budgets),
    )


def _device(option: str, name: str) -> str:
    try:
        device = devices.canonical(name)
    except ValueError:
        device = devices.AUTO
    if device == devices.AUTO:
        raise DeviceError(f"{option} {name!r}: no such device; expected cpu, cuda:N, xpu:N or npu:N")
    return device


def _budget(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    device = _device("--budget", name)
    try:
        n_bytes = parse_bytes(size)
    except ValueError:
        n_bytes = 0
    if not equals or n_bytes <= 0:
        raise DeviceError(f"--budget {text!r}: expected DEVICE=SIZE with a size above 0, for example cuda:0=24G")
    return device, n_bytes
