from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from acemath_cli.app import build_app
from acemath_cli.client import parse_events


@pytest.fixture
def acemath(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(build_app(), list(arguments), input=stdin)

    return call


def test_the_answer_and_every_candidate_by_score(acemath, gateway):
    result = acemath("solve", "3 baskets", "--url", gateway.url, "--n", "2", "--seed", "7")
    assert result.exit_code == 0, result.output
    assert "answer: 19" in result.stdout
    assert result.stdout.index("+2.250") < result.stdout.index("-1.500")
    assert "24 - 5 = [19]" in result.stdout  # a model's square brackets are not markup
    assert "best_of_n of 2 candidates (2 scored, complete) in 2.6 s" in result.stdout
    assert gateway.asked[0]["stream"] is True and gateway.asked[0]["candidates"] == "full"
    assert (gateway.asked[0]["n"], gateway.asked[0]["seed"]) == (2, 7)


def test_what_was_stopped_early_is_asked_for_and_told(acemath, gateway):
    stopped = 'event: candidate.rejected\ndata: {"index": 2, "partial_score": -3.0}\n\n'
    gateway.body = stopped + gateway.body.replace('"n_scored": 2', '"n_scored": 2, "n_rejected": 1')
    result = acemath("solve", "x", "--url", gateway.url, "--n", "3", "--early-reject")
    assert "best_of_n of 2 candidates (2 scored, 1 stopped early, complete)" in result.stdout
    assert gateway.asked[0]["early_reject"] is True and gateway.asked[0]["adaptive"] is False


def test_json_is_the_gateways_answer_and_nothing_else(acemath, gateway):
    result = acemath("solve", "-", "--url", gateway.url, "--json", stdin="from a pipe")
    assert json.loads(result.stdout)["answer"] == "19"
    assert gateway.asked[0]["problem"] == "from a pipe"


def test_url_and_key_come_from_the_environment(acemath, gateway, monkeypatch):
    monkeypatch.setenv("ACEMATH_CLI__URL", gateway.url)
    monkeypatch.setenv("ACEMATH_CLI__API_KEY", "secret")
    assert acemath("solve", "x").exit_code == 0
    assert gateway.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            429,
            '{"error": {"message": "wait", "type": "rate_limit", "param": null, "code": "quota"}}',
            "429 quota: wait",
        ),
        (500, "<html>", "500 from"),
        (200, 'event: error\ndata: {"error": {"message": "no scorer"}}\n\n', "no scorer"),
        (200, ": nothing\n\n", "closed the stream"),
    ],
)
def test_a_refusal_is_one_sentence_and_exit_code_1(acemath, gateway, status, body, said):
    gateway.status, gateway.body = status, body
    result = acemath("solve", "x", "--url", gateway.url)
    assert result.exit_code == 1
    assert said in result.stderr and "Traceback" not in result.output


def test_nobody_there_says_how_to_start_it(acemath, free_port):
    result = acemath("solve", "x", "--url", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 1 and "make run" in result.stderr


def test_bad_values_are_refused_before_anything_is_sent(acemath, gateway):
    result = acemath("solve", "x", "--url", gateway.url, "--n", "0")
    assert result.exit_code == 1 and "n: Input should be greater than or equal to 1" in result.stderr
    assert gateway.asked == []


def test_unknown_settings_stop_the_command(acemath, monkeypatch):
    monkeypatch.setenv("ACEMATH_CLI__URLL", "http://x")
    result = acemath("solve", "x")
    assert result.exit_code == 1 and "did you mean ACEMATH_CLI__URL" in result.stderr


def test_events_with_comments_several_data_lines_and_no_name():
    lines = [": hi", "", "data: {", "data: }", "", "event: a", "data:1", "", "event: unfinished", "data: 2"]
    events = list(parse_events(iter(lines)))
    assert [(event.name, event.data) for event in events] == [("message", {}), ("a", 1)]


def test_a_problem_that_begins_with_a_minus_is_a_problem(acemath, gateway):
    result = acemath("solve", "--url", gateway.url, "--", "-3 + 5 = ?")
    assert result.exit_code == 0 and gateway.asked[0]["problem"] == "-3 + 5 = ?"


@pytest.mark.parametrize("problem", ["-5 + 3", "-5", "-x + n = 3", "-n is 4. What is n?", "-(2)"])
def test_a_minus_in_front_needs_no_dashes(acemath, gateway, problem):
    result = acemath("solve", problem, "-n", "2", "--url", gateway.url, "--seed", "7")
    assert result.exit_code == 0, result.output
    assert gateway.asked[0]["problem"] == problem and gateway.asked[0]["n"] == 2


def test_options_with_a_minus_are_still_options(acemath, gateway):
    assert acemath("solve", "x", "-n2", "--json", "--url", gateway.url).exit_code == 0
    assert gateway.asked[0]["n"] == 2
    assert "seed" in acemath("solve", "x", "--seed", "-5", "--url", gateway.url).stderr
    assert acemath("solve", "x", "--sede", "5").exit_code == 2
    assert acemath("solve", "-", "--url", gateway.url, stdin="piped").exit_code == 0


@pytest.mark.parametrize("url", ["garbage", "", "ftp://x", "http://", "localhost:8080", "http://x:port"])
def test_what_is_no_url_is_said_to_be_none(acemath, url):
    result = acemath("solve", "x", "--url", url)
    assert result.exit_code == 1 and f"{url!r} is not a URL" in result.stderr and "make run" not in result.stderr


@pytest.mark.parametrize("end", ["/", "/v1", "/v1/"])
def test_the_url_of_an_openai_client_is_understood(acemath, gateway, end):
    assert acemath("solve", "x", "--url", gateway.url + end).exit_code == 0
    assert gateway.paths == ["/v1/solve"]


def test_the_variable_of_the_key_is_named_where_one_looks_for_it(acemath, gateway):
    assert "ACEMATH_CLI__API_KEY" in acemath("solve", "--help").stdout
    gateway.status, gateway.body = 401, '{"error": {"message": "no key", "type": "x", "param": null, "code": "key"}}'
    assert "ACEMATH_CLI__API_KEY" in acemath("solve", "x", "--url", gateway.url).stderr
