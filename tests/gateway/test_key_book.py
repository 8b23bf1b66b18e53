"""Keys of files and keys that are looked up: what is remembered, for how long, and what an absent store does."""

import hashlib
import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from acemath_core.admin import KeyRequest, KeyScope, Quotas
from acemath_core.errors import Unavailable
from acemath_core.settings import SettingsError
from acemath_gateway.keys import book as book_module
from acemath_gateway.keys.access import ADMIN_CALLER, FILE_CALLER
from acemath_gateway.keys.book import KeyBook
from acemath_gateway.keys.first import admin_key, first_admin_key
from acemath_gateway.keys.records import KeyRecord, draw, handed_out, may_be_one, payer
from acemath_gateway.settings import GatewaySettings
from acemath_web.auth import KeySet
from doubles.keys import MemoryKeys


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(book_module, "time", clock)
    return clock


def _book(store: MemoryKeys, fresh: float = 5, grace: float = 300) -> KeyBook:
    fixed = [KeySet([SecretStr("from the file")], FILE_CALLER), KeySet([SecretStr("the first")], ADMIN_CALLER)]
    book = KeyBook(fixed, required=True, fresh_seconds=fresh, grace_seconds=grace)
    book.opened(store)
    return book


async def _made(store: MemoryKeys, *scopes: KeyScope) -> tuple[str, str]:
    request = KeyRequest(name="k", scopes=scopes or (KeyScope.SOLVE,), quotas=Quotas(tokens_per_minute=7))
    key, record = draw(request, by="admin-file")
    await store.create(record)
    return key, record.id


def test_a_key_has_256_random_bits_and_its_record_holds_only_their_hash():
    key, record = draw(KeyRequest(name="k", scopes=(KeyScope.JOBS,)), by="admin-file")
    assert re.fullmatch(r"acemath_[A-Za-z0-9_-]{43}", key)
    assert record.digest == hashlib.sha256(key.encode()).hexdigest() and record.id == f"key-{record.digest[:16]}"
    assert key not in record.model_dump_json() and record.digest not in repr(record)
    told = handed_out(key, record)
    assert told.key == key and told.last_four == key[-4:] and record.digest not in told.model_dump_json()


_quota = st.none() | st.integers(1, 16_384)
_requests = st.builds(
    KeyRequest,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.@:+/ -]{0,63}", fullmatch=True),
    scopes=st.permutations(list(KeyScope)).flatmap(lambda all_: st.integers(1, 3).map(lambda n: tuple(all_[:n]))),
    quotas=st.builds(Quotas, requests_per_minute=_quota, tokens_per_minute=_quota, sequences_in_flight=_quota),
)


@given(_requests)
def test_a_record_comes_back_from_where_it_is_kept_as_it_was_and_opens_what_was_asked_for(request):
    key, record = draw(request, by="admin-file")
    kept = KeyRecord.model_validate_json(record.model_dump_json())
    assert kept == record and may_be_one(key)
    assert kept.caller().scopes == set(request.scopes) and kept.caller().quotas == request.quotas
    assert (payer(kept.caller()) is None) == (not any(dict(request.quotas).values()))


@given(st.text(max_size=42))
def test_what_was_not_made_here_is_not_looked_up(text):
    assert not may_be_one(text) and not may_be_one(f"acemath_{text}")


def test_a_newer_gateways_record_can_be_read():
    _, record = draw(KeyRequest(name="k", scopes=(KeyScope.SOLVE,)), by="admin-file")
    newer = record.model_dump(mode="json") | {"expires_at": "2030-01-01T00:00:00Z"}
    assert KeyRecord.model_validate_json(json.dumps(newer)) == record


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"name": "x" * 65},
        {"scopes": []},
        {"scopes": ["solve", "solve"]},
        {"scopes": ["root"]},
        {"quotas": {"requests_per_minute": 0}},
        {"quotas": {"requests_per_hour": 1}},
    ],
)
def test_a_key_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        KeyRequest.model_validate({"name": "k", "scopes": ["solve"]} | wrong)


async def test_keys_of_files_need_no_store():
    store = MemoryKeys(away=True)
    book = _book(store)
    assert await book.find("from the file") is FILE_CALLER
    assert await book.find("the first") is ADMIN_CALLER
    assert await book.find("nobody's") is None  # not of the form that ours have: not looked up
    assert store.reads == 0


