"""What every shelf promises: the last value or none, none past its time, no more than its limit."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest, StateUnavailable
from packshot.state import blobs as blobs_module
from packshot.state import valkey_blobs
from packshot.state.blobs import (
    MAX_TTL_S,
    OVERHEAD,
    Blobs,
    Counting,
    Held,
    MemoryBlobs,
    TieredBlobs,
)
from packshot.state.sqlite_blobs import USED_S, SqliteBlobs
from packshot.state.valkey_blobs import ValkeyBlobs
from tests.state.conftest import Clock, new_valkey

ROOM = 4
"""Values of 100 bytes that a shelf of the tests holds."""
LIMIT = ROOM * (100 + OVERHEAD)
LONG = 30 * 24 * 3600.0


@dataclass
class Shelf:
    """A shelf that holds ``ROOM`` values of 100 bytes, and its clock."""

    blobs: Blobs
    clock: Clock

    def value(self, key: str) -> bytes | None:
        found = self.blobs.get(key)
        return None if found is None else found.value


KINDS = ["memory", "sqlite", "tiered", "valkey"]
SERVER: list[Any] = []


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    """Start one Valkey; a busy machine is no silent server."""
    with new_valkey() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(valkey_blobs, "ANSWER_S", 10.0)
        SERVER.append(server)
        yield
        SERVER.clear()


def address(server: Any) -> str:
    return f"valkey://127.0.0.1:{server.port}/1"


@contextlib.contextmanager
def new_shelf(kind: str, path: Path, limit: int = LIMIT) -> Iterator[Shelf]:
    clock = Clock()
    if kind == "memory":
        yield Shelf(MemoryBlobs(limit, clock), clock)
        return
    if kind == "valkey":
        with SERVER[0].client() as client:
            client.flushall()
        with contextlib.closing(ValkeyBlobs(address(SERVER[0]), limit, clock)) as shared:
            yield Shelf(shared, clock)
        return
    with contextlib.closing(SqliteBlobs(path, limit, clock)) as file:
        if kind == "sqlite":
            yield Shelf(file, clock)
        else:
            yield Shelf(TieredBlobs(MemoryBlobs(limit // 2, clock), file, clock), clock)


@pytest.fixture(params=KINDS)
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    with new_shelf(request.param, tmp_path / "blobs.db") as shelf:
        yield shelf


# ---------------------------------------------------------------- all kinds


@pytest.mark.parametrize("value", [b"", b"\0\xff" * 50, bytes(range(256)) * 2])
def test_what_is_put_is_found_byte_for_byte(shelf: Shelf, value: bytes) -> None:
    assert shelf.blobs.get("k") is None
    shelf.blobs.put("k", value, 10.0)
    found = shelf.blobs.get("k")
    assert found is not None
    assert (found.value, found.left_s) == (value, 10.0)
    shelf.clock.move(4.0)
    found = shelf.blobs.get("k")
    assert found is not None
    assert found.left_s == 6.0


def test_the_last_value_counts_and_deleting_ends_it(shelf: Shelf) -> None:
    shelf.blobs.put("k", b"old", LONG)
    shelf.blobs.put("k", b"new", LONG)
    assert shelf.value("k") == b"new"
    assert shelf.blobs.held() == Held(1, 3 + OVERHEAD)
    shelf.blobs.delete("k")
    shelf.blobs.delete("k")
    assert shelf.value("k") is None
    assert shelf.blobs.held() == Held(0, 0)


def test_a_value_is_never_returned_past_its_time(shelf: Shelf) -> None:
    shelf.blobs.put("short", b"1", 10.0)
    shelf.blobs.put("long", b"2", 100.0)
    shelf.clock.move(9.5)
    assert shelf.value("short") == b"1"  # and a use does not make it longer
    shelf.clock.move(0.5)
    assert shelf.value("short") is None
    assert shelf.value("long") == b"2"


def test_sweeping_throws_away_what_is_past_and_nothing_else(shelf: Shelf) -> None:
    shelf.blobs.put("short", b"1", 10.0)
    shelf.blobs.put("long", b"2", 100.0)
    assert shelf.blobs.sweep() == 0
    shelf.clock.move(50.0)
    assert shelf.blobs.sweep() == 1
    assert shelf.blobs.held() == Held(1, 1 + OVERHEAD)
    assert shelf.value("long") == b"2"


def test_what_was_not_used_for_longest_goes_first(shelf: Shelf) -> None:
    for number in range(ROOM):
        shelf.blobs.put(f"k{number}", bytes(100), LONG)
        shelf.clock.move(USED_S + 1)
    assert shelf.value("k0") is not None
    shelf.clock.move(1.0)
    shelf.blobs.put("new", bytes(100), LONG)
    assert [key for key in ("k0", "k1", "k2", "k3", "new") if shelf.value(key) is None] == ["k1"]


def test_a_value_larger_than_the_shelf_is_not_kept_and_ends_the_one_before(shelf: Shelf) -> None:
    shelf.blobs.put("k", b"small", LONG)
    shelf.blobs.put("other", b"small", LONG)
    shelf.blobs.put("k", bytes(LIMIT + 1), LONG)
    assert shelf.value("k") is None
    assert shelf.value("other") == b"small"


@pytest.mark.parametrize("key", ["", "k" * 257])
def test_keys_that_are_none_are_refused(shelf: Shelf, key: str) -> None:
    for call in (shelf.blobs.get, shelf.blobs.delete, lambda k: shelf.blobs.put(k, b"", 1.0)):
        with pytest.raises(InvalidRequest, match="1 to 256 characters"):
            call(key)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, MAX_TTL_S + 1, float("nan")])
def test_times_that_are_none_are_refused(shelf: Shelf, ttl_s: float) -> None:
    with pytest.raises(InvalidRequest, match="more than 0 seconds"):
        shelf.blobs.put("k", b"", ttl_s)


@dataclass
class Model:
    """What a shelf may answer: the last value put, until its time is over."""

    now: float = 0.0
    kept: dict[str, tuple[bytes, float]] = field(default_factory=dict)

    def may_be(self, key: str) -> bytes | None:
        value, until = self.kept.get(key, (None, 0.0))
        return value if until > self.now else None


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "get", "get", "delete", "sweep", "wait"]),
        st.sampled_from("abcdefgh"),
        st.integers(0, 400),
        st.floats(0.5, 5000.0),
    ),
    max_size=60,
)


@pytest.mark.parametrize("kind", KINDS)
@given(acts=ACTS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_a_shelf_holds_no_wrong_value_and_not_too_much(
    tmp_path_factory: pytest.TempPathFactory, kind: str, acts: list[tuple[str, str, int, float]]
) -> None:
    with new_shelf(kind, tmp_path_factory.mktemp("shelf") / "blobs.db") as shelf:
        model = Model()
        for number, (act, key, length, seconds) in enumerate(acts):
            if act == "put":
                value = number.to_bytes(2, "big") + bytes(length)
                shelf.blobs.put(key, value, seconds)
                model.kept[key] = (value, model.now + seconds)
                fits = length + 2 + OVERHEAD <= LIMIT
                assert shelf.value(key) == (value if fits else None)
            elif act == "get":
                assert shelf.value(key) in {model.may_be(key), None}
            elif act == "delete":
                shelf.blobs.delete(key)
                model.kept.pop(key, None)
            elif act == "sweep":
                shelf.blobs.sweep()
            else:
                shelf.clock.move(seconds)
                model.now = shelf.clock.now - Clock().now
            held = shelf.blobs.held()
            assert 0 <= held.size <= LIMIT
            assert held.values <= len(model.kept)


def test_threads_use_one_shelf(shelf: Shelf) -> None:
    wrong: list[bytes] = []

    def work(name: str) -> None:
        for number in range(50):
            shelf.blobs.put(f"{name}{number % 3}", name.encode() * 20, LONG)
            found = shelf.value(f"{name}{number % 3}")
            if found not in {None, name.encode() * 20}:
                wrong.append(found or b"")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert shelf.blobs.held().size <= LIMIT


def test_a_shelf_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    for make in (MemoryBlobs, lambda limit: SqliteBlobs(tmp_path / "x.db", limit)):
        with pytest.raises(InvalidRequest, match="holds nothing"):
            make(OVERHEAD)


# ---------------------------------------------------------------- SQLite


def test_a_file_outlives_its_process_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "blobs.db"
    with new_shelf("sqlite", path) as first:
        first.blobs.put("k", b"value", LONG)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with new_shelf("sqlite", path) as second:
        assert second.value("k") == b"value"
        assert second.blobs.held() == Held(1, 5 + OVERHEAD)


def test_a_smaller_limit_is_kept_at_the_next_value(tmp_path: Path) -> None:
    with new_shelf("sqlite", tmp_path / "b.db") as shelf:
        for number in range(ROOM):
            shelf.blobs.put(f"k{number}", bytes(100), LONG)
    with new_shelf("sqlite", tmp_path / "b.db", LIMIT // 2) as shelf:
        shelf.blobs.put("new", bytes(100), LONG)
        assert shelf.blobs.held() == Held(2, LIMIT // 2)
        assert shelf.value("new") == bytes(100)


PROCESS = """
import sys
from pathlib import Path
from packshot.state.sqlite_blobs import SqliteBlobs
shelf = SqliteBlobs(Path(sys.argv[1]), 10**6)
for number in range(30):
    shelf.put(f"{sys.argv[2]}-{number}", sys.argv[2].encode() * 100, 1000.0)
    shelf.put("shared", sys.argv[2].encode() * 100, 1000.0)
    value = shelf.get("shared").value
    assert value in {name.encode() * 100 for name in "abcd"}, value
