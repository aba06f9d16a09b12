"""Answers of an inference service that went wrong or means harm, each with what must become of it.

For a picture of 640 × 480 pixels that is sent as it is. `CASES` is plain data: the decoder, the real client and the
fuzzer's first corpus all use it.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import msgspec

from trio_runner.inference.answer import MAX_DETECTIONS, MAX_LABEL_CHARACTERS
from trio_runner.model import Detection, Frame

GOOD_ITEM: dict[str, Any] = {"class": "dog", "confidence": 0.5, "bbox": [1, 2, 3, 4]}
DOG = Detection("dog", 0.5, (1.0, 2.0, 3.0, 4.0))
GOOD = json.dumps({"predictions": [GOOD_ITEM]}).encode()
NOT_JSON = "$: not JSON"
DETECTIONS_SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "predictions.json").read_text())
)
DEEP = "$: nested too deeply"
FAILURE = "the service reports a failure with status 200"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One body, and either the detections it stands for or how the message about it begins."""

    name: str
    body: bytes
    accepted: tuple[Detection, ...] | None = None
    refused: str = ""


def _item(*, label: str = '"dog"', confidence: str = "0.5", x2: str = "3", box: str | None = None) -> bytes:
    """One detection of which one value is the given piece of text, be it JSON or not."""
    corners = f"[1, 2, {x2}, 4]" if box is None else box
    return f'{{"predictions": [{{"class": {label}, "confidence": {confidence}, "bbox": {corners}}}]}}'.encode(
        errors="surrogatepass"
    )


def assert_sound(found: tuple[Detection, ...], frame: Frame) -> None:
    """What holds for every protocol's detections: PostgreSQL takes them, and they are about this picture."""
    assert len(found) <= MAX_DETECTIONS
    for detection in found:
        assert 0 < len(detection.label) <= MAX_LABEL_CHARACTERS
        assert not any(letter < " " or letter in "\x7f\u2028\u202e" for letter in detection.label)
        assert detection.confidence is None or 0 <= detection.confidence <= 1
        if detection.bbox is not None:
            x1, y1, x2, y2 = detection.bbox
            assert all(math.isfinite(corner) for corner in detection.bbox)
            assert 0 <= x1 <= x2 <= frame.width
            assert 0 <= y1 <= y2 <= frame.height
        if detection.attributes or detection.class_id is not None:
            DETECTIONS_SCHEMA.validate(json.loads(msgspec.json.encode([detection])))
    assert msgspec.json.decode(msgspec.json.encode(found), type=tuple[Detection, ...]) == found


def assert_refusal(message: str) -> None:
    """What holds for every refusal: it names the place and fits onto one line of a terminal."""
    assert message.startswith("$")
    assert len(message) <= 1000
    assert not any(letter < " " or letter in "\x7f\u2028\u202e" for letter in message)
    message.encode()


NO_JSON = (
    b" \t\r\n",
    b"\x00",
    b"\x00" * 4096,
    b"\xff\xfe",
    b"<html><body>It works!</body></html>",
    b"<?xml version='1.0'?><predictions/>",
    b"502 Bad Gateway",
    b"OK",
    b"None",
    b"undefined",
    b"predictions: []\n",
    b"{'predictions': []}",
    b"{predictions: []}",
    b'{"predictions": [],}',
    b'{"predictions": [,]}',
    b'{"predictions" []}',
    b'{"predictions": []}}',
    b'{"predictions": []} {"predictions": []}',
    b'{"predictions": []}\n{"predictions": []}\n',
    b'{"predictions": []}\x00',
    b'{"predictions": []} // done',
    b'/* note */ {"predictions": []}',
    b'callback({"predictions": []});',
    b')]}\',\n{"predictions": []}',
    b'data: {"predictions": []}\n\n',
    b"\xef\xbb\xbf" * 2 + GOOD,
    GOOD.decode().encode("utf-16"),
    GOOD.decode().encode("utf-16-le"),
    GOOD.decode().encode("utf-32"),
    GOOD.replace(b"dog", b"d\xf6g"),
    GOOD.replace(b"dog", b"d\xc0\xafg"),
    GOOD.replace(b"dog", b"d\xed\xa0\x80g"),
    GOOD.replace(b"dog", b"d\xf4\x90\x80\x80g"),
    GOOD.replace(b"dog", b"d\xe2\x82"),
    GOOD.replace(b"dog", b"d\ng"),
    GOOD.replace(b"dog", b"d\x00g"),
    GOOD.replace(b"dog", b"d\x1b[31m"),
    GOOD.replace(b"dog", b"d\\"),
    GOOD.replace(b"dog", b"d\\x41g"),
    GOOD.replace(b"dog", b"d\\u00g"),
    GOOD.replace(b"dog", b"d\\ud800g"),
    GOOD.replace(b"dog", b"d\\udc00g"),
    GOOD.replace(b"dog", b"d\\udc00\\ud800g"),
    GOOD.replace(b"dog", b"d\\ud800\\u0041g"),
    GOOD.replace(b" ", b"\xc2\xa0"),
    GOOD.replace(b" ", b"\x0b"),
    gzip.compress(GOOD, mtime=0),
    zlib.compress(GOOD),
    base64.b64encode(GOOD),
    b"\x81\xabpredictions\x90",
    b"\xa1kpredictions\x80",
    b"[" * 500,
    b'{"a":' * 500,
    b'"' + b"a" * 100_000,
    b'{"predictions": [' + b" " * 100_000,
    b'{"predictions": [' + b"," * 100_000 + b"]}",
)
"""Nothing of this is JSON in UTF-8."""

