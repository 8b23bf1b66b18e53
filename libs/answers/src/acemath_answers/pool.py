"""A pool of worker processes that can be killed: one thread for each, which owns its process and its pipe.

Promises: a comparison runs at most `timeout_s` and then its worker is killed and replaced; a worker that dies takes
nothing with it but the comparison it was making; a worker that cannot be started (no descriptors, no memory) is tried
again, ever more slowly; every comparison that began gets a verdict; the queue is bounded; `close` leaves no process.
Own code rather than an executor because those share one pipe among workers: killing a worker that holds its lock
stops the others.
"""

import contextlib
import json
import logging
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType

from acemath_answers.compare import Verdict

logger = logging.getLogger(__name__)

_MAX_REPLY_BYTES = 64
_IDLE_CHECK_S = 5.0
_START_TIMEOUT_S = 60.0
_FIRST_RESTART_PAUSE_S = 0.25
_MAX_RESTART_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How many workers there are and what one may use up. Seconds and bytes."""

    workers: int = 2
    timeout_s: float = 3.0
    memory_bytes: int = 1 << 30
    max_pending: int = 1_024
    comparisons_per_worker: int = 2_000
    """A worker is replaced after so many, since sympy's caches grow."""


@dataclass(slots=True)
class _Job:
    request: list[str]
    verdict: Future[Verdict] = field(default_factory=Future)


class _Worker:
    """One process and the parent's end of its pipe; used by one thread only."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self.comparisons = 0
        self._pipe, child = Pipe(duplex=True)
        try:
            with child:
                self.process = _spawn(child, limits)
        except BaseException:
            self._pipe.close()  # where descriptors are short, none waits for the garbage collector
            raise

    def wait_ready(self) -> bool:
        return self._receive(_START_TIMEOUT_S) == "ready"

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def compare(self, request: list[str]) -> Verdict:
        """Return the worker's verdict, TIMEOUT, or FAILED if it died. After either of these it must be replaced."""
        self.comparisons += 1
        try:
            # Two answers of MAX_ANSWER_CHARS stay below the socket's buffer: this never waits for the worker.
            self._pipe.send_bytes(json.dumps(request).encode("ascii"))
            reply = self._receive(self._limits.timeout_s)
        except (OSError, EOFError):
            return Verdict.FAILED
        return Verdict(reply) if reply is not None else Verdict.TIMEOUT

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._pipe.close()

    def _receive(self, timeout_s: float) -> str | None:
        return self._pipe.recv_bytes(_MAX_REPLY_BYTES).decode("ascii") if self._pipe.poll(timeout_s) else None


def _spawn(child: Connection, limits: WorkerLimits) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "acemath_answers.worker"]
    arguments = [str(child.fileno()), str(limits.memory_bytes), str(limits.timeout_s)]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(  # its own session: Ctrl-C in a terminal is for the parent, which stops its workers
        command + arguments,
        pass_fds=[child.fileno()],
        stdin=nowhere,
        stdout=nowhere,
        stderr=nowhere,
        start_new_session=True,
    )


