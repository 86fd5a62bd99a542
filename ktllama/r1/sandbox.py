"""jinja2's immutable sandbox, and around it a count of everything that a template does.

jinja2's sandbox keeps a template from Python's internals, not from looping for ever or filling the memory. So every
loop, call, filter, operator and output is counted against `Limits`: by rewriting the template's syntax tree before it
is compiled, and by wrapping what it can call. What chat templates of published models do not use is left out:
inclusion, inheritance, recursive loops, and filters and methods that make large texts out of small ones.

Imports jinja2; imported by `ktllama.r1.template` only when a template is compiled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from string import Formatter
from typing import Any, cast

from jinja2 import Template, meta, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ktllama.r1.errors import TemplateError, TemplateRefusalError
from ktllama.r1.limits import Limits, check_items, check_length, checked
from ktllama.ruleset.wording import shown

#: Keys of the context and of filters that no template can name: they are no identifiers.
LIMITS_KEY = "limits of ktllama"
_COUNTED, _TICK, _WEIGHED = "counted by ktllama", "tick of ktllama", "weighed by ktllama"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _names(
    "abs capitalize count d default dictsort first float groupby indent int items join last length list lower map max "
    "min reject rejectattr replace reverse round safe escape e select selectattr sort string title trim unique "
    "upper wordcount"
)
_DEEP_FILTERS = _names("dictsort groupby join max min sort string tojson unique")
_TESTS = frozenset(TESTS) - {"filter", "test"}
_CHEAP_TESTS = _names(
    "boolean callable defined even false float integer iterable mapping none number odd sequence string true undefined"
)
_METHODS: dict[type, frozenset[str]] = {
    str: _names(
        "capitalize casefold count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit "
        "islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace "
        "rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
    ),
    dict: _names("copy get items keys values"),
    list: _names("copy count index"),
    tuple: _names("count index"),
}
_MAX_INDENT = 64
_WIDTH = "it formats with a width that is not supported"
_REFUSED: tuple[tuple[type[nodes.Node], str], ...] = (
    (nodes.Include, "include"),
    (nodes.Import, "import"),
    (nodes.FromImport, "from … import"),
    (nodes.Extends, "extends"),
    (nodes.Block, "block"),
)


def _limits(context: Context) -> Limits:
    limits = context.resolve_or_missing(LIMITS_KEY)
    assert isinstance(limits, Limits)
    return limits


class GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}``, by which transformers marks what was generated: only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's protocol

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body, as if the tag were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _filtered(node: nodes.Expr, name: str, *args: int) -> nodes.Filter:
    consts: list[nodes.Expr] = [nodes.Const(arg) for arg in args]
    return nodes.Filter(node, name, consts, [], None, None, lineno=node.lineno)


def _fixed_characters(body: Iterable[nodes.Node]) -> int:
    return sum(len(data.data) for node in body for data in _template_data(node))


def _template_data(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    yield from node.find_all(nodes.TemplateData)


class _Counting(NodeTransformer):
    """Puts the counting into a template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's protocol
        if node.recursive:
            raise TemplateError("recursive loops are not supported", line=node.lineno)
        fixed = _fixed_characters(node.body)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNTED, fixed)  # type: ignore[arg-type]
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._ticking(node)

    def _ticking(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        fixed = nodes.Const(_fixed_characters(node.body), lineno=node.lineno)
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_filtered(fixed, _TICK)], lineno=node.lineno))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filtered(node.expr, _WEIGHED)
        for operand in node.ops:
            # Looking a key up in a mapping goes over nothing.
            operand.expr = _filtered(operand.expr, _WEIGHED, int(operand.op in ("in", "notin")))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(part, _WEIGHED) for part in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, _WEIGHED, 1)
        return node


@pass_context
def _counted(context: Context, values: Iterable[Any], fixed: int) -> Iterator[Any]:
    limits = _limits(context)
    for value in values:
        limits.charge(1)
        limits.output(fixed)
        yield value


@pass_context
def _tick(context: Context, fixed: int) -> str:
    limits = _limits(context)
    limits.charge(1)
    limits.output(fixed)
    return ""


