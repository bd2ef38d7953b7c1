"""The page /docs: the API in one piece of HTML, made from its OpenAPI document, without a script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from web.problems import KINDS

STYLE = """
:root { color-scheme: light dark; --ground: light-dark(#fbfaf7, #16181c); --ink: light-dark(#23262b, #e6e4df);
  --soft: light-dark(#63676f, #9a9da5); --line: light-dark(#e2dfd7, #30343b); --code: light-dark(#f1eee6, #1f2329);
  --accent: light-dark(#1f5f8b, #83bde6); }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 52rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.6 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; } h2 { margin: 3rem 0 1rem; font-size: 1.25rem; }
h3 { margin: 2rem 0 .4rem; font-size: 1.05rem; } a { color: var(--accent); }
code, pre { font: .875rem/1.55 ui-monospace, monospace; background: var(--code); border-radius: .3rem; }
code { padding: .1rem .3rem; } pre { padding: .8rem 1rem; overflow-x: auto; } pre code { padding: 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; display: block; overflow-x: auto; }
td, th { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; } .soft { color: var(--soft); } .verb { color: var(--soft); font-weight: 400; }
:target { outline: 2px solid var(--accent); outline-offset: .3rem; }
"""
EXAMPLES = {
    ("post", "/v1/answers"): """curl -s {base}/v1/answers -H 'Content-Type: application/json' -d '{{
  "questions": ["When was the canal opened?"],
  "text": "The canal was opened on 17 November 1869."
}}'""",
    ("post", "/v1/hf"): """curl -s {base}/v1/hf -H 'Content-Type: application/json' -d '{{
  "inputs": {{"question": "When was it opened?", "context": "The canal was opened in 1869."}},
  "parameters": {{"top_k": 2}}
}}'""",
    ("post", "/v1/documents"): "curl -s '{base}/v1/documents?name=report.txt' --data-binary @report.txt",
    ("get", "/v1/model"): "curl -s {base}/v1/model",
}
BASE = "http://127.0.0.1:8000"


def docs_page(openapi: Mapping[str, Any], needs_token: bool) -> str:
    """HTML of the whole API."""
    return "".join(_parts(openapi, needs_token))


def _parts(openapi: Mapping[str, Any], needs_token: bool) -> Iterator[str]:
    info, schemas = openapi["info"], openapi["components"]["schemas"]
    yield f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}: the API</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
    yield f"<style>{STYLE}</style><body><h1>{escape(info['title'])}: the API</h1>"
    yield f'<p class="soft">{escape(info["summary"])} <a href="/">The page</a> · <a href="/openapi.json">OpenAPI</a></p>'
    yield "<p>All offsets count Unicode code points. Errors are problem documents (RFC 9457) that name the field.</p>"
    if needs_token:
        yield "<p>Requests bring this server's token: <code>Authorization: Bearer TOKEN</code>.</p>"
    yield "<h2>Requests</h2>"
    for path, operations in openapi["paths"].items():
        for verb, operation in operations.items():
            yield from _operation(path, verb, operation)
    yield "<h2>Forms</h2>"
    for name, schema in schemas.items():
        if "properties" in schema and name not in ("HTTPValidationError", "ValidationError", "ProblemOut"):
            yield from _schema(name, schema)
    yield "<h2>Problems</h2><table><tr><th>status<th>type<th>title"
    for kind, (status, title) in KINDS.items():
        yield f'<tr id="{kind}"><td>{status}<td><code>/docs#{kind}</code><td>{escape(title)}'
    yield "</table></body></html>\n"


def _operation(path: str, verb: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h3><span class="verb">{verb.upper()}</span> <code>{escape(path)}</code></h3>'
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    body = operation.get("requestBody", {}).get("content", {})
    answer: Mapping[str, Any] = next(
        (one.get("content", {}) for code, one in operation["responses"].items() if code.startswith("2")), {}
    )
    forms = [("takes", body), ("gives", answer)]
    told = [f"{word} {_kind(next(iter(content.values())).get('schema', {}))}" for word, content in forms if content]
    if told:
        yield f'<p class="soft">{", ".join(told)}</p>'
    if example := EXAMPLES.get((verb, path)):
        yield f"<pre><code>{escape(example.format(base=BASE))}</code></pre>"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h3 id="{name}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
    yield "<table><tr><th>field<th>kind<th>meaning"
    required = schema.get("required", ())
    for field, one in schema["properties"].items():
        default = "" if field in required or one.get("default") is None else f", else {json.dumps(one['default'])}"
        yield f"<tr><td><code>{escape(field)}</code><td>{_kind(one)}{escape(default)}<td>{escape(one.get('description', ''))}"
    yield "</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        low, high = schema.get("minItems"), schema.get("maxItems")
        count = f"{low or 0} … {high} × " if high else "list of "
        return count + _kind(schema.get("items", {}))
    if "const" in schema:
        return escape(json.dumps(schema["const"]))
    name = schema.get("type", "any")
    low, high = schema.get("minimum"), schema.get("maximum")
    return escape(name) + (f" {low} … {high}" if low is not None and high is not None else "")
