"""The catalogue of diagnostic codes: what each means and what to do about it. Codes are stable."""

from __future__ import annotations

from collections.abc import Mapping

from ktllama.diagnostics import CodeInfo


def _error(meaning: str, remedy: str) -> CodeInfo:
    return CodeInfo(severity="error", meaning=meaning, remedy=remedy)


def _warning(meaning: str, remedy: str) -> CodeInfo:
    return CodeInfo(severity="warning", meaning=meaning, remedy=remedy)


def _note(meaning: str, remedy: str) -> CodeInfo:
    return CodeInfo(severity="note", meaning=meaning, remedy=remedy)


#: Codes of ``ktllama.ruleset``.
RULESET_CODES: Mapping[str, CodeInfo] = {
    "yaml-syntax": _error(
        "The text is not YAML.", "Repair the line under the caret; check indentation, quotes and brackets."
    ),
    "yaml-tab": _error("A tab stands where YAML allows only spaces.", "Replace tabs by spaces."),
    "yaml-character": _error("The text holds a character that YAML forbids.", "Delete the character."),
    "yaml-depth": _error("Lists and mappings are nested too deeply.", "A rule needs five levels; flatten the file."),
    "yaml-alias": _error(
        "An anchor or alias is undefined, defined twice, refers to itself, or repeats too much.",
        "Define each anchor once, before its aliases, or write the values out.",
    ),
    "yaml-merge": _error("A merge key '<<' has no mapping to merge.", "Give it an alias of a mapping."),
    "yaml-tag": _error("A YAML tag, or a special plain scalar, unknown in rules.", "Delete the tag or quote the text."),
    "yaml-value": _error("A plain value looks like a number or a date and is none.", "Quote it if it is text."),
    "yaml-key": _error("A key is a list or a mapping.", "Write a plain key."),
    "several-documents": _error("The file holds several YAML documents.", "Remove the '---' and keep one list."),
    "empty-file": _error("The file holds no rules.", "Write a list of rules, or '[]' if none are meant."),
    "too-many-rules": _error(
        "The file has more rules than are read.", "Say with patterns what the rules have in common."
    ),
    "not-a-list": _error("The file is not a list of rules.", "Begin each rule with '- match:' in the first column."),
    "rule-not-a-mapping": _error("An entry of the list is not a rule.", "Write a mapping with match and replace."),
    "missing-key": _error("A rule lacks match or replace, or its match lacks name and class.", "Add the key."),
    "wrong-type": _error("A value has a type that cannot be used there.", "Write the type that the message names."),
    "bad-regex": _error("match.name is not a Python regular expression.", "Repair the pattern at the caret."),
    "bad-class": _error("A class is not a dotted path.", "Write a path such as torch.nn.Linear."),
    "bad-device": _error("A device name is not one of a rule.", "Write cpu, cuda:N, xpu:N, npu:N or auto."),
    "bad-transfer-map": _error("transfer_map is not a mapping of layer numbers.", 'Write {30: "cuda:1"}.'),
    "duplicate-key": _warning("A key appears twice in one mapping; the last one wins.", "Delete one of them."),
    "unknown-key": _warning("A key that no rule knows; it has no effect.", "Correct its spelling or delete it."),
    "misplaced-key": _warning("A known key at a place where it has no effect.", "Move it where the message says."),
    "unknown-kwarg": _warning(
        "An argument that no operator knows; ktransformers swallows it silently.", "Correct its spelling or delete it."
    ),
    "odd-recursive": _warning("recursive is not a boolean, and acts by its truth value.", "Write True or False."),
    "number-range": _warning(
        "A character class that looks like a range of numbers matches single characters.", "Use the alternation shown."
    ),
    "gguf-name": _warning("A pattern names tensors of a GGUF file.", "Use the Hugging Face module name shown."),
    "old-name": _warning("A name from an old ktransformers version.", "Use today's name."),
    "unknown-operator": _warning("An operator that ktransformers does not have.", "Correct its spelling."),
    "operator-device": _warning("An operator that cannot run on its device.", "Change the operator or the device."),
    "unknown-class": _warning(
        "A replace.class that ktransformers does not have; placement ignores it.", "Correct its spelling."
    ),
    "transfer-map-key": _note("A layer number in transfer_map is a quoted text.", "Write it without quotes."),
    "layerwise-prefill": _note("Layer-wise prefill does not exist in llama.cpp.", "Write 0 to switch it off."),
    "too-many-findings": _note("Findings were left out because there are too many.", "Repair the first ones."),
}

