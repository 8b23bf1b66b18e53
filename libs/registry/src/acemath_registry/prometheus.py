"""The live figures, out of Prometheus over its HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/)."""

from __future__ import annotations

import http.client
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final, Protocol

from acemath_registry.bands import Bands, Measure
from acemath_registry.errors import InvalidRequest

_TIMEOUT_S: Final = 10.0
_MAX_BYTES: Final = 1024 * 1024
JOBS: Final = 'outcome=~"ok|degraded|failed|deadline"'
ERRORS: Final = 'outcome=~"failed|deadline"'  # a release that is too slow for its callers is a bad one, too
ANSWERED: Final = 'outcome=~"ok|degraded"'
_ASKED: Final = 'outcome=~"ok|degraded|failed|deadline|refused"'
RATES: Final = {
    "error_rate": (ERRORS, JOBS),
    "degraded_rate": ('outcome="degraded"', JOBS),
    # A release that takes shorter requests than its callers send fails at nothing: it refuses.
    "refused_rate": ('outcome="refused"', _ASKED),
}
"""Measures that are a share: matchers of what is counted, and of what it is a share of."""


class NoFigure(Exception):
    """Prometheus has no number for this now; says why."""


class Window(Protocol):
    """What figures are over."""

    @property
    def window_seconds(self) -> int:
        """How long."""

    @property
    def selector(self) -> str:
        """Further label matchers."""


class Prometheus:
    """A Prometheus that scrapes the gateways.

    Args:
        url: http:// or https://, without `/api`.

    Raises:
        InvalidRequest: it is no such address.
    """

    def __init__(self, url: str) -> None:
        self._url = _checked(url).rstrip("/") + "/api/v1/query"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is one of our own services

    def ask(self, query: str) -> float:
        """The one finite number that a query gives.

        Raises:
            NoFigure: it does not answer in time, refuses, or gives none, several or no finite number.
        """
        body = urllib.parse.urlencode({"query": query}).encode()
        try:
            with self._opener.open(self._url, data=body, timeout=_TIMEOUT_S) as answer:
                document = json.loads(answer.read(_MAX_BYTES))
        except urllib.error.HTTPError as error:
            raise NoFigure(f"Prometheus refuses the query with status {error.code}") from error
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            raise NoFigure(f"Prometheus does not answer ({type(error).__name__})") from error
        return _number(document)


def _checked(url: str) -> str:
    """The address itself, if one can be asked there."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # its port is no number, or its brackets do not match
        good = False
    if not good or not url.isprintable() or " " in url:
        said = f"{url!r} is no http:// or https:// address of a Prometheus; give one as http://HOST:9090"
        raise InvalidRequest(said, param="prometheus")
    return url


def value_query(measure: Measure, bands: Bands) -> str:
    """PromQL: the measure over the last window."""
    if measure in RATES:
        part, whole = (f"sum({increase('requests_total', bands, chosen)})" for chosen in RATES[measure])
        return f"{part} / {whole}"
    if measure is Measure.LATENCY_P95_SECONDS:
        buckets = increase("request_duration_seconds_bucket", bands, ANSWERED)
        return f"histogram_quantile(0.95, sum by (le) ({buckets}))"
    if measure is Measure.SCORE_MEDIAN:
        return f"histogram_quantile(0.5, sum by (le) ({increase('score_bucket', bands)}))"
    return mean_score("score", bands)


def count_query(measure: Measure, bands: Bands) -> str:
    """PromQL: over how many jobs or candidates that is."""
    if measure in (Measure.SCORE_MEAN, Measure.SCORE_MEDIAN):
        return f"sum({increase('score_count', bands)})"
    chosen = ANSWERED if measure is Measure.LATENCY_P95_SECONDS else RATES[measure][1]
    return f"sum({increase('requests_total', bands, chosen)})"


def generation_queries(window: Window) -> tuple[str, str]:
    """PromQL: the lowest and the highest generation that a gateway used within the window."""
    series = _series("release_generation", window)
    return f"min(min_over_time({series}))", f"max(max_over_time({series}))"


def mean_score(name: str, window: Window, *matchers: str) -> str:
    """PromQL: the mean of a histogram of scores, which may be below zero: such a one has no `_sum`, but two parts."""
    above, below = (
        f"sum({increase(f'{name}_parts_total', window, *matchers, sign)})"
        for sign in ('sign="positive"', 'sign="negative"')
    )
    return f"({above} - {below}) / sum({increase(f'{name}_count', window, *matchers)})"


def increase(name: str, window: Window, *matchers: str) -> str:
    """PromQL: by how much each of the gateways' series of this name and these labels grew over the window."""
    return f"increase({_series(name, window, *matchers)})"


def _series(name: str, window: Window, *matchers: str) -> str:
    labels = ",".join(matcher for matcher in (window.selector, *matchers) if matcher)
    return f"acemath_gateway_{name}{{{labels}}}[{window.window_seconds}s]"


def _number(document: Any) -> float:
    try:
        result = document["data"]["result"]
        (sample,) = result
        value = float(sample["value"][1])
    except (LookupError, TypeError, ValueError) as error:
        raise NoFigure("Prometheus has no such series, or several") from error
    if not math.isfinite(value):
        raise NoFigure("nothing happened in the window")
    return value
