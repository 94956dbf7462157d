"""Requests made from /openapi.json against a running server: no failure of its own, and answers as described.

`make fuzz`. Bodies that fit the description, bodies that break it, and nothing in between may end a server or hang it.
"""

from collections import Counter

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given, settings

from qtransformers.serve.config import ServerConfig
from qtransformers.serve.models import ModelSpec
from servers import running

EXAMPLES = 60
PLAIN = {
    "messages": [{"role": "user", "content": "Hello"}],
    "model": "demo",
    "max_tokens": 4,
    "max_output_tokens": 4,
    "lora": None,
}


@pytest.fixture(scope="module")
def url(data):
    """A server that gives short answers."""
    spec = ModelSpec(str(data / "demo-Q8_0.gguf"), ("demo",), {"threads": 1, "context_length": 256})
    with running([spec], ServerConfig(port=0, timeout=20, max_answer=8)) as (url, _):
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("fitting", [True, False], ids=["fitting", "breaking"])
def test_requests_from_the_description(url, fitting):
    import schemathesis
    from schemathesis.specs.openapi import checks

    mode = schemathesis.GenerationMode.POSITIVE if fitting else schemathesis.GenerationMode.NEGATIVE
    wanted = [schemathesis.checks.not_a_server_error, checks.status_code_conformance]
    wanted += [checks.content_type_conformance, checks.response_schema_conformance]
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            if fitting and isinstance(case.body, dict):  # or nearly all would be refused at once
                case.body |= {name: value for name, value in PLAIN.items() if name in case.body}
            answer = case.call_and_validate(base_url=url, checks=wanted, timeout=30)
            statuses[case.operation.label, answer.status_code] += 1

        if fitting or operation.body:
            ask()
            assert httpx.get(f"{url}/health").status_code == 200, operation.label
    print(*(f"{label} {status}: {n}" for (label, status), n in sorted(statuses.items())), sep="\n")
    assert sum(statuses.values()) > 300
