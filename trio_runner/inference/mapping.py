"""The values of an answer of any shape, found by the JMESPath expressions of `[inference.http]`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from trio_runner.config.expressions import Expression, ExpressionError
from trio_runner.config.http_presets import EXPRESSIONS
from trio_runner.inference import answer
from trio_runner.inference.answer import BadAnswerError, quoted, refuse_failure
from trio_runner.inference.boxes import Found, point_in_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trio_runner.config.inference import HttpSection
    from trio_runner.inference.boxes import Four
    from trio_runner.model import Frame

TABLE: Final = "inference.http"
MAX_TEXT_CHARACTERS: Final = 20_000
_SHOWN_EXPRESSION: Final = 80
_PLAIN_PATH: Final = re.compile(r"[A-Za-z_]\w*(\[\d+\])*(\.[A-Za-z_]\w*(\[\d+\])*)*")


class AnswerMapping:
    """The places of values in an answer, compiled once."""

    def __init__(self, keys: HttpSection, names: Sequence[str]) -> None:
        """The keys as `resolved` gives them; `names` are the labels of class numbers."""
        self._keys, self._names = keys, names
        self._at = {name: Expression(text) for name in EXPRESSIONS if (text := getattr(keys, name))}
        self._places = {name: f": {TABLE}.{name} `{_short(each.text)}`" for name, each in self._at.items()}

    def found(self, whole: Any, frame: Frame) -> list[Found]:
        """What the answer says about the frame, without what has too low a score; raises BadAnswerError."""
        self._refuse_failure(whole)
        if self._keys.raw:
            return [Found(path="$", label="raw", attributes={"raw": answer.storable(whole, "$")})]
        found = list(self._in_list(whole, frame) if "list" in self._at else self._in_arrays(whole))
        if not found and "failure" not in self._at:
            answer.refuse_empty_failure(whole)
        least = self._keys.min_score
        return [each for each in found if each.confidence is None or each.confidence >= least]

    def _refuse_failure(self, whole: Any) -> None:
        if "failure" in self._at:
            sign = self._select("failure", whole, "$")
            if sign not in (None, False, "", [], {}):  # what JMESPath counts as false
                reason = self._select("failure_message", whole, "$") if "failure_message" in self._at else sign
                because = "" if reason is None or reason is True else f": {quoted(reason)}"
                raise BadAnswerError(f"$: the service reports a failure with status 200{because}")
        elif isinstance(whole, dict):
            refuse_failure(whole, list(whole))

    def _in_list(self, whole: Any, frame: Frame) -> Iterator[Found]:
        place = self._place("list")
        listed = answer.items(self._present("list", whole), self._value_place("list", place))
        for number, item in enumerate(listed):
            yield self._item(item, f"{place}[{number}]", frame)

    def _item(self, item: Any, path: str, frame: Frame) -> Found:
        label, class_id = self._one("label", item, path), self._one("class_id", item, path)
        if label is None and class_id is None:
            raise self._nothing("label" if "label" in self._at else "class_id", item, path)
        label, class_id = self._named(label, class_id, path)
        attributes = {
            "keypoints": self._points("keypoints", item, path, frame),
            "mask": self._mask(item, path, frame),
            "track_id": self._track_id(item, path),
            "text": self._text(item, path),
        }
        return Found(
            path=path,
            label=label,
            class_id=class_id,
            confidence=self._confidence("score", self._one("score", item, path), path),
            box=self._box("box", self._present("box", item, path), path, item) if "box" in self._at else None,
            attributes={name: value for name, value in attributes.items() if value is not None},
        )

    def _in_arrays(self, whole: Any) -> Iterator[Found]:
        arrays = {
            name: answer.items(self._present(name, whole), self._value_place(name, self._place(name)))
            for name in ("boxes", "labels", "class_ids", "scores")
            if name in self._at
        }
        if len({len(array) for array in arrays.values()}) > 1:
            sizes = ", ".join(f"{name} has {len(array)}" for name, array in arrays.items())
            raise BadAnswerError(f"$: the arrays of {TABLE} differ in length: {sizes}")
        length = len(next(iter(arrays.values())))
        columns = {name: arrays.get(name) or [None] * length for name in ("boxes", "labels", "class_ids", "scores")}
        for number, (box, label, class_id, score) in enumerate(zip(*columns.values(), strict=True)):
            path = f"$[{number}]"
            name, numbered = self._named(label, class_id, path, keys=("labels", "class_ids"))
            yield Found(
                path=path,
                label=name,
                class_id=numbered,
                confidence=self._confidence("scores", score, path),
                box=self._box("boxes", box, path) if "boxes" in arrays else None,
            )

    def _named(
        self, label: Any, class_id: Any, path: str, keys: tuple[str, str] = ("label", "class_id")
    ) -> tuple[str, int | None]:
        """The label and the class number; either may be None, and a number may stand in the label's place."""
        label, number = _whole(label), _whole(class_id)
        place = self._value_place(keys[1], path)
        if number is not None and answer.class_id(number, place) is None:
            raise BadAnswerError(f"{place}: expected a class number, got {answer.json_kind(number)}")
        if isinstance(label, str):
            return answer.label(label, self._value_place(keys[0], path)), number
        if label is None and keys[1] in self._at:
            return answer.named(number, place, self._names)
        return answer.named(label, self._value_place(keys[0], path), self._names)

    def _confidence(self, key: str, value: Any, path: str) -> float | None:
        if value is None:
            return None
        place = self._value_place(key, path)
        if isinstance(value, str):
            remedy = f"`to_number({_short(self._at[key].text)})` reads one that is written as text"
            if key == "scores":
                remedy = f"`map(&to_number(@), {_short(self._at[key].text)})` reads those that are written as text"
            raise BadAnswerError(f"{place}: expected a number, got text: {remedy}")
        return answer.confidence(value, place)

    def _box(self, key: str, value: Any, path: str, item: Any = None) -> tuple[str, Four]:
        place = self._value_place(key, path)
        if isinstance(value, dict):
            fields = ", ".join(answer.key_names(value))
            raise BadAnswerError(f"{place}: an object with the keys {fields}: list the four, as [x, y, width, height]")
        if not isinstance(value, list) or len(value) != 4:  # noqa: PLR2004 - a box
            what = f"{len(value)} values" if isinstance(value, list) else answer.json_kind(value)
            raise BadAnswerError(f"{place}: expected a list of four numbers, got {what}")
        if None in value:
            which = f"number {value.index(None) + 1} of the four is null"
            there = f": {answer.contents(item, 'the item')}" if isinstance(item, dict) else ""
            raise BadAnswerError(f"{place}: {which}{there}")
        one, two, three, four = (
            answer.number(number, f"{place}: number {nth} of the four") for nth, number in enumerate(value, start=1)
        )
        return path, (one, two, three, four)

    def _points(self, key: str, item: Any, path: str, frame: Frame) -> list[list[float | None]] | None:
        """Points in source pixels with their scores; None where the item has none."""
        value = self._one(key, item, path)
        if value is None:
            return None
        place, points = self._value_place(key, path), []
        for each in answer.items(value, self._value_place(key, path)):
            if not isinstance(each, list) or not 2 <= len(each) <= 3:  # noqa: PLR2004 - x, y and a score
                raise BadAnswerError(f"{place}: expected points of the form [x, y] or [x, y, score]")
            x, y, *rest = each
            score = answer.confidence(rest[0], place) if rest and rest[0] is not None else None
            at = point_in_source(answer.number(x, place), answer.number(y, place), frame, self._keys.box_scale)
            points.append([*at, score])
        return points

    def _mask(self, item: Any, path: str, frame: Frame) -> dict[str, Any] | None:
        outline = self._one("polygon", item, path)
        if outline is not None:
            return {"polygon": self._polygon(outline, self._value_place("polygon", path), frame)}
        rle = self._one("rle", item, path)
        return None if rle is None else {"rle": _run_lengths(rle, self._value_place("rle", path))}

    def _polygon(self, outline: Any, place: str, frame: Frame) -> list[list[float]]:
        if not isinstance(outline, list):
            raise BadAnswerError(f"{place}: expected a list of points, got {answer.json_kind(outline)}")
        if outline and not isinstance(outline[0], list) and len(outline) % 2 == 0:
            outline = [outline[first : first + 2] for first in range(0, len(outline), 2)]
        corners = []
        for each in outline:
            if not isinstance(each, list) or len(each) != 2:  # noqa: PLR2004 - x and y
                raise BadAnswerError(f"{place}: expected points of the form [x, y], or a list of x, y, x, y, …")
            x, y = (answer.number(number, place) for number in each)
            corners.append([*point_in_source(x, y, frame, self._keys.box_scale)])
        return corners

    def _track_id(self, item: Any, path: str) -> int | str | None:
        value = _whole(self._one("track_id", item, path))
        if value is None:
            return None
        place = self._value_place("track_id", path)
        number = answer.class_id(value, place)
        return answer.label(value, place) if number is None else number

    def _text(self, item: Any, path: str) -> str | None:
        value = self._one("text", item, path)
        if value is None:
            return None
        place = self._value_place("text", path)
        if not isinstance(value, str) or len(value) > MAX_TEXT_CHARACTERS:
            raise BadAnswerError(f"{place}: expected a text of at most {MAX_TEXT_CHARACTERS} characters")
        return str(answer.storable(value, place))

    def _one(self, key: str, item: Any, path: str) -> Any:
        """What an expression selects that need not select anything; `a && b` gives false where it has no b to give."""
        value = self._select(key, item, path) if key in self._at else None
        return None if value is False else value

    def _present(self, key: str, value: Any, path: str = "$") -> Any:
        """What the expression selects; raises BadAnswerError if that is nothing."""
        selected = self._select(key, value, path)
        if selected is None:
            raise self._nothing(key, value, path)
        return selected

    def _nothing(self, key: str, value: Any, path: str) -> BadAnswerError:
        """The error that names the key and its expression, and what stands there instead."""
        there = answer.contents(value, "the answer" if path == "$" else "the item")
        return BadAnswerError(f"{self._value_place(key, path)}: nothing there: {there}")

    def _select(self, key: str, value: Any, path: str) -> Any:
        try:
            return self._at[key].of(value)
        except ExpressionError as error:
            raise BadAnswerError(f"{self._value_place(key, path)}: {error}") from None

    def _value_place(self, key: str, path: str) -> str:
        """The place of a value for messages: that of its item, and the key whose expression selects it."""
        return path + self._places.get(key, "")

    def _place(self, key: str) -> str:
        """The JSON path of what the expression selects from the answer, as far as it is one."""
        text = self._at[key].text.strip()
        if text == "@":
            return "$"
        return f"$.{text}" if _PLAIN_PATH.fullmatch(text) else f"$ | {_short(text)}"


def _short(text: str) -> str:
    line = quoted(text)
    return line if len(line) <= _SHOWN_EXPRESSION else f"{line[:_SHOWN_EXPRESSION]}…"


def _whole(value: Any) -> Any:
    """A whole number that is written as 1.0, as tensors are, as an int; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _run_lengths(value: Any, place: str) -> dict[str, Any]:
    """A mask as `docs/schemas/predictions.json` has it; raises BadAnswerError."""
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        is_size = isinstance(size, list) and len(size) == 2 and all(_counts(side, 1) for side in size)  # noqa: PLR2004 - height and width
        is_counted = isinstance(counts, list) and all(_counts(count, 0) for count in counts)
        if is_size and (is_counted or (isinstance(counts, str) and counts.isascii() and counts.isprintable())):
            return {"size": size, "counts": counts}
    raise BadAnswerError(f"{place}: expected {{size: [height, width], counts: [whole numbers] or a text}}")


def _counts(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= answer.MAX_CLASS_ID
