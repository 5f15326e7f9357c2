from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memory_service.domain.chunks import Chunk, Line, chunk_session, in_order_said
from memory_service.domain.turns import Role, Turn
from memory_service.errors import InvalidInput

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
BUDGET = 64


def count_bytes(text: str) -> int:
    """A tokenizer of single bytes: counts are exact and grow with the text."""
    return len(text.encode())


def count_pairs(text: str) -> int:
    """A tokenizer that merges: "ab" is one token and "a" is one, so prefixes may cost more."""
    merged = text.replace("ab", "\x01").replace("word word", "\x02").replace("\x02 ", "\x02")
    return len(merged.encode())


def turn(number: int, text: str = "", *, minutes: int | None = None, **changes: object) -> Turn:
    made = Turn(
        session="s",
        role=Role.USER if number % 2 == 0 else Role.ASSISTANT,
        text=text or f"what turn {number} says",
        time=START + timedelta(minutes=number if minutes is None else minutes),
        id=f"t{number:03}",
    )
    return replace(made, **changes)


def cut(turns: list[Turn], budget: int = BUDGET, count_tokens=count_bytes) -> list[Chunk]:
    return chunk_session(turns, budget, count_tokens)


texts = st.text(st.sampled_from("ab é😀\n.wordword ") | st.characters(exclude_categories=["Cs"]))
texts = (texts | st.text("ab ", max_size=300)).filter(lambda text: text.strip().strip("\0"))
sessions = st.lists(
    st.tuples(texts.map(lambda text: text.replace("\0", "")), st.integers(0, 4000)), max_size=12
).map(
    lambda said: [
        turn(number, text, minutes=minutes)
        for number, (text, minutes) in enumerate(said)
        if text.strip()
    ]
)
counters = st.sampled_from([count_bytes, count_pairs, len])


# What a chunk looks like


def test_chunk_begins_with_its_date_and_names_the_speakers():
    (chunk,) = cut([turn(0, "My dog is called Rex."), turn(1, "A good name!")], 200)
    assert (
        chunk.text == "Date: 1 March 2026\nUser: My dog is called Rex.\nAssistant: A good name!\n"
    )
    assert (chunk.session, chunk.turn_ids) == ("s", ("t000", "t001"))
    assert "".join(chunk.texts) == chunk.text


def test_no_turns_no_chunks():
    assert cut([]) == []


def test_chunk_carries_the_date_of_its_first_turn():
    turns = [turn(0), turn(1, minutes=24 * 60), turn(2, minutes=48 * 60)]
    assert [chunk.header for chunk in cut(turns, 75)] == [
        "Date: 1 March 2026\n",
        "Date: 3 March 2026\n",
    ]


def test_date_is_that_of_utc_whatever_the_time_zone():
    late = datetime(2026, 3, 31, 23, 30, tzinfo=timezone(timedelta(hours=-2)))
    assert cut([turn(0, time=late)]) == cut([turn(0, time=late.astimezone(UTC))])
    assert cut([turn(0, time=late)])[0].header == "Date: 1 April 2026\n"


def test_months_are_english_whatever_the_locale():
    months = [cut([turn(0, time=START.replace(month=month))])[0].header for month in range(1, 13)]
    assert " ".join(header.split()[2] for header in months) == (
        "January February March April May June July August September October November December"
    )


def test_turns_of_several_sessions_are_refused():
    with pytest.raises(InvalidInput, match="one session"):
        cut([turn(0), turn(1, session="other")])


@pytest.mark.parametrize("budget", [-5, 0, 19, 26])
def test_budget_without_room_for_words(budget):
    with pytest.raises(InvalidInput, match=r"budget_tokens.*no room"):
        cut([turn(0)], budget)


def test_budget_for_one_letter():
    budget = len("Date: 1 March 2026\nUser: a\n")
    assert [line.text for chunk in cut([turn(0, "abc d")], budget) for line in chunk.lines] == [
        f"User: {letter}\n" for letter in "abcd"
    ]


# Chunks are a pure function of the kept turns


@given(sessions, counters, st.data())
def test_any_order_of_turns_gives_the_same_chunks(turns, count_tokens, data):
    shuffled = data.draw(st.permutations(turns))
    assert cut(shuffled, BUDGET, count_tokens) == cut(turns, BUDGET, count_tokens)


@given(sessions, counters, st.integers(40, 200))
def test_every_chunk_fits_the_budget(turns, count_tokens, budget):
    for chunk in cut(turns, budget, count_tokens):
        assert sum(count_tokens(text) for text in chunk.texts) <= budget


@given(sessions, counters)
def test_every_character_of_every_turn_is_there_in_order(turns, count_tokens):
    said: dict[str, str] = {}
    for chunk in cut(turns, BUDGET, count_tokens):
        for line in chunk.lines:
            speaker, _, text = line.text.partition(": ")
            said[line.turn_id] = said.get(line.turn_id, "") + text
            assert speaker in ("User", "Assistant")
    ordered = sorted(turns, key=lambda one: one.order)
    assert list(said) == [one.id for one in ordered]
    for one in ordered:
        assert "".join(said[one.id].split()) == "".join(one.text.split())


@given(
    st.lists(st.text(st.sampled_from("abé😀"), min_size=1, max_size=5), min_size=1), st.booleans()
)
def test_words_are_whole_where_they_fit(words, by_lines):
    said = turn(0, ("\n" if by_lines else " ").join(words))
    lines = [line.text for chunk in cut([said]) for line in chunk.lines]
    assert [word for line in lines for word in line.removeprefix("User: ").split()] == words


