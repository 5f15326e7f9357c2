"""Every error has a status, and its body holds nothing but what was made for callers."""

import inspect

from memory_service import errors
from memory_service.api.errors import STATUS, body_of, status_of
from memory_service.errors import InvalidInput, MemoryServiceError, Overloaded, Unavailable


def leaves() -> list[type[MemoryServiceError]]:
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, MemoryServiceError)
    ]
    return [kind for kind in kinds if not kind.__subclasses__()]


def test_every_leaf_has_a_status_of_its_own():
    assert not [kind.__name__ for kind in leaves() if kind not in STATUS]


def test_a_new_kind_of_error_has_its_parents_status():
    class Unheard(Unavailable):
        code = "unheard"

    assert status_of(Unheard("database", "silent")) == STATUS[Unavailable]


def test_bodies_are_openais():
    body = body_of(InvalidInput("top_p", 2, "must be at most 1"))
    assert body == {
        "error": {
            "message": "top_p: must be at most 1 (got 2)",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "invalid_input",
        }
    }
    assert body_of(Unavailable("database", "is locked"))["error"]["type"] == "server_error"
    assert body_of(Overloaded("engine", "is busy", 3))["error"]["param"] is None
