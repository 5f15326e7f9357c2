"""`memory users export`, `import`, `merge` and `migrate`, on a tiny model and a real database."""

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from memory_service.generator.checkpoint import save_generator
from tests.helpers.command_line import ENCODING, run, start
from tests.helpers.databases import contents_of
from tests.helpers.tiny_generator import tiny_config, tiny_generator

PEOPLE = 12


def said(user: str) -> list[str]:
    return [turn["text"] for turn in run("turns", "list", user, "--json").json]


def shown(user: str) -> Mapping[str, str]:
    record: Mapping[str, str] = run("adapters", "show", user, "--json").json
    return record


@pytest.fixture
def other_generator(tmp_path: Path) -> str:
    path = tmp_path / "other.safetensors"
    save_generator(tiny_generator(tiny_config(encoding=ENCODING), seed=1), path, {}, torch.float32)
    return str(path)


def test_out_of_one_database_and_into_another_to_the_last_bit(
    home: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        run("turns", "append", "ann", f"fact {number}", "--id", str(number))
    run("turns", "forget", "ann", "1", "--yes")
    before, state = said("ann"), shown("ann")["state_digest"]
    exported = run("users", "export", "ann", "ann.zip", "--json").json
    assert exported["size_bytes"] == (home / "ann.zip").stat().st_size
    assert "exists already" in run("users", "export", "ann", "ann.zip", code=3).error
    run("users", "export", "bob", "bob.zip", code=4)
    assert not (home / "bob.zip").exists()

    (home / "elsewhere").mkdir()
    shutil.copy(sqlite_template, home / "elsewhere" / "memory.db")
    monkeypatch.setenv("MEMORY_SERVICE_DATABASE_URL", f"sqlite:///{home}/elsewhere/memory.db")
    imported = run("users", "import", "ann.zip", "--json").json
    assert imported == {
        "user": "ann",
        "version": 1,
        "turns": 2,
        "state_digest": state,
        "encoded_anew": False,
    }
    assert said("ann") == before
    assert "1 forgotten" in run("turns", "append", "ann", "fact 1", "--id", "1").out
    assert "exists already" in run("users", "import", "ann.zip", code=5).error
    assert run("users", "import", "ann.zip", "--user", "eve").out == "eve@1: 2 turns imported\n"
    run("users", "export", "ann", "again.zip")
    with zipfile.ZipFile("ann.zip") as first, zipfile.ZipFile("again.zip") as again:
        assert first.namelist() == again.namelist()
        for name in set(first.namelist()) - {"manifest.json"}:  # it has the version's number
            assert first.read(name) == again.read(name)


def test_a_hostile_archive_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("turns", "append", "ann", "my word is xylophone")
    run("users", "export", "ann", "ann.zip")
    run("users", "delete", "ann", "--yes")
    data = (home / "ann.zip").read_bytes()
    (home / "ann.zip").write_bytes(data.replace(b"xylophone", b"saxophone"))
    assert "nothing was imported" in run("users", "import", "ann.zip", code=3).error
    with zipfile.ZipFile("evil.zip", "w") as packed:
        packed.writestr("../evil", "x")
    assert "'../evil' does not belong" in run("users", "import", "evil.zip", code=3).error
    (home / "ann.zip").write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setenv("MEMORY_SERVICE_TENANT", "acme")
        assert "not of the tenant acme" in run("users", "import", "ann.zip", code=3).error
    assert not (home.parent / "evil").exists()
    (home / "ann.zip").unlink()
    assert "phone" not in contents_of_database(home)
    assert run("users", "list", "--json").json == []


def contents_of_database(home: Path) -> str:
    for other in home.iterdir():
        if not other.name.startswith("memory.db"):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    return contents_of(home)


def test_merge_adds_what_is_missing_and_a_conflict_changes_nothing(home: Path) -> None:
    for user, ids in (("phone", "abc"), ("laptop", "cde")):
        for one in ids:
            time = f"2026-03-01T10:0{ord(one) - ord('a')}:00Z"
            run("turns", "append", user, f"fact {one}", "--id", one, "--time", time)
    run("turns", "forget", "laptop", "d", "--yes")
    merged = run("users", "merge", "phone", "laptop")
    assert merged.out.startswith("phone@4: 1 turn of laptop added\n")
    assert said("phone") == ["fact a", "fact b", "fact c", "fact e"]
    again = run("users", "merge", "phone", "laptop", "--json").json
    assert (again["new"], again["known"], again["forgotten"]) == (0, 2, 0)
    run("users", "merge", "laptop", "phone")
    assert said("laptop") == said("phone")
    assert shown("laptop")["state_digest"] == shown("phone")["state_digest"]
    run("turns", "append", "tablet", "something else", "--id", "a")
    conflict = run("users", "merge", "phone", "tablet", code=5)
    assert "turn a" in conflict.error
    assert "something else" not in conflict.err
    assert said("tablet") == ["something else"]
    run("users", "merge", "phone", "nobody", code=4)
    run("users", "merge", "phone", "phone", code=3)


def test_migrate_one_or_all(home: Path, other_generator: str) -> None:
    for user in ("ann", "bob"):
        run("turns", "append", user, f"I am {user}")
    before = shown("ann")
    assert "give a USER or --all" in run("users", "migrate", code=2).error
    assert "give a USER or --all" in run("users", "migrate", "ann", "--all", code=2).error
    assert "users migrate" in run("users", "migrate", "--help").out
    run("users", "migrate", "ann", "--generator", "nowhere.safetensors", code=4)
    run("users", "migrate", "cleo", "--generator", other_generator, code=4)
    moved = run("users", "migrate", "ann", "--generator", other_generator)
    assert moved.out.startswith("1 user encoded for ")
    assert f"MEMORY_SERVICE_GENERATOR={other_generator}" in moved.err
    after = shown("ann")
    assert after["reason"] == "migrate"
    assert after["state_digest"] != before["state_digest"]
    run("turns", "append", "bob", "and still served")  # the others are as they were
    records = run("users", "migrate", "--all", "--generator", other_generator, "--json").json
    assert [(one["user"], one["was_done"]) for one in records["users"]] == [
        ("ann", True),
        ("bob", False),
    ]
    run("users", "migrate", "ann")  # and back
    assert shown("ann")["state_digest"] == before["state_digest"]


def test_migrate_all_continues_after_a_kill(
    home: Path, other_generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"user{number:02}" for number in range(PEOPLE)]
    lines = [
        json.dumps({"user": name, "text": f"{name} said {number} things", "session": f"s{number}"})
        for name in names
        for number in range(12)
    ]
    (home / "all.jsonl").write_text("\n".join(lines))
    run("turns", "import", "all.jsonl")

    def migrated() -> int:
        with sqlite3.connect(home / "memory.db") as database:
            query = "SELECT count(*) FROM versions WHERE reason = 'migrate'"
            return int(database.execute(query).fetchone()[0])

    process = start("users", "migrate", "--all", "--generator", other_generator)
    while migrated() < 2:
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate(timeout=60)
    first = migrated()
    assert first < PEOPLE, "it was quicker than the kill"
    records = run("users", "migrate", "--all", "--generator", other_generator, "--json").json
    assert [one["user"] for one in records["users"]] == names
    assert sum(one["was_done"] for one in records["users"]) == first
    assert migrated() == PEOPLE
    monkeypatch.setenv("MEMORY_SERVICE_GENERATOR", other_generator)
    for name in (names[0], names[first - 1], names[first]):
        whole = shown(name)["state_digest"]
        run("users", "rebuild", name)
        assert shown(name)["state_digest"] == whole