NO_NUMBERS_IN_JSON = (
    "NaN", "-NaN", "nan", "Infinity", "-Infinity", "inf", "1e400", "-1e400", "1e99999999999", "9" * 5_000, "01", "-01",
    ".5", "1.", "+1", "-", "0x10", "1_000", "1e", "1e+", "1.2.3", "½", "True", "", "1 2", "--1",
)  # fmt: skip
NO_NUMBERS = (
    "null",
    "true",
    "false",
    '"1"',
    '""',
    '"NaN"',
    "[]",
    "[1]",
    "{}",
    '{"value": 1}',
    '{"$numberDouble": "1"}',
)

CONFIDENCES = ("-0.001", "1.001", "50", "1e308", "-1e308", "9" * 400)

LABELS = (
    "null", "true", "false", "1.5", "[]", '["dog"]', "{}", '{"name": "dog"}', '""',
    '"\\u0000"', '"dog\\u0000"', '"a\\nb"', '"a\\rb"', '"a\\tb"', '"\\u001b[2J"', '"\\u0007"', '"\\u007f"', '"\\u0085"',
    '"\\u009b31m"', '"\\u2028"', '"\\u2029"', '"\\u202egod"', '"\\u2066dog"', '"\\ufeffdog"', '"\\u200bdog"',
    '"' + "x" * 201 + '"', '"' + "é" * 201 + '"', '"' + "x" * 100_000 + '"', "9" * 300, "-" + "9" * 300,
)  # fmt: skip

BOXES = (
    "null", "true", "0", '"1,2,3,4"', '"[1,2,3,4]"', "{}", '{"x1": 1, "y1": 2, "x2": 3, "y2": 4}', "[]", "[1]",
    "[1, 2, 3, 4, 5]", "[[1, 2], [3, 4]]", "[[[1, 2, 3, 4]]]", "[[1, 2, 3, 4], [1, 2, 3, 4]]", "[1, 2, 3]",
    '["1", "2", "3", "4"]', "[1, 2, 3, null]", "[true, 2, 3, 4]", "[3, 2, 1, 4]", "[1, 4, 3, 2]", "[-65, 2, 3, 4]",
    "[1, -49, 3, 4]", "[1, 2, 705, 4]", "[1, 2, 3, 529]", "[1e308, 1e308, 1e308, 1e308]", "[-1e308, 0, 1e308, 1]",
    "[0, 0, 18446744073709551616, 1]", "[0, 0, " + "9" * 400 + ", 1]", "[" + "0, " * 10_000 + "0]", "[1, 2, 3, [4]]",
    "[1, 2, 3, 4,5]", "[null, null, null, null]",
)  # fmt: skip

