"""Calls that packshot makes itself: in its own process, and of a gateway elsewhere."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.client import Ask, Client, LocalClient, RemoteClient, Reply, run
from packshot.gateway.settings import load_gateway
from packshot.ledger.prices.book import book_of
from packshot.ledger.settings import load_settings
from packshot.ledger.stores import open_store
from packshot.ledger.wiring import bring_in, local_ledger
from packshot.providers.fake import Fake
from packshot.providers.fake_script import NEVER, Fault, Rule, Settings
from tests.gateway.world import World, world
from tests.studio.provider import provider

YAML = """
providers:
  openai:
    base_url: {one}/v1
    keys: [{value: env.KEY_A, name: only}]
    network: {retry: {max_retries: 1, backoff_initial_ms: 1, backoff_max_ms: 2}}
  anthropic:
    base_url: {two}
    keys: [{value: env.KEY_A}]
    network: {retry: {max_retries: 0}}
routes:
  - {id: prompt-rewrite, primary: openai/gpt-4o-mini, fallbacks: [anthropic/claude-haiku-4-5]}
  - {id: alone, primary: openai/gpt-4o-mini}
  - {id: unpriced, primary: openai/no-such-model}
"""
LEDGER = "ledger: {store: ledger.db, journal: journal%s}\n"
BOOKED_ON = {"render": "a1", "recipe": "render", "stage": "caption", "tags": "prompt=p-1"}
COLUMNS = (
    "render, recipe, stage, provider, model, route, tags, outcome, amount, virtual_key, reason"
)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-a")


def ask(route: str = "prompt-rewrite", within_s: float = 20.0) -> Ask:
    messages = (("system", "Answer in JSON."), ("user", "white sneakers"))
    return Ask(route, messages, 300, monotonic() + within_s, BOOKED_ON)


def asked(client: Client, *asks: Ask) -> list[Reply]:
    async def all_of() -> list[Reply]:
        try:
            return [await client.chat(each) for each in asks]
        finally:
            await client.close()

    return run(all_of())


class Here:
    """A configuration, its fakes, and the ledger of one command after the other."""

    def __init__(self, folder: Path, one: Fake, two: Fake) -> None:
        self.path = folder / "packshot.yaml"
        self.one, self.two = one, two
        self.write()

    def write(self, ledger: str = "") -> None:
        text = YAML.replace("{one}", self.one.url).replace("{two}", self.two.url)
        self.path.write_text(text + LEDGER % ledger)

    def ask(self, *asks: Ask, then: Callable[[Client], Awaitable[None]] | None = None) -> list:
        settings = load_settings(self.path)
        book = book_of(settings)
        ledger = local_ledger(settings, book)
        try:
            client = LocalClient(load_gateway(self.path), ledger, book)
            got = run(then(client)) if then else asked(client, *asks)  # type: ignore[arg-type]
        finally:
            left = dict(ledger.open_holds)
            ledger.close()
        assert left == {}
        return got or []

    def booked(self) -> list[dict[str, object]]:
        settings = load_settings(self.path)
        store = open_store(settings.store)
        try:
            bring_in(settings, store)
            assert store.verify() == []
            rows = store.query(f"SELECT {COLUMNS} FROM entries ORDER BY settled_at, number")  # noqa: S608
            return [dict(zip(COLUMNS.split(", "), row, strict=True)) for row in rows]
        finally:
            store.close()

    def price_of(self, fake: Fake, target: str) -> int:
        """Return what the truth log comes to."""
        book = book_of(load_settings(self.path))
        name, _, model = target.partition("/")
        billed = [each.billed for each in fake.truth if each.billed is not None]
        from packshot.core.clock import wall_us

        return sum(book.charge(usage, name, model, wall_us()).amount for usage in billed)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with provider(Settings()) as one, provider(Settings()) as two:
        yield Here(tmp_path, one, two)


def test_a_call_is_answered_and_booked_on_the_render(here: Here) -> None:
    here.one.next(Fault(says="{}"))
    (reply,) = here.ask(ask())
    assert (reply.text, reply.trouble, reply.kind) == ("{}", "", "")
    assert (reply.provider, reply.model, reply.attempts) == ("openai", "gpt-4o-mini", 1)
    assert reply.priced
    (entry,) = here.booked()
    assert entry == {
        "render": "a1",
        "recipe": "render",
        "stage": "caption",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "route": "prompt-rewrite",
        "tags": "key=only,prompt=p-1",
        "outcome": "succeeded",
        "amount": reply.cost,
        "virtual_key": "",
        "reason": "",
    }
    assert reply.cost == here.price_of(here.one, "openai/gpt-4o-mini") > 0


def test_the_other_provider_takes_over(here: Here) -> None:
    here.one.rule(Rule(fault=Fault(status=503)))
    here.two.next(Fault(says='{"a": 1}'))
    (reply,) = here.ask(ask())
    assert (reply.text, reply.provider, reply.attempts) == ('{"a":1}', "anthropic", 3)
    assert reply.cost == here.price_of(here.two, "anthropic/claude-haiku-4-5") > 0


def test_everybody_down_is_no_exception(here: Here) -> None:
    for fake in (here.one, here.two):
        fake.rule(Rule(fault=Fault(status=503)))
    (reply,) = here.ask(ask())
    assert (reply.text, reply.cost, reply.priced) == ("", 0, True)
    assert "overloaded" in reply.trouble
    assert reply.kind == "unanswered"
    assert {entry["outcome"] for entry in here.booked()} == {"failed_free"}


def test_nothing_listens(here: Here) -> None:
    here.path.write_text(
        YAML.replace("{one}", "http://127.0.0.1:9").replace("{two}", "http://127.0.0.1:9")
        + LEDGER % ""
    )
    (reply,) = here.ask(ask())
    assert "could not be reached" in reply.trouble
    assert {entry["outcome"] for entry in here.booked()} == {"failed_free"}


def test_silence_until_the_deadline_is_booked_at_its_bound(here: Here) -> None:
    here.one.rule(Rule(fault=Fault(head_after_s=NEVER)))
    (reply,) = here.ask(ask("alone", 2.0))
    assert "in time" in reply.trouble
    assert reply.kind == "deadline"
    (entry,) = here.booked()
    assert (entry["outcome"], entry["amount"]) == ("unknown", reply.cost)
    assert reply.cost > 0


def test_a_cap_that_is_reached_refuses(here: Here) -> None:
    here.write(", caps: [{scope: total, eur: 0.00001}]")
    (reply,) = here.ask(ask())
    assert reply.trouble.startswith("cap total is 0.000010 EUR")
    assert reply.kind == "budget"
    assert reply.cost == len(here.one.truth) == 0
    assert here.booked() == []


def test_what_has_no_price_is_not_free(here: Here) -> None:
    (reply,) = here.ask(ask("unpriced"))
    assert reply.text
    assert (reply.cost, reply.priced) == (0, False)
    here.write(", unpriced: refuse")
    (reply,) = here.ask(ask("unpriced"))
    assert "no price is known for openai/no-such-model" in reply.trouble


def test_a_caller_that_is_cancelled_leaves_no_hold(here: Here) -> None:
    here.one.rule(Rule(fault=Fault(head_after_s=NEVER)))

    async def interrupted(client: Client) -> None:
        try:
            await client.chat(ask("alone"))
        finally:
            await client.close()

    def interrupt() -> None:
        while not here.one.truth:
            threading.Event().wait(0.005)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        here.ask(then=interrupted)
    thread.join()
    (entry,) = here.booked()
    assert (entry["outcome"], entry["reason"]) == ("unknown", "the caller hung up")


def test_a_name_server_that_says_nothing_does_not_outlast_the_deadline(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        assert answered.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    here.path.write_text(
        YAML.replace("{one}", "http://far.internal").replace("{two}", here.two.url) + LEDGER % ""
    )
    (reply,) = here.ask(ask("alone", 0.3))  # would not return: the event is set behind it
    answered.set()
    assert reply.trouble
    assert {entry["outcome"] for entry in here.booked()} <= {"failed_free", "unknown"}


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ("prompt-rewite", "unknown route 'prompt-rewite'. Did you mean 'prompt-rewrite'?"),
        ("opanai/gpt-4o-mini", "unknown provider 'opanai'. Did you mean 'openai'?"),
        ("openai/", "a target is provider/model"),
    ],
)
def test_a_route_that_is_not_there_is_named(here: Here, route: str, said: str) -> None:
    settings = load_settings(here.path)
    book = book_of(settings)
    ledger = local_ledger(settings, book)
    client = LocalClient(load_gateway(here.path), ledger, book)
    ledger.close()
    client.check("prompt-rewrite")
    client.check("anthropic/claude-haiku-4-5")
    with pytest.raises(InvalidRequest) as raised:
        client.check(route)
    assert said in str(raised.value)


KEY = "pk-" + "k" * 40
ACCESS = "access: {virtual_keys: [{id: studio, team: shop, value: env.KEY_V}]}\n"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("KEY_V", KEY)
    with world(tmp_path, YAML + ACCESS, one=Settings(), two=Settings()) as made:
        yield made


@pytest.mark.parametrize("suffix", ["", "/", "/v1"])
def test_a_gateway_elsewhere_books_the_call_on_the_render(there: World, suffix: str) -> None:
    there.fakes["one"].next(Fault(says="{}"))
    (reply,) = asked(RemoteClient(there.url + suffix, KEY), ask())
    assert (reply.text, reply.trouble, reply.attempts) == ("{}", "", 1)
    assert (reply.provider, reply.model, reply.priced) == ("openai", "gpt-4o-mini", True)
    (entry,) = there.booked()
    assert (entry.stage, entry.amount) == ("caption", reply.cost)
    assert (entry.virtual_key, entry.team) == ("studio", "shop")
    assert "prompt=p-1" in entry.tags
    store = open_store(load_settings(there.path).store)
    assert store.query("SELECT render, recipe FROM entries") == [("a1", "render")]
    store.close()


def test_what_a_gateway_elsewhere_says_no_to(there: World) -> None:
    (stranger,) = asked(RemoteClient(there.url, "pk-" + "x" * 40), ask())
    assert stranger.trouble.startswith("the gateway answered 401: this virtual key is not known")
    for fake in there.fakes.values():
        fake.rule(Rule(fault=Fault(status=503)))
    (down,) = asked(RemoteClient(there.url, KEY), ask())
    assert down.trouble.startswith("the gateway answered 5")
    assert (down.cost, down.attempts) == (0, 3)
    (nobody,) = asked(RemoteClient("http://127.0.0.1:9"), ask())
    assert nobody.trouble.startswith("the gateway: ")


def test_a_gateway_elsewhere_ends_at_the_deadline(there: World) -> None:
    there.fakes["one"].rule(Rule(fault=Fault(head_after_s=NEVER)))
    (reply,) = asked(RemoteClient(there.url, KEY), ask("alone", 2.0))
    assert (reply.text, reply.kind) == ("", "deadline")


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        ("http://gateway.example.com", "", "http to gateway.example.com"),
        ("gateway:8080", "", "its scheme, host or port"),
        ("https://u:p@gateway.example.com", "", "holds a user or a password"),
        ("https://gateway.example.com", "pk\r\nx: y", "a key of gateway holds"),
    ],
)
def test_an_address_or_key_that_cannot_be_used(url: str, key: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        RemoteClient(url, key)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("body", "trouble"),
    [
        (b"", "no chat completion"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": [{"message": {"content": null}}]}', "said nothing"),
        (b'{"choices": [{"message": {"content": null, "refusal": "no"}}]}', "refused"),
    ],
)
def test_an_answer_without_text(body: bytes, trouble: str) -> None:
    from packshot.gateway.client import _said

    text, said = _said(body)
    assert text == ""
    assert trouble in said
