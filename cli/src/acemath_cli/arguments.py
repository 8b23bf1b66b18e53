"""What a person types: a problem that begins with a minus, the address of a gateway, and what every command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from pydantic import SecretStr
from typer.core import TyperCommand

from acemath_cli.client import AskError
from acemath_cli.settings import CliSettings
from acemath_core.settings import read_key_file

Url = Annotated[str | None, typer.Option(help="the gateway; default: ACEMATH_CLI__URL, else http://127.0.0.1:8080")]
AsJson = Annotated[bool, typer.Option("--json", help="print the gateway's answer as JSON")]


class ProblemCommand(TyperCommand):
    """A command whose one argument may begin with a minus, as `-5 + 3` does.

    An argument with one minus in front that is neither an option nor the value of one is taken as after `--`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put such arguments behind a `--`, then parse as every command does."""
        if "--" not in args:
            known = {name for param in self.params for name in param.opts}
            takes = {name for param in self.params if not getattr(param, "is_flag", False) for name in param.opts}
            pairs = list(zip(["", *args], args, strict=False))
            problems = [arg for before, arg in pairs if before not in takes and _is_problem(arg, known)]
            rest = [arg for before, arg in pairs if before in takes or not _is_problem(arg, known)]
            args = [*rest, "--", *problems] if problems else args
        return super().parse_args(ctx, args)


def _is_problem(arg: str, known: set[str]) -> bool:
    one_minus = len(arg) > 1 and arg[0] == "-" and arg[1] != "-"
    return one_minus and (arg[:2] not in known or " " in arg)


def gateway_and_key(url: str | None, key_file: Path | None = None) -> tuple[str, SecretStr | None]:
    """The base URL of the gateway to ask, and the key that it is shown: what was typed, or else the settings'.

    Raises:
        AskError: the URL is none of a gateway.
        SettingsError: a setting is wrong, or the file has no key.
    """
    settings = CliSettings.from_env()
    key = settings.api_key if key_file is None else read_key_file(key_file)
    return gateway_url(settings.url if url is None else url), key


def gateway_url(text: str) -> str:
    """The base URL of a gateway, without the `/v1` that OpenAI clients want.

    Raises:
        AskError: it is no http:// or https:// URL with a host.
    """
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL as error:
        raise AskError(f"{text!r} is not a URL ({error}); one looks like http://127.0.0.1:8080") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise AskError(f"{text!r} is not a URL of a gateway; one looks like http://127.0.0.1:8080")
    return str(url).rstrip("/").removesuffix("/v1").rstrip("/")
