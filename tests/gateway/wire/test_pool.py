"""What the pool does with its connections: places, queues, ages, TLS, names, and their ends."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import random
import socket
import ssl
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from packshot.core.errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from packshot.gateway.wire import resolve
from packshot.gateway.wire.pool import Pool, PoolLimits, PoolStats
from packshot.gateway.wire.resolve import Resolver
from packshot.gateway.wire.upstream import Origin
from tests.gateway.wire.origins import OK, Peer, call, serving

CHANCE = random.Random(7)


@contextlib.asynccontextmanager
async def pooling(origin: Origin, **limits: object):
    pool = Pool(origin, PoolLimits(**limits))  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        await pool.close()
        assert pool.stats == PoolStats(0, 0, 0, 0), "a place was lost"


async def polite(peer: Peer) -> None:
    while await peer.answer():
        continue


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it is another's state, which tells nobody
            await asyncio.sleep(0.005)


def test_stats_tell_open_idle_waiting_and_busy():
    go = asyncio.Event()

    async def talk(peer: Peer) -> None:
        while await peer.request():
            await go.wait()
            await peer.say(OK)

    async def scene() -> None:
        async with serving(talk) as origin, pooling(origin, connections=2) as pool:
            tasks = [asyncio.create_task(pool.send(call())) for _ in range(3)]
            await until(lambda: pool.stats == PoolStats(open=2, idle=0, waiting=1, in_flight=2))
            go.set()
            await asyncio.gather(*tasks)
            assert pool.stats == PoolStats(open=2, idle=2, waiting=0, in_flight=0)

    uvloop.run(scene())


def test_the_last_to_rest_is_the_first_to_go():
    seen: list[int] = []

    async def talk(peer: Peer) -> None:
        while await peer.request():
            seen.append(peer.number)
            await asyncio.sleep(0.02 * (1 - peer.number))
            await peer.say(OK)

    async def scene() -> None:
        async with serving(talk) as origin, pooling(origin) as pool:
            await asyncio.gather(pool.send(call()), pool.send(call()))
            first = seen[-1]
            for _ in range(3):
                await pool.send(call())
            assert len(set(seen[2:])) == 1
            assert first in {0, 1}

    uvloop.run(scene())


def test_a_connection_that_rests_too_long_is_closed():
    gone = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.answer()
        await peer.gone()
        gone.set()

    async def scene() -> None:
        async with serving(talk) as origin, pooling(origin, keep_s=0.1) as pool:
            await pool.send(call())
            await asyncio.wait_for(gone.wait(), 10)
            await until(lambda: pool.stats.open == 0)

    uvloop.run(scene())


def test_the_timer_stops_when_nothing_is_open():
    async def scene() -> None:
        async with serving(polite) as origin, pooling(origin, keep_s=0.05) as pool:
            await pool.send(call())
            await until(lambda: pool._timer is None)
            await pool.send(call())
            assert pool._timer is not None

    uvloop.run(scene())


def test_waiting_ends_with_the_deadline_or_the_caller():
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async def scene() -> None:
        async with serving(talk) as origin, pooling(origin, connections=1) as pool:
            busy = asyncio.create_task(pool.send(call()))
            await until(lambda: pool.stats.open == 1)
            with pytest.raises(UpstreamTimeout, match="no connection got free") as caught:
                await pool.send(call(within=0.15))
            assert not caught.value.sent
            waiting = asyncio.create_task(pool.send(call()))
            await until(lambda: pool.stats.waiting == 1)
            waiting.cancel()
            await until(lambda: pool.stats.waiting == 0)
            next_one = asyncio.create_task(pool.send(call()))
            await until(lambda: pool.stats.waiting == 1)
            busy.cancel()  # its place goes to the one that waits
            await until(lambda: pool.stats.waiting == 0)
            next_one.cancel()
            await asyncio.gather(busy, waiting, next_one, return_exceptions=True)

    uvloop.run(scene())


def test_a_call_cancelled_as_it_was_served_hands_its_connection_on():
    go = asyncio.Event()

    async def talk(peer: Peer) -> None:
        while await peer.request():
            await go.wait()
            await peer.say(OK)

    async def scene() -> None:
        async with serving(talk) as origin, pooling(origin, connections=1) as pool:
            for delay in range(6):
                go.clear()
                tasks = [asyncio.create_task(pool.send(call())) for _ in range(3)]
                await until(lambda: pool.stats.waiting == 2)
                go.set()
                await asyncio.wait(tasks[:1])
                for _ in range(delay):
                    await asyncio.sleep(0)
                tasks[1].cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                assert not isinstance(done[2], BaseException)

    asyncio.run(scene())


def test_a_call_cancelled_as_its_connection_went_stale_gives_its_place_back():
    seen: list[int] = []

    async def talk(peer: Peer) -> None:
        while await peer.request():
            seen.append(peer.number)
            if len(seen) != 2:
                await peer.say(OK)

    async def scene() -> None:
        async with serving(talk) as origin, pooling(origin) as pool:
            await pool.send(call())
            task = asyncio.create_task(pool.send(call()))
            await until(lambda: len(seen) == 2)
            (kept,) = pool._links
            transport = kept.transport
            kept.connection_lost(None)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            assert pool.stats == PoolStats(0, 0, 0, 0)
            transport.abort()
            await pool.send(call())

    asyncio.run(scene())
    assert seen == [0, 0, 1]


@pytest.mark.parametrize(("giving_up", "dies"), [(False, True), (True, True), (True, False)])
def test_a_connection_that_is_handed_on_costs_nobody_a_place(giving_up, dies):
    async def scene() -> None:
        async with serving(polite) as origin, pooling(origin, connections=1) as pool:
            await pool.send(call())
            kept = pool._idle.pop()
            waiting = [asyncio.create_task(pool.send(call(within=5))) for _ in range(2)]
            await until(lambda: pool.stats.waiting == 2)
            pool._rest(kept)
            if dies:
                kept.transport.abort()
            if giving_up:
                waiting[0].cancel()
            done = await asyncio.gather(*waiting, return_exceptions=True)
            assert waiting[0].cancelled() == giving_up
            assert await done[1].read(2) == b"ok"
            await until(lambda: pool.stats.in_flight == 0)
            assert pool.stats.open == pool.stats.idle

    asyncio.run(scene())


@pytest.mark.parametrize("runner", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_giving_up_in_any_moment_of_connecting_gives_one_place_back(runner):
    """The event loop may tell of a connection whose caller has just been cancelled."""

    async def scene() -> None:
        async with serving(polite) as origin, pooling(origin) as pool:
            for turns in range(40):
                task = asyncio.create_task(pool.send(call()))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                for link in list(pool._links):
                    link.drop()
                await until(lambda: not pool._links)
                await asyncio.sleep(0.002)
                assert pool.stats.open == 0

    runner(scene())


def test_a_connection_that_was_never_ours_gives_no_place_back():
    async def scene() -> None:
        pool = Pool(Origin("http", "127.0.0.1", 1))
        pool._lost(pool._new_link())
        assert pool.stats == PoolStats(0, 0, 0, 0)

    asyncio.run(scene())


def test_a_deadline_that_has_passed_sends_nothing():
    seen: list[int] = []

    async def talk(peer: Peer) -> None:
        seen.append(len(await peer.request()))

    async def scene() -> None:
        async with serving(talk) as origin, pooling(origin) as pool:
            with pytest.raises(UpstreamTimeout) as caught:
                await pool.send(call(within=-1))
            assert not caught.value.sent

    uvloop.run(scene())
    assert not seen


def test_closing_ends_what_is_in_flight_and_waits():
    arrived = False

    async def talk(peer: Peer) -> None:
        nonlocal arrived
        await peer.request()
        arrived = True
        await peer.gone()

    async def scene() -> None:
        async with serving(talk) as origin:
            pool = Pool(origin, PoolLimits(connections=1))
            tasks = [asyncio.create_task(pool.send(call())) for _ in range(2)]
            # While the first still connects, it is not in flight, and ends as unreachable.
            await until(lambda: pool.stats.waiting == 1 and arrived)
            await pool.close()
            busy, waiting = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(busy, UpstreamBroken)
            assert isinstance(waiting, UpstreamUnreachable)
            with pytest.raises(UpstreamUnreachable, match="closed"):
                await pool.send(call())
            assert pool.stats == PoolStats(0, 0, 0, 0)

    uvloop.run(scene())


def test_a_bad_target_loses_no_connection():
    async def scene() -> None:
        async with serving(polite) as origin, pooling(origin) as pool:
            with pytest.raises(ValueError, match="target"):
                await pool.send(call(target=b"/a b"))
            await pool.send(call())
            assert pool.stats == PoolStats(open=1, idle=1, waiting=0, in_flight=0)

    uvloop.run(scene())


async def faulty(peer: Peer) -> None:
    """Echo the body, or hang up, stall, cut or reset."""
    while request := await peer.request():
        body = request.partition(b"\r\n\r\n")[2]
        fate = CHANCE.random()
        if fate < 0.05:
            return
        if fate < 0.1:
            peer.reset()
            return
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
        if fate < 0.2:
            await peer.say(head + body[: len(body) // 2])
            return
        if fate < 0.5:
            await peer.say(head)
            await asyncio.sleep(CHANCE.random() * 0.01)
            await peer.say(body)
        else:
            await peer.say(head + body)


async def impatient(pool: Pool, number: int) -> bool:
    """Call with a body of one's own; some give up in the middle."""
    body = b"%d;" % number * 50
    try:
        async with asyncio.timeout(CHANCE.random() * 0.2 if number % 5 == 0 else None):
            answer = await pool.send(call(body=body))
            if number % 7 == 0:
                await answer.chunk()
                answer.abort()
                return False
            assert await answer.read(1 << 20) == body
            return True
    except (UpstreamError, TimeoutError):
        return False