@given(sessions, texts, counters)
def test_appending_changes_the_last_chunk_only(turns, text, count_tokens):
    assume(text.replace("\0", "").strip())
    before = cut(turns, BUDGET, count_tokens)
    later = turn(99, text.replace("\0", ""), minutes=5000)
    after = cut([*turns, later], BUDGET, count_tokens)
    closed = len(before) - 1
    assert after[: max(0, closed)] == before[: max(0, closed)]
    assert (
        before == []
        or before[-1] == after[closed]
        or (before[-1].lines == after[closed].lines[: len(before[-1].lines)])
    )


@given(sessions.filter(bool), counters)
def test_a_closed_chunk_is_found_again_among_its_own_turns(turns, count_tokens):
    """What forgetting relies on: it encodes a chunk again from the chunk's turns alone."""
    for chunk in cut(turns, BUDGET, count_bytes):
        members = [one for one in turns if one.id in chunk.turn_ids]
        assert chunk in cut(members, BUDGET, count_bytes)


# Turns longer than a chunk


@pytest.mark.parametrize(
    "text",
    [
        "word " * 100,
        "x" * 500,
        "😀" * 100,
        "é" * 101,
        "日本語" * 40,
        "short " + "x" * 200 + " short",
        "line\n" * 60,
        "a" + " " * 300 + "b",
    ],
    ids=["words", "no spaces", "emoji", "accents", "kanji", "mixed", "lines", "spaces"],
)
def test_long_turn_is_split_not_cut(text):
    chunks = cut([turn(0, "before"), turn(1, text, role=Role.USER), turn(2, "after")])
    parts = [line for chunk in chunks for line in chunk.lines if line.turn_id == "t001"]
    assert [line.part for line in parts] == list(range(len(parts)))
    assert all(line.text.startswith("User: ") and line.text.endswith("\n") for line in parts)
    joined = "".join(line.text.removeprefix("User: ") for line in parts)
    assert "".join(joined.split()) == "".join(text.split())
    assert all(sum(map(count_bytes, chunk.texts)) <= BUDGET for chunk in chunks)
    assert chunks[0].turn_ids[0] == "t000" and chunks[-1].turn_ids[-1] == "t002"


def test_long_turn_uses_its_chunks_well():
    chunks = cut([turn(0, "word " * 400)])
    full = [sum(map(count_bytes, chunk.texts)) for chunk in chunks[:-1]]
    assert min(full) > BUDGET - len("word ")


def test_megabyte_without_spaces_is_not_counted_whole_again_and_again():
    counted = 0

    def count_tokens(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(text) // 4 + 1

    chunks = cut([turn(0, "x" * 1_000_000)], 256, count_tokens)
    assert 900 < len(chunks) < 1200
    assert counted < 50 * 1_000_000  # counting the rest for every part would be 500 times


def test_prefix_that_costs_more_than_the_whole_still_fits():
    # Cutting between "a" and "b" costs a token more than leaving them together.
    turns = [turn(0, "ab" * 200), turn(1, "word word " * 40)]
    for chunk in cut(turns, BUDGET, count_pairs):
        assert sum(count_pairs(text) for text in chunk.texts) <= BUDGET


def test_cut_at_a_space_that_would_cost_more_is_not_made():
    def count_tokens(text: str) -> int:
        return len(text) - 10 * text.count("q w")

    # Room for 38; up to the space inside "q w" it is 39, and 10 less once that is whole.
    (first, *_) = cut([turn(0, "a" * 37 + " q w" + "b" * 50)], BUDGET, count_tokens)
    assert count_tokens(first.text) <= BUDGET
    assert "q w" in first.text


# Digests


CHUNK = Chunk("s", "Date: 1 March 2026\n", (Line("t1", 0, "User: a\n"), Line("t2", 0, "User: b\n")))


@pytest.mark.parametrize(
    "other",
    [
        replace(CHUNK, session="s2"),
        replace(CHUNK, header="Date: 2 March 2026\n"),
        replace(CHUNK, lines=CHUNK.lines[:1]),
        replace(CHUNK, lines=CHUNK.lines[::-1]),
        replace(CHUNK, lines=(Line("t3", 0, "User: a\n"), CHUNK.lines[1])),
        replace(CHUNK, lines=(Line("t1", 1, "User: a\n"), CHUNK.lines[1])),
        replace(CHUNK, lines=(Line("t1", 0, "User: a \n"), CHUNK.lines[1])),
        replace(CHUNK, lines=(Line("t1", 0, "Assistant: a\n"), CHUNK.lines[1])),
        replace(CHUNK, lines=(Line("t1", 0, "User: a\nUser: b\n"),)),
        Chunk("sDate: 1 March 2026\n", "", CHUNK.lines),
    ],
)
def test_digest_changes_with_any_change(other):
    assert other.digest != CHUNK.digest


def test_digest_is_that_of_the_content():
    assert replace(CHUNK).digest == CHUNK.digest
    assert len(CHUNK.digest) == 64


@given(sessions.filter(bool))
def test_digests_of_a_session_differ(turns):
    chunks = cut(turns)
    assert len({chunk.digest for chunk in chunks}) == len(chunks)


# Several sessions


def test_chunks_of_several_sessions_in_the_order_in_which_they_were_said():
    # A session goes on after another one has begun.
    first = [turn(0, "x" * 30), turn(1, "y" * 30), turn(6, "z" * 30)]
    second = [turn(3, "v" * 30, session="a"), turn(4, "w" * 30, session="a")]
    chunks = in_order_said([*cut(second), *cut(first)], [*first, *second])
    assert [chunk.turn_ids[0] for chunk in chunks] == ["t000", "t001", "t003", "t004", "t006"]


def test_parts_of_one_turn_stay_in_order():
    long = turn(0, "x" * 300)
    chunks = cut([long])
    assert in_order_said(chunks, [long]) == chunks
