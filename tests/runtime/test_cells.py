from __future__ import annotations

import numpy as np

from ktllama.runtime.cells import Cells


def test_cells_are_shared_and_come_back_with_their_last_holder() -> None:
    cells = Cells(8, 3)
    for _ in range(5):
        cells.append(0)
    cells.copy(0, 1, 3)
    cells.append(1)
    assert (cells.n_used, cells.n_free, cells.length(0), cells.length(1)) == (6, 2, 5, 4)
    cells.remove(0, 0)
    assert (cells.n_used, cells.length(0)) == (4, 0)
    cells.remove(1, 2)
    assert cells.n_used == 2
    cells.remove(1, 0)
    assert cells.n_used == 0


def test_the_books_agree_with_counting_by_hand() -> None:
    random = np.random.default_rng(0)
    cells, fresh = Cells(40, 4), iter(range(10_000))
    by_hand: list[list[int]] = [[] for _ in range(4)]
    for _ in range(600):
        sequence, other = (int(each) for each in random.integers(4, size=2))
        choice = random.integers(3)
        if choice == 0 and cells.n_free:
            cells.append(sequence)
            by_hand[sequence].append(next(fresh))
        elif choice == 1 and not by_hand[other] and sequence != other:
            n_shared = int(random.integers(len(by_hand[sequence]) + 1))
            cells.copy(sequence, other, n_shared)
            by_hand[other] = by_hand[sequence][:n_shared]
        elif choice == 2:
            start = int(random.integers(len(by_hand[sequence]) + 1))
            cells.remove(sequence, start)
            by_hand[sequence] = by_hand[sequence][:start]
        assert cells.n_used == len({cell for held in by_hand for cell in held})
        assert [cells.length(each) for each in range(4)] == [len(held) for held in by_hand]
