"""What the gateway writes is for its owner alone, whatever the umask says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from packshot.core.errors import LedgerUnavailable
from packshot.ledger.private import make_private_file, make_private_folder, write_private
from packshot.ledger.stores import open_store
from packshot.ledger.stores.backup import backup
from packshot.providers.fake_script import Settings
from tests.gateway.launched import fakes, launched

YAML = """
providers:
  openai: {base_url: "{one}/v1", keys: [{value: env.KEY_A}]}
server: {admin_port: 0, state: there/state, workers: 2, idempotency: true}
ledger: {store: there/ledger.db, journal: there/books/journal, caps: [{scope: total, eur: 9}]}
access: {virtual_keys: [{id: shop}]}
"""


@pytest.fixture
def loose() -> object:
    """Let everybody read what is made, as far as a umask can."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Return what others may read or write: by name, what is there beside the owner's rights."""
    found = {"": folder.stat()} | {str(p.relative_to(folder)): p.stat() for p in folder.rglob("*")}
    return {
        name: oct(stat.S_IMODE(each.st_mode))
        for name, each in found.items()
        if stat.S_IMODE(each.st_mode) & 0o077
    }


@pytest.mark.usefixtures("loose")
def test_no_file_of_a_gateway_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "packshot.yaml"
    with fakes(one=Settings()) as upstreams:
        path.write_text(upstreams.fill(YAML))
        with launched(path, KEY_A="k1") as gateway:
            got = gateway.chat("openai/gpt-4o-mini")
            assert got.status_code == 401, got.text
            assert modes(tmp_path / "there") == {}, "while it runs"
            assert gateway.end() == 0, gateway.said()
    made = {each.name for each in (tmp_path / "there").rglob("*")}
    assert {"ledger.db", "caps.db", "keys.db", "pepper", "home", "metrics"} <= made
    assert modes(tmp_path / "there") == {}


@pytest.mark.usefixtures("loose")
def test_a_backup_is_as_private_as_the_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ledger.db"))
    try:
        backup(store, tmp_path / "copy.db")
    finally:
        store.close()
    assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {0o600}


@pytest.mark.usefixtures("loose")
def test_what_is_there_keeps_the_rights_that_its_owner_gave_it(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b")
    assert modes(tmp_path / "a") == {}
    (tmp_path / "a").chmod(0o755)
    make_private_folder(tmp_path / "a" / "c")
    assert modes(tmp_path / "a") == {"": "0o755"}
    file = tmp_path / "file"
    make_private_file(file)
    file.write_bytes(b"1")
    file.chmod(0o644)
    make_private_file(file)
    write_private(file, b"2", sync=True)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"2", 0o644)


def test_a_store_in_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="folder must exist"):
        open_store(str(tmp_path / "nowhere" / "ledger.db"))