@pytest.mark.parametrize("runner", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_hundreds_of_calls_with_faults_get_their_own_answers_and_lose_no_place(runner):
    async def scene() -> list[bool]:
        async with serving(faulty) as origin, pooling(origin, connections=8) as pool:
            good = await asyncio.gather(*(impatient(pool, number) for number in range(600)))
            assert pool.stats.waiting == 0
            assert pool.stats.open <= 8
        return good

    assert sum(runner(scene())) > 200


# -------------------------------------------------------------------------------- TLS


def certificate(folder: Path, *names: str) -> Path:
    """Write a self-signed certificate for the names, with its key, and return the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    alternatives: list[x509.GeneralName] = []
    for name in names:
        with contextlib.suppress(ValueError):
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            continue
        alternatives.append(x509.DNSName(name))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file


def server_side(file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.mark.parametrize("runner", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("tls", [False, True])
def test_a_slow_reader_misses_nothing_and_leaves_a_connection_that_can_be_used(
    runner, tls, tmp_path
):
    """It gets its bytes in smaller segments from the moment in which it falls behind."""
    sent = CHANCE.randbytes(3 << 20)
    file = certificate(tmp_path, "127.0.0.1")

    async def talk(peer: Peer) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(sent)
        while await peer.answer(head + sent):
            await peer.answer(OK)

    async def scene() -> None:
        async with serving(talk, server_side(file) if tls else None) as origin:
            trusting = Origin(origin.scheme, "127.0.0.1", origin.port, str(file) if tls else "")
            async with pooling(trusting) as pool:
                for _ in range(2):
                    reply = await pool.send(call())
                    got, size = [], 0
                    while part := await reply.chunk():
                        got.append(part)
                        size += len(part)
                        (link,) = pool._links
                        narrow = link._narrow
                        if size < 1 << 20:
                            await asyncio.sleep(0.005)
                    assert b"".join(got) == sent
                    assert narrow
                    assert await (await pool.send(call())).read(2) == b"ok"
                    assert pool.stats == PoolStats(1, 1, 0, 0), "the same connection, every time"

    runner(scene())


@pytest.mark.parametrize("runner", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_tls_with_the_origins_own_authority(runner, host, tmp_path):
    file = certificate(tmp_path, "127.0.0.1", "localhost")
    protocols: list[str | None] = []

    async def talk(peer: Peer) -> None:
        protocols.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        while await peer.answer(OK[:-2] + b"ok"):
            continue

    async def scene() -> None:
        async with serving(talk, server_side(file)) as plain:
            origin = Origin("https", host, plain.port, ca=str(file))
            async with pooling(origin) as pool:
                for _ in range(2):
                    assert await (await pool.send(call())).read(2) == b"ok"

    runner(scene())
    assert protocols == ["http/1.1"]


@pytest.mark.parametrize("case", ["unknown authority", "another name"])
def test_a_certificate_that_proves_nothing_is_refused(case, tmp_path):
    file = certificate(tmp_path, "elsewhere.example" if case == "another name" else "127.0.0.1")
    ca = str(file) if case == "another name" else ""
    seen: list[bytes] = []

    async def talk(peer: Peer) -> None:
        seen.append(await peer.request())

    async def scene() -> None:
        async with serving(talk, server_side(file)) as plain:
            origin = Origin("https", "127.0.0.1", plain.port, ca=ca)
            async with pooling(origin) as pool:
                with pytest.raises(UpstreamUnreachable, match="certificate") as caught:
                    await pool.send(call())
                assert not caught.value.sent

    # On plain asyncio: uvloop's server complains of the broken handshake in the log's own way.
    asyncio.run(scene())
    assert not any(seen)


# -------------------------------------------------------------------------------- names


class Names:
    """A name server that answers what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = ["127.0.0.1"]
        self.asked = 0
        monkeypatch.setattr(socket, "getaddrinfo", self.answer)

    def answer(self, host, port, *_rest, **_more):
        self.asked += 1
        if not self.addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, 6, "", (each, port)) for each in self.addresses]


