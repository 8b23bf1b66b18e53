from __future__ import annotations

import socket

import pytest

from acemath_policy.server import ServerDied, free_port, url_of


def test_the_first_free_port_that_is_not_taken() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        first = busy.getsockname()[1]
        assert free_port("127.0.0.1", range(first, first + 4), {first + 1}) >= first + 2
        with pytest.raises(ServerDied, match=f"no free port for vLLM in {first}–{first}"):
            free_port("127.0.0.1", range(first, first + 1), ())


@pytest.mark.parametrize(("host", "url"), [("a.b", "http://a.b:1"), ("::1", "http://[::1]:1")])
def test_base_urls(host: str, url: str) -> None:
    assert url_of(host, 1) == url
