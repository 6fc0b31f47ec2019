"""The description of the service is true: schemathesis sends what it allows, and what it does not, to every endpoint."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")
pytest.importorskip("schemathesis", reason="a package of the extra `test`")
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import unsupported_method

KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def service(tiny_bert, serving):
    with serving({"tiny": tiny_bert}, api_key="secret") as running:
        running.post("/models/tiny", {"inputs": "[MASK]"}, **KEY)
        yield running


@pytest.fixture
def described(service):
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_endpoint_keeps_to_its_description(case):
    # TRACE and the like are answered 405, which it wants to see an Allow header of that lists all methods of other routes
    case.call_and_validate(headers=KEY, excluded_checks=[unsupported_method])
