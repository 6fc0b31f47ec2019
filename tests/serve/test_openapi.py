"""The description of the service is true: schemathesis sends what it allows, and what it does not, to every endpoint."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")
pytest.importorskip("schemathesis", reason="a package of the extra `test`")
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from unmask.serve.app import create_app

KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def service(tiny_bert, serving):
    with serving({"tiny": tiny_bert}, api_key="secret") as running:
        running.post("/models/tiny", {"inputs": "[MASK]"}, **KEY)
        yield running


# the document alone is needed to know what there is to test: no model is loaded for it
schema = schemathesis.openapi.from_dict(create_app({"tiny": "nowhere"}).openapi())


@schema.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_endpoint_keeps_to_its_description(case, service):
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "tiny"
    # a text without a mask is a text: that it is refused is for the other tests to say
    case.call_and_validate(base_url=service.url, headers=KEY, excluded_checks=[positive_data_acceptance])
