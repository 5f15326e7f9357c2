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
