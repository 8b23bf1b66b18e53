"""What a machine must have before anything starts. Each failure is one sentence with what to do.

Standard library only: `python -m acemath_local.preflight` works on a fresh clone.
"""

from __future__ import annotations

import ctypes
import http.client
import importlib.util
import json
import platform
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from acemath_local.console import Console
from acemath_local.lock import holder, is_running, lock_path
from acemath_local.settings import LocalSettings, LocalSettingsError, Ports

STACK_MEMORY_GIB = 3.5
"""Memory that the embedded stack takes when it serves, measured: vLLM 3.0, reward 0.6, gateway and agent 0.3."""

SETUP_GIB = 6.0
"""Space that an environment, the embedded checkpoints and logs take, in GiB, with some to spare."""


_MOVE = "ACEMATH_LOCAL__PORT_BASE=18000"
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice` is a sentence, empty when all is well."""

    name: str
    seen: str
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing needs doing."""
        return not self.advice


def check_python() -> Finding:
    """Python 3.11 exactly: the pinned packages were resolved and tested for it."""
    seen = platform.python_version()
    if seen.startswith("3.11."):
        return Finding("Python", seen)
    return Finding("Python", seen, f"this is Python {seen}: install Python 3.11 and run make PYTHON=python3.11 …")


def check_venv() -> Finding:
    """The modules that make a virtual environment (Debian packages them apart)."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if not missing:
        return Finding("venv", "present")
    return Finding("venv", "missing", "Python's venv module is missing: install python3.11-venv")


def check_libnuma() -> Finding:
    """The library that vLLM's CPU build links."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return Finding(
            "libnuma",
            "missing",
            "libnuma.so.1 is missing, vLLM needs it: install libnuma1 (Debian, Ubuntu) or numactl-libs (Fedora)",
        )
    return Finding("libnuma", "present")


def check_platform() -> Finding:
    """The pinned wheels are for 64-bit x86 Linux."""
    machine = f"{sys.platform} {platform.machine()}"
    if machine == "linux x86_64":
        return Finding("platform", machine)
    return Finding(
        "platform", machine, f"this is {machine}: vLLM's CPU wheel is pinned for linux x86_64; use docker compose"
    )


def check_disk(directory: Path, need_gib: float) -> Finding:
    """Free space where the environment and the state will lie."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if free >= need_gib:
        return Finding("disk", f"{free:.0f} GiB free")
    return Finding(
        "disk", f"{free:.1f} GiB free", f"only {free:.1f} GiB free at {existing}: {need_gib:.0f} GiB are needed"
    )


def check_memory(need_gib: float, meminfo: Path = Path("/proc/meminfo")) -> Finding:
    """Memory that can be had without swapping; short of it the kernel kills vLLM in the middle of an answer."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) / 2**20
    if free >= need_gib:
        return Finding("memory", f"{free:.1f} GiB available")
    advice = f"only {free:.1f} GiB of memory are available: the stack needs {need_gib:.1f}; end other programs first"
    return Finding("memory", f"{free:.1f} GiB available", advice)


def check_port(service: str, port: int) -> Finding:
    """Whether a service could listen on its loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            advice = (
                f"port {port} for {service} cannot be used ({error.strerror}): find out what listens there, or move "
                f"the stack with {_MOVE}"
            )
            return Finding(f"port {port}", f"{service}: taken", advice)
    return Finding(f"port {port}", f"{service}: free")


def prometheus_off(settings: LocalSettings) -> str:
    """Why the optional Prometheus will not run on this machine; empty when it will."""
    port = settings.ports.prometheus
    if settings.prometheus == "off":
        return "ACEMATH_LOCAL__PROMETHEUS=off"
    if shutil.which("prometheus") is None:
        return "it is not installed"
    ours = [name for name, ports in settings.ports.ranges().items() if port in ports]
    free = not ours and check_port("Prometheus", port).ok
    holder = f"is for {ours[0]}" if ours else "is taken, perhaps by this machine's own Prometheus"
    return "" if free else f"port {port} {holder}; ACEMATH_LOCAL__PROMETHEUS_PORT names another"


def check_prometheus(settings: LocalSettings) -> Finding:
    """The optional Prometheus; never a reason not to start."""
    off = prometheus_off(settings)
    return Finding("Prometheus", f"off: {off}" if off else f"will listen at port {settings.ports.prometheus}")


def check_compiler() -> Finding:
    """Training only: DeepSpeed builds a communication operation at first use."""
    if shutil.which("g++") or shutil.which("c++"):
        return Finding("C++ compiler", "present")
    return Finding(
        "C++ compiler", "missing", "no C++ compiler: DeepSpeed needs one for training (only for that): install g++"
    )


def machine_checks() -> list[Finding]:
    """Everything but ports and disk."""
    return [check_platform(), check_python(), check_venv(), check_libnuma()]


def port_checks(ports: Ports) -> list[Finding]:
    """Every port that the stack will bind, and that no two are the same."""
    named = ports.named()
    if len(set(named.values())) < len(named):
        return [Finding("ports", str(named), f"two services have the same port: {named}")]
    return [check_port(service, port) for service, port in named.items()]


def stack_checks(settings: LocalSettings, disk_gib: float) -> list[Finding]:
    """What must be free before the stack starts: disk, memory, ports."""
    disk, other = check_disk(settings.state_dir, disk_gib), another_stack(settings)
    if other is not None:  # its ports and memory are in use, as they should be
        return [disk, other]
    return [disk, check_memory(STACK_MEMORY_GIB), *port_checks(settings.ports)]


def another_stack(settings: LocalSettings) -> Finding | None:
    """An AceMath service that answers at a port of ours while no stack of our state folder runs; None without one."""
    ports = settings.ports
    for name, port in (("gateway", ports.gateway), ("policy agent", ports.policy), ("reward service", ports.reward)):
        if not check_port(name, port).ok and _is_acemath(port):
            seen = f"an AceMath {name} answers at port {port}"
            advice = (
                f"{seen}, and it is not of {settings.state_dir}: leave it running and call doctor in its own checkout "
                f"(or with its ACEMATH_LOCAL__STATE_DIR); to start another one here, use {_MOVE}"
            )
            return Finding("another stack", seen, advice)
    return None


def _is_acemath(port: int) -> bool:
    """Whether `/readyz` is the document that every service of ours answers with, ready or not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/readyz")
        document = json.loads(connection.getresponse().read(65536))
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    return isinstance(document, dict) and {"ready", "reason"} <= document.keys()


def main() -> int:
    """Print every finding; 0 when the machine is ready."""
    console = Console()
    try:
        settings = LocalSettings.from_env()
    except LocalSettingsError as error:
        console.line(f"✗ {error}")
        return 1
    need = 0.5 if Path(".venv").exists() else SETUP_GIB
    if is_running(settings.state_dir):  # its own ports and memory are in use, as they should be
        pid, gateway = holder(lock_path(settings.state_dir))
        seen = f"runs already (process {pid}, {gateway}); .venv/bin/acemath doctor says how it is"
        findings, optional = [*machine_checks(), check_disk(settings.state_dir, need)], [Finding("stack", seen)]
    else:
        findings, optional = [*machine_checks(), *stack_checks(settings, need)], [check_prometheus(settings)]
    for finding in [*findings, *optional, check_compiler()]:
        console.line(f"  {'✓' if finding.ok else '✗'} {finding.name:14} {finding.advice or finding.seen}")
    return 0 if all(finding.ok for finding in findings) else 1  # the compiler is for training only


if __name__ == "__main__":
    raise SystemExit(main())
