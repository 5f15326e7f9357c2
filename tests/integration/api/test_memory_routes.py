"""`/v1/memory/users/...` over a tiny model and a real database, as clients use it."""

import asyncio
import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from memory_service.domain.keys import Scope
from memory_service.domain.memory import MemoryId
from tests.helpers.api import Api, error

USERS = "/v1/memory/users"
ANN = f"{USERS}/ann"


async def append(api: Api, *texts: str, session: str = "monday", user: str = "ann") -> list[str]:
    """Append turns, a second apart, and wait until they are encoded; their ids."""
    kept = await api.texts(user) if user in await names(api) else []
    turns = [
        {"text": text, "session": session, "time": f"2026-03-01T18:{number:02}:00Z", "id": text}
        for number, text in enumerate(texts, start=len(kept))
    ]
    response = await api.http.post(f"{USERS}/{user}/turns", json={"turns": turns})
    assert response.status_code == 200, response.text
    assert await api.service.queue.settled(MemoryId(user), 60)
    return list(response.json()["ids"])


async def names(api: Api) -> list[str]:
    return [one["user"] for one in (await api.http.get(USERS)).json()["data"]]


async def got(api: Api, path: str, **headers: str) -> Any:
    response = await api.http.get(f"{ANN}{path}", headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


async def posted(api: Api, path: str, **body: object) -> Any:
    response = await api.http.post(f"{ANN}{path}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_turns_are_found_by_their_words_and_can_be_forgotten_by_them(api: Api) -> None:
    await append(
        api, "My dog is called Biscuit.", "It rains.", "Biscuit is asleep.", "I love dogs."
    )
    page = await got(api, "/search?words=bisc*&limit=1")
    assert [one["id"] for one in page["data"]] == ["Biscuit is asleep."]
    page = await got(api, f"/search?words=bisc*&limit=2&before={page['next']}")
    assert [one["id"] for one in page["data"]] == ["My dog is called Biscuit."]
    assert page["next"] is None
    error(await api.http.get(f"{ANN}/search?words=..."), 400, "invalid_input")
    error(await api.http.get(f"{ANN}/search"), 400, "invalid_input")
    assert (await posted(api, "/forget/preview", matching="biscuit"))["turns"] == 2
    await posted(api, "/forget", matching="biscuit")
    assert await api.texts("ann") == ["It rains.", "I love dogs."]


async def test_turns_are_paged_from_the_newest_and_no_page_overlaps(api: Api) -> None:
    await append(api, *(f"Fact {number}." for number in range(7)))
    pages, before = [], ""
    while True:
        page = await got(api, f"/turns?limit=3{before}")
        pages.append([one["text"] for one in page["data"]])
        if page["next"] is None:
            break
        await api.http.delete(f"{ANN}/turns/{page['data'][0]['id']}")  # the cursor stays good
        before = f"&before={page['next']}"
    assert pages == [
        ["Fact 4.", "Fact 5.", "Fact 6."],
        ["Fact 1.", "Fact 2.", "Fact 3."],
        ["Fact 0."],
    ]
    error(await api.http.get(f"{ANN}/turns?before=x"), 400, "invalid_input")


async def test_one_turn_and_ids_with_slashes(api: Api) -> None:
    await append(api, "a/b c")
    turn = await got(api, "/turns/a/b%20c")
    assert turn == {
        "id": "a/b c",
        "session": "monday",
        "role": "user",
        "time": "2026-03-01T18:00:00Z",
        "text": "a/b c",
        "expires_at": None,
        "pending": False,
        "quarantined": False,
        "set_aside": False,
    }
    error(await api.http.get(f"{ANN}/turns/none"), 404, "not_found")
    error(await api.http.get(f"{USERS}/bob/turns/a/b%20c"), 404, "not_found")


async def test_sessions_by_name(api: Api) -> None:
    await append(api, "One.", "Two.")
    await append(api, "Three.", session="tuesday")
    page = await got(api, "/sessions?limit=1")
    assert page["data"] == [
        {
            "session": "monday",
            "turns": 2,
            "pending": False,
            "first_at": "2026-03-01T18:00:00Z",
            "last_at": "2026-03-01T18:01:00Z",
        }
    ]
    rest = await got(api, f"/sessions?limit=1&after={page['next']}")
    assert [one["session"] for one in rest["data"]] == ["tuesday"]


async def test_what_is_versioned_has_an_etag_that_changes_with_it(api: Api) -> None:
    await append(api, "One.")
    paths = ("", "/state", "/history", "/adapters", "/adapters/1", "/adapters/1/peft")
    tags = {}
    for path in paths:
        response = await api.http.get(f"{ANN}{path}")
        assert response.status_code == 200
        tags[path] = response.headers["ETag"]
        for known in (tags[path], f'W/{tags[path]}, "x"', "*"):
            again = await api.http.get(f"{ANN}{path}", headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["ETag"] == tags[path]
    await append(api, "Two.")
    for path in ("", "/state", "/history", "/adapters"):
        response = await api.http.get(f"{ANN}{path}", headers={"If-None-Match": tags[path]})
        assert (response.status_code, path) == (200, path)
    same = await api.http.get(f"{ANN}/adapters/1", headers={"If-None-Match": tags["/adapters/1"]})
    assert same.status_code == 304


async def test_forgetting_a_session_is_previewed_and_leaves_the_state_of_who_never_heard(
    api: Api,
) -> None:
    await append(api, "One.", "Two.")
    state = await got(api, "/state")
    await append(api, "Three.", session="tuesday")
    assert (await got(api, "/state"))["digest"] != state["digest"]
    found = await posted(api, "/forget/preview", session="tuesday")
    assert [one["text"] for one in found["data"]] == ["Three."]
    assert found["turns"] == 1
    receipt = await posted(api, "/forget", session="tuesday")
    assert receipt["erased"]["turns"] == receipt["erased"]["sessions"] == 1
    assert receipt["removal"] == "subtracted"
    assert receipt["state_digest"] == state["digest"] == (await got(api, "/state"))["digest"]
    assert await api.texts("ann") == ["One.", "Two."]
    error(await api.http.post(f"{ANN}/forget", json={"session": "tuesday"}), 404, "not_found")
    error(await api.http.post(f"{ANN}/forget", json={}), 400, "invalid_input")
    again = await posted(api, "/turns", turns=[{"text": "Three.", "id": "Three."}])
    assert (again["new"], again["forgotten"]) == (0, 1)


async def test_a_turn_is_deleted_and_another_edited_with_receipts(api: Api) -> None:
    await append(api, "My cat is Tom.", "My dog is Rex.")
    deleted = (await api.http.delete(f"{ANN}/turns/My cat is Tom.")).json()
    assert (deleted["user"], deleted["erased"]["turns"]) == ("ann", 1)
    edited = await api.http.patch(f"{ANN}/turns/My dog is Rex.", json={"text": "It is Max."})
    receipt = edited.json()
    assert receipt["removal"] == "subtracted"
    turn = await got(api, f"/turns/{receipt['id']}")
    assert (turn["text"], turn["time"]) == ("It is Max.", "2026-03-01T18:01:00Z")
    assert await api.texts("ann") == ["It is Max."]
    error(await api.http.delete(f"{ANN}/turns/none"), 404, "not_found")
    error(await api.http.patch(f"{ANN}/turns/none", json={"text": "x"}), 404, "not_found")


async def test_history_difference_and_rollback(api: Api) -> None:
    await append(api, "One.")
    first = await got(api, "/state")
    await append(api, "Two.", session="tuesday")
    newest, oldest = (await got(api, "/history"))["data"]
    assert (newest["version"], newest["added"], newest["removed"]) == (2, 1, 0)
    assert oldest["state_digest"] == first["digest"]
    difference = await got(api, "/adapters/1/diff/2")
    assert (difference["added"], difference["removed"]) == (["Two."], [])
    assert all(one["value"] > 0 for one in difference["distance"]["modules"])
    receipt = await posted(api, "/rollback", version=1)
    assert (receipt["version"], receipt["state_digest"]) == (3, first["digest"])
    aside = {one["text"]: one["set_aside"] for one in (await got(api, "/turns"))["data"]}
    assert aside == {"One.": False, "Two.": True}
    forward = await posted(api, "/rollback", as_of="2026-03-01T18:01:00Z")
    assert forward["state_digest"] == newest["state_digest"]
    for body in ({}, {"version": 1, "as_of": "2026-03-01"}):
        error(await api.http.post(f"{ANN}/rollback", json=body), 400, "invalid_input")
    error(await api.http.post(f"{ANN}/rollback", json={"version": 99}), 404, "not_found")
    error(await api.http.get(f"{ANN}/adapters/1/diff/99"), 404, "not_found")


async def test_the_newest_adapter_is_downloaded_as_peft_files(api: Api) -> None:
    await append(api, "One.")
    response = await api.http.get(f"{ANN}/adapters/1/peft?dtype=bfloat16")
    assert response.headers["Content-Disposition"].endswith("ann@1.zip")
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())
    assert json.loads(archive.read("adapter_config.json"))["peft_type"] == "LORA"
    weights = load(archive.read("adapter_model.safetensors"))
    assert {str(one.dtype) for one in weights.values()} == {"torch.bfloat16"}
    await append(api, "Two.")
    error(await api.http.get(f"{ANN}/adapters/1/peft"), 404, "not_found")
    error(await api.http.get(f"{ANN}/adapters/2/peft?dtype=int8"), 400, "invalid_input")


# Asking


async def test_the_memory_is_asked_and_says_how_sure_it_is(api: Api) -> None:
    await append(api, "My dog is called Rex.")
    ids = await api.texts("ann")
    reply = await posted(api, "/ask", question="What is my dog called?", max_tokens=6)
    assert (reply["version"], reply["user"]) == (1, "ann")
    assert 0 < reply["completion_tokens"] <= 6
    assert reply["confidence"] == pytest.approx(math.exp(reply["log_likelihood"]))
    assert reply["log_likelihood_without_memory"] != reply["log_likelihood"]
    plain = await api.chat(
        "What is my dog called?", user="ann", max_tokens=6, memory={"mode": "read"}
    )
    assert reply["answer"] == plain.json()["choices"][0]["message"]["content"].strip()
    assert await api.texts("ann") == ids  # nothing was stored
    error(await api.http.post(f"{ANN}/ask", json={"question": ""}), 400, "invalid_input")
    error(await api.http.post(f"{USERS}/bob/ask", json={"question": "?"}), 404, "not_found")


async def test_a_question_right_after_an_append_waits_for_the_encoding(api: Api) -> None:
    await api.http.post(f"{ANN}/turns", json={"turns": [{"text": "My dog is Rex."}]})
    assert (await posted(api, "/ask", question="Who?", max_tokens=1))["version"] == 1


# Looking inside


async def test_a_memory_is_inspected(api: Api) -> None:
    await append(api, "My dog is called Rex.", "It rains.")
    await append(api, "I moved.", session="tuesday")
    found = await got(api, "/inspect")
    assert (found["user"], found["turns"], found["version"]) == ("ann", 3, 2)
    assert [one["session"] for one in found["by_session"]] == ["monday", "tuesday"]
    assert found["quarantined"] == []
    modules = found["fullness"]["modules"]
    assert len(modules) == len(api.service.generator.config.sites)
    assert all(0 < one["value"] <= 100 for one in modules)
    assert found["fingerprint"]["digest"] == (await got(api, "/state"))["fingerprint"]["digest"]
    assert found["strongest"] == []
    strongest = (await got(api, "/inspect?strongest=1"))["strongest"]
    assert [set(one) for one in strongest] == [{"id", "session", "role", "time", "text", "share"}]
    assert (await got(api, "/profile")) == {"user": "ann", "lines": []}  # a tiny model says nothing
    error(await api.http.get(f"{USERS}/bob/inspect"), 404, "not_found")


async def test_why_tells_the_turns_that_an_answer_rests_on(api: Api) -> None:
    await append(api, "My dog is called Rex.", "It rains.", "I moved.")
    kept = await api.texts("ann")
    found = await posted(api, "/why", question="Who is my dog?", answer="Rex.", turns=2)
    assert len(found["turns"]) == 2
    losses = [one["loss"] for one in found["turns"]]
    assert losses == sorted(losses, reverse=True)
    assert {one["text"] for one in found["turns"]} <= set(kept)
    own = await posted(api, "/why", question="Who is my dog?")
    reply = await posted(api, "/ask", question="Who is my dog?")
    assert own["answer"] == reply["answer"]
    assert own["log_likelihood_without_memory"] != own["log_likelihood"]
    assert await api.texts("ann") == kept
    error(
        await api.http.post(f"{ANN}/why", json={"question": "?", "answer": " "}),
        400,
        "invalid_input",
    )
    error(await api.http.post(f"{USERS}/bob/why", json={"question": "?"}), 404, "not_found")


# Who may do what


async def test_scopes_of_the_memory_routes(api: Api) -> None:
    await append(api, "One.")
    reader = await api.key("default", Scope.READ)
    writer = await api.key("default", Scope.READ, Scope.WRITE)
    admin = await api.key("default")
    theirs = await api.key("theirs")

    async def status(key: str, method: str, path: str, **body: object) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{ANN}{path}"
        return (await api.http.request(method, url, json=body, headers=headers)).status_code

    reading = ["/turns", "/turns/One.", "/sessions", "/state", "/history", "/adapters/1/peft"]
    reading += ["/inspect", "/quarantine"]
    for path in reading:
        assert await status(reader, "GET", path) == 200
        assert await status(theirs, "GET", path) == 404
    assert await status(reader, "POST", "/ask", question="Who?", max_tokens=1) == 200
    assert await status(theirs, "POST", "/ask", question="Who?", max_tokens=1) == 404
    assert await status(reader, "POST", "/why", question="Who?", answer="One.") == 200
    assert await status(theirs, "POST", "/why", question="Who?", answer="One.") == 404
    assert await status(reader, "POST", "/quarantine/retry") == 403
    assert await status(reader, "POST", "/rollback", version=1) == 403
    assert await status(writer, "POST", "/rollback", version=1) == 200
    for method, path, body in (
        ("POST", "/forget", {"session": "monday"}),
        ("DELETE", "/turns/One.", {}),
        ("PATCH", "/turns/One.", {"text": "Two."}),
    ):
        assert await status(writer, method, path, **body) == 403
        assert await status(theirs, method, path, **body) == 404
    assert await status(admin, "DELETE", "/turns/One.") == 200


# The document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


async def test_every_operation_has_examples_an_answers_form_and_error_bodies(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    seen = 0
    for path, method, operation in operations(document):
        if not path.startswith("/v1/"):
            continue
        seen += 1
        where = f"{method} {path}"
        assert operation.get("description"), where
        sent = operation.get("requestBody", {}).get("content", {})
        if "application/json" in sent:
            reference = sent["application/json"]["schema"]["$ref"]
            assert schemas[reference.rsplit("/", 1)[1]]["examples"], where
        assert all(form.get("schema") for form in sent.values()), where
        (good,) = {"200", "202"} & set(operation["responses"])
        answered = operation["responses"][good]["content"]
        assert all(form.get("schema") for form in answered.values()), where
        for status, response in operation["responses"].items():
            if status != good:
                shown = response["content"]["application/json"]
                assert shown["example"]["error"]["message"], (where, status)
                assert shown["schema"]["$ref"].endswith("ErrorBody"), (where, status)
    assert seen >= 20


async def test_a_quota_is_shown_and_kept_to(api: Api) -> None:
    before = (await api.http.get("/v1/memory/quota")).json()
    assert before == {
        "kept": {"users": 0, "turns": 0, "text_bytes": 0},
        "limits": {"users": None, "turns": None, "text_bytes": None},
    }
    await append(api, "my dog is Rex")
    await api.service.store.quotas.change("default", {"turns": 1})
    response = await api.http.post(f"{ANN}/turns", json={"turns": [{"text": "and a cat"}]})
    error(response, 403, "quota_exceeded")
    assert await api.texts("ann") == ["my dog is Rex"]
    chat = {"messages": [{"role": "user", "content": "Hi"}], "user": "ann", "max_tokens": 2}
    refused = await api.http.post("/v1/chat/completions", json={"model": api.model, **chat})
    assert refused.status_code == 403
    reading = {**chat, "model": api.model, "memory": {"mode": "read"}}
    assert (await api.http.post("/v1/chat/completions", json=reading)).status_code == 200
    after = (await api.http.get("/v1/memory/quota")).json()
    assert after["kept"] == {"users": 1, "turns": 1, "text_bytes": 13}


async def test_an_export_is_what_the_command_line_imports(api: Api, tmp_path: Path) -> None:
    await append(api, "my dog is Rex", "I live in Leeds")
    response = await api.http.get(f"{ANN}/export")
    assert response.status_code == 200
    assert "ann.zip" in response.headers["content-disposition"]
    file = tmp_path / "ann.zip"
    file.write_bytes(response.content)
    archive = api.service.store.read_archive(file)
    imported = await api.service.import_memory.archive(archive, MemoryId("again"))
    assert imported.state_digest == (await got(api, "/state"))["digest"]
    assert await api.texts("again") == ["my dog is Rex", "I live in Leeds"]
    error(await api.http.get(f"{USERS}/nobody/export"), 404, "not_found")


async def test_two_memories_become_one(api: Api) -> None:
    await append(api, "my dog is Rex")
    await append(api, "I live in Leeds", user="phone")
    for new, known in ((1, 0), (0, 1)):
        merged = await posted(api, "/merge", other="phone")
        assert (merged["new"], merged["known"], merged["erased"]) == (new, known, 0)
    assert sorted(await api.texts("ann")) == ["I live in Leeds", "my dog is Rex"]
    assert await api.texts("phone") == ["I live in Leeds"]
    error(await api.http.post(f"{ANN}/merge", json={"other": "ann"}), 400, "invalid_input")
    error(await api.http.post(f"{ANN}/merge", json={"other": "nobody"}), 404, "not_found")
    key = await api.key("default", Scope.READ, Scope.WRITE)
    headers = {"Authorization": f"Bearer {key}"}
    refused = await api.http.post(f"{ANN}/merge", json={"other": "phone"}, headers=headers)
    error(refused, 403, "forbidden")


async def test_what_is_over_is_forgotten_and_dates_can_be_changed(api: Api) -> None:
    assert (await api.http.get("/v1/memory/expiry")).json() == {"expire_after_days": None}
    await api.service.store.expiry.change_rule("default", 30)
    assert (await api.http.get("/v1/memory/expiry")).json() == {"expire_after_days": 30}
    later = "2126-01-01T00:00:00Z"
    first = {"text": "my dog is Rex", "id": "t1", "time": "2026-03-01T18:00:00Z"}
    turns = [first, {**first, "id": "t2", "expires_at": later}, {**first, "id": "t3"}]
    assert (await api.http.post(f"{ANN}/turns", json={"turns": turns})).status_code == 200
    kept = await posted(api, "/keep", turn_ids=["t3"], until=later)
    assert kept == {"user": "ann", "turn_ids": ["t3"], "expires_at": later}
    assert await api.service.queue.settled(MemoryId("ann"), 60)
    gone = [one async for one in api.service.expire_turns.all()]
    assert [one.receipt.erased.turns for one in gone] == [1]
    listed = (await got(api, "/turns"))["data"]
    assert [(one["id"], one["expires_at"]) for one in listed] == [("t2", later), ("t3", later)]
    assert (await got(api, "/history"))["data"][0]["reason"] == "expire"
    body = {"turn_ids": ["t2"], "until": "soon"}
    error(await api.http.post(f"{ANN}/keep", json=body), 400, "invalid_input")
    error(
        await api.http.post(f"{ANN}/keep", json=body | {"until": None, "turn_ids": ["t1"]}),
        404,
        "not_found",
    )
    wrong = {"turns": [{**first, "id": "t4", "expires_at": first["time"]}]}
    error(await api.http.post(f"{ANN}/turns", json=wrong), 400, "invalid_input")


async def job_of(api: Api, response: Any) -> Any:
    """A job's last state."""
    assert response.status_code == 202, response.text
    async with asyncio.timeout(60):
        while (job := (await api.http.get(response.headers["location"])).json())[
            "ended_at"
        ] is None:
            await asyncio.sleep(0.01)
    return job


async def test_an_archive_becomes_a_memory(api: Api) -> None:
    await append(api, "my dog is Rex", "I live in Leeds")
    archive = (await api.http.get(f"{ANN}/export")).content
    job = await job_of(api, await api.http.post(f"{USERS}/again/import", content=archive))
    assert (job["status"], job["kind"], job["subject"]) == ("done", "import", "again")
    assert job["result"]["state_digest"] == (await got(api, "/state"))["digest"]
    assert await api.texts("again") == ["my dog is Rex", "I live in Leeds"]
    job = await job_of(api, await api.http.post(f"{USERS}/again/import", content=archive))
    assert (job["status"], job["error"]["code"]) == ("failed", "conflict")
    listed = (await api.http.get("/v1/memory/jobs")).json()["data"]
    assert [one["status"] for one in listed] == ["failed", "done"]
    refused = await api.http.post(f"{USERS}/other/import", content=archive[:-9])
    error(refused, 400, "invalid_input")
    error(await api.http.get("/v1/memory/jobs/none"), 404, "not_found")
    assert "other" not in await names(api)


async def test_an_archive_may_be_larger_than_other_bodies_and_has_a_limit_too(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(api, "my dog is Rex")
    large = b"x" * 200_000  # other bodies: 100,000
    error(await api.http.post(f"{USERS}/new/import", content=large), 400, "invalid_input")
    error(await api.http.post(f"{ANN}/turns", content=large), 413, "invalid_input")


async def test_memories_are_encoded_anew(api: Api) -> None:
    await append(api, "my dog is Rex")
    before = (await got(api, "/state"))["digest"]
    for path, kind in ((f"{ANN}/migrate", "migrate"), (f"{ANN}/rebuild", "rebuild")):
        job = await job_of(api, await api.http.post(path))
        assert (job["status"], job["kind"], job["result"]["user"]) == ("done", kind, "ann")
    assert (await got(api, "/state"))["digest"] == before
    job = await job_of(api, await api.http.post("/v1/memory/migrate"))
    assert job["result"] == {"users": 1, "migrated": 0, "failed": []}
    error(await api.http.post(f"{USERS}/nobody/migrate"), 404, "not_found")
    key = await api.key("default", Scope.READ, Scope.WRITE)
    headers = {"Authorization": f"Bearer {key}"}
    error(await api.http.post(f"{ANN}/rebuild", headers=headers), 403, "forbidden")
    stranger = {"Authorization": f"Bearer {await api.key('other')}"}
    assert (await api.http.get("/v1/memory/jobs", headers=stranger)).json() == {"data": []}
    refused = await api.http.delete(f"/v1/memory/jobs/{job['id']}", headers=stranger)
    error(refused, 404, "not_found")
