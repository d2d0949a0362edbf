"""S1: text of callers in logs, headers, metrics and tables stays text, whatever it looks like."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from packshot.ledger.stores import open_store
from packshot.providers.fake_script import Settings
from tests.gateway.launched import Launched, fakes, http_get, http_post, launched, until

YAML = """
providers:
  openai: {base_url: "{one}/v1", keys: [{value: env.KEY_A}]}
server: {admin_port: 0, state: state}
telemetry: {log: LOG}
ledger: {store: ledger.db, journal: journal}
"""
FORGED = "2026-01-01T00:00:00.000 forged"
TEXTS = [
    f"x\n{FORGED}",
    f"x\r\n{FORGED}",
    f"x\r{FORGED}",
    f"x\u2028{FORGED}",
    f"x\u2029{FORGED}",
    f"x\x85{FORGED}",
    f"x\x0b{FORGED}",
    f"x\x0c{FORGED}",
    f"x\x1b[2J\x1b[H{FORGED}",
    f"x\0{FORGED}",
    f"x\u202e{FORGED}",
    f'x" status=200 code="{FORGED}',
    "'; DROP TABLE entries; --",
    "%s%n%x{0}{job}",
    "${jndi:ldap://x/a}",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "\udc80\ud800",
]
SAFE = re.compile(r"[ -~\n]*")
"""What a log may consist of, so that no terminal and no tool takes it for anything else."""


def ask(gateway: Launched, text: str) -> list[httpx2.Response]:
    """Put a text wherever a caller can put one."""
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    asked: list[httpx2.Response] = []
    for path, model in (("/v1/chat/completions", f"openai/{text}"), ("/v1/chat/completions", text)):
        body = json.dumps({"model": model, **chat}).encode()
        asked.append(http_post(gateway.url + path, content=body))
    raw = json.dumps({"model": text, **chat}).encode()
    asked.append(http_post(f"{gateway.url}/raw/openai/chat/completions", content=raw))
    encoded = quote(text.encode("utf-8", "surrogatepass"))
    asked.append(http_get(f"{gateway.url}/{encoded}"))
    asked.append(http_post(f"{gateway.url}/raw/{encoded}/x", content=b"{}"))
    plain = {"model": "openai/gpt-4o-mini", **chat}
    for name in ("tags", "session", "render", "batch", "route", "target", "stage", "recipe"):
        value = f"a={text}" if name == "tags" else text
        header = {f"x-packshot-{name}": value.encode("utf-8", "surrogatepass")}
        try:
            got = http_post(f"{gateway.url}/v1/chat/completions", json=plain, headers=header)
        except httpx2.LocalProtocolError:  # no client of ours would send it; others: test_server
            continue
        asked.append(got)
    return asked


@pytest.mark.parametrize("log", ["text", "json"])
def test_no_text_of_a_caller_is_more_than_text(tmp_path: Path, log: str) -> None:
    path = tmp_path / "packshot.yaml"
    with fakes(one=Settings()) as there:
        path.write_text(there.fill(YAML).replace("LOG", log))
        with launched(path, KEY_A="k1") as gateway:
            until(lambda: gateway.get("/readyz").status_code == 200)
            for text in TEXTS:
                for got in ask(gateway, text):
                    assert got.status_code in {200, 400, 403, 404}, (text, got.text)
                    for name, value in got.headers.items():
                        assert SAFE.fullmatch(value), name
                        assert "forged" not in name
            assert SAFE.fullmatch(http_get(gateway.admin + "/metrics").text)
            assert gateway.end() == 0, gateway.said()
    check_log(gateway.log.read_bytes(), log)
    check_table(tmp_path)


def check_log(written: bytes, log: str) -> None:
    said = written.decode()
    lines = [line for line in said.split("\n") if "chat" in line]
    assert len(lines) > 60, "they are told of at all"
    if log == "json":
        for line in lines:
            assert json.loads(line)["id"]
        return
    assert SAFE.fullmatch(said), re.search(r"[^ -~\n]+", said)
    assert not [line for line in lines if line.startswith(FORGED)]


def check_table(folder: Path) -> None:
    """Hold the ledger's rows, and their CSV, to what they are: a row a call."""
    store = open_store(str(folder / "ledger.db"), read_only=True)
    try:
        assert store.verify() == []
        rows: list[Any] = store.query("SELECT model, tags FROM entries")
    finally:
        store.close()
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    assert len(list(csv.reader(io.StringIO(out.getvalue(), newline="")))) == len(rows)
