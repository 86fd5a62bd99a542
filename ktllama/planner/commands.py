"""What to run next: the commands that use a plan, and llama-server's words for its context."""

from __future__ import annotations

from collections.abc import Iterator

from ktllama.lower import emit
from ktllama.planner.plan import Plan
from ktllama.runtime.context_options import ContextOptions

_DEFAULTS = ContextOptions()


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
    """A ``llama-server`` command with the plan's settings and its context (common/arg.cpp)."""
    context = plan.context
    return [
        *emit.to_argv(plan.translation.settings, model),
        *("--ctx-size", str(context.n_ctx), "--batch-size", str(context.n_batch)),
        *("--ubatch-size", str(context.n_ubatch), "--parallel", str(context.n_seq_max), "--kv-unified"),
        *("--cache-type-k", context.type_k, "--cache-type-v", context.type_v, "--flash-attn", context.flash_attn),
        *(() if context.n_threads is None else ("--threads", str(context.n_threads))),
    ]


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
