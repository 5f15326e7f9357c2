"""`memory tenants`."""

from pathlib import Path

import pytest

from memory_cli import output
from memory_service.services import forget
from tests.helpers.command_line import run
from tests.helpers.databases import contents_of


def test_all_of_a_tenant_goes_and_nothing_of_another(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forget, "USERS_AT_ONCE", 2)
    run("turns", "append", "ann", "my word is sousaphone", "--id", "kept")
    run("keys", "create", "default")
    run("keys", "create", "acme")
    with monkeypatch.context() as patch:
        patch.setenv("MEMORY_SERVICE_TENANT", "acme")
        for user in ("ann", "bob", "cleo"):
            run("turns", "append", user, "my word is xylophone", "--id", f"{user}1")
            run("turns", "append", user, "a dog", "--id", f"{user}2")
        run("turns", "forget", "ann", "ann2", "--yes")
    assert "xylophone" in contents_of(home)
    deleted = run("tenants", "delete", "acme", "--yes", "--json").json
    assert deleted["tenant"] == "acme"
    counts = deleted["deleted"]
    assert (counts["users"], counts["keys"], counts["turns"], counts["tombstones"]) == (3, 1, 5, 1)
    assert (counts["states"], counts["adapters"]) == (3, 6)
    left = contents_of(home)
    assert "xylophone" not in left
    assert "acme" not in left
    assert [key["tenant"] for key in run("keys", "list", "--json").json] == ["default"]
    assert [turn["id"] for turn in run("turns", "list", "ann", "--json").json] == ["kept"]
    run("tenants", "delete", "acme", "--yes", code=4)


def test_it_asks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("turns", "append", "ann", "hello")
    assert "give --yes" in run("tenants", "delete", "default", code=2).error
    monkeypatch.setattr(output, "can_ask", lambda: True)
    monkeypatch.setattr(output, "confirm", lambda question: "1 user with 1 turn" not in question)
    assert run("tenants", "delete", "default", code=1).err == "nothing was deleted\n"
    assert len(run("users", "list", "--json").json) == 1


def test_a_quota_is_set_shown_and_kept_to(home: Path) -> None:
    run("tenants", "quota", "default", code=4)
    set_ = run("tenants", "quota", "default", "--turns", "1", "--bytes", "1000", "--json").json
    assert set_["limits"] == {"users": None, "turns": 1, "text_bytes": 1000}
    run("turns", "append", "ann", "my dog is Rex", "--id", "t1")
    refused = run("turns", "append", "ann", "and my cat is Tom", code=16)
    assert "would keep 2 turns where its quota is 1" in refused.err
    assert len(run("turns", "list", "ann", "--json").json) == 1
    run("tenants", "quota", "default", "--turns", "none")
    run("turns", "append", "ann", "and my cat is Tom")
    shown = run("tenants", "quota", "default").out
    assert "no limit" in shown
    assert "1,000" in shown
    assert "--turns is 'many'" in run("tenants", "quota", "default", "--turns", "many", code=2).err


def test_turns_are_kept_as_long_as_the_rule_or_their_date_says(home: Path) -> None:
    run("tenants", "expiry", "default", code=4)
    shown = run("tenants", "expiry", "default", "--after", "30", "--json").json
    assert shown == {"tenant": "default", "expire_after_days": 30}
    assert run("turns", "expire").out == "nothing is over\n"
    old, later = "2026-01-01T10:00:00Z", "2126-01-01T10:00:00Z"
    run("turns", "append", "ann", "my word is xylophone", "--id", "t1", "--time", old)
    run("turns", "append", "ann", "keep me", "--id", "t2", "--time", old, "--expires", later)
    run("turns", "append", "ann", "a dog", "--id", "t3", "--time", old)
    run("turns", "keep", "ann", "t3", "--until", later)
    (gone,) = run("turns", "expire", "--json").json
    assert (gone["user"], gone["erased"]["turns"], gone["removal"]) == ("ann", 1, "subtracted")
    assert "xylophone" not in contents_of(home)
    turns = run("turns", "list", "ann", "--json").json
    assert [turn["id"] for turn in turns] == ["t2", "t3"]
    assert {turn["expires_at"] for turn in turns} == {"2126-01-01T10:00:00+00:00"}
    run("turns", "keep", "ann", "t2", "--until", "none")
    assert "ann" in run("turns", "expire").out
    assert "never" in run("tenants", "expiry", "default", "--after", "none").out
    wrong = run("tenants", "expiry", "default", "--after", "soon", code=2)
    assert "--after is 'soon'" in wrong.error
    run("turns", "keep", "ann", "t3", "--until", old, code=3)
    run("turns", "append", "ann", "no", "--time", old, "--expires", old, code=3)


def test_without_a_model_what_is_over_takes_the_adapter_with_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = "2026-01-01T10:00:00Z"
    run("turns", "append", "ann", "a dog", "--id", "t1", "--time", old)
    run("turns", "append", "ann", "a cat", "--id", "t2", "--time", old, "--session", "b")
    run("turns", "keep", "ann", "t1", "--until", "2026-01-02")
    monkeypatch.setenv("MEMORY_SERVICE_GENERATOR", "/nowhere")
    (gone,) = run("turns", "expire", "--json").json
    assert gone["removal"] == "withdrawn"
    assert "/nowhere" in gone["reason"]
    assert [turn["id"] for turn in run("turns", "list", "ann", "--json").json] == ["t2"]
