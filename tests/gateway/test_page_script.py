"""The page's script, run by Node on as much of a document as it uses: how a run ends is always said."""

import json
import re
import shutil
import subprocess
from importlib.resources import files

import pytest

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")

HTML = files("acemath_gateway.routes").joinpath("page.html").read_text(encoding="utf-8")
DOCUMENT = """
class Node_ {
  constructor() { this.textContent = ""; this.hidden = true; this.value = "8"; this.on = {}; this.inside = [];
    this.classList = { add() {}, remove() {} }; }
  append(...nodes) { this.inside.push(...nodes); }
  prepend() {} replaceChildren() { this.inside = []; }
  addEventListener(name, does) { this.on[name] = does; }
}
const byId = {};
const document = { getElementById: (id) => (byId[id] ??= new Node_()), createElement: () => new Node_() };
const scenario = JSON.parse(process.argv[1]);
async function fetch(_, { signal }) {
  const body = new ReadableStream({
    start(control) {
      for (const event of scenario.events) control.enqueue(new TextEncoder().encode(event));
      if (scenario.ends) control.close();
      signal.addEventListener("abort", () => control.error(new DOMException("aborted", "AbortError")));
    },
  });
  return { ok: true, body };
}
"""
RUN = """
const submit = () => byId.form.on.submit({ preventDefault() {} });
const done = submit();
setTimeout(async () => {
  if (scenario.stop) submit();
  await done;
  const scores = byId.candidates.inside.map((item) => item.inside[0].inside[0].inside[2].textContent);
  const { error, progress, timer, answer } = byId;
  console.log(JSON.stringify({ scores, progress: progress.textContent, timer: timer.textContent,
    error: error.hidden ? null : error.textContent, answered: !answer.hidden }));
}, 150);
"""
FINISHED = {"index": 0, "text": "24", "answer": "24", "finish_reason": "stop"}
SCORED = {"index": 0, "score": 1.5}
SOLUTION = {
    "answer": "24",
    "solution": "24",
    "score": None,
    "selection": "majority",
    "n_scored": 0,
    "n_requested": 1,
    "timings": {"total_seconds": 1.0},
    "release": "r",
    "degraded": False,
    "candidates": [],
}


def run(*events: tuple[str, dict], ends: bool = True, stop: bool = False) -> dict:
    script = re.search(r"<script>(.*?)</script>", HTML, re.DOTALL)[1].replace('"use strict";', "")
    sent = [f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events]
    scenario = json.dumps({"events": sent, "ends": ends, "stop": stop})
    source = "(() => {" + DOCUMENT + script + RUN + "})()"
    done = subprocess.run(["node", "-e", source, scenario], capture_output=True, text=True, timeout=30, check=True)
    return json.loads(done.stdout)


def test_a_stream_that_ends_early_is_an_error():
    for events in ([], [("candidate.finished", FINISHED)]):
        ended = run(*events)
        assert "broke off" in ended["error"] and not ended["answered"]
        assert ended["scores"] == ["not scored"] * len(events)


def test_a_stream_that_ends_as_it_should_is_none():
    solved = run(("candidate.finished", FINISHED), ("candidate.scored", SCORED), ("solution", SOLUTION))
    assert solved["answered"] and solved["error"] is None and solved["scores"] == ["1.500"]
    assert run(("error", {"error": {"message": "we are full"}}))["error"] == "we are full"


def test_after_stop_the_rows_say_so():
    stopped = run(("candidate.finished", FINISHED), ends=False, stop=True)
    assert stopped["scores"] == ["stopped"] and stopped["progress"] == "stopped" and stopped["error"] is None
    assert stopped["timer"] == ""


def test_the_timer_is_not_read_out():
    assert re.search(r'<span id="progress" role="status"></span><span id="timer"></span>', HTML)