REFUSED = {
    # no object with a list
    "null": "$: expected an object",
    "true": "$: expected an object",
    "7": "$: expected an object",
    '"predictions"': "$: expected an object",
    "[]": "$: expected an object",
    '[{"class": "dog", "confidence": 0.5, "bbox": [1, 2, 3, 4]}]': "$: expected an object",
    "{}": "$: none of predictions",
    '{"Predictions": []}': "$: none of predictions",
    '{"predictions ": []}': "$: none of predictions",
    '{"predictions\\u0000": []}': "$: none of predictions",
    '{"results": []}': "$: none of predictions",
    '{"data": {"predictions": []}}': "$: none of predictions",
    '{"predictions": [], "detections": []}': "$: both",
    '{"predictions": null}': "$.predictions: expected a list",
    '{"predictions": false}': "$.predictions: expected a list",
    '{"predictions": 0}': "$.predictions: expected a list",
    '{"predictions": ""}': "$.predictions: expected a list",
    '{"predictions": "[]"}': "$.predictions: expected a list",
    '{"predictions": {}}': "$.predictions: expected a list",
    '{"predictions": {"0": {}}}': "$.predictions: expected a list",
    json.dumps({"predictions": [GOOD_ITEM] * 1001}): "$.predictions: 1001 detections",
    '{"predictions": [' + "1," * 400_000 + "1]}": "$.predictions: 400001 detections",
    # items that are none
    '{"predictions": [null]}': "$.predictions[0]: expected an object",
    '{"predictions": [[]]}': "$.predictions[0]: expected an object",
    '{"predictions": ["dog"]}': "$.predictions[0]: expected an object",
    '{"predictions": [{}]}': "$.predictions[0]: none of class",
    '{"predictions": [{"class": "dog"}]}': "$.predictions[0]: none of bbox",
    '{"predictions": [{"class": "dog", "confidence": 0.5, "rect": [1, 2, 3, 4]}]}': "$.predictions[0]: none of bbox",
    '{"predictions": [{"class": "dog", "confidence": 0.5, "x": 1, "y": 2}]}': "$.predictions[0]: none of bbox",
    '{"predictions": [{"class": "dog", "score": 1, "bbox": [1, 2, 3, 4]}, {"class": "cat", "score": 1}]}': (
        "$.predictions[1]: no box"
    ),
    '{"predictions": [{"class": "dog", "confidence": 0.5, "bbox": [0.1, 0.2, 0.3, 0.4]}]}': (
        "$.predictions[0].bbox: all boxes lie within 0 to 1"
    ),
    '{"predictions": [{"confidence": 0.5, "bbox": [1, 2, 3, 4]}]}': "$.predictions[0]: none of class",
    '{"predictions": [{"class": "dog", "label": "cat", "bbox": [1, 2, 3, 4]}]}': "$.predictions[0]: both",
    '{"predictions": [{"class": "dog", "score": 1, "confidence": 1, "bbox": [1, 2, 3, 4]}]}': "$.predictions[0]: both",
    '{"predictions": [{"class": "dog", "bbox": [1, 2, 3, 4], "x1": 1}]}': "$.predictions[0]: both",
    '{"predictions": [{"class": "dog", "x1": 1, "y1": 2, "x2": 3}]}': "$.predictions[0]: expected [x1",
    '{"predictions": [{"class": "dog", "y1": 2, "x2": 3, "y2": 4}]}': "$.predictions[0]: none of bbox",
    json.dumps({"predictions": [*[GOOD_ITEM] * 999, 7]}): "$.predictions[999]: expected an object",
    # keys that are there twice
    '{"predictions": [], "predictions": []}': "$.predictions: appears twice",
    '{"predictions": [], "a": 1, "\\u0070redictions": []}': "$.predictions: appears twice",
    '{"predictions": [], "predictions": [], "colon": "\\u003a"}': "$.predictions: appears twice",
    '{"a": 1, "a": 1, "predictions": []}': "$.a: appears twice",
    '{"": 1, "": 1, "predictions": []}': "$.: appears twice",
    '{"\\u0000": 1, "\\u0000": 1, "predictions": []}': "$.\ufffd: appears twice",
    '{"predictions": [{"class": "dog", "class": "cat", "bbox": [1, 2, 3, 4]}]}': "$.predictions[0].class: appears",
    '{"predictions": [{"class": "dog", "bbox": [1, 2, 3, 4], "bbox": [1, 2, 3, 4]}]}': "$.predictions[0].bbox: appears",
    '{"predictions": [{"class": "dog", "bbox": [1, 2, 3, 4], "x": {"y": [{"z": 1, "z": 2}]}}]}': (
        "$.predictions[0].x.y[0].z: appears twice"
    ),
    '{"predictions": [], "time": "12:00:00", "time": "12:00:00"}': "$.time: appears twice",
    # status 200, and yet it failed
    '{"error": "CUDA out of memory"}': f"$.error: {FAILURE}: CUDA out of memory",
    '{"error": "CUDA out of memory", "predictions": []}': f"$.error: {FAILURE}: CUDA out of memory",
    '{"error": {"code": 13, "message": "no model"}}': f'$.error: {FAILURE}: {{"code":13,"message":"no model"}}',
    '{"error": true, "predictions": []}': f"$.error: {FAILURE}: true",
    '{"errors": ["no model"], "predictions": []}': f'$.errors: {FAILURE}: ["no model"]',
    '{"success": false}': f"$.success: {FAILURE}",
    '{"success": false, "message": "warming up", "predictions": []}': f"$.success: {FAILURE}: warming up",
    '{"success": null, "predictions": []}': f"$.success: {FAILURE}",
    '{"success": "false", "predictions": []}': f"$.success: {FAILURE}",
    '{"success": 0, "predictions": []}': f"$.success: {FAILURE}",
    '{"ok": false, "predictions": []}': f"$.ok: {FAILURE}",
    '{"status": "error", "message": "busy", "predictions": []}': f"$.status: {FAILURE}: busy",
    '{"status": "FAILED", "predictions": []}': f"$.status: {FAILURE}",
    '{"status": 500, "predictions": []}': f"$.status: {FAILURE}: 500",
    '{"code": 503, "message": "busy", "predictions": []}': f"$.code: {FAILURE}: busy",
    '{"status": "Timeout", "predictions": []}': f"$.status: {FAILURE}: Timeout",
    '{"state": "cancelled", "predictions": []}': f"$.state: {FAILURE}: cancelled",
    '{"state": "error", "predictions": []}': f"$.state: {FAILURE}: error",
    '{"is_error": true, "predictions": []}': f"$.is_error: {FAILURE}: true",
    '{"isError": true, "predictions": []}': f"$.isError: {FAILURE}: true",
    '{"exception": "CUDA out of memory", "predictions": []}': f"$.exception: {FAILURE}: CUDA out of memory",
    '{"detail": "Not authenticated"}': f"$: {FAILURE}: Not authenticated",
    '{"message": "see http://user:secret@host/"}': f"$: {FAILURE}: see http://***@host/",
    '{"error": "a\\u0000b\\u001b[31m\\u202ec\\nd"}': f"$.error: {FAILURE}: a\ufffdb\ufffd[31m\ufffdc d",
    json.dumps({"error": "word " * 100_000}): f"$.error: {FAILURE}: word word",
    json.dumps({"error": "x" * 1_000_000}): f"$.error: {FAILURE}: ",
}

