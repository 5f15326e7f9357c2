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
