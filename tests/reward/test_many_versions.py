"""Versions come and go for months: what one had is gone with it, and nothing is kept for each."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from reward.publishing import publish_reward
from reward.world import S, World

from acemath_reward import reconcile, versions
from acemath_reward.engine.device import place
from acemath_reward.engine.model import RewardEngine, load_engine
from doubles.census import census, grown

SHOWN = 9  # versions in `GET /v1/slots`: the active one, and the last that ended
PATIENCE = 240.0  # seconds; the first engine of a process is compiled


@pytest.fixture
def engines(world: World) -> list[weakref.ref[RewardEngine]]:
    """Every engine that the service ever loaded; real ones."""
    made: list[weakref.ref[RewardEngine]] = []

    def load(directory: Path) -> RewardEngine:
        engine = load_engine(directory, place("cpu", "auto", threads=2))
        made.append(weakref.ref(engine))
        return engine

    world.make = load
    return made


async def swap(world: World, export: Path, number: int) -> None:
    """One more version; the one before it is gone, and the new one has given a score."""
    ref = publish_reward(world.registry, export, step=number)
    world.promote(ref)
    await world.rounds(lambda: world.states().get(str(ref)) is S.ACTIVE, PATIENCE)
    assert await world.score() == str(ref)
    world.gateway(generation=number)
    await world.rounds(lambda: set(world.states().values()) <= {S.ACTIVE, S.RETIRED}, PATIENCE)
    await world.reconciler.round()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_nothing_grows_with_the_number_of_versions(
    world: World, llama: Path, engines: list[weakref.ref[RewardEngine]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = weakref.WeakSet[versions.PromptEncoder]()
    read = versions.PromptEncoder.from_directory

    def noted(directory: Path) -> versions.PromptEncoder:
        encoder = read(directory)
        encoders.add(encoder)
        return encoder

    monkeypatch.setattr(versions.PromptEncoder, "from_directory", noted)
    for number in range(1, SHOWN + 2):
        await swap(world, llama, number)
    before = census(world.figures)
    for number in range(SHOWN + 2, SHOWN + 6):
        await swap(world, llama, number)
    assert [engine() is not None for engine in engines] == [False] * (len(engines) - 1) + [True]
    assert len(encoders) == 1
    assert len(world.reconciler.slots()) == SHOWN
    assert not grown(before, census(world.figures))


async def test_what_a_version_had_is_given_back_when_all_of_it_is_free(
    world: World, llama: Path, engines: list[weakref.ref[RewardEngine]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a swap; the loading of another version later begins with what is left."""
    alive: list[int] = []
    monkeypatch.setattr(
        reconcile, "give_back_freed_memory", lambda: alive.append(sum(one() is not None for one in engines))
    )
    await swap(world, llama, 1)
    assert alive == []
    await swap(world, llama, 2)
    await swap(world, llama, 3)
    assert alive == [1, 1]


_SWAPS = """
import ctypes, threading
from acemath_reward.engine.allocator import give_back_freed_memory, keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) // 1024

def version():  # 64 blocks of 1 MiB, and after every one a small one that stays, as a cache does
    blocks = []
    for _ in range(64):
        blocks.append(libc.malloc(2**20))
        ctypes.memset(blocks[-1], 1, 2**20)
        libc.malloc(64)
    for block in blocks:
        libc.free(block)

assert keep_freed_memory()
begin = resident()
threads = [threading.Thread(target=lambda: (version(), done.release(), hold.wait())) for _ in range(3)]
done, hold = threading.Semaphore(0), threading.Event()
for thread in threads:
    thread.start()
    done.acquire()
kept = resident() - begin
print(kept, give_back_freed_memory(), resident() - begin)
hold.set()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps and gives back")
def test_what_several_threads_loaded_and_freed_goes_back_to_the_kernel() -> None:
    """Each thread has an arena of its own: without it three versions leave three times their size."""
    found = subprocess.run([sys.executable, "-c", _SWAPS], capture_output=True, text=True, timeout=120, check=True)
    kept, gave, left = found.stdout.split()
    assert gave == "True"
    assert int(kept) > 150 and int(left) < 50, f"{kept} MiB were kept, {left} are left"
