from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acemath_answers import AnswerJudge, Verdict, WorkerLimits, WorkerPool

HANGS = "9^{9^{9^9}}"
PATIENCE_S = 60.0  # a busy machine may take long to start a process


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _wait_until(condition: object, timeout_s: float = PATIENCE_S) -> None:
    give_up = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < give_up, "it did not come to that in time"
        pause.wait(0.02)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ("x+1", "1+x", Verdict.EQUAL),
        ("(x+1)^2", "x^2+2x+1", Verdict.EQUAL),
        (r"\sqrt{2}", "1.4142", Verdict.EQUAL),
        (r"\sqrt{2}", "1.41", Verdict.DIFFERENT),
        (r"\frac{\pi}{2}", "pi/2", Verdict.EQUAL),
        (r"\frac{x}{2}", "x/2", Verdict.EQUAL),
        ("(1,2)", "(2,1)", Verdict.DIFFERENT),
        (r"\{1,2\}", r"\{2,1\}", Verdict.EQUAL),
        ("2^{10}", "1024", Verdict.EQUAL),
        ("x+1", "x+2", Verdict.DIFFERENT),
        ("\x00(", "x+1", Verdict.UNPARSABLE),
        ("\ud800+", "x+1", Verdict.UNPARSABLE),
        ('__import__("os")._exit(3)', "x+1", Verdict.UNPARSABLE),
    ],
)
def test_algebra(judge: AnswerJudge, a: str, b: str, verdict: Verdict) -> None:
    assert judge.equivalent(a, b, deadline_s=PATIENCE_S) is verdict
    assert judge.equivalent(b, a, deadline_s=PATIENCE_S) is verdict


@pytest.mark.parametrize(
    "hostile",
    [
        HANGS,
        "{" * 1_000 + "5" + "}" * 900,
        "(" * 999 + "x" + ")" * 999,
        r"\frac{" * 300,
        r"\sum_{i=1}^{10^{12}} \frac{1}{i}",
        r"\int_0^1 x^x dx",
        "(x+1)^{99999}",
        "10^{10^{10}}!",
        "1e999999999",
        "x" * 1_000_000,
        "\x00" * 1_000,
        "\ud800" * 1_000,
        "\\",
        "$$$$",
        "",
        r"\boxed{" * 300,
        "1/0",
        r"\frac{0}{0}",
        "٣^٣",
        "🙂" * 1_900,
    ],
)
def test_hostile_answers_get_a_verdict_in_time(hasty_judge: AnswerJudge, hostile: str) -> None:
    start = time.monotonic()
    verdict = hasty_judge.equivalent(hostile, r"y + \sqrt{7}")
    assert time.monotonic() - start < 30
    assert verdict is not Verdict.EQUAL
    assert hasty_judge.classes([hostile, "5", "5.0"], deadline_s=10)[1:] in ([1, 1], [0, 0])


def test_a_hostile_call_slows_no_neighbour(judge: AnswerJudge) -> None:
    hostile = [f"{n}^{{9^{{9^9}}}}" for n in range(3, 9)]
    attacker = threading.Thread(target=judge.classes, args=([*hostile, "x"],), kwargs={"deadline_s": 4})
    attacker.start()
    try:
        start = time.monotonic()
        for n in range(200):
            assert judge.equivalent(str(n), f"{n}.0").is_equal
        assert time.monotonic() - start < 10.0  # the cheap path waits for no worker: each would take twenty seconds
        for _ in range(3):
            assert judge.equivalent("x+y", "y+x", deadline_s=20) is Verdict.EQUAL
        assert time.monotonic() - start < 20  # sooner than one time-out: a worker was left
    finally:
        attacker.join(PATIENCE_S)
    assert not attacker.is_alive()


def test_a_worker_killed_from_outside_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acemath_answers.pool._IDLE_CHECK_S", 0.1)
    with AnswerJudge(WorkerLimits(workers=1, timeout_s=20)) as judge:
        assert judge.equivalent("x+1", "1+x", deadline_s=PATIENCE_S).is_equal
        (before,) = judge.process_ids()
        os.kill(before, signal.SIGKILL)
        _wait_until(lambda: judge.process_ids() not in ([before], []))
        assert judge.equivalent("x+2", "2+x", deadline_s=PATIENCE_S).is_equal


def test_a_worker_killed_while_comparing_fails_only_that() -> None:
    with WorkerPool(WorkerLimits(workers=1, timeout_s=30)) as pool:
        assert pool.submit(["x+1", "1+x"]).result(PATIENCE_S).is_equal
        doomed, next_one = pool.submit([HANGS, "5"]), pool.submit(["x+2", "2+x"])
        _wait_until(doomed.running)
        os.kill(pool.process_ids()[0], signal.SIGKILL)
        assert doomed.result(PATIENCE_S) is Verdict.FAILED
        assert next_one.result(PATIENCE_S) is Verdict.EQUAL


def test_a_timeout_kills_and_replaces_the_worker() -> None:
    with WorkerPool(WorkerLimits(workers=1, timeout_s=0.3)) as pool:
        _wait_until(lambda: pool.submit(["x+1", "1+x"]).result(PATIENCE_S).is_equal)
        (before,) = pool.process_ids()
        assert pool.submit([HANGS, "5"]).result(PATIENCE_S) is Verdict.TIMEOUT
        assert _is_gone(before)
        _wait_until(lambda: pool.submit(["x+1", "1+x"]).result(PATIENCE_S).is_equal)


