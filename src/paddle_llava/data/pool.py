"""Calls made ahead in worker processes, their results in the order of the calls.

Each worker has a pipe of its own, so that the death of one, even half-way through a large result, is seen as the end of
its pipe at once. (The executor of `concurrent.futures` shares a pipe, and waits there for ever.)
"""

from __future__ import annotations

import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import numpy as np

from paddle_llava.environment import threads_of_children
from paddle_llava.errors import LlavaError

Run = Callable[[str, Iterable[tuple[Any, ...]], int], Iterator[Any]]


@contextmanager
def runner(target: Any, workers: int) -> Iterator[Run]:
    """Gives `run(method, tasks, ahead)`, an iterator of `target.method(*task)` for each of `tasks`, in order.

    With `workers` processes, up to `ahead` further calls are begun before a result is waited for; with none, each is
    made here when its result is asked for. `target` is pickled into each worker once. Raises what the calls raise, when
    their turn comes, and `LlavaError` when a worker has died. The workers end with the block, or with this process.
    """
    if not workers:
        yield lambda method, tasks, _: (getattr(target, method)(*task) for task in tasks)
        return
    context = get_context("spawn")  # not fork: this process has threads, and perhaps a device
    idle: SimpleQueue[Connection] = SimpleQueue()
    processes = []
    for _ in range(workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, target), daemon=True)
        with threads_of_children(1):  # the others are at work already
            process.start()
        theirs.close()  # the worker's is the only one left: its death ends the pipe
        processes.append(process)
        idle.put(ours)

    def call(method: str, task: tuple[Any, ...]) -> Any:
        connection = idle.get()
        try:
            connection.send((method, task))
            error, result = _receive(connection)
        except (EOFError, OSError):
            raise LlavaError(
                "a process that prepares data has died, most often because memory ran out: "
                "use fewer of them, or smaller batches"
            ) from None
        finally:
            idle.put(connection)
        if error is not None:
            raise error
        return result

    def run(method: str, tasks: Iterable[tuple[Any, ...]], ahead: int) -> Iterator[Any]:
        begun: deque[Future[Any]] = deque()
        source, end = iter(tasks), None
        while end is None:
            try:
                begun.append(threads.submit(call, method, next(source)))
            except (StopIteration, LlavaError) as found:  # of an earlier stage; its turn comes after what is begun
                end = found
            while begun and (end or len(begun) > ahead):
                yield begun.popleft().result()
        if isinstance(end, LlavaError):
            raise end

    threads = ThreadPoolExecutor(workers)  # each waits for a worker
    try:
        yield run
    finally:
        for process in processes:
            process.kill()
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.join()


def _serve(connection: Connection, target: Any) -> None:
    """Answer calls until the pipe ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group, meant for the parent
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        while True:
            method, task = connection.recv()
            answer: tuple[Exception | None, Any]
            try:
                answer = None, getattr(target, method)(*task)
            except LlavaError as error:
                answer = error, None
            except Exception:
                answer = RuntimeError(traceback.format_exc()), None
            _send(connection, answer)


def _send(connection: Connection, value: Any) -> None:
    """Send `value`, the memory of its arrays as it stands: pickling costs two more copies of a hundred megabytes."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    memories = [buffer.raw() for buffer in buffers]
    connection.send((head, [memory.nbytes for memory in memories]))
    for memory in memories:
        connection.send_bytes(memory)


def _receive(connection: Connection) -> Any:
    head, sizes = connection.recv()
    memories = [np.empty(size, np.uint8) for size in sizes]
    for memory in memories:
        connection.recv_bytes_into(memory)
    return pickle.loads(head, buffers=memories)  # noqa: S301 (of our own worker)
