"""Command lines as people write them, and as nobody should."""

from __future__ import annotations

import time

import pytest

from ktllama.importing.assignment import assign
from ktllama.importing.command_line import CommandLine, parse
from ktllama.importing.ecmascript import PatternError, translate
from ktllama.importing.errors import CommandLineError
from tests.models import deepseek


@pytest.mark.parametrize(
    "command",
    [
        "llama-server -ngl 9 -c 4096",
        "./llama-server -ngl 9 -c 4096",
        "/opt/llama.cpp/build/bin/llama-cli -ngl 9 -c 4096",
        r"C:\llama\llama-server.exe -ngl 9 -c 4096",
        "llama-server \\\n  --n-gpu-layers 9 \\\n  -c 4096",
        "llama-server ^\n  -ngl 9 -c 4096",
        "A=1 numactl --interleave=all llama-server --n_gpu_layers 9 -c 4096",
        "-ngl 9 -c 4096",
    ],
)
def test_the_same_command_in_many_clothes(command: str) -> None:
    words = command.split() if command.startswith("-") else [command]
    found = parse(words)
    assert (found.n_gpu_layers, found.ignored, found.diagnostics) == (9, ("-c 4096",), ())


def test_backslashes_are_kept_where_windows_keeps_them() -> None:
    (override,) = parse([r'llama-server.exe -ngl 9 -ot "blk\.3\.=CPU"']).overrides
    assert override.pattern.pattern == r"blk\.3\."


def test_nothing_said_means_all_layers_if_they_fit() -> None:
    assert parse(["llama-server"]).n_gpu_layers is None
    assert [str(found) for found in parse(["llama-server"]).diagnostics] == [
        "warning: without -ngl, llama-server fits the layers to the memory that is free when it starts; taken as all "
        "layers; give -ngl a number for another split [import-auto-layers]"
    ]


def test_overrides_keep_their_order_across_flags() -> None:
    found = parse(["llama-server", "-ot", "a=CPU,b=CUDA0", "-cmoe", "-ncmoe", "2", "-ot", "c=CUDA1"])
    assert [(override.pattern.pattern, override.buffer) for override in found.overrides] == [
        ("a", "CPU"),
        ("b", "CUDA0"),
        (r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),
        (r"blk\.[01]\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU"),
        ("c", "CUDA1"),
    ]


def test_unknown_flags_are_told_and_their_values_skipped() -> None:
    found = parse(["llama-server", "-ngl", "9", "--made-up", "3", "-fa", "on", "--mlock"])
    assert found.ignored == ("-fa on", "--mlock")
    assert [one.message for one in found.diagnostics] == ["not a flag of this llama.cpp, and left out: '--made-up'"]


def test_flags_of_the_fork_are_told() -> None:
    found = parse(["llama-server -ngl 99 -mla 3 -fa -amb 512 -fmoe -rtr"])
    assert [one.code for one in found.diagnostics] == ["import-ik-llama"]
    assert found.ignored == ("-mla 3", "-fa", "-amb 512", "-fmoe", "-rtr")


def test_variables_that_llama_cpp_reads_are_told() -> None:
    found = parse(["LLAMA_ARG_N_GPU_LAYERS=5 llama-server -ngl 9"])
    assert [one.message for one in found.diagnostics] == [
        "LLAMA_ARG_N_GPU_LAYERS: environment variables that llama.cpp reads as flags were left out; write them as flags"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "the command is empty; expected something like: llama-server -m model.gguf -ngl 99"),
        ([], "the command is empty; expected something like: llama-server -m model.gguf -ngl 99"),
        (['llama-server -ot "exps=CPU'], "the command's quotes do not balance (No closing quotation)"),
        (["vllm serve"], "no llama.cpp program in 'vllm serve'; expected llama-server, llama-cli or the like"),
        (["llama-server", "-ngl"], "-ngl: a value is missing"),
        (["llama-server -ngl many"], "-ngl: 'many': expected a number of layers, 'auto' or 'all'"),
        (["llama-server -ngl 99999999999999"], "-ngl: '99999999999999' is out of range for llama.cpp"),
        (["llama-server -ts 1,x"], "-ts: 'x': expected a share of 0 or more, as in -ts 3,1"),
        (["llama-server -ts 1,-1"], "-ts: '-1': expected a share of 0 or more, as in -ts 3,1"),
        (["llama-server -ts nan"], "-ts: 'nan': expected a share of 0 or more, as in -ts 3,1"),
        (["llama-server -ts " + ",".join("1" * 16)], "-ts: 16 shares, and llama.cpp takes at most 15"),
        (["llama-server -ncmoe -4"], "-ncmoe: '-4': expected a number of layers, 0 or more"),
        (
            ["llama-server -sm row"],
            "-sm: 'row' cuts single tensors across GPUs, and a rule gives a tensor one device; use -sm layer",
        ),
        (["llama-server -sm best"], "-sm: 'best': expected none, layer, row or tensor"),
        (["llama-server -dev gpu0"], "-dev: 'gpu0' is no GPU device; expected names such as CUDA0,CUDA1"),
        (
            ["llama-server -ot exps"],
            "-ot: 'exps' has no '='; expected PATTERN=BUFFER_TYPE (a ',' ends it, even in {2,3})",
        ),
        (["llama-server -ot exps=cpu"], "-ot: 'exps=cpu': 'cpu' is no buffer type; did you mean CPU?"),
        (["llama-server -ot exps=cuda:0"], "-ot: 'exps=cuda:0': 'cuda:0' is no buffer type; did you mean CUDA0?"),
        (
            ["llama-server -ot exps=disk"],
            "-ot: 'exps=disk': 'disk' is no buffer type; expected CPU, CUDA0, Vulkan0, SYCL0, ROCm0 or the like",
        ),
        (
            ["llama-server", "-ot", "blk.[[:digit:]]+=CPU"],
            "-ot: pattern 'blk.[[:digit:]]+': the POSIX class in '[[:digit:]]+' means something else in Python; "
            "write [0-9], [a-z] or the like",
        ),
        (
            ["llama-server", "-ot", "(exps=CPU"],
            "-ot: pattern '(exps': not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        (
            ["llama-server", "-ot", "exps(?=x)=CPU"],
            "-ot: 'exps(?=x)=CPU': 'x)=CPU' is no buffer type; expected CPU, CUDA0, Vulkan0, SYCL0, ROCm0 or the like",
        ),
    ],
)
def test_refusals(words: list[str], message: str) -> None:
    with pytest.raises(CommandLineError) as refused:
        parse(words)
    assert str(refused.value) == message


