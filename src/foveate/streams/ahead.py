"""Reading ahead: the next items are made in the background while the caller works on this one.

Decoding (libav) and perception (MediaPipe, torch) both leave Python's lock, so on two cores they
overlap almost completely. The number of items waiting is bounded, so memory is too: a producer
that is faster than its consumer sleeps.

The two sides meet in a counting semaphore of free places and a queue of results; neither polls.
Whatever the producer raises is raised again in the consumer, at the place in the sequence where
it happened.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["ReadAhead"]

T = TypeVar("T")


class _End:
    """Last entry of the queue: the sequence is over, well (`error` None) or badly."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """Iterator over `items` that runs them in one background thread.

    Parameters
    ----------
    items
        Consumed by the thread only; nobody else may touch it before :meth:`stop`.
    depth
        Items finished and not yet taken, at most (>= 1).
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._free = threading.Semaphore(depth)
        self._results: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._stopped = False
        # A daemon: a caller that dies without closing must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="foveate-read-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while True:
                self._free.acquire()
                if self._stopped:
                    break
                try:
                    item = next(self._items)
                except StopIteration:
                    break
                self._results.put(item)
        except BaseException as caught:
            error = caught
        self._results.put(_End(error))

    def __iter__(self) -> ReadAhead[T]:
        return self

    def __next__(self) -> T:
        """The next item; raises what the producer raised, StopIteration when it is done."""
        item = self._results.get()
        if isinstance(item, _End):
            self._results.put(_End(None))  # asking again ends again instead of waiting for ever
            if item.error is not None:
                raise item.error
            raise StopIteration
        self._free.release()
        return item

    def stop(self) -> None:
        """End the thread and wait for it (at most for the item in the making); may be repeated."""
        self._stopped = True
        self._free.release()
        if self._thread is not threading.current_thread():
            self._thread.join()
