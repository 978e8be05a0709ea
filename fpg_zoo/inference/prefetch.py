"""Reading what is needed next while what is at hand is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], things: Iterable[Item]) -> Iterator[Future[Result]]:
    """A thread's results of the function for each thing, in order; it is one thing ahead of what was asked for.

    Its errors are raised by the future they belong to. What has not started when the iterator is closed is not done.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="fpg_zoo_ahead")
    try:
        waiting: Future[Result] | None = None
        for thing in things:
            coming = thread.submit(function, thing)
            if waiting is not None:
                yield waiting
            waiting = coming
        if waiting is not None:
            yield waiting
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
