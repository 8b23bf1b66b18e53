"""The life of a stack: services up in the order of their needs, watched, and down again in the opposite one."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from acemath_local.console import Console, Step
from acemath_local.services import Service
from acemath_local.supervision import ProcessState, SupervisionError, Supervisor

_POLL_SECONDS = 0.25
_GIVE_UP_AFTER = 3  # ends of one program before it was ever ready
_OPTIONAL_SECONDS = 30.0  # for these nobody waits longer
_ENDED = ("BACKOFF", "EXITED", "FATAL")


class StackError(Exception):
    """The stack cannot be had; the message says which service and what it said last."""


class Stack:
    """Services under one supervisor.

    Args:
        supervisor: not yet started.
        services: each after those it needs.
        logs: the folder with `<service>.log`.
        ready_seconds: how long one service may take to become ready.
        console: where progress is shown.
    """

    def __init__(
        self, supervisor: Supervisor, services: list[Service], logs: Path, ready_seconds: float, console: Console
    ) -> None:
        self._supervisor, self._services, self._logs = supervisor, services, logs
        self._ready_seconds, self._console = ready_seconds, console
        self._off: set[str] = set()  # optional services that did not get ready

    def start(self) -> None:
        """Start everything and return when all of it is ready; what is optional and does not get ready is left off.

        Raises:
            StackError: a service ended repeatedly or was not ready in time.
            SupervisionError: supervisor does not answer.
        """
        self._supervisor.start()
        began: dict[str, float] = {}
        ready: set[str] = set()
        ends: dict[str, set[int]] = {service.name: set() for service in self._services}
        with self._console.step("starting the services") as step:
            while len(ready | self._off) < len(self._services):
                self._start_what_can(began, ready)
                self._look(began, ready, ends, step)
                self._pause(_POLL_SECONDS)

    def watch(self, seconds: float, known: dict[str, ProcessState]) -> dict[str, ProcessState]:
        """Wait, then say which programs ended or came back since `known`; returns what is known now.

        Raises:
            StackError: supervisor itself is gone.
        """
        self._pause(seconds)
        if not self._supervisor.alive():
            raise StackError("supervisord ended; everything it ran was stopped with it")
        try:
            now = self._supervisor.states()
        except SupervisionError:
            return known  # busy for a moment; whether it lives is looked at above
        for name, state in now.items():
            before = known.get(name)
            if before is not None and (before.pid, before.state) != (state.pid, state.state):
                self._console.line(
                    f"{name}: {before.state} (process {before.pid}) → {state.state} ({state.description})"
                )
        return now

    def stop(self, seconds: float) -> None:
        """Stop everything in order; after `seconds`, or on a second Ctrl-C, without mercy."""
        if not self._supervisor.alive():
            return
        self._supervisor.stop()
        try:
            with self._console.step("stopping gateway, policy, reward, Redis (finishing what is in flight)") as step:
                step.note = "Ctrl-C again: at once"
                stopped = self._supervisor.wait(seconds)
        except KeyboardInterrupt:
            stopped = False
        if not stopped:
            self._supervisor.kill_programs()
            self._supervisor.wait(30)

    def _start_what_can(self, began: dict[str, float], ready: set[str]) -> None:
        for service in self._services:
            if service.name not in began and ready.issuperset(service.needs):
                self._supervisor.start_program(service.name)
                began[service.name] = time.monotonic()

    def _look(self, began: dict[str, float], ready: set[str], ends: dict[str, set[int]], step: Step) -> None:
        if not self._supervisor.alive():
            raise StackError("supervisord ended while the services were starting")
        states = self._supervisor.states()
        settled = ready | self._off
        waiting = [service for service in self._services if service.name in began and service.name not in settled]
        for service in waiting:
            reason = service.ready()
            taken = time.monotonic() - began[service.name]
            if not reason:
                ready.add(service.name)
                self._console.line(f"  ✓ {service.name} ready: {taken:.1f} s")
                continue
            step.note = f"{service.doing}: {reason}"[:76]
            try:
                self._refuse(service, states[service.name], taken, ends[service.name])
            except StackError as error:
                if not service.optional:
                    raise
                self._leave_off(service, error)

    def _leave_off(self, service: Service, error: StackError) -> None:
        self._off.add(service.name)
        self._console.line(f"  – {service.name} is off: {error}")
        with contextlib.suppress(SupervisionError):  # it has ended just now
            self._supervisor.stop_program(service.name)

    def _refuse(self, service: Service, state: ProcessState, taken: float, ends: set[int]) -> None:
        if state.state in _ENDED:
            ends.add(state.started)  # two starts are never in the same second: supervisor waits between them
        if len(ends) >= _GIVE_UP_AFTER or state.state == "FATAL":
            raise StackError(f"{service.name} does not start: {self._last_words(service.name)}")
        if taken > min(self._ready_seconds, _OPTIONAL_SECONDS if service.optional else self._ready_seconds):
            raise StackError(f"{service.name} was not ready after {taken:.0f} s: {self._last_words(service.name)}")

    def _last_words(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return f"{lines[-1][:500] if lines else 'it said nothing'} (all of it: {path})"

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: TID251 - the main thread has nothing else to do, and Ctrl-C interrupts it
