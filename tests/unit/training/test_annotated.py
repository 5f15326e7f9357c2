import json

import pytest

from memory_service.errors import ConfigurationError, InvalidInput, NotFound
from memory_service.training.annotated import AnnotatedLine, read_annotated
from tests.helpers.tiny_training import write_dialogues


def line(**changes: object) -> str:
    said = [{"speaker": "A", "text": " I own a Jeep. ", "fact": "I own a Jeep."}]
    return json.dumps({"id": "one", "split": "test", "sessions": [said]} | changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dialogues.jsonl"


def test_lines_with_their_facts(path):
    path.write_text(line(sessions=[[{"speaker": "B", "text": "Hi"}], []]) + "\n" + line(id=2))
    first, second = read_annotated(path)
    assert first.sessions == ((AnnotatedLine("B", "Hi", None),), ())
    assert second.id == "2"
    assert second.sessions == ((AnnotatedLine("A", "I own a Jeep.", "I own a Jeep."),),)


def test_blank_texts_are_skipped(path):
    path.write_text(line(sessions=[[{"speaker": "A", "text": " "}]]))
    assert read_annotated(path)[0].sessions == ((),)


def test_line_ends_of_unicode_do_not_end_a_line(path):
    text = "one\u2028two\u0085three\x0bfour"
    record = {"id": 1, "split": "train", "sessions": [[{"speaker": "A", "text": text}]]}
    path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    assert read_annotated(path)[0].sessions[0][0].text == text


@pytest.mark.parametrize("split", ["train", "test"])
def test_training_splits_are_read(path, split):
    assert len(read_annotated(write_dialogues(path, split=split))) == 3


@pytest.mark.parametrize("split", ["valid", "validation", "dev", "heldout", "", None, 1])
def test_evaluation_split_is_refused(path, split):
    path.write_text(line() + "\n" + line(split=split))
    with pytest.raises(ConfigurationError, match=r"line 2 is of the split .*evaluation"):
        read_annotated(path)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        json.dumps({"id": 1, "sessions": []}),
        json.dumps({"split": "test", "sessions": []}),
        json.dumps({"id": 1, "split": "test"}),
        line(sessions=5),
        line(sessions=[5]),
        line(sessions=[["text"]]),
        line(sessions=[[{"speaker": "A"}]]),
        line(sessions=[[{"text": "Hi"}]]),
        line(sessions=[[{"speaker": "A", "text": 5}]]),
        line(sessions=[[{"speaker": "A", "text": None}]]),
    ],
)
def test_line_that_is_no_dialogue_is_named(path, bad):
    path.write_text("\n".join([line(), bad, line()]))
    with pytest.raises(InvalidInput, match=r"^line 2: is no annotated dialogue"):
        read_annotated(path)


def test_missing_file(path):
    with pytest.raises(NotFound, match=r"dialogues\.jsonl"):
        read_annotated(path)


def test_unreadable_file(path, tmp_path):
    path.write_bytes(b'{"id": "\xff"}')
    for unreadable in (path, tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            read_annotated(unreadable)
