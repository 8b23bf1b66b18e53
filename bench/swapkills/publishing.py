"""The publisher, as a process of its own: two versions, a release of them, and the channel pointed at it.

    python -m bench.swapkills.publishing REGISTRY NUMBER POLICY REWARD      prints each step as JSON when it is done

What it has done already it does again without a change, so that it is also what comes after a publisher that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from acemath_registry import ModelRef, Registry
from acemath_registry.files import OWN_NAMES, hash_files, list_files
from acemath_registry.manifest import version_of
from bench.swapkills.view import CHANNEL
from bench.swaps.publishing import NAMES, publish

ROOT = Path(__file__).resolve().parents[2]
END_SECONDS = 120.0


def version(kind: str, directory: Path, number: int) -> str:
    """The name@version that a checkpoint will have: its content's, so it is known before it is published."""
    files = hash_files(directory, list_files(directory, ignore=OWN_NAMES), lambda _: None)
    return str(ModelRef(NAMES[kind], version_of(number, files)))


@dataclass(slots=True)
class Publishing:
    """One publisher at work.

    Attributes:
        process: it.
        said: step → what came of it, so far.
    """

    process: asyncio.subprocess.Process
    said: dict[str, str] = field(default_factory=dict)
    _hearing: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, registry: Registry, number: int, policy: Path, reward: Path) -> Publishing:
        """Start one."""
        arguments = ("-m", __name__, str(registry.root.absolute()), str(number), str(policy), str(reward))
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        made = cls(process)
        made._hearing = asyncio.create_task(made._hear())
        return made

    async def _hear(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said |= json.loads(line)

    async def ended(self) -> int:
        """Its exit status, negative after a signal; raises `TimeoutError` when it does not end."""
        assert self._hearing is not None
        async with asyncio.timeout(END_SECONDS):
            await self._hearing
            return await self.process.wait()

    async def close(self) -> None:
        """End it, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.ended()


def main() -> None:
    """Publish and promote."""
    root, number, policy, reward = sys.argv[1:]
    registry = Registry(Path(root))
    generation = registry.channel(CHANNEL).generation
    refs = []
    for kind, directory in (("policy", policy), ("reward", reward)):
        refs.append(publish(registry, kind, Path(directory), int(number)))
        _say(kind, str(refs[-1]))
    release = registry.create_release(*refs)
    _say("release", release.id)
    promoted = registry.promote(CHANNEL, release.id, expected_generation=generation, by="bench.swapkills")
    _say("generation", str(promoted.generation))


def _say(step: str, made: str) -> None:
    print(json.dumps({step: made}), flush=True)


if __name__ == "__main__":
    main()