@pass_context
def _weighed(context: Context, value: Any, shallow: int = 0) -> Any:
    if shallow and not isinstance(value, (list, tuple)):
        _limits(context).charge_value(value if isinstance(value, str) else None)
    else:
        _limits(context).charge_deep(value)
    return value


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    limits = _limits(context)
    if isinstance(value, Undefined):
        return value
    limits.output(limits.charge_deep(value))
    return value


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' ``tojson``: plain JSON, without jinja2's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _counting_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` behind its charge. What it made is checked, and what would be too large is not made."""
    passes = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def counting(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        limits = _limits(context)
        if isinstance(
            value, Iterator
        ):  # what `map` and `select` make; tojson of it is what llama.cpp's templates write
            value = list(value)
        charge = limits.charge_deep if name in _DEEP_FILTERS else limits.charge_value
        charge(value)
        for argument in (*args, *kwargs.values()):
            limits.charge_value(argument)
        _check_amplification(name, value, args, kwargs)
        if passes is None:
            return checked(function(value, *args, **kwargs))
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[passes.name]
        return checked(function(first, value, *args, **kwargs))

    return counting


def _check_amplification(name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that make a large text out of a small one."""
    if name in ("tojson", "indent"):
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, int) and argument > _MAX_INDENT:
                raise TemplateError(f"{name} indents by more than {_MAX_INDENT}")
            if isinstance(argument, str) and len(argument) > _MAX_INDENT:
                raise TemplateError(f"{name} indents by more than {_MAX_INDENT} characters")
    elif name == "join":
        separator = args[0] if args else kwargs.get("d", "")
        if isinstance(value, (list, tuple)):
            check_length(len(value) * len(str(separator)))
    elif name == "replace":
        pair = [str(argument) for argument in (*args, *kwargs.values())]
        check_length(_replaced_length(str(value), pair[0], pair[1]) if len(pair) > 1 else 0)


def _replaced_length(text: str, old: str, new: str) -> int:
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _counting_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def counting(context: Context, value: Any, *args: Any) -> Any:
        limits = _limits(context)
        limits.charge(1)
        if name not in _CHEAP_TESTS:
            for argument in (value, *args):
                limits.charge_deep(argument)
        return function(value, *args)

    return counting


def _refuse(message: object = "") -> None:
    raise TemplateRefusalError(shown(" ".join(str(message).split()), 300))


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment that chat templates expect, as transformers sets it up, with every operation counted."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag], finalize=_finalize
        )
        filters = {name: FILTERS[name] for name in _FILTERS} | {"tojson": tojson}
        self.filters = {name: _counting_filter(name, function) for name, function in filters.items()}
        self.filters |= {_COUNTED: _counted, _TICK: _tick, _WEIGHED: _weighed}
        self.tests = {name: _counting_test(name, cast(Callable[..., Any], TESTS[name])) for name in _TESTS}
        self.globals = {
            "range": self.globals["range"],
            "namespace": Namespace,
            "dict": dict,
            "raise_exception": _refuse,
        }

    def compiled(self, source: str) -> Template:
        """The template, counting. Raises jinja2's errors and TemplateError."""
        tree = self.parse(source)
        for kind, statement in _REFUSED:
            found = tree.find(kind)
            if found is not None:
                raise TemplateError(f"'{statement}' is not supported", line=found.lineno)
        tree = _Counting().visit(tree)
        tree.set_environment(self)
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def variables(self, source: str) -> frozenset[str]:
        """The names that the template looks up and does not set before. Raises jinja2's errors."""
        return frozenset(meta.find_undeclared_variables(self.parse(source)))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls: a macro, a function given to it, or one of the harmless methods."""
        limits = _limits(context)
        limits.charge(1)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, (str, bytes, int, float, list, tuple, dict)):
            limits.charge_value(owner)
            _check_method(owner, obj.__name__, args)
        for argument in (*args, *kwargs.values()):
            limits.charge_value(argument)
        return checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator between two values, neither of them nor the result too large."""
        limits = _limits(context)
        limits.charge_value(left)
        limits.charge_value(right)
        if operator == "*":
            _check_product(left, right)
        elif operator == "**" and (not isinstance(right, (int, float)) or abs(right) > 64):
            raise TemplateError("it raises a number to a power above 64")
        elif operator == "%" and isinstance(left, str):
            _check_percent(left, limits.charge_deep(right))
        return checked(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` within the sandbox, its widths and repetitions bounded."""
        safe_format = super().wrap_str_format(value)
        if safe_format is None:
            return None
        text = str(value.__self__)

        def bounded(*args: Any, **kwargs: Any) -> str:
            # There is no account here; the sizes alone bound it.
            limits = Limits(0)
            _check_format(text, limits.charge_deep(list(args)) + limits.charge_deep(kwargs))
            return safe_format(*args, **kwargs)

        return bounded


def _check_method(owner: Any, name: str, args: tuple[Any, ...]) -> None:
    allowed = next((names for kind, names in _METHODS.items() if isinstance(owner, kind)), frozenset[str]())
    if name not in allowed:
        raise TemplateError(f"it calls {type(owner).__name__}.{name}, which is not supported")
    if name == "replace" and len(args) >= 2:
        check_length(_replaced_length(owner, str(args[0]), str(args[1])))
    elif name == "join" and args and isinstance(args[0], (list, tuple)):
        check_length(len(args[0]) * len(owner) + sum(len(item) for item in args[0] if isinstance(item, str)))


def _check_product(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str) and isinstance(times, int):
            check_length(len(value) * max(times, 0))
        elif isinstance(value, (list, tuple)) and isinstance(times, int):
            check_items(len(value) * max(times, 0))


def _check_percent(text: str, n_characters: int) -> None:
    """``%`` formatting may not ask for a width of four digits or one from its arguments."""
    if re.search(r"%[^a-zA-Z%]*(?:\d{4}|\*)", text):
        raise TemplateError(_WIDTH)
    check_length(len(text) + text.count("%") * max(n_characters, 999))


def _check_format(text: str, n_characters: int) -> None:
    """``str.format`` may not ask for a width of four digits or one from its arguments."""
    n_fields = 0
    for _, _, form, _ in Formatter().parse(text):
        n_fields += form is not None
        if form and re.search(r"\d{4}|\{", form):
            raise TemplateError(_WIDTH)
    check_length(len(text) + n_fields * max(n_characters, 999))
