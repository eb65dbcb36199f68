"""What the OpenAPI document says of bodies, and the page that shows it."""

import copy
import html
import json
from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from dipp_ray.serving.contract.limits import LimitsSection
from dipp_ray.serving.contract.records import JSON, REPLY, REQUEST, SAFETENSORS, JsonCall, ReplyRecord, ScoreOptions


def schema_of(model: type[BaseModel]) -> dict:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)  # FastAPI puts those of the reply, the same ones, where the references point
    return schema


MEANINGS = {
    400: "The body cannot be read; the message says why.",
    401: "One of the service's tokens is needed.",
    403: "The service has no tokens, and answers this machine alone.",
    408: "The body did not come in time.",
    413: "The body is too long.",
    415: "The body's type is neither of the two.",
    422: "No call that can be answered; the message says why.",
    429: "This trainer's bound is reached: send fewer at a time, and again after Retry-After seconds.",
    431: "The headers are too long.",
    500: "A model failed.",
    502: "The service gives no answer now: try again after Retry-After seconds.",
    503: "The queue is full, replicas are lost, or the service is being stopped: try again after Retry-After seconds.",
    504: "The deadline has passed.",
}
BODIES = (
    "A safetensors body holds one tensor <code>x</code>, [B, C, height, width], and in its metadata, under "
    f"<code>{REQUEST}</code>, a <a href='#ScoreOptions'>ScoreOptions</a> record as JSON. It is answered by tensors "
    "<code>reward</code> [B], <code>scores/NAME</code> [B] and, if asked for, <code>gradient</code> of the shape of x "
    "(fp16 times <code>gradient_scale</code> [B] where that was asked for), and a "
    f"<a href='#ReplyRecord'>ReplyRecord</a> under <code>{REPLY}</code>. A JSON body is a "
    "<a href='#JsonCall'>JsonCall</a>, answered by a <a href='#JsonReply'>JsonReply</a>. "
    "Every refusal is an <a href='#ErrorReply'>ErrorReply</a>."
)
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{background:#f4f4f4;padding:1rem;font-size:13px;white-space:pre-wrap;overflow-wrap:anywhere}"
    "table{border-collapse:collapse;width:100%;font-size:14px}th{font-weight:normal;color:#666}"
    "th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ddd}"
    "h2{margin-top:2.5rem}h3{margin:2rem 0 0}p{margin:.4rem 0}"
)
BINARY = {"type": "string", "format": "binary"}
TEXT_CONTENT = {"text/plain": {"schema": {"type": "string"}}}


def request_content(limits: LimitsSection, latents: bool, vaes: Sequence[str]) -> dict:
    """The bodies of a call, as the OpenAPI document has them: what is taken. latents: whether there is one VAE. vaes:
    the names of those that have one."""
    schema = schema_of(JsonCall)
    said = schema["properties"]
    text = {"type": "string", "maxLength": limits.prompt_chars}
    said["prompts"] |= {"items": text, "maxItems": limits.rows}
    files, tensor = said["images"]["anyOf"][0], said["x"]["anyOf"][0]
    files["maxItems"] = limits.rows
    said["reply_dtype"] = {"const": "fp32", "default": "fp32", "description": said["reply_dtype"]["description"]}
    latents = latents or bool(vaes)
    said["space"] |= {"enum": ["images", "latents"] if latents else ["images"]}
    unnamed = {"const": None, "default": None, "description": said["vae"]["description"]}
    said["vae"] = (
        {"enum": [*vaes, None], "default": None, "description": said["vae"]["description"]} if vaes else unnamed
    )
    # One of both: files of images, a tensor of images, or a tensor of latents, which are no uint8.
    null, pixels = {"type": "null"}, {"const": "images"}
    halves = {"properties": {"dtype": {"enum": ["fp32", "fp16"]}}}
    schema["oneOf"] = [
        {"required": ["images"], "properties": {"images": files, "x": null, "space": pixels, "vae": null}},
        {"required": ["x"], "properties": {"x": tensor, "images": null, "space": pixels, "vae": null}},
    ]
    if latents:
        given = {"x": {"allOf": [tensor, halves]}, "images": null, "space": {"const": "latents"}}
        needed = ["x", "space"]
        if len(vaes) > 1:  # it must be said which
            given["vae"], needed = {"enum": list(vaes)}, [*needed, "vae"]
        schema["oneOf"].append({"required": needed, "properties": given})
    return {JSON: {"schema": schema}, SAFETENSORS: {"schema": BINARY}}


