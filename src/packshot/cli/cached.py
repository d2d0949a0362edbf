"""``packshot cache purge`` and ``audit``: what is kept thrown away, what was served looked at."""

from __future__ import annotations

import getpass
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packshot.cli import options as o
from packshot.core.errors import InvalidRequest

if TYPE_CHECKING:
    from packshot.gateway.cache.audit_log import AuditLog, Check, Count
    from packshot.gateway.cache.entry import Purge
    from packshot.gateway.cache.settings import SemanticCacheEntry
    from packshot.gateway.content import Content

__all__ = ["Config", "audit", "contents_of", "purge", "settings_of"]

WIDTH = 78

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings.", show_default="packshot.yaml")
]


def purge(
    *,
    everything: Annotated[bool, typer.Option("--all", help="All answers.")] = False,
    key: Annotated[str, typer.Option(metavar="HEX", help="x-packshot-cache-key.")] = "",
    tag: Annotated[str, typer.Option(metavar="NAME=VALUE", help="Of the calls.")] = "",
    route: Annotated[str, typer.Option(metavar="ID", help="A route's answers.")] = "",
    virtual_key: Annotated[str, typer.Option(metavar="ID", help="Forget this caller.")] = "",
    group: Annotated[str, typer.Option(metavar="NAME", help="Forget this cache group.")] = "",
    config: Config = None,
    as_json: o.AsJson = False,
) -> None:
    """Throw cached answers away; workers that run let go of theirs within a second or two."""
    from packshot.gateway.cache.entry import Purge

    asked = [
        *([Purge("all")] if everything else []),
        *([Purge("key", key)] if key else []),
        *([Purge("tag", tag)] if tag else []),
        *([Purge("route", route)] if route else []),
        *([Purge("scope", f"key:{virtual_key}")] if virtual_key else []),
        *([Purge("scope", f"group:{group}")] if group else []),
    ]
    if len(asked) != 1:
        raise InvalidRequest("name one of --all, --key, --tag, --route, --virtual-key, --group")
    gone, checks = _purge(asked[0], config)
    if as_json:
        _json({"purged": gone, "checks": checks})
        return
    typer.echo(f"{gone} answers and {checks} checks thrown away")


def audit(
    *,
    route: Annotated[str | None, typer.Option(metavar="ID", help="Of this route.")] = None,
    false: Annotated[bool, typer.Option("--false", help="False hits only.")] = False,
    limit: Annotated[int, typer.Option("-n", min=1, max=1000, help="Checks to show.")] = 5,
    judge: Annotated[bool, typer.Option("--judge", help="Say of each what it was.")] = False,
    on: Annotated[
        str | None, typer.Option("--on", metavar="ID", help="Turn a route's tier on again.")
    ] = None,
    config: Config = None,
    as_json: o.AsJson = False,
) -> None:
    """Show how often similar requests were given a wrong answer, and the checked pairs."""
    with _log(config) as (log, entry):
        if on is not None:
            if all(count.route != on for count in log.counts()):
                raise InvalidRequest(f"route {on!r} has no checks: its semantic tier is on")
            log.turn(on, 0)
        checks = log.checks(route, limit, false=false, open_=judge)
        counts = [count for count in log.counts() if route is None or count.route == route]
        undecided = log.undecided()
        if as_json:
            _json(_facts(counts, checks, undecided))
            return
        _table(counts, entry.audit.limit)
        if waiting := sum(n for name, n in undecided.items() if route in {None, name}):
            typer.echo(f"{waiting:,} undecided, not counted: --judge asks you for a verdict\n")
        for check in checks:
            _show(check)
            if judge and not _judge(log, check):
                break
        if judge:
            _table(log.counts(), entry.audit.limit)


def settings_of(config: Path | None) -> tuple[Path, SemanticCacheEntry]:
    """Return the gateway's state folder and the cache's section; secrets need not be set."""
    from packshot.core.config import read
    from packshot.gateway.cache.settings import SemanticCacheEntry
    from packshot.gateway.settings import ServerEntry
    from packshot.ledger.settings import CONFIG_NAME, SECTIONS

    path = config or Path(CONFIG_NAME)
    if config is None and not path.exists():
        return ServerEntry().folder, SemanticCacheEntry()
    document = read(path, SECTIONS)
    server = document.section("server", ServerEntry) or ServerEntry()
    found = document.section("semantic_cache", SemanticCacheEntry)
    return server.folder, found or SemanticCacheEntry()


