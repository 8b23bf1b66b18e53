"""What kills or fails a process at its k-th change of the disk, and what starts several at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

CHANGES = ("open", "write", "mkdir", "chmod", "fchmod", "fsync", "rename", "replace", "unlink", "rmdir")
LOOKS = ("open", "stat", "lstat", "scandir", "listdir", "readlink")
"""What a mount that is away fails at, `pathlib` included."""


@contextmanager
def patched_changes(before: Callable[[str, tuple[Any, ...]], None], calls: Sequence[str] = CHANGES) -> Iterator[None]:
    """Call `before(name, args)` ahead of each of these calls of `os`: those that change the disk (or open a file)."""
    real = {name: getattr(os, name) for name in calls}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before(name, args)
            # A killed process loses nothing that it wrote; only a power cut would, and `test_order` looks at that.
            return None if name == "fsync" else real[name](*args, **kwargs)

        return call

    for name in calls:
        setattr(os, name, wrap(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def run_killed_at(step: int, action: Callable[[], object]) -> bool:
    """Run `action` in a forked process that gets SIGKILL ahead of its `step`-th change; False when it ended by itself.

    A write that is killed has written half of its bytes.
    """

    def child() -> None:
        seen, write = 0, os.write

        def before(name: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            seen += 1
            if seen > step:
                if name == "write":
                    write(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

        with patched_changes(before):
            action()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode in (0, -signal.SIGKILL), f"step {step}: exit status {process.exitcode}"
    return process.exitcode != 0


def run_failing_at(step: int, error: OSError, action: Callable[[], object], calls: Sequence[str] = CHANGES) -> bool:
    """Run `action` here; its `step`-th change of the disk (or other of the `calls`) raises `error`. False when it has
    fewer.
    """
    seen = 0

    def before(name: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += 1
        if seen == step + 1:
            raise error

    with patched_changes(before, calls):
        try:
            action()
        finally:
            reached = seen > step
    return reached


def run_at_once(count: int, action: Callable[[int], object]) -> list[str]:
    """Run `action(i)` in `count` forked processes that start together; what each returned or raised, as text."""
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(count), context.SimpleQueue()

    def child(number: int) -> None:
        barrier.wait(20)
        try:
            queue.put((number, str(action(number))))
        except Exception as error:
            queue.put((number, type(error).__name__))

    processes = [context.Process(target=child, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    results = dict(queue.get() for _ in processes)
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    return [results[number] for number in range(count)]
