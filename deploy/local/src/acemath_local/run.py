"""`make run`: publish, start, wait, solve one problem, serve until Ctrl-C.

python -m acemath_local.run [--problem TEXT] [--once] [--no-sample]
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from acemath_local.console import Console
from acemath_local.environment import prepare_state, services_environment, socket_path
from acemath_local.leftover import LeftoverError, wait_for_previous
from acemath_local.lock import StackLock, StackRunsError
from acemath_local.logs import LogFollower
from acemath_local.preflight import check_libnuma, prometheus_off, stack_checks
from acemath_local.prometheus import write_config
from acemath_local.publish import StepError, publish, tethered_python
from acemath_local.services import local_services
from acemath_local.settings import LocalSettings, LocalSettingsError, process_environment
from acemath_local.stack import Stack, StackError
from acemath_local.supervision import SupervisionError, Supervisor

SAMPLE = "There are 5 baskets with 6 apples in each. 4 apples are eaten. How many apples are left?"
"""In the easy domain that the embedded policy was trained for; the answer is 26."""

CONFIG = Path(__file__).resolve().parents[2] / "supervisord.conf"
STOP_SECONDS = 300.0  # more than the sum of the programs' stopwaitsecs


def main() -> int:
    """Run the stack; 0 after an orderly stop, 1 with one clear sentence otherwise."""
    arguments = _arguments()
    console = Console()
    signal.signal(signal.SIGINT, _interrupt)  # also where a shell started us in the background with it ignored
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        settings = LocalSettings.from_env()
        with StackLock(settings.state_dir, gateway_url(settings), settings.ports):
            return run(settings, arguments, console)
    except (LocalSettingsError, StackRunsError, LeftoverError, StepError, StackError, SupervisionError) as error:
        console.line(f"✗ {error}")
        return 1
    except KeyboardInterrupt:
        console.line("stopped")
        return 0


def run(settings: LocalSettings, arguments: argparse.Namespace, console: Console) -> int:
    """Everything between taking the lock and letting go of it.

    Raises:
        StepError, StackError, SupervisionError: one sentence on what failed.
        KeyboardInterrupt: Ctrl-C; everything is stopped by then.
    """
    wait_for_previous(settings, CONFIG, console)
    _check(settings)
    prepare_state(settings)
    env = services_environment(settings, process_environment())
    publish(settings, env, console)
    write_config(settings)
    off = prometheus_off(settings)
    if off:
        console.line(f"  – Prometheus is off: {off}")
    services = local_services(settings, prometheus=not off)
    logs = settings.state_dir / "logs"
    supervisor = Supervisor(CONFIG, socket_path(settings), env, logs / "supervisord.out.log")
    stack = Stack(supervisor, services, logs, settings.ready_seconds, console)
    try:
        with LogFollower({service.name: logs / f"{service.name}.log" for service in services}, console.line):
            stack.start()
            return _serve(stack, settings, env, arguments, console)
    finally:
        stack.stop(STOP_SECONDS)


def gateway_url(settings: LocalSettings) -> str:
    """Where clients find the stack."""
    return f"http://127.0.0.1:{settings.ports.gateway}"


def serving(url: str, command: Path) -> str:
    """The last thing that is said: where the stack is, how to ask it and look after it, how to end it."""
    return (
        f"Serving at {url} (page at /, API at /v1/solve and /v1/chat/completions). "
        f'Another problem: make solve PROBLEM="…". How it is: {command} doctor '
        f"{_elsewhere(url)}Ctrl-C stops everything."
    )


def _elsewhere(url: str) -> str:
    """What `acemath` in another shell has to be told where ports were moved; it would ask another stack's gateway."""
    usual = gateway_url(LocalSettings.read({}))
    return "" if url == usual else f"In another shell: export ACEMATH_CLI__URL={url} "


def acemath_command() -> Path:
    """The `acemath` of this environment, as a person in this folder would type it."""
    command, here = Path(sys.executable).with_name("acemath"), Path.cwd()
    return command.relative_to(here) if command.is_relative_to(here) else command


def _serve(
    stack: Stack, settings: LocalSettings, env: dict[str, str], arguments: argparse.Namespace, console: Console
) -> int:
    url = gateway_url(settings)
    (settings.state_dir / "run" / "gateway.url").write_text(url)
    solved = 0 if arguments.no_sample else _solve(url, arguments.problem, env, console)
    if arguments.once:
        return solved
    console.line(f"\n{serving(url, acemath_command())}")
    known = stack.watch(0.0, {})
    while True:
        known = stack.watch(1.0, known)


def _check(settings: LocalSettings) -> None:
    findings = [check_libnuma(), *stack_checks(settings, disk_gib=0.5)]
    advice = [finding.advice for finding in findings if not finding.ok]
    if advice:
        raise StepError("; ".join(advice))


def _solve(url: str, problem: str, env: dict[str, str], console: Console) -> int:
    console.line()
    command = [*tethered_python(), "-m", "acemath_cli", "solve", "--url", url, "--max-tokens", "256", "--", problem]
    result = subprocess.run(command, env=env, check=False)
    if result.returncode != 0:
        console.line(f"✗ the problem was not solved (acemath solve ended with {result.returncode})")
    return result.returncode


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m acemath_local.run", description="Run the whole stack in the foreground."
    )
    parser.add_argument(
        "--problem", default=SAMPLE, help="solve this one first (default: a sample that fits the embedded model)"
    )
    parser.add_argument("--once", action="store_true", help="stop after the first problem")
    parser.add_argument("--no-sample", action="store_true", help="solve nothing, only serve")
    arguments = parser.parse_args()
    arguments.problem = arguments.problem.strip() or SAMPLE
    return arguments


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
