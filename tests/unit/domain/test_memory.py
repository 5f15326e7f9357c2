from dataclasses import fields, replace

import pytest

from memory_service.domain.memory import DEFAULT_TENANT, Fingerprint, MemoryId, parse_versioned
from memory_service.domain.turns import MAX_NAME_CHARS
from memory_service.errors import IncompatibleState, InvalidInput

MADE = Fingerprint(
    generator="1" * 64,
    base_model="2" * 64,
    tokenizer="3" * 64,
    chunking="date-speakers/1:256",
    encoding="independent",
    numerics="bfloat16:threads=2:grid=-12",
)


def test_default_tenant():
    assert MemoryId("ann") == MemoryId("ann", DEFAULT_TENANT)


@pytest.mark.parametrize("name", ["", " ", " ann", "ann ", "a\0", "a\nb", "\ud800", "a" * 201])
def test_bad_names(name):
    with pytest.raises(InvalidInput, match=r"^user: "):
        MemoryId(name)
    with pytest.raises(InvalidInput, match=r"^tenant: "):
        MemoryId("ann", name)


@pytest.mark.parametrize("name", ["ann", "ann@example.org", "日本", "a" * MAX_NAME_CHARS, "@"])
def test_good_names(name):
    assert MemoryId(name, name).user == name


@pytest.mark.parametrize("name", ["ann@3", "ann@example@0", "@3", "ann@٣"])
def test_name_that_looks_like_a_version(name):
    with pytest.raises(InvalidInput, match=r"^user: must not end like a version"):
        MemoryId(name)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("ann", ("ann", None)),
        ("ann@3", ("ann", 3)),
        ("ann@example.org", ("ann@example.org", None)),
        ("ann@example.org@12", ("ann@example.org", 12)),
        ("ann@", ("ann@", None)),
        ("ann@-1", ("ann@-1", None)),
        ("ann@1.5", ("ann@1.5", None)),
    ],
)
def test_versioned_names(name, parsed):
    assert parse_versioned(name) == parsed


# Fingerprint


def test_same_fingerprint_is_accepted():
    MADE.require(replace(MADE), "state of ann")


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("generator", "4" * 64),
        ("base_model", "4" * 64),
        ("tokenizer", "4" * 64),
        ("chunking", "date-speakers/1:64"),
        ("encoding", "sequential"),
        ("numerics", "bfloat16:threads=2:grid=-13"),
    ],
)
def test_error_names_both_sides_and_what_differs(part, other):
    running = replace(MADE, **{part: other})
    with pytest.raises(IncompatibleState) as caught:
        running.require(MADE, "state of ann")
    message = str(caught.value)
    assert message.startswith("state of ann: ")
    assert f"made by {MADE.short}, but {running.short} is running" in message
    shown = [text if len(text) < 64 else text[:12] for text in (getattr(MADE, part), other)]
    assert f"({part} {shown[0]} instead of {shown[1]})" in message
    assert "memory users migrate" in message


def test_error_names_everything_that_differs():
    running = replace(MADE, encoding="sequential", chunking="date-speakers/2:256")
    with pytest.raises(IncompatibleState, match=r"chunking .*, encoding "):
        running.require(MADE, "state")


@pytest.mark.parametrize("part", [field.name for field in fields(Fingerprint)])
def test_digest_depends_on_every_part(part):
    assert replace(MADE, **{part: "other"}).digest != MADE.digest


def test_parts_cannot_stand_in_for_each_other():
    assert replace(MADE, generator="a", base_model="b").digest != (
        replace(MADE, generator="b", base_model="a").digest
    )
