"""``packshot keys``: virtual keys made, listed, given new secrets, revoked; and who did what."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import options as o
from packshot.cli import terminal
from packshot.core.errors import InvalidRequest

if TYPE_CHECKING:
    from packshot.gateway.keystore import KeyStore
    from packshot.gateway.virtual_key import DefaultsEntry, VirtualKeyEntry

__all__ = ["app"]

BROKEN = 5
"""Exit code where the audit trail is not whole: that of every error of the ledger."""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

app = typer.Typer(help="Virtual keys of the gateway's callers.", rich_markup_mode=None)
app.callback(invoke_without_command=True)(terminal.help_if_alone)

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings.", show_default="packshot.yaml")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The key's name.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="A route or provider/model, with *; repeatable."),
]
Routes = Annotated[
    list[str] | None, typer.Option("--route", metavar="NAME", help="A route; repeatable.")
]
Keys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="PROVIDER/NAME", help="A provider's key; repeatable."),
]
Addresses = Annotated[
    list[str] | None,
    typer.Option("--allow-ip", metavar="NET", help="An address or network; repeatable."),
]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="For costs; repeatable.")
]


@app.command()
def create(
    key_id: Id,
    team: Annotated[str, typer.Option(help="Who pays.")] = "",
    model: Models = None,
    route: Routes = None,
    key: Keys = None,
    rpm: Annotated[int | None, typer.Option(min=0, help="Requests in any minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=0, help="Tokens in any minute.")] = None,
    eur: Annotated[str, typer.Option(metavar="AMOUNT", help="May be spent per period.")] = "",
    per: Annotated[str, typer.Option(help="hour, day, month or ever.")] = "month",
    unbounded: Annotated[
        bool, typer.Option("--unbounded", help="Neither budget nor limits but those given here.")
    ] = False,
    max_cost: Annotated[str, typer.Option(metavar="EUR", help="Of one call, at most.")] = "",
    allow_ip: Addresses = None,
    expires: Annotated[str, typer.Option(metavar="DATE", help="Ends at its beginning, UTC.")] = "",
    tag: Tags = None,
    cache_group: Annotated[str, typer.Option(help="Shares cached answers with it.")] = "",
    content_log: Annotated[
        bool, typer.Option("--content-log", help="Keep what is asked and answered.")
    ] = False,
    config: Config = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """Issue a key and print its secret, once. A key of packshot.yaml needs no more than its id;
    another has the budget and limits of access.defaults, unless these are chosen here.
    """
    from packshot.gateway.keystore import entry_of, settings_of, with_defaults

    chosen: dict[str, Any] = {
        "team": team,
        "models": model,
        "routes": route,
        "keys": key,
        "limits": _some(requests_per_minute=rpm, tokens_per_minute=tpm),
        "budget": {"eur": eur, "per": per} if eur else None,
        "allow_ips": allow_ip,
        "expires": expires,
        "tags": _tags(tag or ()),
        "cache_group": cache_group,
        "content_log": content_log,
        "max_cost_eur": max_cost,
    }
    settings = {"id": key_id, **_some(**chosen)}
    entry, given = entry_of(settings), ()
    with _desk(config) as desk:
        _check_configured(desk.configured, entry)
        if not unbounded and all(key_id != each.id for each in desk.configured):
            entry, given = with_defaults(settings, desk.defaults)
        secret = desk.store.create(entry, desk.actor)
    _give(secret, as_json, settings_of(entry))
    _tell_defaults(entry, given)
    _warn_of_what_is_open(desk.configured, entry)


@app.command("list")
def list_keys(
    revoked: Annotated[bool, typer.Option("--revoked", help="Those that ended, too.")] = False,
    config: Config = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """List the keys of packshot.yaml and those that were issued."""
    from packshot.gateway.keystore import settings_of

    with _desk(config) as desk:
        issued = {row.id: row for row in desk.store.rows(revoked=revoked)}
        entries = {entry.id: entry for entry in desk.configured}
    facts: list[dict[str, Any]] = []
    for key_id in sorted({*issued, *entries}):
        row = issued.get(key_id)
        entry = entries.get(key_id) or issued[key_id].entry
        facts.append(
            {
                **settings_of(entry),
                "configured": key_id in entries,
                "has_secret": bool(entry.value or (row and not row.revoked_at)),
                "created_at": row.created_at if row else 0,
                "rotated_at": row.rotated_at if row else 0,
                "revoked_at": row.revoked_at if row else 0,
            }
        )
    if as_json:
        _json({"keys": facts})
    elif not facts:
        typer.echo("no virtual key; `packshot keys create ID` issues one")
    else:
        _table(facts)


@app.command()
def rotate(
    key_id: Id,
    grace: Annotated[
        str, typer.Option(metavar="30m | 24h | 7d", help="How long the old secret holds.")
    ] = "0s",
    config: Config = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """Give a key a new secret and print it, once; the old one ends now, or after a grace."""
    seconds = _seconds(grace)
    with _desk(config) as desk:
        secret = desk.store.rotate(key_id, desk.actor, seconds)
    _give(secret, as_json, {"id": key_id, "grace_s": seconds})


@app.command()
def revoke(key_id: Id, config: Config = None, *, as_json: o.AsJson = False) -> None:
    """End a key for ever, everywhere within a second."""
    with _desk(config) as desk:
        desk.store.revoke(key_id, desk.actor)
    if as_json:
        _json({"id": key_id, "revoked": True})
    else:
        typer.echo(f"revoked: {key_id}")


@app.command()
def audit(
    key_id: Annotated[str, typer.Argument(metavar="[ID]", help="Of this key alone.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, newest first.")] = 50,
    config: Config = None,
    *,
    as_json: o.AsJson = False,
) -> None:
    """Show who did what to which key; exit 5 where the trail was tampered with."""
    from dataclasses import asdict

    with _desk(config) as desk:
        rows = desk.store.audit(key_id, limit)
        broken = desk.store.check_audit()
    if as_json:
        _json({"entries": [asdict(row) for row in rows], "broken_at": broken})
    else:
        from packshot.cli.cost import print_rows

        cells = [
            (r.seq, _when(r.at), r.action, _cut(_plain(r.key_id), 20), _plain(r.actor))
            for r in rows
        ]
        print_rows(("#", "when (UTC)", "what", "key", "who"), cells, left={1, 2, 3, 4})
    if broken is not None:
        terminal.warn(f"the trail is not whole: entry {broken} was changed, or is gone")
        raise typer.Exit(BROKEN)


@dataclass(frozen=True, slots=True)
class Desk:
    """The key store, the keys of the file, and who sits here."""

    store: KeyStore
    configured: Sequence[VirtualKeyEntry]
    defaults: DefaultsEntry
    actor: str


@contextmanager
def _desk(config: Path | None) -> Generator[Desk]:
    """Open the key store that packshot.yaml means; providers' keys need not be set for that."""
    from packshot.core.config import read
    from packshot.gateway.access import Hasher, load_pepper, pepper_path
    from packshot.gateway.keystore import open_key_store
    from packshot.gateway.settings import GatewaySettings, ServerEntry
    from packshot.gateway.virtual_key import AccessEntry
    from packshot.ledger.settings import CONFIG_NAME, SECTIONS, load_settings

    money = load_settings(config)
    settings = GatewaySettings()
    path = config or Path(CONFIG_NAME)
    if config is not None or path.exists():
        document = read(path, SECTIONS)
        settings = GatewaySettings(
            path,
            access=document.section("access", AccessEntry) or AccessEntry(),
            server=document.section("server", ServerEntry) or ServerEntry(),
        )
    hasher = Hasher(load_pepper(settings.access, pepper_path(settings)))
    store = open_key_store(money.store, hasher)
    try:
        yield Desk(store, settings.access.virtual_keys, settings.access.defaults, _who())
    finally:
        store.close()