#: Codes of ``ktllama.placing``: rules held against a model, and the plan that comes of them.
PLACEMENT_CODES: Mapping[str, CodeInfo] = {
    "regex-runaway": _error(
        "A pattern backtracks without end on the model's module names and was stopped.",
        "Write it without a repeat inside a repeat, such as (a+)+.",
    ),
    "rules-for-another-model": _error(
        "No model class that the file names is in the model.", "Use rules for this model, or give the right --model."
    ),
    "rule-shadowed": _warning(
        "Earlier rules take every module that a rule matches; the first match wins.", "Move the special rule above."
    ),
    "rule-below-cut": _warning(
        "All that a rule matches is below a module taken with 'recursive: false'.",
        "Drop the rule, or the cut, or match the module that was cut.",
    ),
    "rule-matches-nothing": _warning(
        "No module of the model is like the rule's name and class.", "Correct the name or class that the message shows."
    ),
    "rule-without-tensors": _note(
        "A rule places only modules that a GGUF holds no weights of, such as rotary embeddings.",
        "Nothing; ktransformers needs such rules, llama.cpp does not.",
    ),
    "layer-not-covered": _warning(
        "No rule matches anything in some layers while others are covered.", "Widen the number range of the rules."
    ),
    "default-device": _note(
        "Tensors that no rule matches go to the default device. A warning if routed experts are among them, or if all "
        "rules name another kind of device.",
        "Add a rule for them, or choose --default-device.",
    ),
    "embedding-on-cpu": _note(
        "embed_tokens was put on a GPU; llama.cpp and ktransformers keep it on the CPU.", "Write cpu, or leave it."
    ),
    "experts-split": _warning(
        "Single experts of a layer are on several devices; a GGUF holds them in one tensor.",
        "Give all experts of a layer one device.",
    ),
    "experts-apart": _warning(
        "Gate, up and down of a layer's routed experts are on several devices.", "Keep the three together."
    ),
    "architecture-unknown": _note(
        "ktllama has no description of the model's architecture; the modules' names are those that most models have.",
        "Check the plan with `ktllama translate`; match by name, since classes are not known.",
    ),
    "tensor-without-module": _warning(
        "The file holds tensors that ktllama knows no module for.",
        "Check that the file is of the model you think; report it otherwise.",
    ),
    "mtp-not-loaded": _note(
        "The file holds a multi-token-prediction block, which llama.cpp leaves on disk by default.", "Nothing."
    ),
    "auto-device": _error(
        "'auto' leaves a place to the planner, which is another command.",
        "Plan the rules with `ktllama plan --rules`, which writes a file without 'auto'; or name a device.",
    ),
    "transfer-map": _warning(
        "transfer_map names layers that do not exist or disagrees with the devices of the layers. llama.cpp copies "
        "activations by itself.",
        "Correct the map or the layers; only the layers count here.",
    ),
    "out-device": _warning(
        "out_device of an expert block is not where its layer's attention is.",
        "Make them agree; it has no effect here.",
    ),
    "head-away-from-norm": _warning(
        "lm_head and the final norm are on different devices.", "Put model.norm where lm_head is."
    ),
    "norms-away": _warning(
        "A layer's norms are not where its attention and KV cache are.", "Give a layer's norms its attention's device."
    ),
    "attention-away": _warning(
        "Attention weights are not where self_attn, and with it the KV cache, is.",
        "Give self_attn and its projections one device.",
    ),
    "gate-on-cpu": _warning(
        "A router is on the CPU beside attention on a GPU; every token needs it.", "Put mlp.gate on the GPU."
    ),
    "shared-experts-on-cpu": _warning(
        "Shared experts are on the CPU beside attention on a GPU; every token needs them.",
        "Put mlp.shared_experts on the GPU.",
    ),
    "prefill-mixed": _warning(
        "prefill_device differs between experts on the CPU; llama.cpp has one switch, op_offload.",
        "Use one prefill_device for all experts on the CPU.",
    ),
    "prefill-elsewhere": _note(
        "prefill_device differs from the GPU that holds the weights; llama.cpp uses weights where they are.", "Nothing."
    ),
    "over-budget": _error(
        "The tensors on a device are larger than the memory that --budget gives it.",
        "Move layers or experts to another device.",
    ),
}

