"""Templates of hostile model files: each ends soon, in one TemplateError with one line."""

from __future__ import annotations

from datetime import datetime

import pytest

from ktllama.r1.errors import TemplateError, TemplateRefusalError
from ktllama.r1.template import ChatTemplate

WORK = "it does more work than a prompt takes; a loop or recursion in it may not end"
TEXT = "it makes a text of more than 16777216 characters"
OUTPUT = "it writes more than 16777216 characters"
WIDTH = "it formats with a width that is not supported"
LOOP = "{% for i in range(100000) %}"
NEST = "{% set ns = namespace(v=['a'] * 9) %}{% for i in range(40) %}{% set ns.v = [ns.v, ns.v] %}{% endfor %}"
GROW = "{% set ns = namespace(v='ab') %}{% for i in range(60) %}{% set ns.v = "

HOSTILE = {
    "large range": ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)."),
    "loops within loops": (LOOP * 3 + "{% endfor %}" * 3, WORK),
    "loops that write": (LOOP * 2 + "{{ i }}" + "{% endfor %}" * 2, WORK),
    "loops that write fixed text": (LOOP + "x" * 2000 + "{% endfor %}", OUTPUT),
    "loops that capture fixed text": ("{% set x %}" + LOOP + "x" * 2000 + "{% endfor %}{% endset %}", OUTPUT),
    "macros that call themselves twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        WORK,
    ),
    "macros without end": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "it nests or recurses too deeply"),
    "recursive loop": ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursive loops are not supported"),
    "text that doubles": (GROW + "ns.v + ns.v %}{% endfor %}", WORK),
    "text that doubles by ~": (GROW + "ns.v ~ ns.v %}{% endfor %}", None),
    "text that doubles by join": (GROW + "[ns.v, ns.v]|join %}{% endfor %}", None),
    "text that doubles by capture": ("{% set a %}xxxxxxxx{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60, WORK),
    "text that doubles by replace": (GROW + "ns.v.replace('b', ns.v) %}{% endfor %}", TEXT),
    "text that doubles by replace, filter": (GROW + "ns.v|replace('b', ns.v) %}{% endfor %}", WORK),
    "text times a number": ("{{ 'a' * 10**9 }}", TEXT),
    "number times a text": ("{{ 10**9 * 'a' }}", TEXT),
    "list times a number": ("{{ [1] * 10**9 }}", "it makes a list of more than 1048576 items"),
    "power": ("{{ 10 ** (10 ** 9) }}", "it raises a number to a power above 64"),
    "numbers that square": ("{% set ns = namespace(v=10) %}{% for i in range(60) %}{% set ns.v = ns.v * ns.v %}{% endfor %}", "it makes a number of more than 4096 bits"),
    "width, %": ("{{ '%999999999d' % 1 }}", WIDTH),
    "width, *": ("{{ '%*d' % (999999999, 1) }}", WIDTH),
    "width, format": ("{{ '{:>999999999}'.format(1) }}", WIDTH),
    "width, nested format": ("{{ '{:>{}}'.format(1, 999999999) }}", WIDTH),
    "width, ljust": ("{{ 'a'.ljust(10**9) }}", "it calls str.ljust, which is not supported"),
    "width, center": ("{{ 'a'|center(10**9) }}", "No filter named 'center'."),
    "width, indent": ("{{ 'a'|indent(10**9) }}", "indent indents by more than 64"),
    "width, tojson": ("{{ [1]|tojson(indent=10**9) }}", "tojson indents by more than 64"),
    "bytes of a number": ("{{ (1).to_bytes(10**9, 'big') }}", "it calls int.to_bytes, which is not supported"),
    "lists of lists, printed": (NEST + "{{ ns.v }}", WORK),
    "lists of lists, tojson": (NEST + "{{ ns.v|tojson }}", WORK),
    "lists of lists, ~": (NEST + "{{ '' ~ ns.v }}", WORK),
    "lists of lists, compared": (NEST + "{% set a = ns.v %}" + NEST + "{{ a == ns.v }}", WORK),
    "lists of lists, test": (NEST + "{% set a = ns.v %}" + NEST + "{{ a is eq ns.v }}", WORK),
    "lists of lists, select": (NEST + "{% set a = ns.v %}" + NEST + "{{ [a]|select('eq', ns.v)|list|length }}", WORK),
    "namespaces, printed": ("{% set a = namespace(x=1) %}{{ a }}", "it uses a namespace as a value"),
    "searches in large text": (GROW[:-14].replace("60", "22") + "{% set ns.v = ns.v + ns.v %}{% endfor %}" + LOOP + "{% if 'x' in ns.v %}{% endif %}{% endfor %}", WORK),
    "python inside": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "access to attribute '__class__' of 'str' object is unsafe."),
    "changes the messages": ("{{ messages.append(1) }}", None),
    "includes": ("{% include '/etc/passwd' %}", "'include' is not supported"),
    "extends": ("{% extends 'x' %}", "'extends' is not supported"),
    "imports": ("{% import 'x' as y %}", "'import' is not supported"),
    "blocks": ("{% block a %}{{ self.a() }}{% endblock %}", "'block' is not supported"),
    "syntax": ("{% if %}", "Expected an expression, got 'end of statement block'"),
    "unknown function": ("{{ open('/etc/passwd') }}", "'open' is undefined"),
    "unknown filter": ("{{ 'x'|lipsum }}", "No filter named 'lipsum'."),
    "parentheses": ("{{ " + "(" * 50000, "it nests or recurses too deeply"),
    "sums": ("{{ " + "1+" * 50000 + "1 }}", "it nests or recurses too deeply"),
    "digits": ("{{ " + "9" * 5000 + " }}", None),
    "divides by zero": ("{{ 1 // 0 }}", "ZeroDivisionError: integer division or modulo by zero"),
    "types": ("{{ 1 + 'a' }}", "TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
    "time": ("{{ strftime_now('%9999999d') }}", "it asks for the time in a form that is not supported"),
    "escape sequences": ("{{ raise_exception('\x1b[2J') }}", r"\x1b[2J"),
    "the account itself": ("{% set limits = 1 %}{{ x.y.z }}", "'x' is undefined"),
    "long": ("x" * 300_000, "300000 characters; expected at most 262144"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_one_error(name: str) -> None:
    source, reason = HOSTILE[name]
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "x"}])
    if reason is not None:
        assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_python_inside_by_format_is_nothing() -> None:
    assert ChatTemplate("[{{ '{0.__class__}'.format('') }}]").render([]) == "[]"


