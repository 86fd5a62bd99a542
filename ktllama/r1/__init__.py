"""What DeepSeek-R1 needs around a language model: prompt, thinking, tool calls. Text and tokens, no I/O.

jinja2 is imported when the first chat template is compiled.
"""

from __future__ import annotations

from ktllama.r1.control_text import ControlStrings
from ktllama.r1.delta import Delta, Folded, fold
from ktllama.r1.profile import Profile, SamplingDefaults, control_strings, profile_of
from ktllama.r1.prompt import Prompt, render
from ktllama.r1.repetition import RepetitionGuard
from ktllama.r1.template import CHATML, ChatTemplate
from ktllama.r1.thinking import ThinkingParser, ThinkingTokenParser
from ktllama.r1.tool_calls import ToolCallParser, fold_tools
from ktllama.r1.tool_formats import FORMATS, ToolFormat
from ktllama.r1.transcript import Transcript

__all__ = [
    "CHATML",
    "FORMATS",
    "ChatTemplate",
    "ControlStrings",
    "Delta",
    "Folded",
    "Profile",
    "Prompt",
    "RepetitionGuard",
    "SamplingDefaults",
    "ThinkingParser",
    "ThinkingTokenParser",
    "ToolCallParser",
    "ToolFormat",
    "Transcript",
    "control_strings",
    "fold",
    "fold_tools",
    "profile_of",
    "render",
]
