"""The grid's table: a line a case, and what is counted over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

GIB = 1 << 30
MIB = 1 << 20

Record = dict[str, Any]

#: Reads that differ by less than this share are the same: half a cache and rounding.
_ALIKE = 1e-9


def show(records: Iterable[Record]) -> int:
    """Print everything; 1 if anything is over a budget, refused wrongly, or reads more than the peer does."""
    cases: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        cases.setdefault(record["case"], {}).setdefault(record["side"], []).append(record)
    print("MiB of host memory read a token: llama-fit-params' settings, the plan for the same ubatch of 512, and the")
    print(
        "plan with its own ubatch; seconds of llama-fit-params and of the plan (in one process); the most that a card"
    )
    print("of the plan is filled beside its margin.")
    print(f"{'case':34}{'fit-params':>11}{'plan':>9}{'own':>9}{'ubatch':>7}{'s':>7}{'s':>6}{'full':>7}")
    tally: Counter[str] = Counter()
    for key, sides in cases.items():
        print(_line(key, sides, tally).rstrip())
    print()
    for what, count in sorted(tally.items()):
        print(f"{count:5}  {what}")
    return int(any(count and what.startswith("WRONG") for what, count in tally.items()))


def _line(key: str, sides: dict[str, list[Record]], tally: Counter[str]) -> str:
    peer, ours, free = (sides.get(side, [None])[0] for side in ("peer", "plan", "free"))
    _count(peer, ours, free, tally)
    for record in sides.get("short", ()):
        _count_short(record, tally)
    seconds = "".join(
        f"{one['seconds']:{width}.1f}" if one and "seconds" in one else " " * width
        for one, width in ((peer, 7), (ours, 6))
    )
    ubatch = f"{free['ubatch']:7}" if free and "ubatch" in free else " " * 7
    columns = f"{_read(peer):>11}{_read(ours):>9}{_read(free):>9}"
    return f"{key:34}{columns}{ubatch}{seconds}{_fill(key, ours):>7}{_mark(peer, ours)}"


def _count(peer: Record | None, ours: Record | None, free: Record | None, tally: Counter[str]) -> None:
    for what, one in (("plan", ours), ("own ubatch", free)):
        if one is None:
            continue
        if "refused" in one:
            tally[f"{what}: refused, {one['refused']}"] += 1
            tally["WRONG: refused for memory without a limit of RAM"] += one["refused"] == "memory"
            continue
        tally[f"{what}: within every budget"] += not one["over"]
        tally["WRONG: over a budget"] += bool(one["over"])
    if peer is None:
        return
    if peer.get("skipped"):
        tally["llama-fit-params: not asked, the plan reads nothing"] += 1
    elif peer.get("failed"):
        tally["llama-fit-params: found nothing"] += 1
    elif peer["over"]:
        tally["llama-fit-params: what it found is over a budget"] += 1
    elif ours is not None and "host_read" in ours:
        tally["compared: plan reads less than llama-fit-params"] += ours["host_read"] < peer["host_read"] * (1 - _ALIKE)
        tally["compared: the same"] += abs(ours["host_read"] - peer["host_read"]) <= peer["host_read"] * _ALIKE
        tally["WRONG: plan reads more than llama-fit-params"] += ours["host_read"] > peer["host_read"] * (1 + _ALIKE)
        if free is not None:
            tally["plan with its own ubatch reads more than llama-fit-params with 512"] += free["host_read"] > peer[
                "host_read"
            ] * (1 + _ALIKE)


def _count_short(record: Record, tally: Counter[str]) -> None:
    below = record["ram"] < record["least"]
    if "refused" in record:
        tally[f"short of RAM: refused {'below the bound, rightly' if below else 'above the bound'}"] += 1
        return
    tally["WRONG: over a budget"] += bool(record["over"])
    tally["WRONG: planned below the bound"] += below
    tally["short of RAM: planned above the bound, within it"] += not below and not record["over"]


def _read(one: Record | None) -> str:
    if one is None:
        return ""
    if "host_read" not in one:
        return "refused" if "refused" in one else "-" if "skipped" in one else "none"
    return f"{one['host_read'] / MIB:.0f}" + ("!" if one["over"] else "")


def _fill(key: str, ours: Record | None) -> str:
    """The fullest card's share of its budget without the margin."""
    if ours is None or "planned" not in ours:
        return ""
    budgets = _budgets(key.split()[1])
    most = max(ours["planned"][f"cuda:{index}"] / (size * GIB - GIB // 2) for index, size in enumerate(budgets))
    return f"{most:.1%}"


def _budgets(cards: str) -> list[int]:
    if "x" in cards:
        count, size = map(int, cards.split("x"))
        return [size] * count
    return [int(size) for size in cards.split("+")]


def _mark(peer: Record | None, ours: Record | None) -> str:
    if not peer or not ours or "host_read" not in peer or "host_read" not in ours or peer["over"]:
        return ""
    return "  MORE" if ours["host_read"] > peer["host_read"] * (1 + _ALIKE) else ""
