#!/usr/bin/env bash
# openapi-python-client 0.29.1: an operation whose request body has two media types (JSON, or a form with files) becomes a
# module that cannot be imported. The body, though required, is annotated `A | B | Unset`, and Unset is imported only where
# something else of the operation is optional. A parameter that may be left out (a traceparent header) makes it work.
# Ends with 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openapi-python-client==0.29.1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import pathlib
import subprocess
import sys

folder = pathlib.Path(sys.argv[1])


def imports(name, parameters):
    """Whether the module of an operation with two bodies and these parameters can be imported."""
    photo = {"type": "object", "required": ["url"], "properties": {"url": {"type": "string"}}}
    form = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
    document = {
        "openapi": "3.1.0",
        "info": {"title": name, "version": "1"},
        "paths": {
            "/photos": {
                "post": {
                    "operationId": "send",
                    "tags": ["photos"],
                    "parameters": parameters,
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Photo"}},
                            "multipart/form-data": {"schema": form},
                        },
                    },
                    "responses": {"204": {"description": "Taken."}},
                }
            }
        },
        "components": {"schemas": {"Photo": photo}},
    }
    source, target = folder / f"{name}.json", folder / name
    source.write_text(json.dumps(document))
    generate = [folder / "venv/bin/openapi-python-client", "generate", "--path", source, "--meta", "none"]
    subprocess.run([*generate, "--output-path", target], check=True, capture_output=True)
    ran = subprocess.run(
        [sys.executable, "-c", f"import {name}.api.photos.send"], cwd=folder, capture_output=True, text=True
    )
    assert ran.returncode == 0 or "name 'Unset' is not defined" in ran.stderr, ran.stderr
    return ran.returncode == 0


header = {"name": "traceparent", "in": "header", "required": False, "schema": {"type": "string"}}
seen = {"two_bodies": imports("two_bodies", []), "two_bodies_and_a_header": imports("two_bodies_and_a_header", [header])}
print(seen)
assert seen == {"two_bodies": False, "two_bodies_and_a_header": True}, "the behaviour has changed"
PYTHON