async def test_a_key_is_looked_up_once_in_a_while(clock):
    store = MemoryKeys()
    book = _book(store)
    key, key_id = await _made(store)
    for _ in range(3):
        caller = await book.find(key)
        assert (caller.id, caller.scopes, caller.quotas.tokens_per_minute) == (key_id, {"solve"}, 7)
    assert store.reads == 1
    clock.now += 5
    assert await book.find(key)
    assert store.reads == 2


async def test_a_revoked_key_works_no_longer_than_the_cache_says_and_not_at_all_where_it_was_revoked(clock):
    store = MemoryKeys()
    here, elsewhere = _book(store), _book(store)
    key, key_id = await _made(store)
    assert await here.find(key) and await elsewhere.find(key)
    await store.revoke(key_id)
    here.forget(key_id)
    assert await here.find(key) is None
    clock.now += 4.9
    assert await elsewhere.find(key)
    clock.now += 0.1
    assert await elsewhere.find(key) is None


async def test_while_the_store_is_away_a_key_that_was_seen_works_for_a_while_and_no_other(clock):
    store = MemoryKeys()
    book = _book(store)
    seen, _ = await _made(store)
    unseen, _ = await _made(store)
    await book.find(seen)
    store.away = True
    clock.now += 299
    assert await book.find(seen)
    with pytest.raises(Unavailable):
        await book.find(unseen)
    clock.now += 1
    with pytest.raises(Unavailable):
        await book.find(seen)


async def test_while_the_store_is_away_no_looked_up_key_is_an_administrators(clock):
    store = MemoryKeys()
    book = _book(store)
    key, _ = await _made(store, KeyScope.SOLVE, KeyScope.ADMIN)
    assert await book.find(key)
    store.away = True
    clock.now += 6
    with pytest.raises(Unavailable):
        await book.find(key)


async def test_a_key_with_the_id_of_another_is_nobodys(clock):
    store = MemoryKeys()
    book = _book(store)
    key, record = draw(KeyRequest(name="k", scopes=(KeyScope.SOLVE,)), by="admin-file")
    await store.create(record.model_copy(update={"digest": record.digest[:16] + "0" * 48}))
    assert await book.find(key) is None


async def test_what_is_remembered_is_bounded(clock, monkeypatch):
    monkeypatch.setattr(book_module, "_REMEMBERED", 2)
    store = MemoryKeys()
    book = _book(store)
    keys = [(await _made(store))[0] for _ in range(3)]
    for key in keys:
        await book.find(key)
    await book.find(keys[2])
    assert store.reads == 3
    await book.find(keys[0])
    assert store.reads == 4


# -------------------------------------------------------------------------------------------------- the first admin key


def test_the_first_admin_key_is_made_once_for_its_owner_only(tmp_path):
    path = tmp_path / "new" / "admin.key"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: first_admin_key(path), range(8)))
    assert len({key.get_secret_value() for key, _ in found}) == 1 and sum(made for _, made in found) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["admin.key"]
    assert len(found[0][0].get_secret_value()) >= 43


def test_a_key_file_that_is_there_is_taken_as_it_is(tmp_path):
    path = tmp_path / "admin.key"
    path.write_text("k" * 32 + "\n")
    path.chmod(0o600)
    key, made = first_admin_key(path)
    assert key.get_secret_value() == "k" * 32 and not made
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        first_admin_key(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(SettingsError, match="openssl rand"):
        first_admin_key(path)


def test_a_place_that_cannot_be_written_stops_the_start_only_when_a_setting_names_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    there = tmp_path / "file" / "admin.key"
    with pytest.raises(SettingsError, match=re.escape(str(there))):
        admin_key(GatewaySettings(registry_root=tmp_path, admin_key_file=there))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    first = admin_key(GatewaySettings(registry_root=tmp_path))
    assert first.key is None and first.said.startswith("no admin key: ")


def test_what_is_said_of_the_key_is_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made, found = (admin_key(GatewaySettings(registry_root=tmp_path)) for _ in range(2))
    assert made.said == f"the admin key was made; it is in {tmp_path}/acemath/admin.key"
    assert found.said == f"the admin key is in {tmp_path}/acemath/admin.key"
    assert found.key == made.key and made.key.get_secret_value() not in made.said + repr(made)