def secured(document: dict, tokens: bool) -> dict:
    """The OpenAPI document as it holds where there are tokens, or where there are none: then none is asked for."""
    document = copy.deepcopy(document)
    if not tokens:
        document["components"].pop("securitySchemes", None)
    for verbs in document["paths"].values():
        for route in verbs.values():
            if not tokens:
                route.pop("security", None)
            route["responses"].pop("403" if tokens else "401", None)
    return document


# An answer to that call, of a service with a CLIP model and a class of one's own.
EXAMPLE_REPLY = (
    '{"held_out":[],"failed":{},"reward":[-0.6312019228935242],'
    '"scores":{"clip":[-3.221104860305786],"mean":[0.48967525362968445]},"gradient":null}'
)


def example(url: str, tokens: bool) -> str:
    """One call for a shell. tokens: whether callers need one."""
    header = ' -H "Authorization: Bearer $TOKEN"' if tokens else ""
    return (
        """printf '{"prompts": ["a cat"], "images": ["%s"], "gradient": false}' "$(base64 -w0 cat.png)" """
        f"| curl {url}/v1/score{header} -H 'Content-Type: application/json' --data-binary @-"
    )


def program(url: str, tokens: bool) -> str:
    """The same for Python, with nothing but numpy and safetensors."""
    header = ', "Authorization": "Bearer " + os.environ["TOKEN"]' if tokens else ""
    return f"""import json, os, urllib.request
import numpy as np
from safetensors.numpy import load, save

images = np.random.rand(2, 3, 64, 64).astype(np.float32)  # in [0, 1]
options = {{"prompts": ["a cat", "a dog"], "gradient": True}}
body = save({{"x": images}}, metadata={{"{REQUEST}": json.dumps(options)}})
headers = {{"Content-Type": "{SAFETENSORS}"{header}}}
with urllib.request.urlopen(urllib.request.Request("{url}/v1/score", body, headers)) as reply:
    answer = load(reply.read())
print(answer["reward"], answer["gradient"].shape)"""


def page(document: dict, url: str, tokens: bool) -> str:
    """The OpenAPI document as one page that loads nothing from elsewhere. url, tokens: those of `example`."""
    routes = [
        f"<h2><code>{verb.upper()} {path}</code></h2><p>{html.escape(route.get('description') or route['summary'])}</p>"
        + table(
            ("status", "meaning"), ((code, html.escape(r["description"])) for code, r in route["responses"].items())
        )
        for path, verbs in document["paths"].items()
        for verb, route in verbs.items()
    ]
    schemas = {model.__name__: schema_of(model) for model in (JsonCall, ScoreOptions, ReplyRecord)}
    schemas |= document["components"]["schemas"]
    title = html.escape(document["info"]["title"])
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><p>{html.escape(document['info']['description'])} "
        "The machine-readable document is <a href='openapi.json'>openapi.json</a>.</p>"
        f"<h2>Try it</h2><p>From a shell:</p><pre>{html.escape(example(url, tokens))}</pre>"
        f"<p>It is answered, for instance:</p><pre>{html.escape(EXAMPLE_REPLY)}</pre>"
        f"<p>From Python, by safetensors:</p><pre>{html.escape(program(url, tokens))}</pre>"
        f"<p>{BODIES}</p>{''.join(routes)}<h2>Records</h2>{''.join(map(record, schemas, schemas.values()))}"
    )


def record(name: str, schema: dict) -> str:
    """One record as a table of its fields."""
    fields = (
        (f"<code>{field}</code>", shape_of(said), default_of(said), html.escape(said.get("description", "")))
        for field, said in schema.get("properties", {}).items()
    )
    about = html.escape(schema.get("description", "")).replace("\n", " ")
    return f"<h3 id='{name}'>{name}</h3><p>{about}</p>{table(('field', 'type', 'if left out', 'meaning'), fields)}"


def shape_of(schema: dict) -> str:
    """A field's type in words, with a link where it is a record."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href='#{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(map(shape_of, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"<code>{html.escape(str(value))}</code>" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            return f"list of {shape_of(schema['items'])}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"names to {shape_of(schema['additionalProperties'])}"
    return html.escape(schema.get("type", "any"))


def default_of(schema: dict) -> str:
    return f"<code>{html.escape(json.dumps(schema['default']))}</code>" if "default" in schema else ""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """HTML of a table; the cells of the rows are HTML."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{body}</table>"
