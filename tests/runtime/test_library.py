"""The library handle: what is said when llama.cpp is missing, is another version, or lacks a backend."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from typing import Any

import pytest

from ktllama.errors import LlamaCppError
from ktllama.runtime import library as llama_library


def test_translating_never_loads_llama_cpp() -> None:
    code = (
        "import sys, ktllama.translation, ktllama.runtime.verify, ktllama.runtime.dry_run, ktllama.runtime.load;"
        "print([name for name in sys.modules if name.startswith('llama_cpp')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    with pytest.raises(LlamaCppError) as raised:
        llama_library._import_api()
    assert str(raised.value) == "llama-cpp-python is not installed: pip install llama-cpp-python==0.3.36"


def test_the_installed_version_is_the_pinned_one() -> None:
    llama_library.require_pinned_version()
    assert llama_library.installed_version() == "0.3.36"


def test_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_library, "installed_version", lambda: "0.9.1")
    with pytest.raises(LlamaCppError) as raised:
        llama_library.require_pinned_version()
    assert str(raised.value) == (
        "llama-cpp-python 0.9.1 is installed; ktllama reads the log of 0.3.36, and another version words it "
        "differently: pip install llama-cpp-python==0.3.36"
    )


def test_a_build_without_rpc_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    library = llama_library.load()
    monkeypatch.setattr(library.api, "llama_supports_rpc", lambda: False)
    with pytest.raises(LlamaCppError) as raised:
        library.require_rpc()
    assert str(raised.value).endswith(
        "CMAKE_ARGS=-DGGML_RPC=ON pip install --force-reinstall --no-binary llama-cpp-python --no-cache-dir "
        "llama-cpp-python==0.3.36"
    )


def test_structures_that_do_not_fit_are_noticed() -> None:
    real = llama_library.load().api

    def shifted() -> Any:
        value = real.llama_context_default_params()
        value.n_batch = 17
        return value

    broken = types.SimpleNamespace(
        llama_model_default_params=real.llama_model_default_params,
        llama_context_default_params=shifted,
        LLAMA_SPLIT_MODE_LAYER=real.LLAMA_SPLIT_MODE_LAYER,
        GGML_TYPE_F16=real.GGML_TYPE_F16,
    )
    with pytest.raises(LlamaCppError, match=r"n_batch is 17, not 2048"):
        llama_library._check_structures(broken)
