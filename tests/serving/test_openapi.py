"""The OpenAPI page: it describes what is there, and whatever fits it never leads to a 500."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from serving_process import Served


def test_the_page_asks_no_other_host(served: Served) -> None:
    page = httpx.get(f"{served.url}/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    for source in sources:
        assert source.startswith("/")
        assert httpx.get(served.url + source).status_code == 200


def test_requests_and_answers_are_described(served: Served) -> None:
    page = httpx.get(f"{served.url}/openapi.json").json()
    assert set(page["paths"]) == {"/v1/models", "/v1/models/{name}", "/v1/chat/completions", "/health", "/metrics"}
    chat = page["paths"]["/v1/chat/completions"]["post"]
    body = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert {"messages", "stream", "temperature"} <= set(page["components"]["schemas"][body]["properties"])
    assert {"200", "400", "401", "413", "429", "503"} <= set(chat["responses"])

    def references(value: object) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [found for inner in value.values() for found in references(inner)]
        return [found for inner in value for found in references(inner)] if isinstance(value, list) else []

    for reference in references(page):
        assert reference.removeprefix("#/components/schemas/") in page["components"]["schemas"]


@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_leads_to_a_500(served: Served, mode: GenerationMode) -> None:
    """Whether it fits the page or not."""
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    counts: Counter[str] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        examples = 40 if operation.method == "post" else 5

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def check(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
                case.body["max_completion_tokens"] = 2  # long answers prove no more
            response = case.call(timeout=30)
            counts[case.path] += 1
            assert response.status_code < 500
            if response.status_code >= 400 and response.headers["content-type"] == "application/json":
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        with suppress(Unsatisfiable):  # there is nothing wrong that could be said to /health
            check()
    assert counts["/v1/chat/completions"] >= 30