def test_names_are_asked_for_once_a_minute(monkeypatch):
    names = Names(monkeypatch)

    async def scene() -> None:
        resolver = Resolver("api.example", 443)
        await asyncio.gather(*(resolver.addresses() for _ in range(9)))
        assert names.asked == 1
        names.addresses = ["127.0.0.2"]
        assert await resolver.addresses() == ["127.0.0.1"]
        resolver.forget()
        assert await resolver.addresses() == ["127.0.0.2"]
        assert names.asked == 2

    asyncio.run(scene())


def test_the_last_answer_is_used_when_the_name_server_is_gone(monkeypatch):
    names = Names(monkeypatch)
    monkeypatch.setattr(resolve, "KEEP_S", 0.0)

    async def scene() -> None:
        resolver = Resolver("api.example", 443)
        await resolver.addresses()
        names.addresses = []
        assert await resolver.addresses() == ["127.0.0.1"]
        with pytest.raises(OSError, match="try again"):
            await Resolver("other.example", 443).addresses()

    asyncio.run(scene())


def test_a_name_without_an_address_is_unreachable(monkeypatch):
    Names(monkeypatch).addresses = []

    async def scene() -> None:
        async with pooling(Origin("http", "api.example", 80)) as pool:
            with pytest.raises(UpstreamUnreachable, match="name cannot be resolved") as caught:
                await pool.send(call())
            assert not caught.value.sent

    asyncio.run(scene())


def test_the_next_address_is_tried_and_remembered(monkeypatch):
    names = Names(monkeypatch)
    names.addresses = ["127.0.0.9", "127.0.0.1"]  # the server listens on the second only

    async def scene() -> None:
        async with serving(polite) as plain:
            origin = Origin("http", "api.example", plain.port)
            async with pooling(origin) as pool:
                assert await (await pool.send(call())).read(2) == b"ok"
                assert await pool._resolver.addresses() == ["127.0.0.1", "127.0.0.9"]

    asyncio.run(scene())
