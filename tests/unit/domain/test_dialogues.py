import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memory_service.domain.dialogues import Dialogue, dialogue_from_record, read_dialogues
from memory_service.domain.turns import Role
from memory_service.errors import InvalidInput

REPOSITORY = Path(__file__).parents[3]
EXAMPLE = REPOSITORY / "examples" / "dialogues" / "msc_shape.jsonl"
SHARED_DATA = Path(
    os.environ.get("MEMORY_SERVICE_TEST_DATA", REPOSITORY.parent / "shared" / "data")
)


def record(**changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "id": "one",
        "sessions": [
            [{"speaker": "A", "text": "Hi!"}, {"speaker": "B", "text": "I have a dog, Rex."}],
            [{"speaker": "B", "text": "Rex is well."}],
        ],
        "questions": [
            {
                "question": "What is my dog called?",
                "answer": "Your dog is called Rex.",
                "value": "Rex",
                "asked_by": "B",
                "asked_of": "A",
                "about": "B",
                "evidence": {"session": 1},
            }
        ],
    }
    return made | changes


def question(**fields: object) -> list[dict[str, object]]:
    return [{"question": "Who?", "answer": "You.", **fields}]


def test_turns_carry_session_role_time_and_id():
    dialogue = dialogue_from_record(record())
    assert [(turn.id, turn.session, turn.role, turn.text) for turn in dialogue.turns] == [
        ("s1t01", "1", Role.ASSISTANT, "Hi!"),
        ("s1t02", "1", Role.USER, "I have a dog, Rex."),
        ("s2t01", "2", Role.USER, "Rex is well."),
    ]
    assert [turn.time for turn in dialogue.turns] == [
        datetime(2026, 1, 5, 12, 0, tzinfo=UTC),
        datetime(2026, 1, 5, 12, 1, tzinfo=UTC),
        datetime(2026, 1, 12, 12, 0, tzinfo=UTC),
    ]


def test_question_carries_answer_value_evidence_and_whom_it_is_about():
    (asked,) = dialogue_from_record(record()).questions
    assert asked.text == "What is my dog called?"
    assert asked.answer == "Your dog is called Rex."
    assert (asked.value, asked.evidence_session, asked.about) == ("Rex", 1, Role.USER)


def test_question_may_say_little():
    (asked,) = dialogue_from_record(record(questions=[{"question": "Who?"}])).questions
    assert (asked.answer, asked.value, asked.evidence_session, asked.about) == (None,) * 4


@pytest.mark.parametrize(
    ("questions", "user"),
    [([], "B"), (question(), "B"), (question(asked_by="B"), "B"), (question(asked_by="A"), "A")],
)
def test_speaker_who_asks_is_the_user(questions, user):
    turns = dialogue_from_record(record(questions=questions)).turns
    assert turns[0].role == (Role.USER if user == "A" else Role.ASSISTANT)
    assert turns[1].role == (Role.USER if user == "B" else Role.ASSISTANT)


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ("2026-03-02", datetime(2026, 3, 2, 12, tzinfo=UTC)),
        ("2023/04/10 (Mon) 14:47", datetime(2023, 4, 10, 14, 47, tzinfo=UTC)),
        ("1:56 pm on 8 May, 2023", datetime(2023, 5, 8, 13, 56, tzinfo=UTC)),
        ("2026-03-02T18:30:00+01:00", datetime(2026, 3, 2, 17, 30, tzinfo=UTC)),
    ],
)
def test_session_dates_set_the_times(given, start):
    turns = dialogue_from_record(record(session_dates=[given, "2026-09-01"])).turns
    assert turns[0].time == start
    assert turns[2].time == datetime(2026, 9, 1, 12, tzinfo=UTC)


def test_blank_texts_are_skipped_and_the_others_keep_their_ids():
    said = [{"speaker": "A", "text": " \n"}, {"speaker": "A", "text": "So."}]
    turns = dialogue_from_record(record(sessions=[said])).turns
    assert [turn.id for turn in turns] == ["s1t02"]


