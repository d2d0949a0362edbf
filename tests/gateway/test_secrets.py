"""No secret comes out anywhere: S8 of the security matrix."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import logging
from urllib.parse import quote

import httpx2
import pytest

from packshot.gateway.raw import PREFIX
from packshot.providers.fake_script import Fault, limited
from tests.gateway.guarded import (
    BODY,
    KEYS,
    PEPPER,
    PROVIDER_KEY,
    body_for,
    credentials,
    post,
    there,
)
from tests.gateway.world import World

__all__ = ["credentials", "there"]
# ---------------------------------------------------------------- S8: no secret in any sink


def forms(secret: str) -> set[str]:
    """Return what a secret could be hidden as: whole, encoded, and every slice of 12."""
    raw = secret.encode()
    whole = {base64.b64encode(raw[at:]).decode()[2:-4] for at in range(3)}
    return {
        raw.hex(),
        quote(secret),
        json.dumps(secret),
        *whole,
        *(secret[at : at + 12] for at in range(len(secret) - 11)),
    }


def test_no_error_path_shows_a_secret(
    there: World, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    prompt = "prompt-canary-0d9e8c7b6a5f"
    chat = {**BODY, "messages": [{"role": "user", "content": prompt}]}
    faults = [
        *(Fault(status=s) for s in (400, 401, 402, 403, 404, 408, 413, 422, 500, 502, 503, 504)),
        *(Fault(status=400, code=c) for c in ("quota", "context", "filter", "auth", "not_found")),
        limited(),
        *(Fault(ending=e, at=2) for e in ("close", "reset", "torn", "no_end", "error_event")),
        *(Fault(ending=e, at=2) for e in ("bad_json", "bad_chunk")),
    ]
    sinks: list[str] = []
    for fault in faults:
        for path in ("/v1/chat/completions", PREFIX + "openai/chat/completions"):
            for stream in (False, True):
                for fake in there.fakes.values():
                    fake.clear()
                    fake.next(fault, fault)
                for key in there.worker.gateway.plan.providers["openai"].keys:
                    key.ready_at = 0.0
                    key.breakers.clear()
                body = {**chat, "stream": stream, "model": body_for(path)["model"]}
                try:
                    answer = post(there, path, body)
                except httpx2.HTTPError as error:
                    sinks.append(repr(error))
                    continue
                sinks += [answer.text, str(answer.headers)]
    for key in ("", "nobody-at-all", KEYS["expired"] + "x", KEYS["far"]):
        answer = post(there, "/v1/chat/completions", chat, key)
        sinks += [answer.text, str(answer.headers)]
    gateway, worker = there.worker.gateway, there.worker
    for thing in (
        gateway.settings,
        gateway.settings.access,
        gateway.plan,
        *gateway.plan.providers.values(),
        *(key for p in gateway.plan.providers.values() for key in p.keys),
        gateway.access,
        vars(gateway.access),
        gateway,
        vars(worker),
        *worker.gateway.access.virtual_keys(),
    ):
        sinks += [repr(thing), str(thing)]
    with contextlib.suppress(TypeError):
        sinks.append(repr(dataclasses.asdict(gateway.settings.providers["openai"].keys[0])))
    out, err = capfd.readouterr()
    sinks += [out, err, caplog.text]
    sinks += [entry.reason + entry.tags for entry in there.booked()]
    database = (there.folder / "ledger.db").read_bytes().decode("latin-1")
    sinks.append(database)
    text = "\n".join(sinks)
    for secret in (PROVIDER_KEY, PEPPER, *KEYS.values()):
        found = [each for each in forms(secret) if each in text]
        # The pattern that all of a test's virtual keys share is no secret.
        found = [each for each in found if each not in "-0123456789012345678901234567890"]
        assert not found, (secret[:12], found[:3])
    said = "\n".join(each for each in sinks if prompt in each)
    assert not said, said[:300]
    there.errors.clear()
