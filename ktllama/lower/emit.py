"""Settings in the forms that people paste: a llama-server command, its preset file, Python."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator

from ktllama.errors import KtllamaError
from ktllama.lower.settings import LlamaSettings

_INI_SPECIAL = ";#\r\n"


class EmitError(KtllamaError):
    """Settings that a form has no words for."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason


def server_options(settings: LlamaSettings) -> Iterator[tuple[str, str]]:
    """llama-server's long options without their dashes, and their values (common/arg.cpp).

    ``fit`` is off because it would change what the rules decided; options at llama-server's default are left out.
    """
    endpoints = list(dict.fromkeys(_rpc(device)[1] for device in settings.devices if device.startswith("RPC")))
    if endpoints:
        yield "rpc", ",".join(endpoints)
    yield "n-gpu-layers", str(settings.n_gpu_layers)
    yield "device", ",".join(_device_name(device, endpoints) for device in settings.devices) or "none"
    if len(settings.devices) > 1 and any(settings.tensor_split):
        yield "split-mode", "layer"
        yield "tensor-split", ",".join(str(count) for count in settings.tensor_split)
    if settings.tensor_overrides:
        yield (
            "override-tensor",
            ",".join(f"{override.pattern}={override.device}" for override in settings.tensor_overrides),
        )
    if settings.devices and not settings.op_offload:
        yield "op-offload", "false"
    if settings.devices and settings.no_host:
        yield "no-host", "true"
    if settings.load_mode != "auto":
        yield "load-mode", settings.load_mode
    yield "fit", "off"


def _device_name(device: str, endpoints: list[str]) -> str:
    """llama-server counts RPC devices over all endpoints, here of one device each (ggml-rpc.cpp), from RPC0 on."""
    return f"RPC{endpoints.index(_rpc(device)[1])}" if device.startswith("RPC") else device


def _rpc(device: str) -> tuple[str, str]:
    """``RPC0[host:port]`` → (``RPC0``, ``host:port``).

    Raises:
        EmitError: for an RPC device without its endpoint, by which llama-server names its memory.
    """
    name, bracket, rest = device.partition("[")
    if not bracket:
        raise EmitError(
            f"{device}: llama-server names the memory of an RPC device by its endpoint; "
            f"map the device to {device}[HOST:PORT]"
        )
    return name, rest.removesuffix("]")


def to_argv(settings: LlamaSettings, model_path: str, more: Iterable[tuple[str, str]] = ()) -> list[str]:
    """The words of a llama-server command; ``more`` are options as :func:`server_options` has them."""
    words = ["llama-server", "--model", model_path]
    for option, value in (*server_options(settings), *more):
        if value == "false":
            words.append(f"--no-{option}")
        elif value == "true":
            words.append(f"--{option}")
        else:
            words += [f"--{option}", value]
    return words


def to_command_line(settings: LlamaSettings, model_path: str) -> str:
    """One line for a POSIX shell."""
    return " ".join(shell_word(word) for word in to_argv(settings, model_path))


def shell_word(word: str) -> str:
    """``word`` quoted for a shell; one that a terminal must not see in ``$'...'`` (POSIX 2024), byte by byte."""
    if word.isprintable():
        return shlex.quote(word)
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\{byte:03o}" for byte in os.fsencode(word)
    )
    return f"$'{plain}'"


def to_ini(settings: LlamaSettings, model_path: str, section: str, more: Iterable[tuple[str, str]] = ()) -> str:
    """A preset for ``llama-server --models-preset``, with the options ``more``.

    Source: common/preset.cpp; ``;`` and ``#`` begin comments anywhere.

    Raises:
        EmitError: for a path that such a file cannot hold.
    """
    if any(character in model_path for character in _INI_SPECIAL):
        raise EmitError(f"{model_path!r}: a llama-server preset file cannot hold a path with ';', '#' or a line break")
    if not model_path.isprintable() or model_path != model_path.strip():
        raise EmitError(
            f"{model_path!r}: a llama-server preset file cannot hold a path with unprintable characters, or with "
            "spaces at an end; rename the file"
        )
    name = "".join(character if character.isalnum() or character in "._-" else "-" for character in section)
    pairs = [("model", model_path), *server_options(settings), *more]
    return "\n".join(["version = 1", "", f"[{name or 'model'}]", *(f"{key} = {value}" for key, value in pairs), ""])


def to_python(settings: LlamaSettings, model_path: str, arguments: Iterable[str] = ()) -> str:
    """A few lines for an app that uses llama-cpp-python: the settings as they are, and how to load under them.

    ``arguments`` are those of ``llama_cpp.Llama`` after the path.
    """
    overrides = [
        f"        ktllama.TensorOverride(pattern={_raw(override.pattern)}, device={_quoted(override.device)}),"
        for override in settings.tensor_overrides
    ]
    return "\n".join(
        [
            "import ktllama",
            "import llama_cpp",
            "",
            "settings = ktllama.LlamaSettings(",
            f"    n_gpu_layers={settings.n_gpu_layers},",
            f"    devices={_tuple(_quoted(device) for device in settings.devices)},",
            f"    tensor_split={_tuple(str(count) for count in settings.tensor_split)},",
            *(["    tensor_overrides=(", *overrides, "    ),"] if overrides else []),
            f"    op_offload={settings.op_offload},",
            f"    no_host={settings.no_host},",
            *([f"    load_mode={_quoted(settings.load_mode)},"] if settings.load_mode != "auto" else []),
            ")",
            f"model_path = {_quoted(model_path)}",
            "with ktllama.applied(settings, model_path):",
            f"    llm = llama_cpp.Llama({', '.join(('model_path', *arguments))})",
            "",
        ]
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if text.isprintable() else ascii(text)


def _raw(pattern: str) -> str:
    return f'r"{pattern}"' if '"' not in pattern else repr(pattern)


def _tuple(items: Iterator[str]) -> str:
    listed = list(items)
    return f"({listed[0]},)" if len(listed) == 1 else f"({', '.join(listed)})"
