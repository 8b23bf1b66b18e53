"""Runs a stack of tiny services as its own process, so that a test can kill the runner: python tiny_runner.py SPEC."""

import json
import signal
import sys
import time
from pathlib import Path

from acemath_local.console import Console
from acemath_local.services import Service, http_ready, redis_answers
from acemath_local.stack import Stack
from acemath_local.supervision import Supervisor


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    services = [
        Service(
            one["name"],
            one["name"],
            lambda port=one["port"], ready=redis_answers if one["name"] == "redis" else http_ready: ready(port),
            tuple(one["needs"]),
            optional=one["optional"],
        )
        for one in spec["services"]
    ]
    supervisor = Supervisor(Path(spec["config"]), Path(spec["socket"]), spec["env"], Path(spec["log"]))
    stack = Stack(supervisor, services, Path(spec["logs"]), spec["ready_seconds"], Console())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        stack.start()
        print("READY", flush=True)
        while True:
            time.sleep(1)
    finally:
        stack.stop(30)


if __name__ == "__main__":
    main()
