"""The object store on a folder and on a real S3 server, with and without faults in between."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packshot.core.errors import InvalidRequest, OutputError
from packshot.studio import objects as module
from packshot.studio.objects import MULTIPART, Objects, key_of, read_object
from packshot.studio.sweep import sweep
from tests.s3_relay import Fault, S3Relay
from tests.weed import BUCKET, KEY, SECRET, Weed, new_weed

PART = 5 * 1024 * 1024  # the least that S3 takes
LARGE = os.urandom(1 << 20) * 17
THIRD = "partNumber=3"
ENDINGS = [".png", ".jpg", "", ".PNG", ".a b", ".x/../y"]


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    with new_weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture
def bucket(weed: Weed, monkeypatch: pytest.MonkeyPatch, request) -> str:
    """Return an address that nobody else uses, with the environment for it."""
    for name, value in weed.environment().items():
        monkeypatch.setenv(name, value)
    prefix = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]
    return f"s3://{BUCKET}/runs/{prefix}"


@pytest.fixture(params=["folder", "s3"])
def objects(request, tmp_path: Path) -> Objects:
    if request.param == "folder":
        return Objects(str(tmp_path / "out"), part=PART)
    return Objects(request.getfixturevalue("bucket"), part=PART)


@pytest.fixture
def spoilt(weed: Weed, bucket: str, monkeypatch) -> Iterator[Callable[..., tuple]]:
    """Return what makes a store behind a relay that spoils what it is told to, so often."""
    relays: list[S3Relay] = []

    def make(fault: Fault, where: str, times: int = 1, **chosen) -> tuple[Objects, S3Relay]:
        left = [times]

        def choose(method: str, path: str) -> Fault:
            if where not in f"{method} {path}" or not left[0]:
                return ""
            left[0] -= 1
            return fault

        relay = S3Relay(weed.port, choose)
        relays.append(relay)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
        return Objects(bucket, part=PART, **chosen), relay

    yield make
    for relay in relays:
        relay.__exit__()


def test_a_file_lies_under_its_own_hash(objects: Objects) -> None:
    objects.probe()
    data = b"a picture"
    kept = objects.put(data, "red-mug-7.png")
    digest = hashlib.sha256(data).hexdigest()
    assert kept.key == f"objects/{digest[:2]}/{digest}.png"
    assert (kept.sha256, kept.size, kept.new) == (digest, len(data), True)
    assert objects.read(kept.key) == data
    assert list(objects.listed()) == [(kept.key, len(data))]


def test_a_file_is_stored_once(objects: Objects) -> None:
    first = objects.put(b"the same", "a.png")
    again = objects.put(b"the same", "another-name.png")
    assert (again.key, again.sha256) == (first.key, first.sha256)
    assert not again.new


def test_what_is_long_goes_up_in_parts(objects: Objects) -> None:
    assert len(LARGE) > MULTIPART
    kept = objects.put(LARGE, "x.png")
    assert kept.new
    assert hashlib.sha256(objects.read(kept.key)).hexdigest() == kept.sha256
    assert not objects.put(LARGE, "x.png").new


def test_another_content_under_the_name_is_found(objects: Objects) -> None:
    data, digest = b"what was meant", hashlib.sha256(b"what was meant").hexdigest()
    objects.publish(key_of(digest, "x.png"), b"something else")
    with pytest.raises(OutputError, match="does not hold what was written"):
        objects.put(data, "x.png")


def test_publishing_is_all_or_nothing(objects: Objects) -> None:
    assert objects.publish("manifest.jsonl", b"one").new
    assert not objects.publish("manifest.jsonl", b"one").new
    with pytest.raises(InvalidRequest, match=r"manifest\.jsonl is there already, with other cont"):
        objects.publish("manifest.jsonl", b"two")
    assert objects.read("manifest.jsonl") == b"one"
    objects.publish("manifest.jsonl", b"two", replace=True)
    objects.publish("new/manifest.jsonl", b"three", replace=True)
    assert objects.read("manifest.jsonl") == b"two"
    assert objects.read("new/manifest.jsonl") == b"three"


@given(files=st.lists(st.tuples(st.binary(max_size=64), st.sampled_from(ENDINGS)), max_size=8))
def test_what_went_in_comes_out_and_nothing_else(tmp_path_factory, files) -> None:
    store = Objects(str(tmp_path_factory.mktemp("out")))
    kept = [store.put(data, f"x{ending}") for data, ending in files]
    for (data, _), each in zip(files, kept, strict=True):
        assert store.read(each.key) == data
    assert dict(store.listed()) == {each.key: each.size for each in kept}
    assert sum(each.new for each in kept) == len({each.key for each in kept})


@pytest.mark.parametrize("key", ["", "/a", "a/", "a/../b", "..", "a b", "a//b", "ä"])
def test_keys_that_are_none(objects: Objects, key: str) -> None:
    with pytest.raises(InvalidRequest, match="the key"):
        objects.publish(key, b"")


def test_reading(objects: Objects) -> None:
    kept = objects.put(b"0123456789", "x.png")
    with pytest.raises(InvalidRequest, match="has 10 bytes, at most 9 are read"):
        objects.read(kept.key, most=9)
    with pytest.raises(OutputError, match=r"nothing\.png: it is not there"):
        objects.read("nothing.png")


def test_a_photo_by_its_address(bucket: str) -> None:
    key = Objects(bucket).put(b"photo", "x.png").key
    assert read_object(f"{bucket}/{key}", most=100) == b"photo"
    with pytest.raises(InvalidRequest, match="is no object's address"):
        read_object(f"s3://{BUCKET}")


# ---- faults


@pytest.mark.parametrize("fault", ["slow down", "reset", "reset after", "500"])
@pytest.mark.parametrize("times", [1, 4])
def test_a_fault_in_part_three(spoilt, fault: Fault, times: int) -> None:
    store, relay = spoilt(fault, THIRD, times)
    kept = store.put(LARGE, "x.png")
    assert len(relay.failed) == times
    assert hashlib.sha256(store.read(kept.key)).hexdigest() == kept.sha256
    assert sweep(store, older_than_s=-60).ended == 0


@pytest.mark.parametrize("fault", ["slow down", "reset", "500", "400 timeout"])
def test_a_fault_of_a_small_file(spoilt, fault: Fault) -> None:
    store, relay = spoilt(fault, "PUT", 4)
    kept = store.put(b"small", "x.png")
    assert len(relay.failed) == 4
    assert store.read(kept.key) == b"small"


def test_a_lost_answer_is_no_second_file(spoilt) -> None:
    store, relay = spoilt("reset after", "PUT", 1)
    kept = store.put(b"whose answer was lost", "x.png")
    assert relay.failed
    assert not kept.new  # it found itself
    store, _ = spoilt("reset after", "PUT", 1)
    assert store.publish("m.jsonl", b"1", replace=True).sha256
    store, relay = spoilt("reset after", "PUT", 1)
    assert store.publish("m.jsonl", b"2", replace=True).sha256
    assert relay.failed
    assert store.read("m.jsonl") == b"2"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("slow down", r"the server answered 503 \(SlowDown\), until the deadline$"),
        ("reset", "error sending request, until the deadline. Is the server up, and is AWS_END"),
    ],
)
def test_a_fault_that_stays_is_told(spoilt, fault: Fault, said: str) -> None:
    store, relay = spoilt(fault, THIRD, 10**6, deadline_s=0.0)
    with pytest.raises(OutputError, match=f"cannot write .*: {said}"):
        store.put(LARGE, "x.png")
    assert sweep(store, older_than_s=-60).ended == 0  # it was ended already
    assert any(request.startswith("DELETE") for request in relay.seen)


def test_a_bucket_that_is_missing_fails_at_once(spoilt) -> None:
    store, relay = spoilt("404 bucket", "", 10**6)
    with pytest.raises(OutputError, match=f"cannot write to .*: there is no bucket '{BUCKET}'"):
        store.probe()
    assert len(relay.seen) == 1


def test_who_may_not_write_hears_it_at_once(weed: Weed, bucket: str, monkeypatch) -> None:
    for name, value in weed.environment(reader=True).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OutputError, match=r"refused \(AccessDenied\). Whose keys are in AWS_ACC"):
        Objects(bucket).probe()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(OutputError, match=r"refused \(SignatureDoesNotMatch\)"):
        Objects(bucket).probe()


def test_secrets_are_shown_nowhere(spoilt, weed: Weed, monkeypatch) -> None:
    said: list[str] = []
    for fault in ("slow down", "reset", "404 bucket"):
        store, _ = spoilt(fault, "", 10**6, deadline_s=0.0)
        said += [repr(store), repr(store._store), str(vars(store))]
        for action in (store.probe, lambda store=store: sweep(store)):
            with pytest.raises(OutputError) as caught:
                action()
            said += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    assert said
    for text in said:
        assert SECRET not in text
        assert KEY not in text


def test_no_credentials(monkeypatch) -> None:
    for name in module.NEEDS["s3"]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidRequest, match=r"no credentials for s3://b/c: set one of AWS_ACCESS"):
        Objects("s3://b/c")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("s3://b/p", "Missing SecretAccessKey. Credentials are read from AWS_ACCESS_KEY_ID and"),
        ("gs://b/p", "Unable to decode service account file"),
        ("az://b/p", "Invalid Access Key"),
    ],
)
def test_an_environment_that_is_no_use(where: str, said: str, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", "a s3cret")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "shop")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a s3cret")
    with pytest.raises(
        InvalidRequest, match=f"the environment does not do for {where}: "
    ) as caught:
        Objects(where)
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("s3://key:secret@bucket/x", "keys and the endpoint come from the environment"),
        ("s3://bucket/x?y=1", "nothing more"),
        ("s3:///x", "names no bucket"),
        ("ftp://x/y", "unknown kind of store 'ftp'"),
    ],
)
def test_addresses_that_are_none(where: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        Objects(where)
    assert "secret@" not in str(caught.value)


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="it is a file, expected a folder"):
        Objects(str(file))
    with pytest.raises(OutputError, match="cannot write to"):
        Objects(str(file / "below"))


def test_ctrl_c_does_not_wait_for_the_server(spoilt) -> None:
    """The server is held until the test's end: only an interrupt gets out of here."""
    store, relay = spoilt("hold", "", 10**6)

    def interrupt() -> None:
        while not relay.seen:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        store.probe()
    assert not relay.held.is_set()
    relay.let_go()


