"""Time and memory of ``analyse`` on hostile rule files: 1,000 to 10,000 rules for R1-671B, and files of 10 MB.

    python -m bench.hostile

Each case runs in a process of its own. A straight line takes ten times as long for ten times the rules.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable

COUNTS = (1_000, 10_000)
FILE_BYTES = 9_990_000


def _rules(match: Callable[[int], str], kwargs: str = "generate_device: cpu") -> Callable[[int], str]:
    def text(count: int) -> str:
        return "".join(
            f"- match: {{{match(number)}}}\n  replace: {{class: default, kwargs: {{{kwargs}}}}}\n"
            for number in range(count)
        )

    return text


#: What the rules are → a file of so many of them.
BY_RULES: dict[str, Callable[[int], str]] = {
    "match nothing": _rules(lambda n: rf"name: '^model\.layers\.{n + 1000}\.mlp$'"),
    "match nothing, of a class": _rules(lambda n: f"name: 'x{n}', class: torch.nn.Linear"),
    "of unknown classes": _rules(lambda n: f"name: 'l|x{n}', class: torch.nn.Linea{n}"),
    "one expert each": _rules(lambda n: rf"name: 'layers\.{n % 61}\.mlp\.experts\.{n % 256}\.'"),
    "the same, shadowed": _rules(lambda _: r"name: '^model\.layers\.'"),
    "all modules, each in its way": _rules(lambda n: f"name: 'l|{n}'"),
    "transfer maps": _rules(lambda n: f"name: 'layers.{n % 61}.self_attn$|zz{n}'", "transfer_map: {1: cpu}"),
    "backtracking": _rules(lambda n: f"name: '(([a-z.]+)+)+!{n}'"),
}

#: What fills a file of 10 MB.
BY_BYTES: dict[str, Callable[[], str]] = {
    "rules": lambda: BY_RULES["match nothing"](FILE_BYTES // 105),
    "comments": lambda: "# x\n" * (FILE_BYTES // 4),
    "scalars": lambda: "- x\n" * (FILE_BYTES // 4),
    "brackets": lambda: "[" * FILE_BYTES,
    "one name": lambda: f"- match: {{name: '{'x' * FILE_BYTES}'}}\n  replace: {{class: default}}\n",
    "aliases": lambda: "- &a [x, x, x, x, x, x, x, x, x]\n" + "- [*a, *a, *a]\n" * (FILE_BYTES // 15),
    "an open quote": lambda: "- '" + "x\n" * (FILE_BYTES // 2),
}


def one(kind: str, name: str, count: int) -> None:
    """Run one case and print its seconds, resident MiB and number of findings."""
    from ktllama.errors import KtllamaError
    from ktllama.model import presets
    from ktllama.ruleset import loader
    from ktllama.translation import analyse

    text = BY_RULES[name](count) if kind == "rules" else BY_BYTES[name]()
    model = presets.load("deepseek-r1")
    started = time.perf_counter()
    try:
        n_found = len(analyse(loader.loads(text), model).diagnostics)
    except KtllamaError as fault:
        n_found = len(getattr(fault, "diagnostics", ()))
    seconds = time.perf_counter() - started
    print(f"{seconds} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024} {n_found}")


def measured(kind: str, name: str, count: int = 0) -> tuple[float, float, int]:
    command = [sys.executable, "-m", "bench.hostile", kind, name, str(count)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(said[0]), float(said[1]), int(said[2])


def main() -> None:
    print(f"{'rules that':32}{'rules':>8}{'s':>8}{'MiB':>8}{'findings':>10}{'growth':>8}")
    for name in BY_RULES:
        before = 0.0
        for count in COUNTS:
            seconds, mib, n_found = measured("rules", name, count)
            growth = f"x {seconds / before:.1f}" if before else ""
            print(f"{name:32}{count:>8}{seconds:>8.2f}{mib:>8.0f}{n_found:>10}{growth:>8}", flush=True)
            before = seconds
    print(f"\n{'10 MB of':32}{'':>8}{'s':>8}{'MiB':>8}{'findings':>10}")
    for name in BY_BYTES:
        seconds, mib, n_found = measured("bytes", name)
        print(f"{name:32}{'':>8}{seconds:>8.2f}{mib:>8.0f}{n_found:>10}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        one(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
