"""Chat templates written for these tests, each with the traits of a published one."""

from __future__ import annotations

from ktllama.r1.profile import profile_of
from ktllama.r1.template import ChatTemplate

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

_DEEPSEEK_HEAD = (
    "{%- set ns = namespace(system='') -%}"
    "{%- for m in messages if m.role == 'system' %}{% set ns.system = ns.system + m.content %}{% endfor -%}"
    "{{ bos_token }}{{ ns.system }}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% endif -%}"
)
_DEEPSEEK_ANSWER = (
    "{%- if m.role == 'assistant' and m.content is not none -%}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif -%}"
    "{%- endfor -%}"
)
#: R1 of January 2025: forces the tag, drops tools, and does not close the calls of a single tool.
R1 = (
    _DEEPSEEK_HEAD + "{%- if m.role == 'assistant' and m.tool_calls %}"
    "{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' + m.tool_calls[0].function.name }}{% endif -%}"
    + _DEEPSEEK_ANSWER
    + "{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif -%}"
)
#: The same without the forced tag: R1's very first files, and 0528.
R1_UNFORCED = R1.replace("<think>\\n", "")
#: V3.1: a switch, and tags without line breaks.
V3_1 = (
    _DEEPSEEK_HEAD + _DEEPSEEK_ANSWER + "{%- if add_generation_prompt -%}"
    "{{ '<｜Assistant｜>' + ('<think>' if thinking else '<think></think>') }}{% endif -%}"
)
#: Qwen3: tools, a switch that closes, results as a user's message.
QWEN3 = (
    "{%- if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n<tool_call>…</tool_call><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif -%}"
    "{%- for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}"
    "</tool_response><|im_end|>\n{% elif m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} "
    "| tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif -%}"
)
#: One that insists on alternating roles and knows no system prompt.
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos=BOS, eos=EOS)


R1_PROFILE = profile_of({"general.name": "DeepSeek R1"}, R1)
R1_0528_PROFILE = profile_of({"general.name": "DeepSeek R1 0528"}, R1_UNFORCED)
V3_1_PROFILE = profile_of({"general.name": "DeepSeek V3.1"}, V3_1)
QWEN3_PROFILE = profile_of({"general.name": "Qwen3 0.6B"}, QWEN3)
PLAIN_PROFILE = profile_of({"general.name": "x"}, STRICT)
