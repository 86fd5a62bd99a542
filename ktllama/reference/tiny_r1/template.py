"""How conversations become text: DeepSeek's special tokens and the chat template of R1.

The template is that of DeepSeek-R1's tokenizer_config.json in what it makes; it is given to the GGUF file as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

BEGIN, END, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, THINK_END = "<think>", "</think>"
TOOL_CALLS = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
TOOL_CALL = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
TOOL_OUTPUTS = ("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>")
TOOL_OUTPUT = ("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>")
TOOL_SEPARATOR = "<｜tool▁sep｜>"

#: Those that only frame a conversation, hidden where tokens become text.
CONTROL = (BEGIN, END, PAD)

#: Those that show as text, as in DeepSeek's own vocabulary.
VISIBLE = (USER, ASSISTANT, THINK, THINK_END, *TOOL_CALLS, *TOOL_CALL, *TOOL_OUTPUTS, *TOOL_OUTPUT, TOOL_SEPARATOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An earlier question and its answer, without the thinking."""

    question: str
    answer: str


def prompt(question: str, earlier: tuple[Turn, ...] = (), system: str = "") -> str:
    """What the template makes of a conversation that ends in ``question``, up to where the model begins to think."""
    return opened(question, earlier, system) + THINK + "\n"


def opened(question: str, earlier: tuple[Turn, ...] = (), system: str = "") -> str:
    """The same, up to the assistant's name."""
    before = "".join(f"{USER}{turn.question}{ASSISTANT}{turn.answer}{END}" for turn in earlier)
    return f"{BEGIN}{system}{before}{USER}{question}{ASSISTANT}"


def reply(thought: str, answer: str) -> str:
    """What the model is to say after its name."""
    return f"{THINK}\n{thought}\n{THINK_END}\n\n{answer}{END}"


CHAT_TEMPLATE = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}\
{%- for message in messages %}\
{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}\
{%- endfor %}\
{{ bos_token }}{{ ns.system_prompt }}\
{%- for message in messages %}\
{%- if message['role'] == 'user' %}\
{%- set ns.is_tool = false -%}{{ '<｜User｜>' + message['content'] }}\
{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is none %}\
{%- set ns.is_tool = false -%}\
{%- for tool in message['tool_calls'] %}\
{%- if not ns.is_first %}\
{{ '<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' \
+ tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' \
+ '<｜tool▁call▁end｜>' }}\
{%- set ns.is_first = true -%}\
{%- else %}\
{{ '\\n' + '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] \
+ '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>' }}\
{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}\
{%- endif %}\
{%- endfor %}\
{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}\
{%- if ns.is_tool %}\
{{ '<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}{%- set ns.is_tool = false -%}\
{%- else %}\
{% set content = message['content'] %}\
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}\
{%- endif %}\
{%- endif %}\
{%- if message['role'] == 'tool' %}\
{%- set ns.is_tool = true -%}\
{%- if ns.is_output_first %}\
{{ '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}\
{%- set ns.is_output_first = false %}\
{%- else %}\
{{ '\\n<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}\
{%- endif %}\
{%- endif %}\
{%- endfor -%}\
{% if ns.is_tool %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}\
{% if add_generation_prompt and not ns.is_tool %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}\
"""
