"""What telling of a request costs: µs of CPU in the event loop's thread, and in all threads.

Run it with ``2>/dev/null``: the log goes to stderr.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from packshot.gateway.job import Job
from packshot.gateway.keys import Key
from packshot.gateway.plan import build_plan
from packshot.gateway.settings import GatewaySettings, ServerEntry, TelemetryEntry, load_gateway
from packshot.gateway.telemetry import Telemetry
from packshot.gateway.virtual_key import VirtualKey

CALLS, ROUNDS = 15_000, 8
PLAN = "providers: {openai: {keys: [{value: env.BENCHMARK_KEY}], models: {gpt-4o: {}}}}\n"


def main() -> None:
    """Print a line for each format of the log."""
    os.environ["BENCHMARK_KEY"] = "not-a-key-of-anybody"
    folder = Path(tempfile.mkdtemp())
    (folder / "packshot.yaml").write_text(PLAN)
    plan = build_plan(load_gateway(folder / "packshot.yaml"))
    route = plan.route("openai/gpt-4o", "chat")
    job = Job("0" * 32, "chat", VirtualKey("vk"), route, {}, "gpt-4o", False, 0.0, 1.0, "chat")
    target = job.target = route.targets[0]
    job.upstream_s, job.input_tokens, job.output_tokens, job.cost = 0.5, 7, 5, 100
    key = Key("openai", "k", b"")
    for kind in ("off", "json", "text"):
        telemetry = Telemetry()
        entry = TelemetryEntry(log=kind)
        telemetry.start(GatewaySettings(server=ServerEntry(state=folder), telemetry=entry))
        telemetry.admit(plan)
        best, all_threads = 1e9, time.process_time()
        for _ in range(ROUNDS):
            began = time.thread_time()
            for _ in range(CALLS):
                telemetry.attempt(job, target, key, "succeeded", 1.0)
                telemetry.finished(job, "chat", 200, 0.50004)
            best = min(best, time.thread_time() - began)
            time.sleep(0.5)  # the writer's turn
        all_threads = time.process_time() - all_threads
        telemetry.stop()
        each = all_threads / (CALLS * ROUNDS)
        print(f"log {kind:4}  loop {best / CALLS * 1e6:.2f} µs  all threads {each * 1e6:.2f} µs")


if __name__ == "__main__":
    main()
