"""Check of stored values against their declared kinds, before anything is computed from them."""

import functools
from typing import Any

from pydantic import TypeAdapter, ValidationError


def misfit(content: Any, kind: Any) -> str:
    """Where JSON is not of its kind at first, and why: "config.lr: Input should be a valid number"; empty: it is.

    Args:
        kind: any that pydantic knows, such as a TypedDict.
    """
    try:
        _adapter(kind).validate_python(content, strict=True)  # a text is no number
    except ValidationError as error:
        return _said(error)
    return ""


def parsed(content: bytes, kind: Any) -> Any:
    """The fields of a JSON object that its kind declares; all others are left out.

    Raises:
        ValueError: it is no JSON, or not of its kind.
    """
    try:
        return _adapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        raise ValueError(_said(error)) from None


def _said(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
