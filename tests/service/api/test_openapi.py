"""The API's description as generators of clients need it, and its examples, each of which works."""

from __future__ import annotations

import copy
from pathlib import Path

import httpx
import jsonschema_rs
import pytest

from carousel.service.app import create_app

ADMIN_KEY = "k" * 40
BUNDLES = Path(__file__).parents[3] / "bundles"


@pytest.fixture(scope="module")
def admin_server(run_server):
    with run_server(admin_key=ADMIN_KEY) as instance:
        yield instance


@pytest.fixture(scope="module")
def document(admin_server):
    return httpx.get(f"{admin_server.url}/openapi.json", trust_env=False).json()


def _operations(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation


def test_operations_have_names_of_their_own(document):
    names = [operation["operationId"] for _, _, operation in _operations(document)]
    assert sorted(names) == [
        "attention_picture", "captions", "completions", "delete_session", "get_model", "get_repository", "get_session",
        "infer", "list_models", "livez", "load_model", "mastery_picture", "metrics", "model_metadata", "model_ready",
        "next_token", "oip_live", "oip_load", "oip_ready", "oip_unload", "predict", "readyz", "repository_index",
        "score", "server_metadata", "trace", "unload_model",
    ]  # fmt: skip


def test_answers_have_a_schema_and_one_media_type_where_one_comes(document):
    two = {"completions", "captions", "infer"}
    for _, path, operation in _operations(document):
        name = operation["operationId"]
        for status, response in operation["responses"].items():
            content = response.get("content", {})
            if status == "204":
                assert not content
                continue
            assert len(content) == (2 if status == "200" and name in two else 1), path
            for media_type, told in content.items():
                assert told["schema"] not in ({}, None)
                if status != "200":
                    assert media_type == "application/json"
        kind = {"mastery_picture": "image/svg+xml", "attention_picture": "image/svg+xml", "metrics": "text/plain"}
        if name != "delete_session":
            assert next(iter(operation["responses"]["200"]["content"])) == kind.get(name, "application/json")


def test_references_lead_somewhere_and_schemas_are_schemas(document):
    schemas = document["components"]["schemas"]
    text = httpx.Response(200, json=document).text
    for reference in {part.split('"')[0] for part in text.split('"$ref":"')[1:]}:
        kind, name = reference.removeprefix("#/components/").split("/")
        assert name in document["components"][kind]
    assert "HTTPValidationError" not in schemas
    for name, schema in schemas.items():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
        # Generators take what has a default for always there, and ask for it in requests.
        assert not any("default" in told for told in schema.get("properties", {}).values()), name
    assert schemas["NextTokenRequest"]["properties"]["top"]["description"] == "How many. Default: 10."
    assert schemas["ScoreRequest"].get("required") is None
    assert schemas["TraceRequest"]["required"] == ["attempts"]
    assert schemas["CompletionsRequest"]["required"] == ["model", "prompt"]
    form = document["paths"]["/v1/models/{model}/captions"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert not any("default" in told for told in form["schema"]["properties"].values())


def test_keys_are_described(document, run_server, tmp_path):
    assert set(document["components"]["securitySchemes"]) == {"ApiKey", "AdminKey"}
    assert document["security"] == [{}, {"ApiKey": []}]
    for _, path, operation in _operations(document):
        expected = [] if path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready") else None
        admins = path.startswith(("/v1/repository", "/v2/repository"))
        assert operation.get("security") == ([{"AdminKey": []}] if admins else expected)
    keys = tmp_path / "api_keys"
    keys.write_text("# nobody has one\n")
    with run_server(api_keys_file=keys) as server:
        told = server.context  # the document itself needs a key
        assert told.settings.api_keys_file == keys
        assert create_app(told.settings).openapi()["security"] == [{"ApiKey": []}]


def _execute(client, document):
    """Send every example as /docs does; what came back, by operation."""
    statuses = {}
    for method, path, operation in _operations(document):
        values = {one["name"]: one.get("example") for one in operation.get("parameters", ()) if one["in"] == "path"}
        url = path.format(**values)
        content = operation.get("requestBody", {}).get("content", {})
        bodies = content["application/json"]["examples"].values() if content else [None]
        if content:
            assert next(iter(content)) == "application/json"  # which is what /docs shows
        for body in bodies:
            told = {} if body is None else {"json": body["value"]}
            response = client.request(method, url, **told)
            assert response.status_code < 300, (url, body, response.text[:300])
            media_type = response.headers.get("content-type", "").partition(";")[0]
            if response.content:
                assert media_type in operation["responses"]["200"]["content"]
            if media_type == "application/json":
                schema = copy.deepcopy(operation["responses"]["200"]["content"]["application/json"]["schema"])
                jsonschema_rs.validator_for(schema | {"components": document["components"]}).validate(response.json())
            statuses.setdefault(operation["operationId"], []).append(response.status_code)
    return statuses


def test_every_example_works_on_the_models_that_are_served(run_server):
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with (
        run_server(admin_key=ADMIN_KEY) as server,
        httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client,
    ):
        statuses = _execute(client, client.get("/openapi.json").json())
    assert len(statuses) == 27
    assert len(statuses["completions"]) == len(statuses["trace"]) == 2
    assert len(statuses["captions"]) == 3


def test_every_example_works_on_the_shipped_models(run_server):
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with (
        run_server(admin_key=ADMIN_KEY, repository=BUNDLES) as server,
        httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client,
    ):
        document = client.get("/openapi.json").json()
        statuses = _execute(client, document)
    assert len(statuses) == 27
    told = str(document["paths"])
    for example in ("shakespeare", "tutor", "scenes", "To be, or not to b", "Counting"):
        assert f"'{example}'" in told


def test_beam_beside_a_default_that_a_client_sends_is_a_beam(client, picture, caption):
    plain = caption(picture(), beam_width=3, n=2)
    assert caption(picture(), beam_width=3, n=2, repetition_penalty=1.0) == plain