def _who() -> str:
    """Return the user and machine for the trail; a user without a name has a number."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    return f"{name}@{socket.gethostname()}"


def _check_configured(configured: Sequence[VirtualKeyEntry], entry: VirtualKeyEntry) -> None:
    from packshot.gateway.keystore import settings_of

    found = next((each for each in configured if each.id == entry.id), None)
    if found is None:
        return
    if found.value:
        raise InvalidRequest(f"packshot.yaml gives {entry.id!r} its secret already, as `value`")
    if settings_of(entry) != {"id": entry.id}:
        raise InvalidRequest(
            f"what {entry.id!r} may do stands in packshot.yaml; leave the options out"
        )


def _tell_defaults(entry: VirtualKeyEntry, given: Sequence[str]) -> None:
    """Say what the key got that nobody asked for, and how to have it otherwise."""
    parts: list[str] = []
    if "budget" in given and entry.budget is not None:
        parts.append(f"a budget of {entry.budget.eur} EUR per {entry.budget.per} (--eur, --per)")
    if "limits" in given:
        rpm, tpm = entry.limits.requests_per_minute, entry.limits.tokens_per_minute
        parts += [f"{rpm} requests a minute (--rpm)"] if rpm is not None else []
        parts += [f"{tpm} tokens a minute (--tpm)"] if tpm is not None else []
    if parts:
        terminal.note(f"by default it has {', '.join(parts)}; see access.defaults, --unbounded")


def _warn_of_what_is_open(configured: Sequence[VirtualKeyEntry], entry: VirtualKeyEntry) -> None:
    """Tell of a key that may spend without a bound, or whose id looks like a mistyped one."""
    ids = [each.id for each in configured]
    near = get_close_matches(entry.id, ids, n=1)
    if entry.id in ids or (entry.budget is not None and not near):
        return
    what = "may use what it names" if entry.models or entry.routes else "may use every model"
    spends = ", and has no budget" if entry.budget is None else ""
    meant = f" Did you mean {near[0]!r}?" if near else ""
    terminal.warn(
        f"{entry.id!r} does not stand in packshot.yaml, {what}{spends}.{meant} To end it: "
        f"packshot keys revoke {entry.id}"
    )


def _some(**values: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever an option holds
    """Return what was chosen: a number 0 is a choice; nothing, False and an empty list are none."""
    return {name: value for name, value in values.items() if value or type(value) is int}


def _tags(pairs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InvalidRequest(f"--tag is NAME=VALUE, got {pair!r}")
        found[name] = value
    return found


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None:
        raise InvalidRequest(f"--grace is a number with s, m, h or d, like 24h, got {text!r}")
    return int(match[1]) * UNITS[match[2]]


def _give(secret: str, as_json: bool, key: dict[str, Any]) -> None:
    """Print a secret alone on stdout, so that it can go into a file or a variable unseen."""
    if as_json:
        _json({"key": key, "secret": secret})
        return
    typer.echo(secret)
    terminal.note("this is the only time that the secret is shown; only its hash is kept")


def _table(facts: Sequence[dict[str, Any]]) -> None:
    from packshot.cli.cost import print_rows

    rows: list[tuple[str, ...]] = []
    for key in facts:
        budget, limits = key.get("budget"), key.get("limits", {})
        scope = [*key.get("models", ()), *key.get("routes", ())]
        state = "revoked" if key["revoked_at"] else "" if key["has_secret"] else "no secret"
        rows.append(
            (
                _cut(key["id"], 18),
                _cut(key.get("team", ""), 10),
                " ".join(scope) or "all",
                _cut(f"{limits.get('requests_per_minute', '')}", 6),
                _cut(f"{budget['eur']}/{budget['per']}" if budget else "", 12),
                key.get("expires", "")[:10],
                state,
            )
        )
    heads = ("key", "team", "models", "rpm", "EUR", "until", "state")
    print_rows(heads, rows, left={0, 1, 2, 5, 6})


def _when(micros: int) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(micros / 1e6, UTC):%Y-%m-%d %H:%M:%S}"


def _cut(text: str, width: int) -> str:
    """Return a text for a column; --json has all of it."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _plain(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _json(facts: dict[str, Any]) -> None:
    from packshot.cli.report import print_json

    print_json(facts)
