"""What a caller of the gateway waits for a kept answer, over sockets; M10's rival takes 110 ms.

    python benchmarks/cache_wire.py [--texts 1500] [--model FOLDER]

A gateway with a virtual key and the semantic cache on is a process of its own, its provider answers
at once, one caller asks on one connection: each text first, again, with its phrases in another
order (found by their sorted words), and misspelt (for which the model is asked). Milliseconds from
the first byte sent to the last one read.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

from cache import of, reworded, texts

from packshot.gateway.cache.minilm import default_folder

ROOT = Path(__file__).parents[1]
SECRET = "a" * 40
CONFIG = """
providers:
  openai: {base_url: "{openai}/v1", keys: [{value: env.KEY_A}]}
routes:
  - {id: caption, primary: openai/gpt-4o-mini}
access: {virtual_keys: [{id: one, value: env.SECRET_A}]}
semantic_cache: {enabled: true, model: MODEL, audit: {share: 0}}
server: {state: state}
"""


def serve(line: Connection, folder: Path, model: Path) -> None:
    """Run the gateway and its provider until told to stop."""
    sys.path.insert(0, str(ROOT))
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its log of calls
    os.dup2(1, 2)
    os.environ |= {"KEY_A": "upstream", "SECRET_A": SECRET}
    from packshot.providers.fake_script import Settings
    from tests.gateway.world import World

    world = World(folder, CONFIG.replace("MODEL", str(model)), {"openai": Settings()})
    world.start()
    line.send(world.url)
    line.recv()
    world.stop()


class Caller:
    """One connection."""

    def __init__(self, url: str) -> None:
        self._line = http.client.HTTPConnection(url.split("//")[1], timeout=30)

    def ask(self, text: str) -> tuple[float, str]:
        """Return the milliseconds of a call, and what the cache said of it."""
        messages = [{"role": "user", "content": text}]
        body = json.dumps({"model": "caption", "messages": messages, "max_tokens": 50})
        head = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}
        start = time.perf_counter()
        self._line.request("POST", "/v1/chat/completions", body, head)
        reply = self._line.getresponse()
        reply.read()
        spent = (time.perf_counter() - start) * 1e3
        kind = reply.headers.get("x-packshot-cache-kind", "")
        return spent, f"{reply.headers.get('x-packshot-cache')} {kind}".strip()


def misspelt(text: str) -> str:
    """Return a text with two letters of a word swapped, as a hand does it."""
    word = max((w for w in text.split() if w in {"daylight", "golden", "shadows", "overcast"}),
               key=len, default="")  # fmt: skip
    return text.replace(word, word[:3] + word[4] + word[3] + word[5:]) if word else text + " please"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--model", type=Path, default=default_folder())
    options = parser.parse_args()
    print(platform.python_version(), os.cpu_count(), "cores, load", os.getloadavg())
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    report: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=serve, args=(its, Path(folder), options.model))
        process.start()
        caller, known = Caller(mine.recv()), texts(options.texts)
        for name, asked in (
            ("first", known), ("again", known), ("reworded", [reworded(t) for t in known]),
            ("misspelt", [misspelt(t) for t in known]),
        ):  # fmt: skip
            rows = [caller.ask(text) for text in asked]
            said = Counter(kind for _, kind in rows)
            for kind, count in said.items():
                spent = [ms for ms, told in rows if told == kind]
                report[f"{name}: {kind}"] = [count, *of(spent)]
                print(f"{name:<9} {kind:<14} {count:>6}  p50 {of(spent)[0]:8.3f}  "
                      f"p95 {of(spent)[1]:8.3f} ms", flush=True)  # fmt: skip
        mine.send("stop")
        process.join(30)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