DEEP_BODIES = {
    "100,000 lists": b"[" * 100_000 + b"]" * 100_000,
    "100,000 lists, not closed": b"[" * 100_000,
    "100,000 lists where detections belong": b'{"predictions": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100,000 lists in a key that is ignored": b'{"predictions": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}

ACCEPTED: dict[str, tuple[bytes, tuple[Detection, ...]]] = {
    "as it should be": (GOOD, (DOG,)),
    "behind a byte order mark": (b"\xef\xbb\xbf" + GOOD, (DOG,)),
    "nothing seen": (b'{"predictions": []}', ()),
    "all of it spaces": (b" \r\n\t" + GOOD.replace(b" ", b" \n\t\r") + b" \n", (DOG,)),
    "escaped where it need not be": (GOOD.replace(b"predictions", b"\\u0070redictions"), (DOG,)),
    "colons in a string": (b'{"predictions": [], "time": "12:00:00", "a:b": "::"}', ()),
    "the same key in two objects": (b'{"predictions": [], "a": {"x": 1}, "b": {"x": 1}}', ()),
    "keys that differ in case": (b'{"predictions": [], "a": 1, "A": 2}', ()),
    "two normal forms of one key": (b'{"predictions": [], "\xc3\xa9": 1, "e\xcc\x81": 2}', ()),
    "a thousand": (json.dumps({"predictions": [GOOD_ITEM] * 1000}).encode(), (DOG,) * 1000),
    "no confidence": (
        b'{"predictions": [{"class": "dog", "bbox": [1, 2, 3, 4]}]}',
        (Detection("dog", None, DOG.bbox),),
    ),
    "exponents": (_item(confidence="5e-1", x2="0.3E+1"), (DOG,)),
    "more digits than a double has": (_item(confidence="0.5" + "0" * 5_000), (DOG,)),
    "next to nothing": (_item(confidence="1e-400"), (Detection("dog", 0.0, DOG.bbox),)),
    "a negative nothing": (_item(confidence="-0.0"), (Detection("dog", 0.0, DOG.bbox),)),
    "over the border by a little": (
        _item(box="[-64, -48, 704, 528]"),
        (Detection("dog", 0.5, (0.0, 0.0, 640.0, 480.0)),),
    ),
    "a classification": (
        b'{"predictions": [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}]}',
        (Detection("cat", 0.9, None), Detection("dog", 0.1, None)),
    ),
    "a class number": (_item(label="17"), (Detection("class 17", 0.5, DOG.bbox, class_id=17),)),
    "a negative class number": (_item(label="-1"), (Detection("class -1", 0.5, DOG.bbox, class_id=-1),)),
    "a pair of surrogates": (_item(label='"\\ud83d\\udc15"'), (Detection("\U0001f415", 0.5, DOG.bbox),)),
    "NUL in what is ignored": (b'{"predictions": [], "\\u0000": "\\u0000"}', ()),
    "prototype": (b'{"predictions": [], "__proto__": {}, "constructor": null, "__class__": 1}', ()),
    "half a megabyte that is ignored": (b'{"predictions": [], "mask": "' + b"a" * 2**19 + b'"}', ()),
    "500 lists in what is ignored": (b'{"predictions": [], "x": ' + b"[" * 500 + b"]" * 500 + b"}", ()),
    "a sign of success": (
        b'{"success": true, "ok": true, "status": "ok", "error": null, "errors": [], "predictions": []}',
        (),
    ),
    "more signs of success": (
        b'{"status": 200, "code": 10000, "state": "done", "is_error": false, "exception": null, "predictions": []}',
        (),
    ),
    "the code of a product beside detections": (GOOD[:-1] + b', "code": 450, "state": "cancelled"}', (DOG,)),
    "a message beside the list": (b'{"message": "1 object", "predictions": []}', ()),
}

STRANGE_LABELS = (
    "x" * 200,
    "Hund \N{DOG}",
    "犬",
    "क्\u200dष",
    "'; DROP TABLE predictions; --",
    "${jndi:ldap://127.0.0.1/a}",
    "<script>alert(1)</script>",
    "[bold red]dog[/]",
    "%s %n {0} {dog!r}",
    "../../etc/passwd",
    "$(reboot)",
    "\\u0000",
    " ",
)
"""Taken as they are: a program that shows a label must escape it for the place where it is shown."""

ITEM_PATH = "$.predictions[0]"

CASES = (
    *(Case(name=f"no JSON: {body[:40]!r}", body=body, refused=NOT_JSON) for body in NO_JSON),
    *(Case(name=f"cut after {end}", body=GOOD[:end], refused=NOT_JSON) for end in range(0, len(GOOD), 6)),
    *(
        Case(name=f"{place} {token[:24]}, {len(token)} long", body=_item(**{place: token}), refused=refused)
        for place, path in {"confidence": f"{ITEM_PATH}.confidence", "x2": f"{ITEM_PATH}.bbox[2]"}.items()
        for tokens, refused in ((NO_NUMBERS_IN_JSON, NOT_JSON), (NO_NUMBERS, path))
        for token in tokens
    ),
    *(
        Case(name=f"{key} {token[:24]}, {len(token)} long", body=_item(**{key: token}), refused=f"{ITEM_PATH}.{path}")
        for key, path, tokens in (
            ("confidence", "confidence", CONFIDENCES),
            ("label", "class", LABELS),
            ("box", "bbox", BOXES),
        )
        for token in tokens
    ),
    *(
        Case(name=f"{text[:80]}, {len(text)} long", body=text.encode(), refused=refused)
        for text, refused in REFUSED.items()
    ),
    *(Case(name=name, body=body, refused=DEEP) for name, body in DEEP_BODIES.items()),
    *(Case(name=name, body=body, accepted=found) for name, (body, found) in ACCEPTED.items()),
    *(
        Case(name=f"label {text!r}", body=_item(label=json.dumps(text)), accepted=(Detection(text, 0.5, DOG.bbox),))
        for text in STRANGE_LABELS
    ),
)