#: Codes of ``ktllama.lower``: what a target cannot express.
LOWERING_CODES: Mapping[str, CodeInfo] = {
    "kv-not-expressible": _warning(
        "A command line takes no CPU layers behind GPU layers, so their KV cache goes to the GPU.",
        "Use --target python, or put the CPU layers first.",
    ),
    "output-not-expressible": _warning(
        "ik_llama.cpp offloads the output layer only with all blocks, and a tied output cannot be overridden.",
        "Accept the CPU, or put all blocks on GPUs.",
    ),
    "repeated-device": _warning(
        "The layers return to a GPU that they left, which ik_llama.cpp's list of devices cannot say.",
        "Give neighbouring layers the same device.",
    ),
    "too-many-runs": _error(
        "The layers change device more often than llama.cpp has room for (16).",
        "Give neighbouring layers the same device.",
    ),
    "device-collision": _error(
        "Two devices of the rules have one name in llama.cpp.", "Give each its own device with --device-map."
    ),
    "unpinned": _note(
        "Weights on the CPU are streamed to a GPU from memory that llama.cpp maps, not pins.",
        "With enough free RAM for them, give --load-mode none.",
    ),
    "too-many-overrides": _error(
        "The plan needs more override patterns than llama.cpp takes (4095).",
        "Give neighbouring layers the same device.",
    ),
}

#: Codes of ``ktllama.importing``: what of a llama.cpp command line rules cannot say.
IMPORT_CODES: Mapping[str, CodeInfo] = {
    "import-auto-layers": _warning(
        "The command leaves the number of GPU layers to llama-server, which decides by the memory that is free.",
        "Give -ngl a number.",
    ),
    "import-split-by-memory": _warning(
        "Several GPUs and no -ts: llama.cpp splits by free memory; equal shares were taken.", "Give -ts."
    ),
    "import-unknown-flag": _warning("A word that is no flag of this llama.cpp was left out.", "Correct its spelling."),
    "import-ik-llama": _warning(
        "The command has flags of ik_llama.cpp, but was read as llama.cpp reads it.",
        "Check -ngl: ik_llama.cpp offloads the output layer last.",
    ),
    "import-environment": _warning("LLAMA_ARG_* variables before the command were left out.", "Write them as flags."),
    "import-override-unused": _warning("An override finds no tensor of the model.", "Correct the pattern."),
    "import-device-outside": _warning(
        "An override names a device that llama.cpp does not use otherwise.", "Add the device to -dev."
    ),
    "import-kv-on-cpu": _warning(
        "-nkvo: the rules put self_attn, and with it the KV cache, on the CPU and its weights elsewhere.",
        "Use --target python, or leave -nkvo out.",
    ),
    "import-split-module": _warning(
        "The command puts tensors of one module on several devices; the device with the most bytes was chosen.",
        "Give such tensors one device, or accept the choice.",
    ),
    "import-not-expressible": _warning("The command places a tensor where no rule can.", "Accept what was chosen."),
    "import-device-names": _note(
        "The rules name devices that llama.cpp calls otherwise.", "Translate them with the --device-map shown."
    ),
    "import-host-buffers": _note(
        "--no-host follows from whether weights are streamed to a GPU; rules cannot set it apart.", "Nothing."
    ),
}

#: Codes of the translation as a whole.
MODEL_CODES: Mapping[str, CodeInfo] = {
    "model-assumed": _note("No model file was given; sizes are those of a known model.", "Give --model FILE.gguf."),
    "model-unknown": _note(
        "No model was given and none could be told from the rules, so only the file itself was checked.",
        "Give --model FILE.gguf or --preset NAME.",
    ),
}

#: Every code that ktllama can report.
CATALOGUE: Mapping[str, CodeInfo] = {
    **RULESET_CODES,
    **PLACEMENT_CODES,
    **LOWERING_CODES,
    **IMPORT_CODES,
    **MODEL_CODES,
}
