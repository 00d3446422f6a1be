def test_models_are_listed(client):
    response = client.get("/v1/models")
    assert response.status_code == 200
    models = [client.get(f"/v1/models/{name}").json() for name in ("blind", "endless", "scenes", "tiny", "tutor")]
    assert response.json() == {"object": "list", "data": models}


def test_model_tells_what_it_is(client, server):
    model = client.get("/v1/models/tiny").json()
    assert model["id"] == "tiny"
    assert model["object"] == "model"
    assert (model["task"], model["version"], model["precision"]) == ("language", 1, "fp32")
    assert model["digest"] == server.context.repository.models["tiny"].bundle.digest
    assert model["vocabulary_size"] == 13
    states = {state["name"]: (state["shape"], state["dtype"]) for state in model["states"]}
    assert states == {f"state.{name}": ([7], "float32") for name in ("h0", "c0", "h1", "c1")}
    assert model["limits"] == {"max_prompt_tokens": 262_144, "max_new_tokens": 65_536}
    assert model["decoding"] == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert model["validation"]["perplexity"] == 4.48
    assert model["provenance"]["cell"] == "lstm"


def test_tracing_model_tells_its_skills(client):
    model = client.get("/v1/models/tutor").json()
    assert (model["task"], model["vocabulary_size"], model["decoding"]) == ("tracing", None, None)
    assert len(model["skills"]) == 5
    assert model["skills"][2] == "fractions, like denominators"
    assert model["validation"]["auc"] == 0.75


def test_captioning_model_tells_what_it_takes(client):
    model = client.get("/v1/models/scenes").json()
    assert (model["task"], model["vocabulary_size"], model["skills"]) == ("captioning", 13, None)
    assert (model["preprocessing"]["width"], model["preprocessing"]["height"]) == (9, 8)
    assert model["attention"] == [2, 3]
    assert client.get("/v1/models/blind").json()["attention"] is None
    assert model["limits"]["max_beam_width"] == 6
    assert (model["decoding"]["beam_width"], model["decoding"]["length_penalty"]) == (3, 0.7)


def test_openapi_describes_every_route(client):
    schema = client.get("/openapi.json").json()
    models = "/v1/models/{model}"
    paths = ["/v1/completions", "/v1/models", models, f"{models}/next-token", f"{models}/score", f"{models}/predict"]
    paths += [f"{models}/captions", f"{models}/captions/attention.svg"]
    paths += [f"{models}/trace", f"{models}/trace/{{session}}/mastery.svg", f"{models}/sessions/{{session}}"]
    paths += ["/v2", *(f"/v2/{rest}" for rest in ("health/live", "health/ready", "models/{model}"))]
    paths += [f"/v2/models/{{model}}/{rest}" for rest in ("ready", "infer")]
    assert sorted(schema["paths"]) == sorted([*paths, "/livez", "/readyz", "/metrics"])
