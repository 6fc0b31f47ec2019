"""The page that lists the endpoints. FastAPI's own loads its scripts from another server; this one works without a network."""

from __future__ import annotations

import json
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
section { border-top: 1px solid #8886; padding: .5rem 0 1rem }
h2 { font-size: 1.1rem; margin: .5rem 0 } h2 b { color: #2a7f62; margin-right: .6rem }
pre { background: #8882; padding: .6rem .8rem; border-radius: .4rem; overflow-x: auto; font-size: .85rem }
dt { font-weight: 600 } dd { margin: 0 0 .2rem 1.5rem }
"""


def page(spec: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    parts = []
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method.upper(), operation, spec["components"]["schemas"]))
    title = f"{spec['info']['title']} {spec['info']['version']}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1><p>{escape(spec['info']['description'])}</p>"
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>. '
        'Errors are JSON: <code>{"error": "...", "detail": [...]}</code>.</p>' + "".join(parts) + "</html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    made = f"<section><h2><b>{method}</b><code>{escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    for ref in content.get("anyOf", [content]):
        body = _named(ref, schemas)
        if body and body.get("properties"):
            made += _shape("Body", body, _example(body, schemas))
            kinds = body["properties"].get("parameters", {}).get("anyOf", []) if body.get("examples") else []  # else they are in it
            for inner in (_named(kind, schemas) for kind in kinds):
                made += _shape("Its parameters, none of which has to be given", inner, _fields(inner, schemas)) if inner else ""
    answers = "".join(
        f"<dt>{escape(status)}</dt><dd>{escape(answer['description'])}</dd>" for status, answer in operation["responses"].items()
    )
    return f"{made}<dl>{answers}</dl></section>"


def _shape(what: str, body: dict[str, Any], example: Any) -> str:
    return f"<p>{what}: {escape(body.get('description', ''))}</p><pre>{escape(json.dumps(example, indent=1))}</pre>"


def _named(ref: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any] | None:
    return schemas.get(ref.get("$ref", "").rpartition("/")[2])


def _example(body: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Return what a body may look like: its example, or its fields with their kinds."""
    return body["examples"][0] if body.get("examples") else _fields(body, schemas)


def _fields(body: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    return {name: _kind(field, schemas) for name, field in body["properties"].items()}


def _kind(field: dict[str, Any], schemas: dict[str, Any]) -> Any:
    if "$ref" in field:
        return _example(schemas[field["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in field:
        return _kind(field["anyOf"][0], schemas)
    if field.get("type") == "array":
        return [_kind(field["items"], schemas)]
    return field.get("default", field.get("const", f"<{field.get('type', 'anything')}>"))
