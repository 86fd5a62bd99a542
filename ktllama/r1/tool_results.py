"""Results of tool calls, matched with their calls.

A model's format has no ids: the first output is that of the first call. So results are brought into the order of their
calls, and a conversation in which they cannot be told apart is refused, as OpenAI and DeepSeek refuse it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ktllama.r1.errors import MessagesError
from ktllama.r1.messages import Call, Turn


def answered_in_order(turns: Sequence[Turn]) -> list[Turn]:
    """`turns`, one a message, with each run of results in the order of the calls before it.

    Where the calls or their results carry no ids at all, they stay as they are. Raises MessagesError for a result of no
    call or of one that has its result, and for a call without one.
    """
    found: list[Turn] = []
    start = 0
    while start <= len(turns):
        end = start
        while end < len(turns) and turns[end].role == "tool":
            end += 1
        found += _ordered(found[-1].calls if found else (), turns[start:end], start)
        found += turns[end : end + 1]
        start = end + 1
    return found


def _ordered(calls: Sequence[Call], results: Sequence[Turn], start: int) -> list[Turn]:
    """The results of `calls`; the first of them is message `start`."""
    if (calls and not any(call.id for call in calls)) or (results and not any(turn.call_id for turn in results)):
        return list(results)
    places = _places(calls, f"messages[{start - 1}]")
    found: dict[int, Turn] = {}
    for index, turn in enumerate(results, start):
        place = places.get(turn.call_id or "")
        if place is None:
            raise MessagesError(f"messages[{index}].tool_call_id", "no call of the message before has this id")
        if place in found:
            raise MessagesError(f"messages[{index}].tool_call_id", "the call of this id has its result already")
        found[place] = turn
    for place in range(len(calls)):
        if place not in found:
            at = f"messages[{start - 1}].tool_calls[{place}]"
            raise MessagesError(at, "no message of role tool with its id follows, which would hold its result")
    return [found[place] for place in sorted(found)]


def _places(calls: Sequence[Call], at: str) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, call in enumerate(calls):
        if call.id in places:
            raise MessagesError(f"{at}.tool_calls[{place}].id", "another call of this message has the same id")
        if call.id:
            places[call.id] = place
    return places