class _ShortOfDescriptors:
    """`subprocess.Popen` of a machine that has none left for the first `failures` workers after `armed` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
        self._popen, self._left, self.armed = subprocess.Popen, failures, threading.Event()
        monkeypatch.setattr("acemath_answers.pool.subprocess.Popen", self)
        monkeypatch.setattr("acemath_answers.pool._FIRST_RESTART_PAUSE_S", 0.02)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.armed.is_set() and self._left:
            self._left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._popen(*arguments, **options)


@pytest.mark.parametrize("failures", [1, 4])
def test_a_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    _ShortOfDescriptors(monkeypatch, failures).armed.set()
    before = len(os.listdir("/proc/self/fd"))
    with WorkerPool(WorkerLimits(workers=1, timeout_s=20)) as pool:
        assert pool.submit(["x+1", "1+x"]).result(PATIENCE_S) is Verdict.EQUAL
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("failures", [1, 3])
def test_a_comparison_whose_worker_cannot_be_replaced_fails_alone(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    short = _ShortOfDescriptors(monkeypatch, failures)
    with WorkerPool(WorkerLimits(workers=1, timeout_s=20)) as pool:
        assert pool.submit(["x+1", "1+x"]).result(PATIENCE_S).is_equal
        # Dead when the slot, waiting for a job by now, takes it: the worker is started again while the job runs.
        short.armed.set()
        threading.Event().wait(0.3)
        os.kill(pool.process_ids()[0], signal.SIGKILL)
        _wait_until(lambda: pool._slots[0].worker is None or not pool._slots[0].worker.is_alive())
        assert pool.submit(["x+2", "2+x"]).result(PATIENCE_S) in (Verdict.FAILED, Verdict.EQUAL)
        assert pool.submit(["x+3", "3+x"]).result(PATIENCE_S) is Verdict.EQUAL


def test_an_error_nobody_expects_costs_one_comparison(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with WorkerPool(WorkerLimits(workers=1, timeout_s=20)) as pool:
        assert pool.submit(["x+1", "1+x"]).result(PATIENCE_S).is_equal
        assert pool.submit([b"no JSON"]).result(PATIENCE_S) is Verdict.FAILED  # type: ignore[list-item]
        assert pool.submit(["x+2", "2+x"]).result(PATIENCE_S) is Verdict.EQUAL
    assert "goes on after an error" in caplog.text


def test_the_memory_limit_ends_the_worker_not_the_caller() -> None:
    limits = WorkerLimits(workers=1, memory_bytes=200 << 20, timeout_s=20)
    with WorkerPool(limits) as pool:
        verdict = pool.submit(["(x+y+z+1)^{400}", "x"]).result(PATIENCE_S)
        assert verdict in (Verdict.FAILED, Verdict.UNPARSABLE, Verdict.DIFFERENT, Verdict.TIMEOUT)
        assert pool.submit(["x+1", "1+x"]).result(PATIENCE_S).is_equal


def test_a_full_queue_refuses_at_once() -> None:
    with WorkerPool(WorkerLimits(workers=1, max_pending=2, timeout_s=30)) as pool:
        busy = pool.submit([HANGS, "5"])
        _wait_until(busy.running)
        waiting = [pool.submit(["x", "y"]) for _ in range(2)]
        refused = pool.submit(["x", "y"])
        assert refused.done()
        assert refused.result() is Verdict.OVERLOADED
    assert busy.result(PATIENCE_S) is Verdict.FAILED
    assert [future.result(PATIENCE_S) for future in waiting] == [Verdict.OVERLOADED] * 2


def test_workers_are_renewed_and_none_is_left_after_close() -> None:
    with WorkerPool(WorkerLimits(workers=1, comparisons_per_worker=2, timeout_s=20)) as pool:
        seen = set()
        for _ in range(5):
            assert pool.submit(["x+1", "1+x"]).result(PATIENCE_S).is_equal
            seen.update(pool.process_ids())
        assert len(seen) >= 2
    assert all(_is_gone(pid) for pid in seen)
    assert pool.submit(["x", "y"]).result(1) is Verdict.OVERLOADED


def test_a_worker_does_not_outlive_its_parent() -> None:
    program = (
        "import os; from acemath_answers import *\n"
        "pool = WorkerPool(WorkerLimits(workers=1, timeout_s=0.5)); pool.start()\n"
        "pool.submit(['x+1', '1+x']).result(60); pool.submit(['9^{9^{9^9}}', '5'])\n"
        "print(pool.process_ids()[0], flush=True); os.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE_S, check=False)
    _wait_until(lambda: _is_gone(int(parent.stdout)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=st.text(max_size=20), b=st.text(alphabet="xy12+-^{}()\\frac ", max_size=20))
def test_no_text_raises(judge: AnswerJudge, a: str, b: str) -> None:
    verdict = judge.equivalent(a, b, deadline_s=PATIENCE_S)
    assert isinstance(verdict, Verdict)
    assert judge.equivalent(a, a) is Verdict.EQUAL