def contents_of(config: Path | None) -> Iterator[Content]:
    """Yield what the content log has; nothing where none is configured, or none was written yet."""
    from packshot.core.config import read
    from packshot.gateway.content import read_contents
    from packshot.gateway.settings import ServerEntry, TelemetryEntry
    from packshot.ledger.settings import CONFIG_NAME, SECTIONS

    path = config or Path(CONFIG_NAME)
    if not path.exists():
        return
    document = read(path, SECTIONS)
    entry = document.section("telemetry", TelemetryEntry) or TelemetryEntry()
    server = document.section("server", ServerEntry) or ServerEntry()
    folder = entry.content_log if entry.content_log.name else server.folder / "content"
    if entry.content_key and folder.exists():
        yield from read_contents(folder, entry.content_key)


def _purge(what: Purge, config: Path | None) -> tuple[int, int]:
    from packshot.gateway.cache.audit_log import AuditLog
    from packshot.gateway.cache.file_store import FileStore
    from packshot.gateway.cache.opening import ANSWERS, AUDIT

    folder, entry = settings_of(config)
    if entry.store:
        raise InvalidRequest(
            "the answers are not in a file: POST /admin/cache/purge at the gateway's admin port"
        )
    gone = checks = 0
    if (folder / ANSWERS).exists():
        store = FileStore(folder / ANSWERS, entry.file_mb << 20)
        gone = store.purge_now(what)
        store.close_now()
    if (folder / AUDIT).exists():
        log = AuditLog(folder / AUDIT, entry.audit.keep)
        checks = log.forget(what)
        log.close()
    return gone, checks


@contextmanager
def _log(config: Path | None) -> Generator[tuple[AuditLog, SemanticCacheEntry]]:
    from packshot.gateway.cache.audit_log import AuditLog
    from packshot.gateway.cache.opening import AUDIT

    folder, entry = settings_of(config)
    if not (folder / AUDIT).exists():
        raise InvalidRequest(
            f"no hit was checked yet: there is no {folder / AUDIT}. Checks are made of semantic "
            "hits, by a gateway with semantic_cache.enabled and an embedding model"
        )
    log = AuditLog(folder / AUDIT, entry.audit.keep)
    try:
        yield log, entry
    finally:
        log.close()


def _facts(
    counts: Sequence[Count], checks: Sequence[Check], undecided: Mapping[str, int]
) -> dict[str, Any]:
    from packshot.gateway.cache.sequential import exact_interval

    rows = [
        {**count._asdict(), **{f"rate_{name}": getattr(rate, name) for name in ("low", "high")}}
        for count in counts
        for rate in (exact_interval(count.false, count.checked),)
    ]
    return {
        "routes": rows,
        "undecided": dict(undecided),
        "checks": [check._asdict() for check in checks],
    }


def _table(counts: Sequence[Count], limit: float) -> None:
    from packshot.gateway.cache.sequential import exact_interval

    typer.echo(f"{'route':<30}{'checked':>9}{'false':>7}{'rate':>9}{'95 % interval':>18}  tier")
    for count in counts:
        rate = exact_interval(count.false, count.checked)
        between = f"{rate.low:.2%} – {rate.high:.2%}"
        state = "OFF" if count.off else "on"
        typer.echo(
            f"{count.route or '(no route)':<30.30}{count.checked:>9,}{count.false:>7,}"
            f"{rate.rate:>9.2%}{between:>18}  {state}"
        )
    typer.echo(f"a tier goes off when its rate is surely above {limit:.2%}\n")


def _show(check: Check) -> None:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(check.at / 1e6, UTC)
    by = (
        f", by {check.judge}"
        if check.judge
        else ""
        if check.verdict == "open"
        else ", by the machine"
    )
    verdict = "undecided" if check.verdict == "open" else check.verdict
    typer.echo(f"#{check.number}  {at:%Y-%m-%d %H:%M} UTC  {check.route}  {verdict}{by}")
    typer.echo(f"  requests {check.similarity:.4f} alike, answers {check.cosine:.4f}")
    if check.note:
        note = terminal_safe(check.note)
        typer.echo(fill(note, WIDTH, initial_indent="  why     ", subsequent_indent=" " * 10))
    for name in ("asked", "kept", "served", "fresh"):
        text = terminal_safe(getattr(check, name))[:600]
        typer.echo(fill(text, WIDTH, initial_indent=f"  {name:<8}", subsequent_indent=" " * 10))
    typer.echo()


def _judge(log: AuditLog, check: Check) -> bool:
    """Ask what a check was, and note it; false where the person has had enough."""
    said = typer.prompt("same answer? [y]es, [n]o, [s]kip, [q]uit", default="s")[:1].lower()
    if said in {"y", "n"}:
        log.judge(check.number, "same" if said == "y" else "false", getpass.getuser())
    return said != "q"


def terminal_safe(text: str) -> str:
    """Return a caller's text without what would move the cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _json(facts: dict[str, Any]) -> None:
    from packshot.cli.report import print_json

    print_json(facts)
