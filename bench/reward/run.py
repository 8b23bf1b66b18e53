"""One run: start every leg, choose its best settings, measure all in turn, regroup, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.reward.catalogue import Leg
from bench.reward.child import Answer, Child, ChildFailed
from bench.reward.groups import Group, beginning, candidate_count, useful_tokens
from bench.reward.machine import Quiet, wait_until_quiet
from bench.reward.record import Record, say
from bench.reward.regroup import Regrouping, changed, regroupings

TUNED_ON = "S2"
TUNING_TOKENS = 1500


@dataclass(frozen=True)
class Plan:
    """How a run is made.

    Attributes:
        legs: what is measured, in order.
        sets: on what.
        rounds: how often, a discarded warm-up apart.
        bits_tokens: useful tokens of the sample that is regrouped; 0: all of the set.
        quiet: cores that may be in use by others when a measurement begins.
        patience: seconds that all waiting for quiet may take together.
        start: seconds that a start or a call may take.
        logs: folder for what the legs print.
        tuned: settings chosen in an earlier run, by leg; such a leg is not tuned again.
    """

    legs: Sequence[Leg]
    sets: dict[str, list[Group]]
    rounds: int
    bits_tokens: int
    quiet: float
    patience: float
    start: float
    logs: Path
    tuned: dict[str, dict[str, Any]]


class Runner:
    """Carries a plan out; what it finds is in the record, whatever ends it.

    Args:
        plan: what to do.
        record: where to put it.
    """

    def __init__(self, plan: Plan, record: Record) -> None:
        self._plan, self._record, self._patience = plan, record, plan.patience
        self._children: dict[str, Child] = {}
        self._sizes: dict[tuple[str, str], int] = {}

    def run(self) -> None:
        """All of it; ends every process that it started."""
        try:
            for leg in self._plan.legs:
                self._guarded(leg, self._bring_up)
            for turn in range(1, self._plan.rounds + 1):
                self._round(turn)
            for leg in self._plan.legs:
                self._guarded(leg, self._regroup)
        finally:
            for name, child in self._children.items():
                self._record.document["legs"][name]["peak_rss_mib"] = child.peak_mib
                child.close()
            self._record.write()

    def _guarded(self, leg: Leg, step: Any, *arguments: Any) -> None:
        """A step of one leg; when it fails, the leg is over and the others go on."""
        if "error" in self._record.document["legs"].get(leg.name, {}):
            return
        try:
            step(leg, *arguments)
        except (ChildFailed, OSError) as error:
            self._record.failed(leg, error)
            if (child := self._children.pop(leg.name, None)) is not None:
                child.close()

    def _bring_up(self, leg: Leg) -> None:
        """Choose how to start it, start it, warm it up."""
        leg = replace(leg, options=self._tune(leg))
        say(f"{leg.name}: starting")
        child = self._children[leg.name] = self._start(leg)
        self._record.started(leg, child)
        say(f"{leg.name}: up after {child.start_seconds:.1f} s; warming up")
        slow = leg.kind == "peer" and leg.every > 1
        for name, groups in list(self._plan.sets.items())[: 1 if slow else None]:
            for size in leg.sizes:
                self._try_size(leg, name, groups, size)
            for variant in () if leg.sizes else leg.variants:
                if leg.takes(variant, name):
                    child.ask([groups], self._options(leg, variant, name))
        self._record.write()

    def _start(self, leg: Leg) -> Child:
        if not leg.python:
            raise ChildFailed("its environment was not given (--infinity PYTHON; infinity_env.sh makes one)")
        log = self._plan.logs / f"{leg.name}.log"
        return Child(leg.python, leg.module, leg.options, leg.environment, log, self._plan.start)

    def _tune(self, leg: Leg) -> dict[str, Any]:
        """The best start options, one name after the other, what was best for the names before kept."""
        chosen = dict(self._plan.tuned.get(leg.name, {}))
        if chosen or not leg.choices or TUNED_ON not in self._plan.sets:
            return with_choice(leg, chosen)
        sample = beginning(self._plan.sets[TUNED_ON], TUNING_TOKENS)
        rates: dict[str, float] = {}
        tried: dict[str, float] = {}
        for name, values in leg.choices.items():
            options = {value: with_choice(leg, chosen | {name: value}) for value in values}
            for value in values:
                if (key := repr(options[value])) not in rates:
                    shown = ", ".join(f"{k} {v}" for k, v in (chosen | {name: value}).items())
                    rates[key] = tried[shown] = self._trial(leg, options[value], sample, shown)
            chosen[name] = max(values, key=lambda value: rates[repr(options[value])])
        self._record.document["tuning"][leg.name] = {"tokens_per_second": tried, "chosen": chosen}
        self._record.write()
        return with_choice(leg, chosen)

    def _trial(self, leg: Leg, options: dict[str, Any], sample: list[Group], what: str) -> float:
        """Useful tokens a second with these start options, the better of two after a warm-up; 0 when they fail."""
        try:
            child = self._start(replace(leg, options=options))
        except ChildFailed as error:
            say(f"{leg.name}: {what}: {error}")
            return 0.0
        try:
            seconds = min(child.ask([sample], {}).seconds[0] for _ in range(3))
        finally:
            child.close()
        say(f"{leg.name}: {what}: {useful_tokens(sample) / seconds:.0f} useful tokens/s")
        return round(useful_tokens(sample) / seconds, 1)

    def _try_size(self, leg: Leg, name: str, groups: list[Group], size: int) -> None:
        """Measure a batch size on a set; the best is what the rounds use."""
        tried = self._record.document["tuning"].setdefault(leg.name, {}).setdefault(name, {})
        tried[str(size)] = round(self._children[leg.name].ask([groups], {"batch": size}).seconds[0], 3)
        self._sizes[leg.name, name] = int(min(tried, key=lambda one: float(tried[one])))

    def _options(self, leg: Leg, variant: str, name: str) -> dict[str, Any]:
        size = self._sizes.get((leg.name, name))
        return leg.variants[variant] | ({"batch": size} if size else {})

    def _round(self, turn: int) -> None:
        """Every leg on every set, in turn; backwards in every second round."""
        order = [leg for leg in self._plan.legs if (turn - 1) % leg.every == 0]
        order = order if turn % 2 else order[::-1]
        for leg in order:
            if leg.kind == "peak":
                self._guarded(leg, self._peak, turn)
        for name in self._plan.sets:
            for leg in order:
                self._guarded(leg, self._measure, name, turn)
            self._record.write()

    def _peak(self, leg: Leg, turn: int) -> None:
        for variant, options in leg.variants.items():
            self._wait()
            rate = self._children[leg.name].ask([[]], options).scores[0][0][0]
            self._record.document["peak"].setdefault(variant, []).append(round(rate, 1))
            say(f"round {turn}/{self._plan.rounds}  peak of the products, {variant}: {rate:.0f} tokens/s")

    def _measure(self, leg: Leg, name: str, turn: int) -> None:
        groups = self._plan.sets[name]
        for variant in leg.variants:
            if leg.takes(variant, name):
                quiet = self._wait()
                found = self._children[leg.name].ask([groups], self._options(leg, variant, name))
                self._record.measured(leg, leg.label(variant), name, turn, found, quiet)
                self._tell(f"round {turn}/{self._plan.rounds}  {name}  {leg.label(variant)}", groups, found)

    def _tell(self, what: str, groups: list[Group], found: Answer) -> None:
        rate = useful_tokens(groups) / found.seconds[0]
        others = f"  ({found.foreign_cores} cores used by others)" if found.foreign_cores > self._plan.quiet else ""
        say(f"{what}: {found.seconds[0]:.2f} s, {rate:.0f} useful tokens/s{others}")

    def _wait(self) -> Quiet:
        quiet = wait_until_quiet(self._plan.quiet, self._patience)
        self._patience = max(0.0, self._patience - quiet.waited)
        return quiet

    def _regroup(self, leg: Leg) -> None:
        """The same-bits table's row."""
        if leg.kind not in ("ours", "peer") or TUNED_ON not in self._plan.sets:
            return
        sample, child = beginning(self._plan.sets[TUNED_ON], self._plan.bits_tokens), self._children[leg.name]
        options = self._options(leg, "", TUNED_ON)
        base = child.ask([sample], options).scores[0]
        row: dict[str, Any] = {"scores": candidate_count(sample)}
        for other, how in _ways(leg, sample, options):
            found = child.ask(other.calls, how)
            row[other.name] = {"scores": len(other.places), "changed": changed(base, other, found.scores)}
            say(f"bits  {leg.name}  {other.name}: {row[other.name]['changed']} of {len(other.places)} changed")
        self._record.document["legs"][leg.name]["bits"] = row
        self._record.write()


def with_choice(leg: Leg, choice: dict[str, Any]) -> dict[str, Any]:
    """The leg's options with a choice in them: of its engine where it has one."""
    if "engine" in leg.options:
        return leg.options | {"engine": leg.options["engine"] | choice}
    return leg.options | choice


def _ways(leg: Leg, sample: list[Group], options: dict[str, Any]) -> list[tuple[Regrouping, dict[str, Any]]]:
    """Every regrouping; the same call again; and the same call in the system's other ways and batch sizes."""
    others = regroupings(sample)
    places = others[1].places
    found = [(one, options) for one in [Regrouping("again", [sample], places), *others]]
    found += [(Regrouping(name, [sample], places), options | how) for name, how in leg.variants.items() if name]
    for size in leg.sizes:
        if size != options.get("batch"):
            found.append((Regrouping(f"batch {size}", [sample], places), options | {"batch": size}))
    return found
