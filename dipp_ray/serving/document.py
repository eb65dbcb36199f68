"""What the OpenAPI document says of bodies, and the page that shows it."""

import html
import json

from pydantic import BaseModel

from dipp_ray.serving.wire import JSON, SAFETENSORS, JsonCall, ScoreOptions


def schema_of(model: type[BaseModel]) -> dict:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)  # FastAPI puts those of the reply, the same ones, where the references point
    return schema


BINARY = {"type": "string", "format": "binary"}
REQUEST_CONTENT = {JSON: {"schema": schema_of(JsonCall)}, SAFETENSORS: {"schema": BINARY}}
TEXT_CONTENT = {"text/plain": {"schema": {"type": "string"}}}


def example(url: str, tokens: bool) -> str:
    """One call for a shell. tokens: whether callers need one."""
    header = ' -H "Authorization: Bearer $TOKEN"' if tokens else ""
    return (
        """printf '{"prompts": ["a cat"], "images": ["%s"], "gradient": false}' "$(base64 -w0 cat.png)" """
        f"| curl {url}/v1/score{header} -H 'Content-Type: application/json' --data-binary @-"
    )


def page(document: dict, url: str, tokens: bool) -> str:
    """The OpenAPI document as one page that loads nothing from elsewhere. url, tokens: those of `example`."""
    parts = [f"<h2>Try it</h2><pre>{html.escape(example(url, tokens))}</pre>"]
    for path, verbs in document["paths"].items():
        for verb, route in verbs.items():
            said = route.get("description") or route.get("summary", "")
            replies = "".join(
                f"<li>{code}: {html.escape(r['description'])}</li>" for code, r in route["responses"].items()
            )
            parts.append(f"<h2><code>{verb.upper()} {path}</code></h2><p>{html.escape(said)}</p><ul>{replies}</ul>")
    schemas = document["components"]["schemas"] | {
        "JsonCall": schema_of(JsonCall),
        "ScoreOptions": schema_of(ScoreOptions),
    }
    for name, schema in sorted(schemas.items()):
        parts.append(f"<h3 id='{name}'>{name}</h3><pre>{html.escape(json.dumps(schema, indent=1))}</pre>")
    title = html.escape(document["info"]["title"])
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "pre{background:#f4f4f4;padding:1rem;overflow:auto;font-size:13px}</style>"
        f"<h1>{title}</h1><p>{html.escape(document['info']['description'])} "
        "The machine-readable document is <a href='openapi.json'>openapi.json</a>.</p>" + "".join(parts)
    )
