"""The vocabulary in which an architecture's module tree is written down as data.

A GGUF file knows tensors (``blk.3.attn_q_a.weight``); a rule file knows Hugging Face modules
(``model.layers.3.self_attn.q_a_proj``, of class ``torch.nn.Linear``). An :class:`Architecture` holds the second
and says which of the first each module owns. A module whose tensors a file lacks does not exist there, so one
description serves dense and MoE layers, fused and split experts, tied and untied outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ktllama.model.model_file import ModelFile

LINEAR = "torch.nn.modules.linear.Linear"
EMBEDDING = "torch.nn.modules.sparse.Embedding"
MODULE_LIST = "torch.nn.modules.container.ModuleList"
CONV1D = "torch.nn.modules.conv.Conv1d"
SILU = "torch.nn.modules.activation.SiLU"
MODULE = "torch.nn.modules.module.Module"


@dataclass(frozen=True, slots=True)
class Node:
    """One module of a tree, relative to its parent.

    ``cls`` is a class path, or ``@Name`` for a class of the variant's modelling file. ``stems`` are the GGUF names,
    without ``blk.N.`` and without ``.weight``, of the tensors that the module may own. A node without stems and
    children (a rotary embedding, an activation) exists where its parent does, and so does one that is ``always``
    there (an output head whose weights are tied). ``each`` marks a list of experts: its only child stands for all.
    """

    name: str
    cls: str
    stems: tuple[str, ...] = ()
    children: tuple[Node, ...] = ()
    each: bool = False
    always: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One set of classes for the same module names: ktransformers' modelling file, transformers', a server's.

    ``classes`` gives the class of an ``@Name`` that is not ``<modelling>.<prefix>Name``, or one to use for another;
    ``bases`` gives the base classes of an ``@Name`` (``torch.nn.Module`` goes without saying); ``extra`` are modules
    that only this variant has, put before ``lm_head``; ``drop`` names children of the tree that it lacks. ``operators``
    is a package of ktransformers' operators that are used on this variant only.
    """

    name: str
    modelling: str
    prefix: str
    classes: Mapping[str, str] = field(default_factory=dict)
    bases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    extra: tuple[Node, ...] = ()
    drop: frozenset[str] = frozenset()
    operators: str | None = None

    def class_path(self, cls: str) -> str:
        """The dotted path of a node's class."""
        if cls in self.classes:
            return self.classes[cls]
        return f"{self.modelling}.{self.prefix}{cls[1:]}" if cls.startswith("@") else cls

    def base_paths(self, cls: str) -> tuple[str, ...]:
        """The dotted paths of all base classes, nearest first."""
        return (*(self.class_path(base) for base in self.bases.get(cls, ())), MODULE)


def _always(_model: ModelFile) -> bool:
    return True


def _none(_model: ModelFile) -> frozenset[int]:
    return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A GGUF architecture: its module tree and the variants of its classes.

    ``variants`` picks, for a model's metadata, the variants that fit it, the default one first. ``layer`` is the
    tree of one block, ``mtp`` what a multi-token-prediction block has besides. ``before_layers`` and ``after_layers``
    are the modules inside ``model`` around ``layers``, ``head`` those beside ``model``.

    ``families`` says which models a modelling file builds (``modeling_mixtral``: ``Mixtral``). ``fits`` tells apart
    architectures that share a GGUF name. ``recurrent`` gives the blocks that keep a recurrent state in place of a KV
    cache. ``generic`` marks a tree whose names were taken from a table and whose classes are unknown.
    """

    gguf_name: str
    families: Mapping[str, str]
    layer: tuple[Node, ...]
    before_layers: tuple[Node, ...]
    after_layers: tuple[Node, ...]
    head: tuple[Node, ...]
    variants: Callable[[ModelFile], tuple[Variant, ...]]
    mtp: tuple[Node, ...] = ()
    fits: Callable[[ModelFile], bool] = _always
    recurrent: Callable[[ModelFile], frozenset[int]] = _none
    generic: bool = False


#: Base classes that every ``@ForCausalLM`` and ``@Model`` has.
PRETRAINED = ("@PreTrainedModel", "transformers.modeling_utils.PreTrainedModel")
