"""What to run next: the commands that use a plan, and llama-server's words for its context."""

from __future__ import annotations

from collections.abc import Iterator

from ktllama.lower import emit
from ktllama.planner.plan import Plan
from ktllama.runtime.context_options import ContextOptions

_DEFAULTS = ContextOptions()

#: Types that llama_cpp has no name for; the number is ggml's (``enum ggml_type`` in ``ggml/include/ggml.h``).
_LLAMA_CPP_TYPES = {"bf16": "30"}


def run_command(plan: Plan, rules: str, model: str) -> str:
    """The ``ktllama`` command that loads ``model`` under the plan, ``rules`` being where it was written."""
    several = plan.context.n_seq_max > 1
    words = ["ktllama", "serve" if several else "run", *(["--rules", rules] if several else [rules]), "--model", model]
    words += _context_words(plan.context)
    words += [word for pair in plan.translation.options.device_map.chosen.items()
              for word in ("--device-map", "=".join(pair))]  # fmt: skip
    words += ["--parallel", str(plan.context.n_seq_max)] if several else ["--prompt", "Hello"]
    return " ".join(emit.shell_word(word) for word in words)


def server_words(plan: Plan, model: str) -> list[str]:
    """A ``llama-server`` command with the plan's settings and its context."""
    return emit.to_argv(plan.translation.settings, model, _server_context(plan.context))


def server_preset(plan: Plan, model: str) -> str:
    """The same as a preset file for ``llama-server --models-preset``.

    Raises:
        EmitError: for a path that such a file cannot hold.
    """
    of = plan.translation
    return emit.to_ini(of.settings, model, of.model.name, _server_context(plan.context))


def python_lines(plan: Plan, model: str) -> str:
    """The plan for an app that uses llama-cpp-python, whose ``Llama`` has one sequence and knows no "auto"."""
    context = plan.context
    arguments = [f"n_ctx={context.n_ctx}", f"n_batch={context.n_batch}", f"n_ubatch={context.n_ubatch}"]
    if plan.flash_attention is not None:
        arguments.append(f"flash_attn={plan.flash_attention}")
    arguments += [
        f"{name}={_LLAMA_CPP_TYPES.get(kind) or f'llama_cpp.GGML_TYPE_{kind.upper()}'}"
        for name, kind in (("type_k", context.type_k), ("type_v", context.type_v))
        if kind != _DEFAULTS.type_k
    ]
    if context.n_threads is not None:
        arguments.append(f"n_threads={context.n_threads}")
    return emit.to_python(plan.translation.settings, model, arguments)


def _server_context(context: ContextOptions) -> Iterator[tuple[str, str]]:
    """llama-server's options for a context (common/arg.cpp)."""
    yield from (("ctx-size", str(context.n_ctx)), ("batch-size", str(context.n_batch)))
    yield from (("ubatch-size", str(context.n_ubatch)), ("parallel", str(context.n_seq_max)), ("kv-unified", "true"))
    yield from (("cache-type-k", context.type_k), ("cache-type-v", context.type_v))
    yield ("flash-attn", context.flash_attn)
    if context.n_threads is not None:
        yield ("threads", str(context.n_threads))


def _context_words(context: ContextOptions) -> Iterator[str]:
    yield from ("--ctx", str(context.n_ctx))
    if context.n_ubatch != _DEFAULTS.n_ubatch:
        yield from ("--ubatch", str(context.n_ubatch))
    if context.type_k != _DEFAULTS.type_k:
        yield from ("--kv-type", context.type_k)
    if context.flash_attn != _DEFAULTS.flash_attn:
        yield from ("--flash-attn", context.flash_attn)
    if context.n_threads is not None:
        yield from ("--threads", str(context.n_threads))