def test_a_gpu_that_does_not_exist() -> None:
    with pytest.raises(CommandLineError) as refused:
        assign(parse(["llama-server -ngl 9 -sm none -mg 4 -dev CUDA0,CUDA1"]), deepseek())
    assert str(refused.value) == "--main-gpu: 4: there are only 2 devices (CUDA0, CUDA1)"


def test_a_pattern_that_runs_away_is_stopped() -> None:
    start = time.monotonic()
    with pytest.raises(CommandLineError) as refused:
        assign(parse(["llama-server", "-ngl", "9", "-ot", "([a-z_0-9.]+)+$x=CPU"]), deepseek(40))
    assert str(refused.value) == (
        "-ot ([a-z_0-9.]+)+$x=CPU: this pattern was stopped after 2 s: it backtracks without end"
    )
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("[]a]", "an empty class '[]' means something else in Python"),
        ("[^]a]", "an empty class '[]' means something else in Python"),
        (r"(a)\1", "the back-reference \\1 means something else in Python; write the text out"),
        (r"\Ablk", "std::regex has no escape \\A"),
        (r"\p", "std::regex has no escape \\p"),
        ("(?i)blk", "std::regex has no group '(?i'; it has (…), (?:…) and (?!…)"),
        ("(?<=a)b", "std::regex has no group '(?<'; it has (…), (?:…) and (?!…)"),
        ("a++", "a '+' behind a repeat means something else in Python; put the repeat in parentheses"),
        ("a{", "a '{' that begins no repeat such as {2}; write \\{"),
        ("a}", "a lone '}' is not portable; write \\}"),
        ("[a", "a '[' without its ']'"),
        ("a\\", "it ends with a lone backslash"),
        (r"\x1", "\\x needs 2 hexadecimal digits"),
        ("(?", "it ends in '(?': -ot takes what stands before the first '=' as the pattern, so it cannot hold (?=…)"),
        ("*", "not a regular expression: nothing to repeat at position 0"),
        ("[z-a]", "not a regular expression: bad character range z-a at position 1"),
    ],
)
def test_patterns_that_are_refused(pattern: str, reason: str) -> None:
    with pytest.raises(PatternError) as refused:
        translate(pattern)
    assert str(refused.value) == reason


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"blk\.(\d|1\d)\.", "blk.12.ffn", True),
        ("[[a]", "[", True),
        ("[a&&b]", "&", True),
        ("(?!x)y", "y", True),
        (r"\d", "٣", False),
        ("a{2}", "aa", True),
        ("", "anything", True),
        (r"\x61", "a", True),
    ],
)
def test_patterns_that_mean_the_same(pattern: str, text: str, found: bool) -> None:
    assert bool(translate(pattern).search(text)) is found


def test_absurd_numbers_cost_nothing() -> None:
    found = assign(parse(["llama-server -ngl 2147483647 -ncmoe 2147483647 -ts 1e-30,1e30"]), deepseek())
    assert set(found.tensors.values()) == {"cpu", "cuda:1"}


def test_an_empty_command_line_is_a_value() -> None:
    assert CommandLine().overrides == ()