class _Slot(threading.Thread):
    """Keeps one worker alive and gives it one comparison at a time."""

    def __init__(self, jobs: "queue.Queue[_Job | None]", limits: WorkerLimits, closing: threading.Event) -> None:
        super().__init__(name="answer-worker", daemon=True)
        self._jobs = jobs
        self._limits = limits
        self._closing = closing
        self._failed_starts = 0
        self.worker: _Worker | None = None

    def run(self) -> None:
        try:
            while not self._closing.is_set():
                self._take_turn()
        finally:
            self._drop_worker()

    def _take_turn(self) -> None:
        try:
            if self._ready_worker() is not None:
                self._serve_one()
                return
        except Exception:  # a slot that ended here would be missing from the pool for good
            self._failed_starts += 1
            logger.exception("an answer worker's thread goes on after an error")
            self._drop_worker()
        doublings = min(max(self._failed_starts - 1, 0), 10)  # a power without an end overflows one day
        self._closing.wait(min(_FIRST_RESTART_PAUSE_S * 2**doublings, _MAX_RESTART_PAUSE_S))

    def _ready_worker(self) -> _Worker | None:
        worker = self.worker
        if worker is not None and worker.is_alive() and worker.comparisons < self._limits.comparisons_per_worker:
            return worker
        self._drop_worker()
        try:
            self.worker = _Worker(self._limits)
            # Asked after the worker is in its place: `close` kills what it finds there, and this finds `close`.
            if not self._closing.is_set() and self.worker.wait_ready():
                self._failed_starts = 0
                return self.worker
            reason = "stopped" if self._closing.is_set() else f"not ready within {_START_TIMEOUT_S:g} s"
        except (OSError, EOFError, MemoryError) as error:  # not enough for a process, or it died while starting
            reason = repr(error)
        self._drop_worker()
        if not self._closing.is_set():
            self._failed_starts += 1
            logger.error(
                "an answer worker does not start", extra={"failed_starts": self._failed_starts, "reason": reason}
            )
        return None

    def _serve_one(self) -> None:
        try:
            job = self._jobs.get(timeout=_IDLE_CHECK_S)
        except queue.Empty:
            return
        if job is None or not job.verdict.set_running_or_notify_cancel():
            return
        verdict = Verdict.FAILED
        try:
            worker = self._ready_worker()
            verdict = worker.compare(job.request) if worker else Verdict.FAILED
            if verdict in (Verdict.TIMEOUT, Verdict.FAILED):
                self._drop_worker()
        finally:
            job.verdict.set_result(verdict)  # whatever happened: somebody waits for it

    def _drop_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker = None


class WorkerPool:
    """Run comparisons in killable processes. Start it with `start`, end it with `close`, or use `with`."""

    def __init__(self, limits: WorkerLimits | None = None) -> None:
        self.limits = limits or WorkerLimits()
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=self.limits.max_pending)
        self._closing = threading.Event()
        self._slots: list[_Slot] = []

    def __enter__(self) -> "WorkerPool":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the workers in the background; returns at once. Comparisons wait for the first one to be ready."""
        if self._slots or self._closing.is_set():
            raise RuntimeError("a worker pool is started once")
        self._slots = [_Slot(self._jobs, self.limits, self._closing) for _ in range(self.limits.workers)]
        for slot in self._slots:
            slot.start()

    def submit(self, request: list[str]) -> Future[Verdict]:
        """Queue one comparison (`[a, b]`) or one probe (`[a]`); the future holds its verdict and never an exception.

        A full queue, and a pool that is not running, give OVERLOADED at once. Cancelling a future that has not
        started frees its place as soon as a worker comes to it.
        """
        job = _Job(request)
        try:
            if not self._slots or self._closing.is_set():
                raise queue.Full
            self._jobs.put_nowait(job)
        except queue.Full:
            job.verdict.set_result(Verdict.OVERLOADED)
        return job.verdict

    def process_ids(self) -> list[int]:
        """Return the process ids of the workers that are there now."""
        workers = [slot.worker for slot in self._slots]
        return [worker.process.pid for worker in workers if worker is not None]

    def close(self) -> None:
        """Kill the workers and answer what still waits with OVERLOADED; returns when no process is left."""
        self._closing.set()
        for slot in self._slots:
            if (worker := slot.worker) is not None:  # a busy worker ends its comparison now, not at its time-out
                worker.process.kill()
        for _ in self._slots:
            with contextlib.suppress(queue.Full):  # a full queue wakes the slots by itself
                self._jobs.put_nowait(None)
        give_up = time.monotonic() + _START_TIMEOUT_S
        for slot in self._slots:
            slot.join(timeout=max(0.0, give_up - time.monotonic()))
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.verdict.set_running_or_notify_cancel():
                job.verdict.set_result(Verdict.OVERLOADED)
