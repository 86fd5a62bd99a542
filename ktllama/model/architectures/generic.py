"""Architectures that nobody has described: module names from the table that llama.cpp's converters are written by.

The ``gguf`` package maps the names in Hugging Face checkpoints to GGUF names (``tensor_mapping.py``); here it is read
backwards. Names are those of most models; classes are unknown, so every module is a plain ``torch.nn.Module`` and
rules that match by class match nothing. The package is imported only when such a model is met.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ktllama.model.architecture import MODULE, MODULE_LIST, Architecture, Node, Variant
from ktllama.model.model_file import MetadataArray, ModelFile

#: Modules outside the blocks by tensor, where the table has no name of the usual shape.
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_BLOCK = re.compile(r"blk\.[0-9]+\.(.+?)(?:\.(?:weight|bias|scale))?$", re.ASCII)
_OUTSIDE_NAME = re.compile(r"([^.]+)(?:\.(?:weight|bias|scale))?$", re.ASCII)
_LAYER_PREFIX = "model.layers.{bid}."
_FEED_FORWARD = "mlp."  # the most frequent of several; a router and its experts must not be told apart
_EXPERTS = re.compile(r"(.*\bexperts)\.(.+)$")

#: Tensors that only a block with a recurrent state has.
_STATE = re.compile(r"blk\.(0|[1-9][0-9]*)\.(?:ssm_|shortconv\.|time_mix_)", re.ASCII)


def describe(model: ModelFile) -> Architecture | None:
    """A description made of the names of ``model``'s tensors; None where not even its blocks can be named."""
    stems = {found.group(1) for tensor in model.tensors if (found := _BLOCK.match(tensor.name))}
    outside = {found.group(1) for tensor in model.tensors if (found := _OUTSIDE_NAME.match(tensor.name))}
    names = _layer_names(model.architecture, stems)
    if not names:
        return None
    named = {module: stem for stem, module in _OUTSIDE.items() if stem in outside}
    return Architecture(
        gguf_name=model.architecture,
        families={},
        layer=_tree(names),
        before_layers=_top(named, "model.embed_tokens"),
        after_layers=_top(named, "model.norm"),
        head=(Node("lm_head", MODULE, ("output",), always=True),),
        variants=lambda _model: (_VARIANT,),
        recurrent=recurrent,
        generic=True,
    )


#: Every module is a plain one.
_VARIANT = Variant(
    name="generic",
    modelling="",
    prefix="",
    classes=dict.fromkeys(("@ForCausalLM", "@Model", "@DecoderLayer", MODULE_LIST), MODULE),
)


def _layer_names(architecture: str, stems: Iterable[str]) -> dict[str, list[str]]:
    """Module below its layer → the stems of its tensors, in the table's order; stems without a name are left out."""
    import gguf

    wanted = set(stems)
    known = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
    own = gguf.TensorNameMap.arch_block_mappings_cfg.get(known, {})
    table = {**gguf.TensorNameMap.block_mappings_cfg, **own}
    of_architecture = set(gguf.MODEL_TENSORS.get(known, ()))
    names: dict[str, list[str]] = {}
    for tensor in sorted(table, key=lambda tensor: tensor not in of_architecture):  # its own first, else in order
        stem = gguf.TENSOR_NAMES[tensor].removeprefix("blk.{bid}.")
        usual = [name.removeprefix(_LAYER_PREFIX) for name in table[tensor] if name.startswith(_LAYER_PREFIX)]
        if stem in wanted and usual:
            wanted.remove(stem)
            name = next((name for name in usual if name.startswith(_FEED_FORWARD)), usual[0])
            names.setdefault(name, []).append(stem)
    return names


def _tree(names: dict[str, list[str]]) -> tuple[Node, ...]:
    """Dotted names as nodes; what is below ``experts`` is below expert 0."""
    spread = {_EXPERTS.sub(r"\1.0.\2", name): stems for name, stems in names.items()}
    return _level({tuple(name.split(".")): tuple(stems) for name, stems in spread.items()})


def _level(paths: dict[tuple[str, ...], tuple[str, ...]]) -> tuple[Node, ...]:
    nodes = []
    for first in dict.fromkeys(path[0] for path in paths):
        below = {path[1:]: stems for path, stems in paths.items() if path[0] == first and len(path) > 1}
        is_list = any(path[0] == "0" for path in below)
        nodes.append(Node(first, MODULE, paths.get((first,), ()), _level(below), each=is_list))
    return tuple(nodes)


def _top(named: dict[str, str], module: str) -> tuple[Node, ...]:
    return (Node(module.rpartition(".")[2], MODULE, (named[module],)),) if module in named else ()


def recurrent(model: ModelFile) -> frozenset[int]:
    """Blocks with a recurrent state and no attention, as far as header and tensors tell.

    llama.cpp decides for each architecture anew (``src/models/*.cpp``): by heads a layer, by an interval, or always.
    """
    n_trunk = model.n_layers - model.integer("nextn_predict_layers")
    stateful = {int(found.group(1)) for tensor in model.tensors if (found := _STATE.match(tensor.name))}
    heads = model.hyperparameter("attention.head_count_kv")
    if isinstance(heads, MetadataArray) and heads.values is not None:
        stateful |= {layer for layer, n_heads in enumerate(heads.values) if n_heads == 0}
        stateful -= {layer for layer, n_heads in enumerate(heads.values) if n_heads != 0}
    return frozenset(layer for layer in stateful if layer < n_trunk)
