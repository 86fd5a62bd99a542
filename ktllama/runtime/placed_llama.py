"""``llama_cpp.Llama`` with rules: the same class, the same arguments, placed."""

from __future__ import annotations

import inspect
import os
from typing import Any

from ktllama.errors import LlamaCppError
from ktllama.ruleset.rules import Ruleset
from ktllama.runtime.hook import block_of_rules, placing
from ktllama.runtime.library import INSTALL
from ktllama.translation import Options

try:
    import llama_cpp
except (ImportError, OSError, RuntimeError) as _error:
    raise LlamaCppError(f"llama-cpp-python is missing or does not load: {_error}; {INSTALL}") from _error

#: What the rules decide; a pickled model does not carry it, because they decide it anew where it is loaded again.
_DECIDED = ("n_gpu_layers", "split_mode", "main_gpu", "tensor_split", "op_offload")


class Llama(llama_cpp.Llama):  # type: ignore[misc]  # llama-cpp-python has no stubs that mypy is shown
    """A drop-in for ``llama_cpp.Llama`` that loads ``model_path`` as ``rules`` say.

    Only this load is placed: another one of the same file, in another thread at the same time, is not touched. All
    other arguments are ``llama_cpp.Llama``'s; ``from_pretrained(repo_id, filename, rules=…)`` and pickling work as
    there, and a pickled model reads its rules again.

    Raises:
        TypeError: for an argument that ``llama_cpp.Llama`` does not have (it would drop it without a word).
        KtllamaError: everything that :func:`ktllama.placement` raises, and a SettingsConflictError also for a default
            that is written out against the rules, such as ``n_gpu_layers=0``.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        rules: str | os.PathLike[str] | Ruleset,
        options: Options | None = None,
        stand_ins: bool = False,
        **keywords: Any,
    ) -> None:
        _refuse_unknown(keywords)
        block = block_of_rules(rules, model_path, options=options, stand_ins=stand_ins)
        block.wanted.check_keywords(keywords)
        self._rules, self._options, self._stand_ins = rules, options, stand_ins
        with placing(block):
            super().__init__(os.fspath(model_path), **keywords)

    def close(self) -> None:
        """Free the model. Safe to call twice, and after an ``__init__`` that failed (``__del__`` calls it then)."""
        if hasattr(self, "_stack"):
            super().close()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        kept = {name: value for name, value in state.items() if name not in _DECIDED}
        return {**kept, "rules": self._rules, "options": self._options, "stand_ins": self._stand_ins}


def _refuse_unknown(keywords: dict[str, Any]) -> None:
    parameters = inspect.signature(llama_cpp.Llama.__init__).parameters
    known = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    for name in keywords:
        if name not in known:
            raise TypeError(f"Llama() got an unexpected keyword argument '{name}'")