def test_dialogue_without_sessions_is_empty():
    assert dialogue_from_record(record(sessions=[])).turns == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"id": None}, "id"),
        ({"id": 7}, "id"),
        ({"sessions": None}, "sessions"),
        ({"sessions": ["x"]}, r"sessions\[0\]"),
        ({"sessions": [["x"]]}, r"sessions\[0\]\[0\]"),
        ({"sessions": [[{"speaker": "A"}]]}, r"sessions\[0\]\[0\]\.text"),
        ({"sessions": [[{"speaker": "C", "text": "x"}]]}, r"sessions\[0\]\[0\]\.speaker"),
        ({"sessions": [[{"speaker": ["A"], "text": "x"}]]}, r"sessions\[0\]\[0\]\.speaker"),
        ({"sessions": [[{"speaker": "A", "text": "x\0"}]]}, r"sessions\[0\]\[0\]\.text"),
        ({"session_dates": ["2026-03-02"]}, "session_dates"),
        ({"session_dates": "2026-03-02"}, "session_dates"),
        ({"session_dates": ["2026-03-02", "soon"]}, r"session_dates\[1\]"),
        ({"session_dates": ["2026-03-02", 5]}, r"session_dates\[1\]"),
        ({"questions": {}}, "questions"),
        ({"questions": ["Who?"]}, r"questions\[0\]"),
        ({"questions": [{}]}, r"questions\[0\]\.question"),
        ({"questions": question(answer=5)}, r"questions\[0\]\.answer"),
        ({"questions": question(value=["x"])}, r"questions\[0\]\.value"),
        ({"questions": question(about="me")}, r"questions\[0\]\.about"),
        ({"questions": question(asked_by="C")}, r"questions\[0\]\.asked_by"),
        ({"questions": question(asked_by=["A"])}, r"questions\[0\]\.asked_by"),
        (
            {"questions": question(asked_by="A") + question(asked_by="B")},
            r"questions\[1\]\.asked_by",
        ),
        ({"questions": question(evidence={"session": "1"})}, r"questions\[0\]\.evidence\.session"),
    ],
)
def test_errors_name_the_field(changes, field):
    with pytest.raises(InvalidInput, match=f"^{field}: "):
        dialogue_from_record(record(**changes))


@pytest.mark.parametrize("value", [None, [], "text"])
def test_record_that_is_no_object(value):
    with pytest.raises(InvalidInput, match=r"^dialogue: must be a JSON object"):
        dialogue_from_record(value)


def test_missing_field_is_called_missing():
    without_id = record()
    del without_id["id"]
    with pytest.raises(InvalidInput, match=r"^id: is missing"):
        dialogue_from_record(without_id)


def test_lines_are_read_one_by_one_and_empty_ones_skipped():
    lines = [json.dumps(record()), "\n", json.dumps(record(id="two")) + "\n", "not read"]
    dialogues = read_dialogues(lines)
    assert [next(dialogues).id, next(dialogues).id] == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "^line 2: record: is not JSON"),
        ("[]", "^line 2: dialogue: must be a JSON object"),
        (json.dumps(record(sessions=5)), "^line 2: sessions: must be a list"),
    ],
)
def test_errors_name_the_line(line, message):
    with pytest.raises(InvalidInput, match=message):
        list(read_dialogues([json.dumps(record()), line]))


# Files


def read(path: Path) -> list[Dialogue]:
    with path.open(encoding="utf-8") as lines:
        return list(read_dialogues(lines))


@pytest.mark.parametrize(
    "name",
    [
        "msc_dmr_dev",
        "msc_test",
        "membench20",
        "longmemeval_evidence",
        "memorybank_en",
        "madial_en",
        "spc_train_clean",
        "locomo",
    ],
)
def test_shared_data_is_readable(name):
    path = SHARED_DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there; MEMORY_SERVICE_TEST_DATA names its folder")
    dialogues = read(path)
    assert dialogues
    assert all(len({turn.id for turn in each.turns}) == len(each.turns) for each in dialogues)
    assert all(list(each.turns) == sorted(each.turns, key=_by_session) for each in dialogues)


def _by_session(turn):
    return (int(turn.session), turn.order)


def test_example_dialogues_are_each_others_swap_control():
    first, second = read(EXAMPLE)
    assert [asked.text for asked in first.questions] == [asked.text for asked in second.questions]
    assert len(first.questions) == 8
    for mine, other in ((first, second), (second, first)):
        assert {turn.session for turn in mine.turns} == {"1", "2", "3", "4"}
        said_by_other = " ".join(turn.text for turn in other.turns)
        for asked in mine.questions:
            assert asked.value is not None and asked.answer is not None
            assert asked.value in asked.answer
            assert asked.value.lower() not in said_by_other.lower()
            assert any(
                asked.value.lower() in turn.text.lower()
                for turn in mine.turns
                if turn.session == str(asked.evidence_session) and turn.role == asked.about
            )
