"""Whose turn it is: the more urgent first, nobody for ever; as a rule over tickets, and at the door itself."""

import asyncio
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from acemath_core.deadline import Deadline
from acemath_core.errors import Unavailable
from acemath_core.wire import Priority
from acemath_gateway.admission import Admission
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.turns import Turns
from doubles.servers import until
from doubles.stores import MemoryLimit

PATIENCE = 10.0
INTERACTIVE, DEFAULT, BATCH = Priority.INTERACTIVE, Priority.DEFAULT, Priority.BATCH


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def turns() -> tuple[Turns, Clock]:
    clock = Clock()
    return Turns(PATIENCE, clock), clock


def test_the_urgent_go_first_and_equals_in_the_order_of_their_coming():
    queue, _ = turns()
    tickets = [queue.join(priority) for priority in (BATCH, DEFAULT, INTERACTIVE, DEFAULT, INTERACTIVE)]
    order = []
    while queue:
        order.append(tickets.index(queue.first()))
        queue.leave(queue.first(), served=True)
    assert order == [2, 4, 1, 3, 0]


def test_who_waits_long_goes_first_and_only_once_in_that_time():
    queue, clock = turns()
    batch = [queue.join(BATCH), queue.join(BATCH)]
    clock.seconds = 0.1
    urgent = queue.join(INTERACTIVE)
    clock.seconds = PATIENCE
    assert queue.first() is batch[0]
    queue.leave(batch[0], served=True)
    assert queue.first() is urgent
    clock.seconds = 2 * PATIENCE
    assert queue.first() is batch[1]


def test_one_who_gives_up_has_not_had_the_turn():
    queue, clock = turns()
    batch = [queue.join(BATCH), queue.join(BATCH)]
    clock.seconds = 0.1
    queue.join(INTERACTIVE)
    clock.seconds = PATIENCE
    queue.leave(batch[0], served=False)
    assert queue.first() is batch[1]


def test_the_less_urgent_do_not_stand_before_anybody():
    queue, _ = turns()
    for priority in (BATCH, BATCH, DEFAULT, INTERACTIVE):
        queue.join(priority)
    assert [queue.before(priority) for priority in (INTERACTIVE, DEFAULT, BATCH)] == [1, 2, 4] and len(queue) == 4


@given(arrivals=st.lists(st.sampled_from(list(Priority)), max_size=60), turn_seconds=st.floats(0.1, 8.0))
def test_nobody_is_starved_and_no_urgent_one_lets_two_pass(arrivals, turn_seconds):
    """One newcomer and one place in each turn: the queue never empties by itself, whoever comes."""
    queue, clock = turns()
    batch, passed, coming = queue.join(BATCH), {}, deque(arrivals)
    waited = 0.0
    while batch is not None:
        if coming:
            passed[queue.join(coming.popleft())] = []
        first = queue.first()
        for ticket, others in passed.items():
            if ticket.priority is INTERACTIVE and ticket is not first and first.priority is not INTERACTIVE:
                others.append(clock.seconds)
        queue.leave(first, served=True)
        passed.pop(first, None)
        batch = None if first is batch else batch
        waited = clock.seconds
        clock.seconds += turn_seconds
        assert all(later - sooner >= PATIENCE - 1e-6 for o in passed.values() for sooner, later in pairwise(o))
    assert waited <= PATIENCE + turn_seconds + 1e-6 or not arrivals


# ------------------------------------------------------------------------------------------------------------ the door


def door(limit: MemoryLimit, **other) -> Admission:
    values = {"max_queued": 8, "max_wait_seconds": 20.0, "patience_seconds": PATIENCE} | other
    metrics = DoorMetrics.on(CollectorRegistry())
    return Admission(limit, max_sequences=limit.places, metrics=metrics, **values)


async def admitted(admission: Admission, name: str, order: list[str], priority: Priority, n: int = 8) -> None:
    async with admission.enter(name, n, Deadline.after(30), priority):
        order.append(name)
        await asyncio.sleep(0.02)


async def waiting(admission: Admission, count: int) -> None:
    """Wait until so many stand in the queue."""
    await until(lambda: len(admission._turns) == count)


async def test_at_a_full_door_the_interactive_pass_the_jobs(monkeypatch):
    limit, order = MemoryLimit(8), []
    admission = door(limit)
    async with asyncio.TaskGroup() as tasks, admission.enter("first", 8, Deadline.after(30)):
        coming = (("b1", BATCH), ("b2", BATCH), ("d", DEFAULT), ("i1", INTERACTIVE), ("i2", INTERACTIVE))
        for place, (name, priority) in enumerate(coming, 1):
            tasks.create_task(admitted(admission, name, order, priority))
            await waiting(admission, place)
    assert order == ["i1", "i2", "d", "b1", "b2"] and limit.held == 0


async def test_jobs_leave_a_quarter_of_the_places_to_callers():
    limit, order = MemoryLimit(8), []
    admission = door(limit)
    async with admission.enter("j1", 6, Deadline.after(30), BATCH):
        with pytest.raises(Unavailable):
            async with asyncio.timeout(5), admission.enter("j2", 2, Deadline.after(0.3), BATCH):
                pass
        await admitted(admission, "i", order, INTERACTIVE, n=2)
    assert order == ["i"]


async def test_jobs_get_a_turn_in_spite_of_a_steady_stream_of_callers():
    limit, order, stop = MemoryLimit(8), [], asyncio.Event()
    admission = door(limit, patience_seconds=0.3)

    async def keep_coming(name: str) -> None:
        while not stop.is_set():
            await admitted(admission, name, order, INTERACTIVE)

    async with asyncio.TaskGroup() as tasks:
        for name in ("x", "y", "z"):
            tasks.create_task(keep_coming(name))
        await until(lambda: len(order) > 3)
        async with asyncio.timeout(20):
            await admitted(admission, "job", order, BATCH)
        stop.set()
    assert order.count("job") == 1 and order.index("job") > 3


async def test_a_queue_full_of_jobs_is_not_full_for_others():
    limit = MemoryLimit(8)
    admission, order = door(limit, max_queued=2), []
    async with asyncio.TaskGroup() as tasks, admission.enter("first", 8, Deadline.after(30)):
        for name in ("b1", "b2"):
            tasks.create_task(admitted(admission, name, order, BATCH))
        await waiting(admission, 2)
        with pytest.raises(Unavailable) as full:
            await admitted(admission, "b3", order, BATCH)
        assert full.value.retry_after
        tasks.create_task(admitted(admission, "d", order, DEFAULT))
        await waiting(admission, 3)
    assert order == ["d", "b1", "b2"]
