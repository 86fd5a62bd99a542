"""Which sequence holds which tokens: a radix tree over token ids whose nodes are runs of cells.

A node is a run of cells at the positions [start, end), with their tokens; the path from the root to a node is what
its cells attend to. A sequence is a path: it holds every node from the root to the node it ends at. Sequences that
share a node share its cells (`llama_memory_seq_cp`). Two nodes may hold the same tokens beside each other, because two
sequences computed them before either could share (the last token of a prompt always is computed anew, for its
logits); they are different cells. So the tree is also the books: its nodes' lengths add up to the cells in use.

A *running* sequence belongs to a generation. When that ends, the sequence stays as *cached*, if it holds cells that
nobody else does; least recently used ones are evicted when cells or sequences run out. Running sequences are found
by a lookup as well as cached ones. Where cells are better left empty (see `parking`), cached sequences are parked one
by one, and come back as cells of the sequence that begins with their tokens.

`tokens` lists are shared with the generations, which only append to them; position equals index, so a node refers to
its sequence's list and nothing is copied when a sequence grows or a node is cut in two.
"""

from __future__ import annotations

from dataclasses import dataclass

from ktllama.engine.executor import CellTable
from ktllama.engine.parking import Parked, ParkingLot, common_length


class Node:
    """A run of cells. `tokens[start:end]` are theirs; `tokens[:start]` are those of the path above."""

    __slots__ = ("children", "end", "ends", "n_holders", "n_running", "parent", "start", "tokens")

    def __init__(self, parent: Node | None, tokens: list[int], start: int, end: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.start = start
        self.end = end
        self.children: list[Node] = []
        self.ends: set[int] = set()  # sequences that end here
        self.n_holders = 0  # sequences whose path goes through
        self.n_running = 0  # the running ones among them


@dataclass(frozen=True, slots=True)
class Match:
    """The longest prefix that is in cells: its first `n_tokens` end inside (or at the end of) `node`.

    `n_unheld` of its cells are held by cached sequences only, so using it keeps that many from being evicted.
    """

    node: Node
    n_tokens: int
    n_unheld: int


class PrefixCache:
    """The sequences of a context and their cells. The only one to move cells."""

    def __init__(
        self, cells: CellTable, *, n_cells: int, n_sequences: int, can_share: bool, parking_bytes: int = 0
    ) -> None:
        self._cells = cells
        self.lot = ParkingLot(parking_bytes if can_share else 0)
        self.can_share = can_share
        self.n_cells = n_cells
        self.n_used = 0
        self.n_held = 0  # cells that running sequences hold; the rest of the used ones can be evicted
        self.evictions = 0
        self.root = Node(None, [], 0, 0)
        self.free = list(range(n_sequences - 1, -1, -1))
        self.ends: dict[int, Node] = {}  # every sequence in use → the node it ends at
        self.running: dict[int, list[int]] = {}  # running sequence → its generation's tokens
        self.cached: dict[int, None] = {}  # least recently used first

    @property
    def n_free(self) -> int:
        """Cells that nobody holds."""
        return self.n_cells - self.n_used

    # ── finding ──────────────────────────────────────────────────────────────────────────────────────────────────

    def lookup(self, tokens: list[int], limit: int) -> Match:
        """The longest prefix of `tokens`, at most `limit` of them, that is in cells."""
        best, best_depth = self.root, 0
        todo = [self.root] if self.can_share else []
        while todo:
            node = todo.pop()
            depth = node.end
            if depth >= limit:
                continue
            for child in node.children:
                if child.tokens[depth] != tokens[depth]:
                    continue
                common = common_length(child.tokens, tokens, depth, min(child.end, limit))
                if common > best_depth:
                    best, best_depth = child, common
                if common == child.end:
                    todo.append(child)
        return Match(best, best_depth, self._n_unheld(best, best_depth))

    @staticmethod
    def _n_unheld(node: Node, n_tokens: int) -> int:
        unheld = 0
        end = n_tokens
        current: Node | None = node
        while current is not None and current.n_running == 0:
            unheld += end - current.start
            end = current.start
            current = current.parent
        return unheld

    # ── running sequences ────────────────────────────────────────────────────────────────────────────────────────

    def open(self, tokens: list[int], match: Match) -> int:
        """A running sequence that holds `match` and will grow along `tokens`. There must be one to be had.

        A cached sequence of which all is used is taken over, others are copied. Without a free sequence the least
        recently used cached one goes, the matched one last.
        """
        sequence = self._taken_over(match)
        if sequence is None and not self.free:
            holder = self._holder(match.node) if match.n_tokens else None
            victim = next((cached for cached in self.cached if cached != holder), None)
            if victim is not None:
                self._evict(victim)
                match = self.lookup(tokens, match.n_tokens)  # nodes may have been joined
            elif holder is not None:
                self._cut(holder, match.n_tokens)
                sequence = self._taken_over(self.lookup(tokens, match.n_tokens))
        if sequence is None:
            sequence = self.free.pop()
            self.ends[sequence] = self.root
            self.running[sequence] = tokens
            self.root.ends.add(sequence)
            self._share(sequence, match)
        self.running[sequence] = tokens
        return sequence

    def share(self, sequence: int, match: Match) -> None:
        """Let a running sequence hold `match` instead of what it holds."""
        self._let_go(sequence)
        self._share(sequence, match)

    def _share(self, sequence: int, match: Match) -> None:
        if not match.n_tokens:
            return
        node = match.node if match.n_tokens == match.node.end else self._split(match.node, match.n_tokens)
        holder = self._holder(node)
        self._cells.copy(holder, sequence, match.n_tokens)
        if holder in self.cached:
            self._touch(holder)
        self.root.ends.discard(sequence)
        node.ends.add(sequence)
        self.ends[sequence] = node
        self._count(node, holders=1, running=1)

    def extend(self, sequence: int, n_tokens: int) -> None:
        """`n_tokens` more of the sequence's tokens are in cells now."""
        end = self.ends[sequence]
        tokens = self.running[sequence]
        self.n_used += n_tokens
        self.n_held += n_tokens
        if end.n_holders == 1:  # its own; never the root, which nobody counts as held
            end.tokens = tokens
            end.end += n_tokens
            return
        child = Node(end, tokens, end.end, end.end + n_tokens)
        child.n_holders = child.n_running = 1
        child.ends.add(sequence)
        end.children.append(child)
        end.ends.discard(sequence)
        self.ends[sequence] = child

    def reset(self, sequence: int) -> None:
        """Take a running sequence's cells away; it stays in use, empty."""
        self._let_go(sequence)

    def retire(self, sequence: int, *, keep: bool) -> None:
        """A running sequence's generation has ended: keep it as cached, if that keeps any cell, or drop it."""
        end = self.ends[sequence]
        if keep and self.can_share and end is not self.root and end.n_holders == 1:
            self._count(end, holders=0, running=-1)
            self.cached[sequence] = None
            del self.running[sequence]
            return
        self._let_go(sequence)
        self._release(sequence)

    # ── parked prompts ───────────────────────────────────────────────────────────────────────────────────────────

    def park(self) -> bool:
        """Move the least recently used cached sequence out of the context; False if there is none, or nowhere to."""
        victim = next(iter(self.cached), None)
        if victim is None or not self.lot.max_bytes:
            return False
        end = self.ends[victim]
        tokens = end.tokens[: end.end]
        if self.lot.wants(tokens) and self.lot.make_room(tokens, self._cells.saved_bytes(victim)):
            self.lot.park(Parked(tokens, self._cells.save(victim)))
        self._let_go(victim)
        self._release(victim)
        return True

    def can_restore(self, parked: Parked) -> bool:
        """Whether the context has room for all of a parked prompt once the cached sequences have left."""
        return self.n_held + parked.cells.n_tokens <= self.n_cells

    def restore(self, sequence: int, parked: Parked, n_tokens: int) -> bool:
        """Let an empty running sequence hold the first tokens of a parked prompt that `can_restore`.

        False where the cells cannot take it nevertheless.
        """
        while self.n_free < parked.cells.n_tokens:
            self.evict()
        if not self._cells.restore(sequence, parked.cells, n_tokens):
            return False
        self.lot.use(parked)
        self.extend(sequence, n_tokens)
        return True

    # ── cached sequences ─────────────────────────────────────────────────────────────────────────────────────────

    def evict(self) -> bool:
        """Drop the least recently used cached sequence; False if there is none."""
        victim = next(iter(self.cached), None)
        if victim is None:
            return False
        self._evict(victim)
        return True

    def _evict(self, victim: int) -> None:
        self.evictions += 1
        self._let_go(victim)
        self._release(victim)

    def _release(self, sequence: int) -> None:
        self.running.pop(sequence, None)
        self.cached.pop(sequence, None)
        del self.ends[sequence]
        self.root.ends.discard(sequence)
        self.free.append(sequence)

    def _touch(self, sequence: int) -> None:
        del self.cached[sequence]
        self.cached[sequence] = None

    def _taken_over(self, match: Match) -> int | None:
        """Make a cached sequence that ends exactly with the match a running one."""
        if not match.n_tokens or match.n_tokens != match.node.end:
            return None
        sequence = next((end for end in match.node.ends if end in self.cached), None)
        if sequence is not None:
            del self.cached[sequence]
            self._count(match.node, holders=0, running=1)
        return sequence

    def _cut(self, sequence: int, n_tokens: int) -> None:
        """Shorten a cached sequence."""
        node = self.ends[sequence]
        while node.start >= n_tokens:
            assert node.parent is not None
            node = node.parent
        keep = node if node.end == n_tokens else self._split(node, n_tokens)
        self._cells.remove(sequence, n_tokens)
        end = self.ends[sequence]
        end.ends.discard(sequence)
        keep.ends.add(sequence)
        self.ends[sequence] = keep
        self._count(end, holders=-1, running=0, above=keep)

    # ── the tree ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _holder(self, node: Node) -> int:
        """A sequence that holds a node."""
        while not node.ends:
            node = node.children[0]
        return next(iter(node.ends))

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two at a position inside it; the upper half."""
        assert node.start < at < node.end
        assert node.parent is not None
        upper = Node(node.parent, node.tokens, node.start, at)
        upper.n_holders, upper.n_running = node.n_holders, node.n_running
        upper.children = [node]
        siblings = node.parent.children
        siblings[siblings.index(node)] = upper
        node.parent = upper
        node.start = at
        return upper

    def _let_go(self, sequence: int) -> None:
        """Take a sequence back to the root, without cells."""
        self._cells.remove(sequence, 0)  # even if it has none here: a batch that failed may have left some
        end = self.ends[sequence]
        if end is self.root:
            return
        end.ends.discard(sequence)
        self.ends[sequence] = self.root
        self.root.ends.add(sequence)
        self._count(end, holders=-1, running=-1 if sequence in self.running else 0)
        if end.n_holders:
            self._join(end)

    def _count(self, end: Node, *, holders: int, running: int, above: Node | None = None) -> None:
        """Change how many hold the path that ends at `end`, up to and without `above`; drop what nobody holds."""
        node = end
        while node is not self.root and node is not above:
            parent = node.parent
            assert parent is not None
            length = node.end - node.start
            was_running = node.n_running > 0
            node.n_holders += holders
            node.n_running += running
            self.n_held += length * ((node.n_running > 0) - was_running)
            if node.n_holders == 0:
                self.n_used -= length
                parent.children.remove(node)
                self._join(parent)
            node = parent

    def _join(self, node: Node) -> None:
        """Make one of a node and its only child, where no sequence ends between them."""
        if node is self.root or node.ends or len(node.children) != 1:
            return
        (child,) = node.children
        parent = node.parent
        assert parent is not None
        child.start = node.start  # a sequence's list holds the tokens of the whole path
        child.parent = parent
        siblings = parent.children
        siblings[siblings.index(node)] = child
