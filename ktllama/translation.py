"""The whole compiler as one call: rules and a model in, a placement and settings out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ktllama import open_places, shipped_rules
from ktllama.devices import DeviceMap
from ktllama.diagnostics import Diagnostic, in_order, worst
from ktllama.errors import RulesetError
from ktllama.lower.lowering import Lowering, lower
from ktllama.lower.settings import LlamaSettings, LoadMode, Target
from ktllama.model import modules, presets, quantization, sources
from ktllama.model.guess import guess_preset
from ktllama.model.model_file import ModelFile
from ktllama.placing.budget import check_budget
from ktllama.placing.ir import Placement
from ktllama.placing.place import place
from ktllama.placing.resolve import DEFAULT_DEVICE, Resolution, resolve
from ktllama.ruleset import loader
from ktllama.ruleset.rules import Ruleset

if TYPE_CHECKING:
    from ktllama.model.http_session import Access


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a translation may be told besides the rules and the model.

    ``budgets`` maps devices to the bytes that they have. ``quantization`` is assumed where the model is a config.json;
    ``access`` says how servers are asked for what is not on disk.
    """

    target: Target = "python"
    device_map: DeviceMap = field(default_factory=DeviceMap)
    default_device: str = DEFAULT_DEVICE
    load_mode: LoadMode = "auto"
    budgets: Mapping[str, int] = field(default_factory=dict)
    quantization: str = quantization.DEFAULT
    access: Access | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A rule file compiled for a model. ``assumed`` names what stood in for a model file: a preset or a config."""

    ruleset: Ruleset
    model: ModelFile
    resolution: Resolution
    placement: Placement
    lowering: Lowering
    options: Options
    diagnostics: tuple[Diagnostic, ...]
    assumed: str | None = None

    @property
    def settings(self) -> LlamaSettings:
        """The llama.cpp settings."""
        return self.lowering.settings

    @property
    def has_errors(self) -> bool:
        """Whether a diagnostic is an error, so that the settings must not be used."""
        return worst(self.diagnostics) == "error"


def translate(
    rules: str | os.PathLike[str] | Ruleset,
    model: str | os.PathLike[str] | ModelFile | None = None,
    *,
    preset: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Options | None = None,
) -> Translation:
    """Compile ``rules`` (a file, or the name of a shipped one) for ``model`` (a GGUF file).

    Without a model: for a preset, or for what the rules seem to be for.

    Raises:
        RulesetError: when the rules have errors; it carries every diagnostic.
        RuleFileError, ModelFileError, UnsupportedModelError, UnknownPresetError: when an input cannot be used.
    """
    done = analyse(rules, model, preset=preset, config=config, options=options)
    if done.has_errors:
        raise RulesetError(done.diagnostics)
    return done


def analyse(
    rules: str | os.PathLike[str] | Ruleset,
    model: str | os.PathLike[str] | ModelFile | None = None,
    *,
    preset: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Options | None = None,
) -> Translation:
    """Like :func:`translate`, but rules with errors give a translation that says so, not an exception."""
    options = options or Options()
    ruleset = rules if isinstance(rules, Ruleset) else loader.load(shipped_rules.find(rules))
    model_file, assumed = _model(ruleset, model, preset, config, options)
    named = [rule.class_path for rule in ruleset.rules if rule.class_path]
    operators = {rule.replace_class for rule in ruleset.rules}
    resolution = resolve(ruleset, modules.build(model_file, named, operators), options.default_device)
    placement = place(resolution)
    lowering = lower(placement, options.device_map, options.target, options.load_mode)
    over_budget = check_budget(placement, options.budgets)
    words = _model_words(model, assumed, preset, config, options)
    found = (
        *placement.diagnostics,
        *open_places.check_open(ruleset, words, options.device_map, options.budgets),
        *lowering.diagnostics,
        *over_budget,
        *_assumption(assumed, preset, config, options),
    )
    return Translation(
        ruleset=ruleset,
        model=model_file,
        resolution=resolution,
        placement=placement,
        lowering=lowering,
        options=options,
        diagnostics=in_order(found),
        assumed=assumed,
    )


def _model(
    ruleset: Ruleset,
    model: str | os.PathLike[str] | ModelFile | None,
    preset: str | None,
    config: str | os.PathLike[str] | None,
    options: Options,
) -> tuple[ModelFile, str | None]:
    if isinstance(model, ModelFile):
        return model, None
    if model is not None:
        return sources.open_model(model, options.access), None
    if config is not None:
        return sources.open_config(config, options.quantization, options.access), os.fspath(config)
    if preset is not None:
        return presets.load(preset), preset
    if worst(ruleset.diagnostics) == "error" and not ruleset.rules:
        raise RulesetError(ruleset.diagnostics)  # nothing is left to tell a model from
    guessed = guess_preset(ruleset)
    return presets.load(guessed), guessed


def _model_words(
    model: str | os.PathLike[str] | ModelFile | None,
    assumed: str | None,
    preset: str | None,
    config: str | os.PathLike[str] | None,
    options: Options,
) -> tuple[str, ...]:
    """The options of a command line that name the same model."""
    if config is not None:
        chosen = () if options.quantization == quantization.DEFAULT else ("--quant", options.quantization)
        return ("--config", os.fspath(config), *chosen)
    if model is None:
        return ("--preset", preset or assumed or "NAME")
    if isinstance(model, ModelFile):
        return ("--model", model.paths[0] if model.paths else "FILE.gguf")
    return ("--model", os.fspath(model))


def _assumption(
    assumed: str | None, preset: str | None, config: str | os.PathLike[str] | None, options: Options
) -> tuple[Diagnostic, ...]:
    if assumed is None:
        return ()
    used = presets.PRESETS[assumed][1].quantization if config is None else options.quantization
    other = ", --preset NAME assumes another model" if preset is None else ""
    if config is not None:
        other = ", --quant NAME assumes another quantization"
    return (
        Diagnostic(
            code="model-assumed",
            severity="note",
            message=f"sizes are those of {assumed} in {used}; --model FILE.gguf takes them from a file{other}",
        ),
    )
