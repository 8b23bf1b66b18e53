"""Real supervisord, real processes: who lives, who dies, in which order."""

from __future__ import annotations

import os
import signal
import sys

import pytest


@pytest.fixture
def three(tiny_stack, free_port):
    tiny_stack.add("store", free_port(), start=0.5)
    tiny_stack.add("model", free_port(), drain=0.3)
    tiny_stack.add("door", free_port(), needs=("store", "model"), drain=0.3)
    return tiny_stack


def test_a_service_starts_when_all_it_needs_is_ready_and_stops_before_them(three):
    three.launch()
    said = three.said_until_ready()
    three.runner.send_signal(signal.SIGTERM)
    assert three.runner.wait(30) == 0
    order = [(name, what) for name, what, _ in three.events()]
    assert order.index(("door", "started")) > order.index(("store", "ready"))
    assert order.index(("door", "started")) > order.index(("model", "ready"))
    stops = [event for event in order if event[1] in ("stopping", "stopped")]
    assert stops == [(name, what) for name in ("door", "model", "store") for what in ("stopping", "stopped")]
    assert "✓ door ready" in said


def test_killing_one_service_leaves_the_others_alone_and_it_comes_back(three, eventually, gone):
    three.launch()
    three.said_until_ready()
    before = {name: three.pid(name) for name in ("store", "model", "door")}
    os.kill(before["model"], signal.SIGKILL)
    eventually(lambda: three.pid("model") != before["model"], 60)
    assert not gone(three.pid("model"))
    assert not gone(before["store"]) and not gone(before["door"])


@pytest.mark.parametrize("victim", ["runner", "supervisor"])
def test_killing_runner_or_supervisor_leaves_no_process(three, victim, eventually, gone):
    three.launch()
    three.said_until_ready()
    everybody = [three.pid(name) for name in ("store", "model", "door")] + [three.supervisor_pid()]
    os.kill(three.runner.pid if victim == "runner" else three.supervisor_pid(), signal.SIGKILL)
    eventually(lambda: all(gone(pid) for pid in everybody), 60)


def test_a_service_that_cannot_start_is_named_with_its_last_words(tiny_stack, free_port):
    script = "import sys; sys.exit('the disk is full')"
    tiny_stack.add_command("broken", free_port(), f'"{sys.executable}" -c "{script}"')
    tiny_stack.launch()
    said, _ = tiny_stack.runner.communicate(timeout=60)
    assert tiny_stack.runner.returncode != 0
    assert "broken does not start: the disk is full" in said


def test_a_service_that_never_gets_ready_is_named(tiny_stack, free_port):
    tiny_stack.add("slow", free_port(), start=60)
    tiny_stack.ready_seconds = 2
    tiny_stack.launch()
    said, _ = tiny_stack.runner.communicate(timeout=60)
    assert "slow was not ready after" in said and "slow begins" in said


def test_a_second_interrupt_ends_a_service_that_does_not_want_to_stop(tiny_stack, free_port, eventually, gone):
    tiny_stack.add("slow", free_port(), drain=60)
    tiny_stack.launch()
    tiny_stack.said_until_ready()
    supervisor = tiny_stack.supervisor_pid()
    tiny_stack.runner.send_signal(signal.SIGINT)
    eventually(lambda: ("slow", "stopping") in [event[:2] for event in tiny_stack.events()], 60)
    tiny_stack.runner.send_signal(signal.SIGINT)
    tiny_stack.runner.wait(8)  # supervisor alone would have waited 10 s (stopwaitsecs) before it killed
    assert gone(tiny_stack.pid("slow")) and gone(supervisor)