def test_the_line_of_a_mistake_is_told() -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("a\n{% bad %}")
    assert str(caught.value) == "the model's chat template, line 2: Encountered unknown tag 'bad'."


def test_a_template_may_refuse_messages() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TemplateRefusalError) as caught:
        template.render([])
    assert str(caught.value) == "the model's chat template refuses these messages: roles must alternate"


def test_work_is_bought_by_input() -> None:
    source = "{% for m in messages %}{% for n in messages %}{% endfor %}{{ m.content|trim }}{% endfor %}"
    messages = [{"role": "user", "content": "x" * 1000} for _ in range(700)]
    assert len(ChatTemplate(source).render(messages)) == 700_000


def test_what_templates_of_models_use() -> None:
    source = (
        "{%- generation -%}{{ bos_token }}{%- endgeneration -%}"
        "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}{{ loop.length }}{{ loop.last }}"
        "{{ m.content|trim }}{{ tools|tojson }}{% endfor %}"
        "{{ strftime_now('%d %b %Y') }}{{ '{}-{}'.format(1, 'a') }}{{ '%s' % eos_token }}"
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('y') }}{{ messages[::-1][0].content }}{{ nothing }}"
        "{{ messages|map(attribute='content')|join(',') }}{{ 'b' in ['a', 'b'] }}{{ flag }}"
    )
    text = ChatTemplate(source, bos="<B>", eos="<E>").render(
        [{"content": " ä< "}, {"content": "c"}],
        tools=[{"a": "é'&"}],
        template_kwargs={"flag": True},
        now=datetime(2026, 1, 2),
    )
    tools = '[{"a": "é\'&"}]'
    assert text == f"<B>2Falseä<{tools}2Truec{tools}02 Jan 20261-a<E><y>c ä< ,cTrueTrue"


@pytest.mark.parametrize(
    ("source", "switches"),
    [
        ("{{ messages }}{{ tools }}{{ bos_token }}{{ strftime_now('%d') }}", set()),
        ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}", {"thinking"}),
        ("{{ a if b else c }}{% for d in e %}{{ d }}{{ loop.index }}{% endfor %}", {"a", "b", "c", "e"}),
        ("{% set x = 1 %}{{ x }}{% macro m(y) %}{{ y }}{{ z }}{% endmacro %}{{ raise_exception('') }}", {"z"}),
    ],
)
def test_a_template_says_what_a_request_may_set(source: str, switches: set[str]) -> None:
    assert ChatTemplate(source).switches == switches
