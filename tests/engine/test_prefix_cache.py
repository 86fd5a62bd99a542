"""The tree of cells: what is found, shared, cut and evicted, and that the books are right after each."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.engine.executor import Row
from ktllama.engine.parking import common_length
from ktllama.engine.prefix_cache import Match, PrefixCache
from tests.engine.fake_executor import FakeExecutor, FakeOptions


class Cache:
    """A prefix cache on the fake, whose cells it can compute."""

    def __init__(self, n_cells: int = 100, n_sequences: int = 4) -> None:
        self.fake = FakeExecutor(FakeOptions(n_ctx=n_cells, n_ubatch=n_cells, n_sequences=n_sequences))
        self.tree = PrefixCache(self.fake, n_cells=n_cells, n_sequences=n_sequences, can_share=True)

    def run(self, text: str) -> tuple[int, int]:
        """Compute a text as a running sequence; (sequence, tokens that were there)."""
        tokens = list(text.encode())
        match = self.tree.lookup(tokens, len(tokens) - 1)
        sequence = self.tree.open(tokens, match)
        rows = [Row(sequence, tokens[i], i, False) for i in range(match.n_tokens, len(tokens))]
        while self.tree.n_free < len(rows):
            assert self.tree.evict()
        self.fake.run(rows)
        self.tree.extend(sequence, len(rows))
        return sequence, match.n_tokens

    def finished(self, text: str) -> int:
        """Compute a text and keep it as cached; how many tokens were there."""
        sequence, n_cached = self.run(text)
        self.tree.retire(sequence, keep=True)
        return n_cached

    def found(self, text: str) -> int:
        tokens = list(text.encode())
        return self.tree.lookup(tokens, len(tokens)).n_tokens

    def shape(self) -> list[object]:
        """The tree as nested lists of texts."""

        def below(node: object) -> list[object]:
            found: list[object] = []
            for child in getattr(node, "children"):  # noqa: B009
                found.append(bytes(child.tokens[child.start : child.end]).decode())
                if child.children:
                    found.append(below(child))
            return found

        return below(self.tree.root)


def test_a_prefix_is_found_in_running_and_cached_sequences() -> None:
    cache = Cache()
    cache.finished("hello world")
    cache.run("hello there")
    assert cache.found("hello world!") == 11
    assert cache.found("hello them") == 9
    assert cache.found("help") == 3
    assert cache.found("nothing") == 0
    assert cache.shape() == ["hello ", ["world", "there"]]
    assert cache.tree.n_used == cache.fake.used_cells() == 16


def test_what_running_sequences_hold_is_not_evictable() -> None:
    cache = Cache()
    cache.finished("hello world")
    cache.run("hello there")
    tokens = list(b"hello world")
    match = cache.tree.lookup(tokens, 11)
    assert (match.n_tokens, match.n_unheld, cache.tree.n_held) == (11, 5, 11)


def test_a_sequence_that_is_used_whole_is_taken_over() -> None:
    cache = Cache(n_sequences=2)
    cache.finished("one turn.")
    assert cache.finished("one turn. and another") == 9
    assert cache.finished("one turn. and another, and a third") == 21
    assert cache.shape() == ["one turn. and another, and a third"]
    assert list(cache.tree.cached) == [0]
    assert cache.tree.free == [1]


def test_the_least_recently_used_goes_first_and_use_counts() -> None:
    cache = Cache(n_sequences=4)
    for text in ("aaaa", "bbbb", "cccc"):
        cache.finished(text)
    cache.finished("aaab")  # uses aaaa
    assert cache.tree.evict()
    assert (cache.found("bbbb"), cache.found("aaaa"), cache.found("cccc")) == (0, 4, 4)
    assert cache.tree.evict()
    assert (cache.found("aaaa"), cache.found("cccc")) == (4, 0)


def test_without_a_free_sequence_one_is_evicted_but_not_the_one_that_matches() -> None:
    cache = Cache(n_sequences=2)
    cache.finished("match this")
    cache.finished("other")
    sequence, n_cached = cache.run("match that")
    assert n_cached == 8
    assert cache.shape() == ["match th", ["is", "at"]]
    assert cache.fake.tokens_of(sequence) == list(b"match that")


def test_the_only_sequence_there_is_is_cut_for_what_matches() -> None:
    cache = Cache(n_sequences=1)
    cache.finished("match this")
    sequence, n_cached = cache.run("match that")
    assert (sequence, n_cached) == (0, 8)
    assert cache.shape() == ["match that"]
    assert cache.fake.used_cells() == cache.tree.n_used == 10


def test_a_sequence_that_holds_nothing_of_its_own_is_not_kept() -> None:
    cache = Cache()
    sequence, _ = cache.run("shared")
    tokens = list(b"shared")
    other = cache.tree.open(tokens, cache.tree.lookup(tokens, 5))
    cache.tree.retire(other, keep=True)
    assert list(cache.tree.cached) == []
    cache.tree.retire(sequence, keep=True)
    assert list(cache.tree.cached) == [sequence]
    assert cache.shape() == ["shared"]


def test_equal_tokens_that_two_computed_are_two_runs_of_cells() -> None:
    cache = Cache()
    first = cache.tree.open(list(b"same"), Match(cache.tree.root, 0, 0))
    second = cache.tree.open(list(b"same"), Match(cache.tree.root, 0, 0))
    for sequence in (first, second):
        cache.fake.run([Row(sequence, token, i, False) for i, token in enumerate(b"same")])
        cache.tree.extend(sequence, 4)
    assert cache.shape() == ["same", "same"]
    assert cache.fake.used_cells() == cache.tree.n_used == 8
    cache.tree.retire(first, keep=False)
    assert cache.found("same") == 4


def test_growing_costs_nothing_for_what_is_there() -> None:
    cache = Cache(n_cells=10_000)
    tokens = list(b"x" * 5000)
    sequence = cache.tree.open(tokens, Match(cache.tree.root, 0, 0))
    cache.fake.run([Row(sequence, token, i, False) for i, token in enumerate(tokens)])
    cache.tree.extend(sequence, 5000)
    (node,) = cache.tree.root.children
    assert node.tokens is tokens  # not a copy
    for position in range(5000, 5100):
        tokens.append(121)
        cache.fake.run([Row(sequence, 121, position, False)])
        cache.tree.extend(sequence, 1)
    assert cache.tree.root.children == [node]
    assert (node.start, node.end) == (0, 5100)


@given(st.lists(st.text("ab", min_size=1, max_size=12), min_size=1, max_size=30), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_what_is_found_is_the_longest_prefix_that_any_sequence_holds(texts: list[str], n_sequences: int) -> None:
    cache = Cache(n_cells=40, n_sequences=n_sequences)
    for text in texts:
        held = [bytes(cache.fake.tokens_of(sequence)).decode() for sequence in cache.tree.ends]
        longest = max((len_common(text, other) for other in held), default=0)
        assert cache.found(text) == longest
        assert cache.finished(text) == min(longest, len(text) - 1)
        assert cache.fake.used_cells() == cache.tree.n_used <= 40
        assert cache.tree.n_held == 0


def len_common(left: str, right: str) -> int:
    n = 0
    while n < min(len(left), len(right)) and left[n] == right[n]:
        n += 1
    return n


@given(st.integers(0, 700), st.integers(0, 700), st.integers(0, 700))
def test_common_length(n_same: int, n_left: int, n_right: int) -> None:
    left = [0] * n_same + [1] * (1 + n_left)
    right = [0] * n_same + [2] * (1 + n_right)
    end = min(len(left), len(right))
    assert common_length(left, right, 0, end) == n_same
    assert common_length(left, right, n_same // 2, end) == n_same
    assert common_length(left, left, 0, end) == end