# ---- what a killed process leaves

KILLED = """import os, sys
from packshot.studio.objects import Objects
Objects(sys.argv[1], part=5 << 20).put(os.urandom(17 << 20), "x.png")
"""


def test_what_a_killed_process_left_is_swept(weed: Weed, spoilt, bucket: str) -> None:
    store, relay = spoilt("hold", THIRD, 10**6)
    child = subprocess.Popen([sys.executable, "-c", KILLED, bucket], env={**os.environ})
    end = time.monotonic() + 60
    while not any(THIRD in request for request in relay.seen):
        assert time.monotonic() < end
        time.sleep(0.02)
    child.kill()
    child.wait(10)
    relay.let_go()
    elsewhere = Objects(f"{bucket}-elsewhere")
    assert sweep(elsewhere, older_than_s=-60).ended == 0
    young = sweep(store, older_than_s=3600)
    assert (young.ended, young.younger) == (0, 1)
    assert sweep(store, older_than_s=-60).ended == 1
    assert sweep(store, older_than_s=-60).ended == 0
    assert list(store.listed()) == []


def test_a_folder_is_swept(tmp_path: Path) -> None:
    store = Objects(str(tmp_path))
    kept = store.put(b"whole", "x.png")
    left = tmp_path / "objects" / "ab" / f"{'ab' * 32}.png#1"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    assert sweep(store).younger == 1
    os.utime(left, (1, 1))
    assert sweep(store).ended == 1
    assert [key for key, _ in store.listed()] == [kept.key]
