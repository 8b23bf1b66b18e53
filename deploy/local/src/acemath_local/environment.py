"""What the services of the local stack are told: addresses of each other, paths below the state folder, one key."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from acemath_local.settings import LocalSettings

EMBEDDED = {
    "ACEMATH_POLICY__ENFORCE_EAGER": "true",  # compiling takes 90 s and a C++ compiler, and this model gains little
    "ACEMATH_POLICY__MAX_MODEL_LEN": "2048",
    "ACEMATH_POLICY__CPU_KVCACHE_SPACE": "1",  # GiB: about 45,000 tokens of a 135M Llama, half as many in float32
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",  # at INFO it lists its forty routes; what it does shows in the progress line
}
"""What a 135M-parameter model on a few cores needs; each can be set otherwise in the environment of `make run`."""

_SOCKET_LIMIT = 100  # bytes of a Unix socket's path, with room for supervisor's own suffix (the kernel's limit is 108)


def prepare_state(settings: LocalSettings) -> None:
    """Make the folders and, once, the key that services show each other (mode 0600)."""
    for name in ("registry", "redis", "logs", "cache", "run", "keys"):
        (settings.state_dir / name).mkdir(parents=True, exist_ok=True)
    (settings.state_dir / "keys").chmod(0o700)
    make_key(settings.state_dir / "keys" / "internal.key")


def make_key(path: Path) -> None:
    """Write a new random key with mode 0600, unless the file has one; interrupted, it leaves none rather than half."""
    if path.exists():
        if path.stat().st_size > 0:
            return
        path.unlink()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        with contextlib.suppress(FileExistsError):  # somebody else's is as good, and already shown around
            os.link(name, path)
    finally:
        os.unlink(name)


def socket_path(settings: LocalSettings) -> Path:
    """Supervisor's control socket: in the state folder, or in a private temporary one when that path is too long."""
    inside = settings.state_dir / "run" / "supervisor.sock"
    if len(os.fsencode(inside)) < _SOCKET_LIMIT:
        return inside
    digest = sha256(os.fsencode(settings.state_dir)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"acemath-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / "supervisor.sock"


def services_environment(settings: LocalSettings, base: dict[str, str]) -> dict[str, str]:
    """The environment of supervisor and of everything it starts.

    Each process reads only the names under its own prefix, so one environment serves all. What the caller has set
    already stays: any setting of any service can be changed from the command line of `make run`.
    """
    return _defaults(settings) | base | _supervisor_names(settings)


def _defaults(settings: LocalSettings) -> dict[str, str]:
    ports, state = settings.ports, settings.state_dir
    shared = {
        "REGISTRY_ROOT": str(state / "registry"),
        "INTERNAL_KEY_FILE": str(state / "keys" / "internal.key"),
        "HOST": "127.0.0.1",
    }
    values = {
        f"ACEMATH_{service}__{name}": value
        for service in ("GATEWAY", "POLICY", "REWARD")
        for name, value in shared.items()
    }
    threads = str(min(8, os.cpu_count() or 1))
    return (
        values
        | EMBEDDED
        | {
            "ACEMATH_POLICY__OMP_NUM_THREADS": threads,
            "ACEMATH_GATEWAY__PORT": str(ports.gateway),
            "ACEMATH_GATEWAY__POLICY_URLS": f'["http://127.0.0.1:{ports.policy}"]',
            "ACEMATH_GATEWAY__REWARD_URLS": f'["http://127.0.0.1:{ports.reward}"]',
            "ACEMATH_GATEWAY__ADMIN_KEY_FILE": str(state / "keys" / "admin.key"),
            "ACEMATH_GATEWAY__REDIS_URL": f"redis://127.0.0.1:{ports.redis}/0",
            "ACEMATH_POLICY__PORT": str(ports.policy),
            "ACEMATH_POLICY__FIRST_VLLM_PORT": str(ports.vllm_first),
            "ACEMATH_POLICY__LAST_VLLM_PORT": str(ports.vllm_first + 9),
            "ACEMATH_POLICY__CACHE_DIR": str(state / "cache" / "policy"),
            "ACEMATH_REWARD__PORT": str(ports.reward),
            "ACEMATH_REWARD__CACHE_DIR": str(state / "cache" / "reward"),
        }
    )


def _supervisor_names(settings: LocalSettings) -> dict[str, str]:
    return {
        "ACEMATH_LOCAL__STATE_DIR": str(settings.state_dir),
        "ACEMATH_LOCAL__REDIS_PORT": str(settings.ports.redis),
        "ACEMATH_LOCAL_STATE": str(settings.state_dir),
        "ACEMATH_LOCAL_SOCKET": str(socket_path(settings)),
        "ACEMATH_LOCAL_PYTHON": sys.executable,
        "ACEMATH_LOCAL_PROMETHEUS_PORT": str(settings.ports.prometheus),
        "PYTHONUNBUFFERED": "1",
    }
