from __future__ import annotations

from acemath_policy.readiness import Pulse, PulseLimits
from acemath_policy.vllm_server import Load

LIMITS = PulseLimits(progress=30, idle_probe=10, stall=120)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_tokens_keep_it_alive_however_full_it_is() -> None:
    clock = Clock()
    pulse = Pulse(LIMITS, clock)
    for second in range(200):
        clock.now += 1
        pulse.saw(Load(generated=second + 1, running=64, waiting=500))
        assert pulse.alive()
        assert not pulse.wants_probe()


def test_a_stuck_engine_is_unready_after_30_s_and_lost_after_120() -> None:
    clock = Clock()
    pulse = Pulse(LIMITS, clock)
    pulse.saw(Load(5, 1, 0))
    for passed, alive, stalled in ((30, True, False), (31, False, False), (120, False, False), (121, False, True)):
        clock.now = 1000.0 + passed
        pulse.saw(Load(5, 1, 0))
        assert (pulse.alive(), pulse.stalled()) == (alive, stalled)
        assert not pulse.wants_probe()  # it is busy: a probe would only queue


def test_an_idle_engine_is_probed_and_the_probe_counts() -> None:
    clock = Clock()
    pulse = Pulse(LIMITS, clock)
    pulse.saw(Load(0, 0, 0))
    clock.now += 9
    assert not pulse.wants_probe()
    clock.now += 1
    assert pulse.wants_probe()
    pulse.probed()
    assert not pulse.wants_probe()
    assert pulse.age() == 0


def test_quiet_is_counted_from_the_first_idle_look() -> None:
    clock = Clock()
    pulse = Pulse(LIMITS, clock)
    assert pulse.quiet_for() == 0
    pulse.saw(Load(1, 0, 0))
    clock.now += 4
    pulse.saw(Load(1, 0, 0))
    assert pulse.quiet_for() == 4
    pulse.saw(Load(1, 0, 1))
    assert pulse.quiet_for() == 0


def test_silence_of_the_counters_is_no_progress() -> None:
    clock = Clock()
    pulse = Pulse(LIMITS, clock)
    clock.now += 31
    assert not pulse.alive()
