"""JSON schemas of the answers with status 200, for the OpenAPI description."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}


# Exact properties: tools/fuzz_server.py compares real answers with these schemas, and an additional
# property that nobody described is then an error.
def record(**properties: Schema) -> Schema:
    """Returns the schema of an object that has exactly these properties."""
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def listed(item: Schema) -> Schema:
    """Returns the schema of a list."""
    return {"type": "array", "items": item}


def constant(value: str) -> Schema:
    """Returns the schema of one text."""
    return {"const": value}


def nullable(schema: Schema) -> Schema:
    """Returns the schema of null and other values."""
    return {"anyOf": [schema, {"type": "null"}]}


def optional(schema: Schema, *names: str) -> Schema:
    """Returns the schema of an object that may lack some of its properties."""
    return schema | {"required": [name for name in schema["required"] if name not in names]}


_IDS = listed(COUNT)
_LOGPROB: Schema = {"type": "number", "maximum": 1e-3}  # rounding may exceed 0
_USAGE = record(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_tokens_details=record(cached_tokens=COUNT),
)
_REASON: Schema = {"enum": ["stop", "length"]}
_LEGACY_LOGPROBS = record(
    tokens=listed(TEXT),
    token_logprobs=listed(_LOGPROB),
    top_logprobs=listed({"type": "object", "additionalProperties": _LOGPROB}),
    text_offset=listed(COUNT),
)
_ALTERNATIVE = {"id": COUNT, "token": TEXT, "bytes": listed(COUNT), "logprob": _LOGPROB}
_TOKENS = listed(record(**_ALTERNATIVE, top_logprobs=listed(record(**_ALTERNATIVE))))
_MESSAGE = record(role=constant("assistant"), content=TEXT)


def _choices(name: str, **properties: Schema) -> Schema:
    """Returns the schema of an answer of the OpenAI protocol with these parts of its choices."""
    choice = record(index=COUNT, finish_reason=_REASON, **properties)
    return record(
        id=TEXT,
        object=constant(name),
        created=COUNT,
        model=TEXT,
        choices=listed(choice) | {"minItems": 1},
        usage=_USAGE,
    )


COMPLETION = _choices("text_completion", text=TEXT, logprobs=nullable(_LEGACY_LOGPROBS))
CHAT = _choices("chat.completion", message=_MESSAGE, logprobs=nullable(record(content=_TOKENS)))
MODEL = record(id=TEXT, object=constant("model"), created=COUNT, owned_by=TEXT)
MODELS = record(object=constant("list"), data=listed(MODEL))

_SETTINGS = record(
    temperature=NUMBER,
    top_k=COUNT,
    top_p=NUMBER,
    n_predict=COUNT,
    seed=COUNT,
    stop=listed(TEXT),
    stream=FLAG,
)
_TIMES = (
    "queue_ms",
    "prompt_ms",
    "prompt_per_token_ms",
    "prompt_per_second",
    "predicted_ms",
    "predicted_per_token_ms",
    "predicted_per_second",
)
_TIMINGS = record(
    cache_n=COUNT,
    prompt_n=COUNT,
    predicted_n=COUNT,
    **{name: {"type": "number", "minimum": 0} for name in _TIMES},
)
_GENERATED = record(
    content=TEXT,
    tokens=_IDS,
    stop=FLAG,
    stop_type={"enum": ["word", "eos", "limit"]},
    stopping_word=TEXT,
    model=TEXT,
    truncated=FLAG,
    tokens_evaluated=COUNT,
    tokens_predicted=COUNT,
    tokens_cached=COUNT,
    timings=_TIMINGS,
    generation_settings=optional(_SETTINGS, *_SETTINGS["properties"]),
    completion_probabilities=_TOKENS,
)
# Any part may be missing: `response_fields` selects parts, also of objects, as timings/prompt_n.
GENERATED = optional(_GENERATED, *_GENERATED["properties"]) | {
    "patternProperties": {"^(timings|generation_settings)/[a-z_]+$": {}}
}
# A part of a character is no text: its piece is a list of bytes.
_PIECE: Schema = {"anyOf": [TEXT, listed(COUNT)]}
TOKENIZED = record(tokens={"anyOf": [_IDS, listed(record(id=COUNT, piece=_PIECE))]})
DETOKENIZED = record(content=TEXT)
HEALTH = record(status=constant("ok"))
PROPERTIES = record(
    model=TEXT,
    model_alias=TEXT,
    status=TEXT,
    infills=FLAG,
    chats=FLAG,
    chat_format=nullable(TEXT),
    order={"enum": ["PSM", "SPM"]},
    healing=FLAG,
    quantization={"type": "object", "additionalProperties": TEXT},
    models={"type": "object", "additionalProperties": TEXT},
    max_probs=COUNT,
    total_slots=COUNT,
    n_ctx=COUNT,
    stop_at_dedent=FLAG,
    stop_at_repetition=FLAG,
    default_generation_settings=record(
        n_ctx=COUNT, completion={"type": "object"}, infill={"type": "object"}
    ),
)
_SLOT = record(
    id=COUNT,
    model=TEXT,
    n_ctx=COUNT,
    is_processing=FLAG,
    n_prompt=COUNT,
    n_cached=COUNT,
    n_decoded=COUNT,
)
SLOTS = listed(optional(_SLOT, "n_prompt", "n_cached", "n_decoded"))
