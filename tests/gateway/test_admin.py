"""The admin API: a written table of who may call what, and hostile requests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.routing import Route
from starlette.testclient import TestClient

from packshot.core.errors import LedgerUnavailable
from packshot.gateway.access import Access, Hasher, Issued, load_admin_secret
from packshot.gateway.admin import MAX_BODY, ROUTES, AdminDesk, Guard, admin_app, spending_of
from packshot.gateway.keystore import KeyStore, open_key_store
from packshot.gateway.virtual_key import AccessEntry, VirtualKeyEntry
from packshot.ledger.stores import open_store
from tests.ledger.stores.worlds import attempts

SECRET = "s3cret-of-the-operator-" + "x" * 20
ADMIN = {"authorization": f"Bearer {SECRET}"}
HASHER = Hasher(b"p" * 32)

TABLE = {
    # method and path of every route, and whether it is for anybody, wherever he is
    ("GET", "/healthz"): True,
    ("GET", "/metrics"): False,
    ("GET", "/admin/keys"): False,
    ("POST", "/admin/keys"): False,
    ("GET", "/admin/keys/{id}"): False,
    ("POST", "/admin/keys/{id}/rotate"): False,
    ("POST", "/admin/keys/{id}/revoke"): False,
    ("GET", "/admin/keys/{id}/spending"): False,
    ("GET", "/admin/audit"): False,
    ("GET", "/admin/health"): False,
    ("POST", "/admin/reload"): False,
    ("POST", "/admin/cache/purge"): False,
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    opened = open_key_store(str(tmp_path / "ledger.db"), HASHER)
    yield opened
    opened.close()


async def reloaded() -> list[str]:
    return ["server: a change there needs a restart"]


def desk(store: KeyStore, **options: Any) -> AdminDesk:
    configured = (VirtualKeyEntry("filed", models=("openai/*",)),)
    parts: dict[str, Any] = {"configured": lambda: configured, "reload": reloaded, **options}
    return AdminDesk(store, SECRET.encode(), **parts)


@pytest.fixture
def client(store: KeyStore) -> Iterator[TestClient]:
    with TestClient(admin_app(desk(store)), raise_server_exceptions=False) as client:
        yield client


def create(client: TestClient, **settings: Any) -> Any:
    done = client.post("/admin/keys", json={"id": "shop", **settings}, headers=ADMIN)
    assert done.status_code == 201, done.text
    return done.json()


# ---------------------------------------------------------------- S2: who may call what
def test_the_table_has_every_route_of_the_application(store: KeyStore) -> None:
    app = admin_app(desk(store))
    assert isinstance(app, Guard)
    served = {
        (method, route.path)
        for route in app.inner.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert len(app.inner.routes) == len(served)
    assert served == set(TABLE)
    assert {(each.method, each.path): each.role == "anybody" for each in ROUTES} == TABLE


def test_the_docs_name_every_path() -> None:
    text = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
    said = set()
    for method, first, second in re.findall(
        r"(?m)^\| `(GET|POST) (/[^` ]+)`(?:, `(/[^`]+)`)? \|", text
    ):
        said |= {(method, path.replace("ID", "{id}")) for path in (first, second) if path}
    assert said == {(each.method, each.path) for each in ROUTES}


@pytest.mark.parametrize(("method", "path"), TABLE)
def test_every_route_with_every_credential(
    client: TestClient, store: KeyStore, method: str, path: str
) -> None:
    store.create(VirtualKeyEntry("k"), "test")
    virtual = store.rotate("k", "test")
    revoked = store.create(VirtualKeyEntry("gone"), "test")
    store.revoke("gone", "test")
    for_anybody = TABLE[method, path]
    for headers in (
        {},
        {"authorization": ""},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": SECRET},
        {"authorization": f"Basic {SECRET}"},
        {"authorization": f"Bearer {SECRET[:-1]}"},
        {"authorization": f"Bearer {SECRET} "},
        {"x-api-key": SECRET},
        {"authorization": f"Bearer {virtual}"},
        {"authorization": f"Bearer {revoked}"},
    ):
        done = client.request(method, path.replace("{id}", "k"), headers=headers)
        expected = 200 if for_anybody else 401
        # The client's library strips the space at the end, so that one is the secret itself.
        if headers.get("authorization", "").endswith(" ") and SECRET in headers["authorization"]:
            continue
        assert done.status_code == expected, headers
        assert SECRET not in done.text
    done = client.request(method, path.replace("{id}", "k"), headers=ADMIN)
    assert done.status_code in {200, 400}  # 400: POST /admin/keys without an id
    kind = "text/plain" if path == "/metrics" else "application/json"
    assert done.headers["content-type"].startswith(kind)
    assert done.headers["cache-control"] == "no-store"
    assert not [name for name in done.headers if name.startswith("access-control")]
    from_page = client.request(
        method, path.replace("{id}", "k"), headers={**ADMIN, "origin": "http://evil.example"}
    )
    assert from_page.status_code == (200 if for_anybody else 403)


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {"host": "[::1]:8081"}, 200),
        ("127.0.0.1", {"host": "localhost:8081"}, 200),
        ("192.0.2.7", {}, 401),
        ("127.0.0.1", {"host": "evil.example"}, 401),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example"}, 401),
        ("127.0.0.1", {"origin": "http://evil.example"}, 403),
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.7"}, 401),
        ("192.0.2.7", ADMIN, 200),
    ],
)
def test_metrics_are_for_this_machine_and_for_the_secret(
    store: KeyStore, address: str, headers: dict[str, str], status: int
) -> None:
    app = admin_app(desk(store, metrics=lambda: "up 1\n"))
    with TestClient(app, "http://127.0.0.1:8081", client=(address, 5)) as near:
        done = near.get("/metrics", headers=headers)
        assert done.status_code == status
        assert (done.text == "up 1\n") == (status == 200)
        assert near.get("/admin/keys", headers={}).status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/", "/admin", "/admin/", "/admin/keys/", "/docs", "/openapi.json"],
)
def test_what_is_not_in_the_table_is_not_told_to_be_missing(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 401
    assert client.get(path, headers=ADMIN, follow_redirects=False).status_code in {307, 404}
    assert client.options("/admin/keys", headers=ADMIN).status_code == 405


def test_failures_are_limited_and_the_secret_works_all_the_same(client: TestClient) -> None:
    codes = [client.get("/admin/keys").status_code for _ in range(25)]
    assert codes == [401] * 20 + [429] * 5
    assert client.get("/admin/keys", headers=ADMIN).status_code == 200


# ---------------------------------------------------------------- keys
def test_a_keys_life(client: TestClient, store: KeyStore) -> None:
    made = create(
        client, models=["openai/*"], budget={"eur": 2.30}, limits={"requests_per_minute": 5}
    )
    assert made["key"]["budget"] == {"eur": "2.3", "per": "month"}
    assert store.row("shop").entry.budget is not None
    assert store.row("shop").entry.budget.eur == Decimal("2.3")
    access = Access(HASHER, (), Issued(store.load()[1]))
    assert access.authenticate({b"x-api-key": made["secret"].encode()}, "10.0.0.1").id == "shop"

    listed = client.get("/admin/keys", headers=ADMIN).json()
    assert [row["id"] for row in listed["issued"]] == ["shop"]
    assert listed["configured"] == [{"id": "filed", "models": ["openai/*"]}]
    assert client.get("/admin/keys/shop", headers=ADMIN).json()["key"] == listed["issued"][0]

    rotated = client.post("/admin/keys/shop/rotate", json={"grace_s": 60}, headers=ADMIN).json()
    assert rotated["secret"] != made["secret"]
    assert rotated["key"]["rotated_at"] > 0
    assert client.post("/admin/keys/shop/revoke", headers=ADMIN).json()["key"]["revoked_at"] > 0
    assert client.post("/admin/keys/shop/revoke", headers=ADMIN).status_code == 400
    assert client.get("/admin/keys", headers=ADMIN).json()["issued"] == []
    assert len(client.get("/admin/keys?revoked=true", headers=ADMIN).json()["issued"]) == 1

    trail = client.get("/admin/audit?key=shop&limit=2", headers=ADMIN).json()
    assert [row["action"] for row in trail["entries"]] == ["revoke", "rotate"]
    assert trail["broken_at"] is None
    assert trail["entries"][0]["actor"] == "admin@testclient"
    everything = client.get("/admin/audit", headers=ADMIN).text + json.dumps(listed)
    for secret in (made["secret"], rotated["secret"]):
        assert secret[3:15] not in everything


def test_a_key_without_a_budget_gets_one_and_is_told_so(client: TestClient) -> None:
    made = create(client)
    assert made["defaulted"] == ["budget", "limits"]
    assert Decimal(made["key"]["budget"]["eur"]) > 0
    assert made["key"]["limits"]["requests_per_minute"] > 0
    chosen = create(client, id="open", budget=None, limits={})
    assert chosen["defaulted"] == []
    assert "budget" not in chosen["key"]
    assert create(client, id="filed")["key"]["id"] == "filed"
    assert create(client, id="half", budget={"eur": 1})["defaulted"] == ["limits"]


def test_keys_that_are_none(client: TestClient) -> None:
    for method, path in TABLE:
        if "{id}" in path:
            done = client.request(method, path.replace("{id}", "none"), headers=ADMIN)
            assert done.status_code == 404
    assert client.get("/admin/keys/filed/spending", headers=ADMIN).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"id": "x"}', "text/plain", 400),
        (b'{"id": "x"}', "application/x-www-form-urlencoded", 400),
        (b'{"id": "x"', "application/json", 400),
        (b'{"id": "x", "value": "' + b"x" * 40 + b'"}', "application/json", 400),
        (b'{"id": "x", "budget": {"eur": 1e999}}', "application/json", 400),
        (b'{"id": "x", "budget": {"eur": NaN}}', "application/json", 400),
        (b'{"id": "\xff"}', "application/json", 400),
        (b'{"id": "x", "a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "application/json", 400),
        (b'{"id": "x", "models": ["' + b"x" * MAX_BODY + b'"]}', "application/json", 413),
        (b'{"id": "x"}', "application/json; charset=utf-8", 201),
    ],
)
def test_bodies(client: TestClient, body: bytes, kind: str, status: int) -> None:
    headers = {**ADMIN, "content-type": kind}
    done = client.post("/admin/keys", content=body, headers=headers)
    assert done.status_code == status, done.text
    assert len(done.content) < 2000


def test_an_amount_never_passes_through_a_float(client: TestClient, store: KeyStore) -> None:
    body = b'{"id": "x", "budget": {"eur": 123456789.123456789}}'
    headers = {**ADMIN, "content-type": "application/json"}
    assert client.post("/admin/keys", content=body, headers=headers).status_code == 201
    budget = store.row("x").entry.budget
    assert budget is not None
    assert budget.eur == Decimal("123456789.123456789")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=²"])
def test_limits_of_the_trail(client: TestClient, query: str) -> None:
    assert client.get(f"/admin/audit?{query}", headers=ADMIN).status_code == 400


PAYLOADS = ["' OR 1=1 --", "%00", "..%2f..%2fetc%2fpasswd", "%0d%0aset-cookie:a=b", "<script>", "%"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_injected_ids_are_only_unknown(client: TestClient, store: KeyStore, payload: str) -> None:
    create(client)
    for method, path in TABLE:
        if "{id}" in path:
            done = client.request(method, path.replace("{id}", payload), headers=ADMIN)
            assert done.status_code in {404, 405}
            assert "set-cookie" not in done.headers
    assert (
        client.get("/admin/audit", params={"key": payload}, headers=ADMIN).json()["entries"] == []
    )
    assert [row.id for row in store.rows()] == ["shop"]


# ---------------------------------------------------------------- the rest
def test_reload_and_health(store: KeyStore) -> None:
    app = admin_app(desk(store, health=lambda: {"openai": "open"}))
    with TestClient(app) as client:
        assert client.get("/admin/health", headers=ADMIN).json() == {"openai": "open"}
        notes = client.post("/admin/reload", headers=ADMIN).json()["notes"]
        assert notes == ["server: a change there needs a restart"]
    with TestClient(admin_app(AdminDesk(store, SECRET.encode()))) as client:
        assert client.post("/admin/reload", headers=ADMIN).status_code == 400


def test_a_store_that_is_away_is_503_and_says_nothing_of_where(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(**_: object) -> None:
        raise LedgerUnavailable("postgres.internal: password hunter2")

    monkeypatch.setattr(store, "rows", away)
    with TestClient(admin_app(desk(store))) as client:
        done = client.get("/admin/keys", headers=ADMIN)
    assert done.status_code == 503
    assert "internal" not in done.text
    assert "hunter2" not in done.text


def test_a_bug_of_ours_is_500_and_says_nothing(store: KeyStore) -> None:
    def broken() -> dict[str, Any]:
        raise ZeroDivisionError("secret state")

    app = admin_app(desk(store, health=broken))
    with TestClient(app, raise_server_exceptions=False) as client:
        done = client.get("/admin/health", headers=ADMIN)
    assert done.status_code == 500
    assert done.json()["error"]["message"] == "it failed"
    assert "secret state" not in done.text


def test_spending_is_what_the_ledger_has(store: KeyStore, tmp_path: Path) -> None:
    ledger = open_store(str(tmp_path / "ledger.db"))
    rows = attempts(60)
    ledger.append(rows)
    app = admin_app(desk(store, spending=lambda key: spending_of(ledger, key)))
    with TestClient(app) as client:
        store.create(VirtualKeyEntry("key-1"), "test")
        said = client.get("/admin/keys/key-1/spending", headers=ADMIN).json()
        none = client.get("/admin/keys/filed/spending", headers=ADMIN).json()
    ledger.close()
    mine = [row.event for row in rows if row.event.dimensions.virtual_key == "key-1"]
    assert Decimal(said["eur"]) == Decimal(sum(each.amount for each in mine)).scaleb(-9)
    assert said["attempts"] == len(mine)
    assert sum(Decimal(each["eur"]) for each in said["models"]) == Decimal(said["eur"])
    assert (none["eur"], none["attempts"], none["models"]) == ("0.000000000", 0, [])


def test_the_secret_is_made_where_there_is_none_and_is_in_no_text(tmp_path: Path) -> None:
    path = tmp_path / "state" / "admin-secret"
    made = load_admin_secret(AccessEntry(), path)
    assert made == load_admin_secret(AccessEntry(), path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(made) == 64


def test_no_repr_has_the_secret(store: KeyStore) -> None:
    app = admin_app(desk(store))
    assert SECRET not in repr(desk(store)) + repr(app) + repr(vars(app))


def test_on_a_real_server(store: KeyStore) -> None:
    """A header that comes twice, and a chunked body over the limit, on real sockets."""
    config = uvicorn.Config(admin_app(desk(store)), port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/admin/keys", headers=ADMIN)
        assert json.load(connection.getresponse())["issued"] == []
        connection.request(
            "POST",
            "/admin/keys",
            body=iter([b" " * 10_000] * 10),
            headers={**ADMIN, "content-type": "application/json"},
            encode_chunked=True,
        )
        assert connection.getresponse().status == 413
        connection.close()
    finally:
        server.should_exit = True
        thread.join(30)
