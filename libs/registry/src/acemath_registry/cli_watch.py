"""`acemath registry watch …`: live bands of a channel, and the loop that takes a release back which leaves them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from acemath_core.errors import InvalidRequest
from acemath_registry.bands import Band, Bands
from acemath_registry.canary_figures import CanaryBand, CanaryBands
from acemath_registry.canary_watch import CanaryWatcher
from acemath_registry.cli_common import (
    DEFAULT_ROOT,
    AsJson,
    By,
    ChannelName,
    Root,
    errors,
    existing,
    misfit,
    note_missing,
)
from acemath_registry.cli_output import print_document, print_look
from acemath_registry.prometheus import Prometheus
from acemath_registry.watch import Look, Watcher
from acemath_registry.watch_metrics import Note, WatchKind, serving

Metrics = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT of a /metrics for Prometheus, which tells whether the watch still looks; not with --looks."
    ),
]
app = typer.Typer(no_args_is_help=True, help="Take a release back whose live figures leave their bands.")


@app.command()
def show(channel: ChannelName, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Show what is watched on a channel; nothing when no bands were declared."""
    with errors(as_json):
        registry = existing(root)
        bands = registry.bands(channel)
        note_missing(registry, channel)
    _print_bands(channel, bands, as_json)


@app.command(name="set")
def declare(
    channel: ChannelName,
    by: By,
    band: Annotated[
        list[str] | None,
        typer.Option(
            help="MEASURE:LOW:HIGH, either of the two may be empty; error_rate, degraded_rate, refused_rate (400s), "
            "latency_p95_seconds, score_mean, score_median. May be given again."
        ),
    ] = None,
    window: Annotated[int, typer.Option(min=30, help="Seconds that each figure is over.")] = 300,
    min_count: Annotated[int, typer.Option(min=1, help="Jobs or candidates in it; fewer say nothing.")] = 100,
    looks: Annotated[int, typer.Option(min=1, help="So many in a row have to find it outside.")] = 3,
    for_hours: Annotated[float, typer.Option(min=0.02, help="A release that served longer is not taken back.")] = 6.0,
    selector: Annotated[str, typer.Option(help="Further label matchers of the gateways' series.")] = "",
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Declare all that is watched on a channel, in place of what was; without --band nothing is."""
    with errors(as_json):
        try:
            bands = Bands(
                bands=tuple(_band(text) for text in band or []), window_seconds=window, min_count=min_count,
                looks=looks, for_seconds=round(for_hours * 3600), selector=selector,
            )  # fmt: skip
        except ValidationError as error:
            raise misfit(error, "band") from error
        registry = existing(root)
        registry.set_bands(channel, bands, by=by)
        note_missing(registry, channel)
    _print_bands(channel, bands, as_json)


@app.command()
def run(
    channel: ChannelName,
    prometheus: Annotated[str, typer.Option(help="Address of the Prometheus that scrapes the gateways.")],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 60.0,
    looks: Annotated[int | None, typer.Option(min=1, help="End after so many; default: go on until TERM.")] = None,
    metrics: Metrics = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Look again and again, and roll the channel back when as many looks in a row as declared were outside."""
    with errors(as_json):
        _check_goes_on(looks, metrics)
        watcher = Watcher(existing(root), channel, Prometheus(prometheus))
        with serving(WatchKind.RELEASE, channel, metrics) as note:
            _look_on(_noted(watcher.look, note), interval, looks, as_json)


@app.command(name="canary")
def run_canary(
    channel: ChannelName,
    prometheus: Annotated[str, typer.Option(help="Address of the Prometheus that scrapes the gateways.")],
    band: Annotated[
        list[str],
        typer.Option(
            help="MEASURE:LOW:HIGH of the canary's figure minus the current release's, either of the two may be empty; "
            "error_rate, degraded_rate, refused_rate (400s), latency_p95_ratio (over, not minus), agreement_mean, "
            "score_mean, score_margin_mean. May be given again."
        ),
    ],
    window: Annotated[int, typer.Option(min=30, help="Seconds that each figure is over.")] = 300,
    min_count: Annotated[int, typer.Option(min=1, help="Jobs or candidates of either; fewer say nothing.")] = 100,
    outside: Annotated[int, typer.Option(min=1, help="So many looks in a row have to find it outside.")] = 3,
    promote_after: Annotated[
        float | None, typer.Option(min=0.0, help="Hours of nothing but looks inside, after which it is promoted.")
    ] = None,
    selector: Annotated[str, typer.Option(help="Further label matchers of the gateways' series.")] = "",
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 60.0,
    looks: Annotated[int | None, typer.Option(min=1, help="End after so many; default: go on until TERM.")] = None,
    metrics: Metrics = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Compare a canary with the current release again and again: take its share away, or promote it."""
    with errors(as_json):
        _check_goes_on(looks, metrics)
        try:
            bands = CanaryBands(
                bands=tuple(_canary_band(text) for text in band), window_seconds=window, min_count=min_count,
                looks=outside, selector=selector,
            )  # fmt: skip
        except ValidationError as error:
            raise misfit(error, "band") from error
        after = None if promote_after is None else 3600.0 * promote_after
        watcher = CanaryWatcher(existing(root), channel, Prometheus(prometheus), bands, after)
        with serving(WatchKind.CANARY, channel, metrics) as note:
            _look_on(_noted(watcher.look, note), interval, looks, as_json)


def _check_goes_on(looks: int | None, metrics: str | None) -> None:
    """Raises InvalidRequest: nobody would scrape the last look, and its end would look like a watch that died."""
    if looks is not None and metrics is not None:
        raise InvalidRequest("--metrics is for a watch that goes on; leave it out, or --looks", param="metrics")


def _noted(look: Callable[[], Look], note: Note) -> Callable[[], Look]:
    def noted() -> Look:
        found = look()
        note(found)
        return found

    return noted


def _look_on(look: Callable[[], Look], interval: float, looks: int | None, as_json: bool) -> None:
    left = looks
    with _until_term() as ended:
        while not ended.is_set() and left != 0:
            print_look(look().document(), as_json=as_json)
            left = None if left is None else left - 1
            if left != 0:
                ended.wait(interval)


@contextmanager
def _until_term() -> Iterator[threading.Event]:
    """Set by SIGTERM and SIGINT while the block runs: a look that is under way ends first."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_bands(channel: str, bands: Bands, as_json: bool) -> None:
    document = {"channel": channel, **bands.model_dump(mode="json")}
    if not as_json:
        document.pop("schema_version")
        if not bands.selector:
            document.pop("selector")
        document["bands"] = {one.measure.value: str(one) for one in bands.bands}
    print_document(document, as_json=as_json)


def _band(text: str) -> Band:
    return Band.model_validate(_parted(text, Band))


def _canary_band(text: str) -> CanaryBand:
    return CanaryBand.model_validate(_parted(text, CanaryBand))


def _parted(text: str, kind: type[BaseModel]) -> dict[str, str | None]:
    """The fields of a band; raises InvalidRequest when they do not fit."""
    try:
        measure, low, high = text.split(":")
        fields = {"measure": measure, "low": low or None, "high": high or None}
        kind.model_validate(fields)
    except ValidationError as error:
        raise misfit(error, "band") from error
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is not MEASURE:LOW:HIGH, e.g. error_rate::0.02", param="band") from error
    return fields
