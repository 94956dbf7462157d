"""Requests made from /openapi.json, good and bad ones: no answer is a defect, and each is as described."""

import pytest

pytest.importorskip("schemathesis")  # pip install schemathesis
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_is_answered_by_a_defect(served, mode):
    schema = schemathesis.openapi.from_url(f"{served[0]}/openapi.json")
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        def check(case):
            if isinstance(case.body, dict):
                for name in LENGTHS:  # or it takes hours
                    if isinstance(case.body.get(name), int):
                        case.body[name] = min(case.body[name], 3)
            reply = case.call(timeout=60)
            tried.append(reply.status_code)
            case.validate_response(reply, checks=CHECKS)

        check()
    assert len(tried) > 100
    if mode is GenerationMode.NEGATIVE:
        assert tried.count(400) > 0.8 * len(tried)
    else:
        assert tried.count(200) > 30
