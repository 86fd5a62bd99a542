"""A chat template out of an untrusted model file, compiled once and rendered within limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from ktllama.errors import MissingExtraError
from ktllama.r1.capabilities import Capabilities, probe
from ktllama.r1.errors import TemplateError
from ktllama.r1.limits import MAX_SOURCE_CHARACTERS, Limits
from ktllama.ruleset.wording import shown

if TYPE_CHECKING:
    from jinja2 import Template

T = TypeVar("T")

_MAX_REASON_CHARACTERS = 300
#: For model files without a chat template: ChatML, which most instruction models know.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: What a template may not be given by a request, as it is what the rendering is about.
RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})


class ChatTemplate:
    """A model's chat template. ``bos`` and ``eos`` are the texts of those tokens, empty where there are none.

    Raises TemplateError, at once for what cannot be compiled, and MissingExtraError without jinja2.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateError(f"{len(source)} characters; expected at most {MAX_SOURCE_CHARACTERS}")
        self.source = source
        self.bos = bos
        self.eos = eos
        self._template = _compiled(source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> str:
        """The template's text for exactly these messages; nothing is rewritten.

        ``now`` is for templates that print the date, the local time where it is None. Raises TemplateError, and its
        TemplateRefusalError where the template itself says no.
        """
        from ktllama.r1.sandbox import LIMITS_KEY

        variables = {
            **(template_kwargs or {}),
            "messages": [dict(message) for message in messages],
            "tools": [dict(tool) for tool in tools] or None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos,
            "eos_token": self.eos,
            "strftime_now": lambda form: _strftime(now or datetime.now(), form),
        }
        variables[LIMITS_KEY] = Limits(_n_characters(variables))
        return _guarded(lambda: "".join(self._template.generate(variables)))

    @cached_property
    def switches(self) -> frozenset[str]:
        """The variables that it reads besides what every rendering gives it: what a request may set."""
        from ktllama.r1.sandbox import ChatEnvironment

        return _guarded(lambda: ChatEnvironment().variables(self.source)) - RESERVED - {"strftime_now"}

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the template has words for; tried out once."""
        return probe(self.render)


def _compiled(source: str) -> Template:
    try:
        from ktllama.r1.sandbox import ChatEnvironment
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        raise MissingExtraError("jinja2", "serve") from error
    return _guarded(lambda: ChatEnvironment().compiled(source))


def _guarded(work: Callable[[], T]) -> T:
    """``work``, with whatever goes wrong in it as one TemplateError."""
    from jinja2 import TemplateError as JinjaError

    try:
        return work()
    except TemplateError:
        raise
    except RecursionError as error:
        raise TemplateError("it nests or recurses too deeply") from error
    except MemoryError as error:
        raise TemplateError("it needs more memory than there is") from error
    except JinjaError as error:
        raise TemplateError(_one_line(error), line=getattr(error, "lineno", None)) from error
    except Exception as error:
        # The template is a program by a stranger: it can raise anything that Python's operators can.
        raise TemplateError(f"{type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return shown(" ".join(str(error).split()), _MAX_REASON_CHARACTERS)


def _strftime(now: datetime, form: object) -> str:
    if not isinstance(form, str) or len(form) > 100 or any(character.isdigit() for character in form):
        raise TemplateError("it asks for the time in a form that is not supported")
    return now.strftime(form)


def _n_characters(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_n_characters(key) + _n_characters(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return sum(_n_characters(item) for item in value)
    return 1
