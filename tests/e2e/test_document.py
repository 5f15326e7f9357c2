"""Requests that schemathesis makes of the OpenAPI document, against a real server: never a 5xx."""

import os
import sys
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.helpers.serving import serving


@schemathesis.serializer("application/zip")
def as_sent(context: object, value: object) -> bytes:
    """An archive's body: bytes as they were made, and anything else as text."""
    data = getattr(value, "data", value)
    return data if isinstance(data, bytes) else str(data).encode()


EXAMPLES = int(os.environ.get("DOCUMENT_EXAMPLES", "5"))
"""Requests of every operation; `make test-document` makes more."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")  # schemathesis's own
def test_nothing_that_the_document_allows_or_forbids_is_a_5xx(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_SERVICE_MOST_NEW_TOKENS", "4")
    made: dict[str, int] = {}
    with serving() as (_, address):
        document = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for found in document.get_all_operations():
            operation = found.ok()

            @given(operation.as_strategy())
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def ask(case: schemathesis.Case) -> None:
                made[operation.label] = made.get(operation.label, 0) + 1  # noqa: B023
                case.call_and_validate(checks=[not_a_server_error], timeout=60)

            ask()
    sys.stdout.write(f"\n{sum(made.values())} requests of {len(made)} operations, no 5xx\n")
    assert len(made) > 20
