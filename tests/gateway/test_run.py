"""The gateway as processes: its beginning, its signals, the death of its parts, and its end."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from packshot.core.errors import InvalidRequest
from packshot.gateway.run import ServeOptions, serve

ROOT = Path(__file__).parents[2]


class Gateway:
    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.process = process
        assert process.stdout is not None
        urls = process.stdout.readline().split()
        self.ports = [urlsplit(url).port or 0 for url in urls]

    def get(self, path: str = "/", port: int = 0) -> tuple[int, str]:
        """Ask over a connection of its own."""
        client = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=20)
        try:
            client.request("GET", path)
            answer = client.getresponse()
            return answer.status, answer.read().decode()
        finally:
            client.close()

    def later(self, path: str) -> Later:
        return Later(self, path)

    def log(self) -> list[str]:
        file = self.folder / "log"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    def wait_for(self, line: str, times: int = 1) -> None:
        self.until(lambda: sum(each.startswith(line) for each in self.log()) >= times)

    def until(self, condition) -> None:
        give_up = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < give_up, (self.log(), self.process.poll())
            time.sleep(0.01)

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was said."""
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


class Later(threading.Thread):
    """A request whose answer is awaited later."""

    def __init__(self, gateway: Gateway, path: str) -> None:
        super().__init__()
        self.gateway = gateway
        self.path = path
        self.answer: tuple[int, str] | None = None
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.answer = self.gateway.get(self.path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    running: list[subprocess.Popen[str]] = []

    def begin(config: str = "first", **options: float) -> Gateway:
        (tmp_path / "config").write_text(config, encoding="utf-8")
        given = [f"{name}={value}" for name, value in options.items()]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.served", str(tmp_path), *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        )
        running.append(process)
        return Gateway(tmp_path, process)

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def test_it_answers_from_its_first_moment_and_ends_in_peace(start):
    gateway = start()
    assert gateway.get()[1].startswith("gateway-0 ")
    assert gateway.get(port=1) == (200, "admin of gateway-0 first")
    gateway.tell(signal.SIGTERM)
    code, said = gateway.end()
    assert code == 0, said
    assert gateway.log() == ["start gateway-0", "drain gateway-0", "stop gateway-0 in peace"]
    assert refused(gateway.ports[0])


def test_connections_are_spread_over_workers_with_names(start):
    gateway = start(workers=3)
    seen: set[str] = set()
    gateway.until(lambda: seen.add(gateway.get()[1].split()[0]) or len(seen) == 3)
    assert seen == {"gateway-0", "gateway-1", "gateway-2"}
    gateway.tell(signal.SIGINT)
    assert gateway.end()[0] == 0


def test_requests_in_flight_are_finished_and_new_ones_refused(start):
    gateway = start(workers=2)
    slow = gateway.later("/slow")
    gateway.wait_for("slow began")
    gateway.tell(signal.SIGTERM)
    gateway.wait_for("drain", times=2)
    gateway.until(lambda: refused(gateway.ports[0]))
    assert slow.answer is None
    (gateway.folder / "go").touch()
    slow.join(20)
    assert slow.answer is not None
    assert slow.answer[0] == 200
    assert gateway.end()[0] == 0


def test_a_balancer_gets_time_to_notice(start):
    gateway = start(unready=1.5)
    assert gateway.get("/readyz")[0] == 200
    gateway.tell(signal.SIGTERM)
    gateway.wait_for("drain")
    assert gateway.get("/readyz")[0] == 503
    assert gateway.get("/")[0] == 200
    assert gateway.end()[0] == 0


def test_the_second_signal_ends_it_at_once(start):
    gateway = start(grace=1000)
    slow = gateway.later("/slow")
    gateway.wait_for("slow began")
    gateway.tell(signal.SIGTERM)
    gateway.wait_for("drain")
    gateway.tell(signal.SIGTERM)
    code, said = gateway.end()
    slow.join(20)
    assert (code, slow.answer) == (1, None)
    assert "cut off 1 requests" in said
    assert gateway.log()[-1] == "stop gateway-0 at once"


def test_the_grace_has_an_end(start):
    gateway = start(grace=0.3)
    slow = gateway.later("/slow")
    gateway.wait_for("slow began")
    gateway.tell(signal.SIGTERM)
    assert gateway.end()[0] == 1
    slow.join(20)
    assert slow.answer is None


def test_a_dead_worker_is_replaced_under_its_name(start):
    gateway = start(workers=2)
    gateway.wait_for("start", times=2)
    with contextlib.suppress(OSError, http.client.HTTPException):
        gateway.get("/die")
    gateway.wait_for("start", times=3)
    names = sorted(line for line in gateway.log() if line.startswith("start"))
    assert len(set(names)) == 2
    for _ in range(10):  # whichever it was, nobody is turned away
        assert gateway.get()[0] == 200
    gateway.tell(signal.SIGTERM)
    code, said = gateway.end()
    assert code == 0
    assert "ended with code 7" in said


def test_a_killed_worker_is_replaced_and_whoever_comes_meanwhile_waits(start):
    gateway = start()
    pid = int(gateway.get()[1].split()[1])
    os.kill(pid, signal.SIGKILL)
    status, body = gateway.get()
    assert status == 200
    assert int(body.split()[1]) != pid
    gateway.tell(signal.SIGTERM)
    assert "was killed by signal 9" in gateway.end()[1]


def test_a_new_configuration_reaches_every_worker(start):
    gateway = start(workers=2)
    gateway.wait_for("start", times=2)
    (gateway.folder / "config").write_text("second", encoding="utf-8")
    gateway.tell(signal.SIGHUP)
    gateway.wait_for("reload", times=2)
    assert {gateway.get()[1].split()[2] for _ in range(8)} == {"second"}
    gateway.tell(signal.SIGTERM)
    assert "a note" in gateway.end()[1]


@pytest.mark.parametrize("text", ["bad", "crash"])
def test_a_bad_configuration_changes_nothing_and_is_told(start, text):
    gateway = start()
    gateway.get()
    (gateway.folder / "config").write_text(text, encoding="utf-8")
    gateway.tell(signal.SIGHUP)
    gateway.wait_for("refused")
    assert gateway.get()[1].endswith(" first")
    (gateway.folder / "config").write_text("third", encoding="utf-8")
    gateway.tell(signal.SIGHUP)
    gateway.wait_for("reload")
    assert gateway.get()[1].endswith(" third")
    gateway.tell(signal.SIGTERM)
    assert "keeps its configuration" in gateway.end()[1]


def test_a_first_start_that_fails_ends_it_with_its_code(start):
    gateway = start("bad", workers=2)
    code, said = gateway.end()
    assert code == InvalidRequest.exit_code
    assert "the configuration says 'bad'" in said
    assert "could not start; giving up" in said


def test_workers_do_not_outlive_their_supervisor(start):
    gateway = start()
    pid = int(gateway.get()[1].split()[1])
    gateway.process.kill()
    gateway.wait_for("stop gateway-0")

    def ended() -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] == "Z"
        return True

    gateway.until(ended)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - to see it refused
def test_strangers_are_not_let_in_by_default(host):
    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with pytest.raises(InvalidRequest, match="everybody on the network"):
        serve(lambda _: pytest.fail("started"), ServeOptions(host=host, port=0))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_told(workers):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest, match=rf"127.0.0.1:{port}: .* in use.*--port"):
            serve(lambda _: pytest.fail("started"), ServeOptions(port=port, workers=workers))


def test_two_gateways_of_many_workers_do_not_share_a_port():
    """The kernel would let them, and hand each of them half of the callers."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest, match="in use"):
            serve(lambda _: pytest.fail("started"), ServeOptions(port=port, workers=2))


def test_of_the_admin_port_it_is_told_where_that_is_set():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        admin = taken.getsockname()[1]
        options = ServeOptions(port=0, admin_port=admin)
        with pytest.raises(InvalidRequest, match=rf"{admin}: .* in use.*server.admin_port"):
            serve(lambda _: pytest.fail("started"), options, lambda *_: pytest.fail("started"))


@pytest.mark.parametrize("options", [ServeOptions(workers=0), ServeOptions(host="no such host")])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(InvalidRequest, match=r"workers must be|cannot listen on"):
        serve(lambda _: pytest.fail("started"), options)
