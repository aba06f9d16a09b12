"""Rules of `[inference.http]`: presets, places in the body, and JMESPath expressions."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from trio_runner.config.broken import broken
from trio_runner.config.errors import SECRET_NAME
from trio_runner.config.expressions import MAX_DEPTH, Expression, ExpressionError
from trio_runner.config.http_presets import EXPRESSIONS, placeholders, preset_names, resolved
from trio_runner.config.json_path import JsonPathError, filled, parse_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.config.errors import Problem
    from trio_runner.config.inference import HttpSection

TABLE = "inference.http"
_PRESET = f"{TABLE}.preset"
_ARRAYS = ("boxes", "labels", "class_ids", "scores")


def http_rules(http: HttpSection) -> Iterator[Problem]:
    """The preset is known and complete, the body can be built, and every expression is valid JMESPath."""
    waiting = set()
    if http.preset:
        names = preset_names()
        if http.preset not in names:
            nearest = next(iter(get_close_matches(http.preset, names, n=1)), "")
            remedy = f"did you mean {nearest!r}?" if nearest else "leave it empty to set every key yourself"
            yield broken(_PRESET, "unknown preset", remedy, allowed=", ".join(names))
            return
        for name, placeholder in placeholders(http):
            waiting.add(name)
            key, _, field = name.partition(".")
            what = f"{field} is not set" if field else "not set"
            remedy = f"`trio-runner protocols {http.preset}` prints a config in which {placeholder} is to be replaced"
            yield broken(f"{TABLE}.{key}", f"{what}, and the preset {http.preset} needs it", remedy, _PRESET)
    used = resolved(http)
    yield from _body(http, used)
    yield from _answer(used)
    for name in EXPRESSIONS:
        text = getattr(used, name)
        try:
            if text and name not in waiting:
                Expression(text)
        except ExpressionError as error:
            yield broken(f"{TABLE}.{name}", str(error), "see docs/protocols.md", _PRESET)


def _body(http: HttpSection, used: HttpSection) -> Iterator[Problem]:
    """Fields at their paths, with no secret among them."""
    for name in http.fields:
        if SECRET_NAME.search(name.replace("-", "_")):
            remedy = f"write the value into a file and name that in {TABLE}.field_files"
            yield broken(f"{TABLE}.fields", f"{name} looks like a secret", remedy, f"{TABLE}.field_files")
        if name in http.field_files:
            yield broken(f"{TABLE}.fields", f"{name} is set in field_files too", "choose one", f"{TABLE}.field_files")
    if problem := _unwritable(used.fields, depth=0):
        yield broken(f"{TABLE}.fields", problem, "write another value")
        return
    fields = {**used.fields, **dict.fromkeys(used.field_files, "")}
    if used.image == "raw":
        if fields:
            remedy = "remove them, or write parameters into inference.query"
            yield broken(f"{TABLE}.fields", "of no use where the image is the whole body", remedy, f"{TABLE}.image")
        return
    if used.image == "multipart":
        return
    try:
        parse_path(used.image_at)
    except JsonPathError as error:
        yield broken(f"{TABLE}.image_at", str(error), "write the image's place in the body", f"{TABLE}.image")
        return
    try:
        filled({**fields, used.image_at: ""})
    except JsonPathError as error:
        yield broken(f"{TABLE}.fields", str(error), "correct the path", f"{TABLE}.image_at", f"{TABLE}.field_files")


def _unwritable(value: Any, *, depth: int) -> str:
    """Why a field cannot be written as JSON; empty if it can."""
    if depth > MAX_DEPTH:
        return "nested too deeply"
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return next(filter(None, (_unwritable(each, depth=depth + 1) for each in inner)), "")
    wrong = isinstance(value, float) and not math.isfinite(value)
    return "holds nan or inf, which JSON cannot express" if wrong else ""


def _answer(used: HttpSection) -> Iterator[Problem]:
    """The keys say where detections are, in one way."""
    arrays = [name for name in _ARRAYS if getattr(used, name)]
    if used.raw:
        return
    if used.list and arrays:
        remedy = f'choose one; {TABLE}.list = "`null`" switches a key of the preset off'
        yield broken(f"{TABLE}.{arrays[0]}", f"{TABLE}.list is set too", remedy, f"{TABLE}.list", _PRESET)
    elif used.list and not (used.label or used.class_id):
        remedy = """set it, as "class_name", or as "'face'" where all are of one class; or set class_id"""
        yield broken(f"{TABLE}.label", "not set: where is the class in an item?", remedy, f"{TABLE}.list", _PRESET)
    elif arrays and not (used.labels or used.class_ids):
        why = "not set: where are the classes?"
        yield broken(f"{TABLE}.labels", why, "set it, or class_ids", f"{TABLE}.{arrays[0]}", _PRESET)
    elif not used.list and not arrays:
        remedy = 'set it, as "predictions", or "@" for the whole answer; or boxes and labels, a preset, or raw = true'
        yield broken(f"{TABLE}.list", "not set: where are the detections in the answer?", remedy, "inference.protocol")
