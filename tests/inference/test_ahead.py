"""A thread that is one thing ahead."""

from __future__ import annotations

import threading

import pytest

from fpg_zoo.inference.prefetch import prefetch


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_come_in_order(count: int) -> None:
    assert [coming.result() for coming in prefetch(lambda x: 2 * x, range(count))] == [2 * x for x in range(count)]


def test_the_next_is_done_before_it_is_asked_for_and_no_more() -> None:
    begun = [threading.Event() for _ in range(4)]

    def doing(number: int) -> int:
        begun[number].set()
        return number

    coming = prefetch(doing, range(4))
    assert next(coming).result() == 0
    assert begun[1].wait(timeout=30)
    assert not begun[2].is_set()
    coming.close()
    assert not begun[2].wait(timeout=0.1)


def test_an_error_is_of_the_thing_it_befell() -> None:
    found = []
    for coming in prefetch(lambda x: 6 // x, [3, 0, 2]):
        error = coming.exception()
        found.append(type(error) if error else coming.result())
    assert found == [2, ZeroDivisionError, 3]