"""


def test_processes_share_a_file_that_none_of_them_had_made(tmp_path: Path) -> None:
    path = tmp_path / "blobs.db"
    workers = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(path), name]) for name in "abcd"
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0, 0]
    with contextlib.closing(SqliteBlobs(path, 10**6)) as shelf:
        assert shelf.held() == Held(121, 121 * (100 + OVERHEAD))


def test_a_file_that_is_not_ours_is_said_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "blobs.db"
    path.write_bytes(b"no database at all, and long enough to be one" * 20)
    with pytest.raises(StateUnavailable, match=r"blobs\.db is damaged.*remove it"):
        SqliteBlobs(path, LIMIT)
    assert path.read_bytes().startswith(b"no database")


def test_a_file_of_another_version_is_said(tmp_path: Path) -> None:
    path = tmp_path / "blobs.db"
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version = 7")
    with pytest.raises(StateUnavailable, match="version 7, expected 1"):
        SqliteBlobs(path, LIMIT)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnavailable, match="cannot be used"):
        SqliteBlobs(tmp_path / "file" / "blobs.db", LIMIT)


def test_a_table_that_is_damaged_is_said(tmp_path: Path) -> None:
    path = tmp_path / "blobs.db"
    with new_shelf("sqlite", path) as shelf:
        for number in range(ROOM):
            shelf.blobs.put(f"k{number}", bytes(100), LONG)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    with new_shelf("sqlite", path) as shelf, pytest.raises(StateUnavailable, match="remove it"):
        shelf.blobs.get("k1")


# ---------------------------------------------------------------- Valkey


def test_two_machines_share_a_shelf_and_names_part_them() -> None:
    with new_shelf("valkey", Path()) as one:
        with contextlib.closing(ValkeyBlobs(address(SERVER[0]), LIMIT, one.clock)) as two:
            one.blobs.put("k", b"value", LONG)
            assert two.get("k") == (b"value", LONG)
        other = ValkeyBlobs(address(SERVER[0]), LIMIT, one.clock, name="other")
        with contextlib.closing(other):
            assert other.get("k") is None


def test_a_server_that_is_gone_is_said_and_one_that_is_back_is_used() -> None:
    with new_valkey() as server:
        url = address(server)
        with contextlib.closing(ValkeyBlobs(url, LIMIT)) as shelf:
            shelf.put("k", b"value", LONG)
            with server.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(StateUnavailable, match="does not answer"):
                shelf.get("k")
            found = shelf.get("k")
            assert found is not None
            assert found.value == b"value"
    gone = ValkeyBlobs(url, LIMIT)
    with contextlib.closing(gone), pytest.raises(StateUnavailable, match="does not answer"):
        gone.get("k")


def test_a_silent_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_blobs, "ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"valkey://127.0.0.1:{silent.getsockname()[1]}"
        shelf = ValkeyBlobs(url, LIMIT)
        with contextlib.closing(shelf), pytest.raises(StateUnavailable, match="does not answer"):
            shelf.held()


# ---------------------------------------------------------------- a shelf before another


class Away:
    """A shelf that fails while ``down``."""

    def __init__(self, inner: Blobs) -> None:
        self.inner = inner
        self.down = True
        self.asked = 0

    def __getattr__(self, name: str):
        def call(*args):
            self.asked += 1
            if self.down:
                raise StateUnavailable("the disk is full")
            return getattr(self.inner, name)(*args)

        return call


def test_where_the_back_fails_the_front_goes_on_and_says_why() -> None:
    clock = Clock()
    back = Away(MemoryBlobs(LIMIT, clock))
    shelf = TieredBlobs(MemoryBlobs(LIMIT, clock), back, clock)
    assert shelf.get("other") is None
    assert (shelf.problem, back.asked) == ("the disk is full", 1)
    shelf.put("k", b"value", LONG)
    assert shelf.get("k") == (b"value", LONG)
    assert shelf.get("other") is None
    assert back.asked == 1  # it is not asked at every call
    back.down = False
    clock.move(blobs_module.RETRY_S)
    shelf.put("k2", b"value", LONG)
    assert shelf.problem == ""
    assert back.inner.get("k2") == (b"value", LONG)


def test_a_value_of_the_back_comes_to_the_front_with_the_time_that_is_left() -> None:
    clock = Clock()
    front, back = MemoryBlobs(LIMIT, clock), MemoryBlobs(LIMIT, clock)
    back.put("k", b"value", 100.0)
    clock.move(40.0)
    shelf = TieredBlobs(front, back, clock)
    assert shelf.get("k") == (b"value", 60.0)
    assert front.get("k") == (b"value", 60.0)


def test_what_cannot_be_deleted_comes_out() -> None:
    shelf = TieredBlobs(MemoryBlobs(LIMIT), Away(MemoryBlobs(LIMIT)))
    with pytest.raises(StateUnavailable, match="disk is full"):
        shelf.delete("k")


@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
def test_counts_only_grow_and_outlive_all_values(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "blobs.db"
    with new_shelf(kind, path) as shelf:
        assert isinstance(shelf.blobs, Counting)
        assert shelf.blobs.counts() == {}
        shelf.blobs.count({"hit": 2, "miss": 0})
        threads = [
            threading.Thread(target=shelf.blobs.count, args=({"hit": 1, "miss": 3},))
            for _ in range(8)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        for number in range(3 * ROOM):  # what is thrown away takes no count along
            shelf.blobs.put(f"k{number}", bytes(100), 1.0)
        shelf.clock.now += LONG
        shelf.blobs.sweep()
        assert shelf.blobs.counts() == {"hit": 10, "miss": 24}
    if kind == "sqlite":
        with contextlib.closing(SqliteBlobs(path, LIMIT)) as again:
            assert again.counts() == {"hit": 10, "miss": 24}


def test_a_file_of_before_counts_too(tmp_path: Path) -> None:
    with contextlib.closing(SqliteBlobs(tmp_path / "b.db", LIMIT)) as blobs:
        blobs.count({"hit": 1})
    with contextlib.closing(sqlite3.connect(tmp_path / "b.db")) as file:
        file.execute("DROP TABLE counts")
        file.commit()
    with contextlib.closing(SqliteBlobs(tmp_path / "b.db", LIMIT)) as blobs:
        assert blobs.counts() == {}
        blobs.count({"hit": 1})
        assert blobs.counts() == {"hit": 1}
    assert not isinstance(MemoryBlobs(LIMIT), Counting)
