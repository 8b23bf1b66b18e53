"""Subcommands that other distributions bring."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

from acemath_cli import app as module


def build(monkeypatch: pytest.MonkeyPatch, *found: EntryPoint) -> typer.Typer:
    monkeypatch.setattr(module, "entry_points", lambda group: [entry for entry in found if entry.group == group])
    return module.build_app()


def test_installed_distributions_bring_their_commands():
    result = CliRunner().invoke(module.build_app(), ["--help"])
    for name in ("solve", "doctor", "registry"):
        assert name in result.stdout


def test_a_command_with_a_missing_package_says_so_and_hides_no_other(monkeypatch):
    broken = EntryPoint("data", "no_such_package.cli:app", module.GROUP)
    app = build(monkeypatch, broken)
    result = CliRunner().invoke(app, ["data", "make", "--rows", "3"])
    assert result.exit_code == 1 and "no_such_package" in result.stderr
    assert CliRunner().invoke(app, ["solve", "--help"]).exit_code == 0


def test_an_entry_point_of_another_kind_is_a_mistake(monkeypatch):
    wrong = EntryPoint("wrong", "json:dumps", module.GROUP)
    with pytest.raises(TypeError, match="is not a typer"):
        build(monkeypatch, wrong)


def test_doctor_speaks_json(monkeypatch):
    monkeypatch.setenv("ACEMATH_LOCAL__PORT_BASE", "39200")
    result = CliRunner().invoke(module.build_app(), ["doctor", "--json"])
    assert '"name": "libnuma"' in result.stdout
