"""Coverage-guided fuzzing of the answer decoder: whatever a service sends is sound detections or a BadAnswerError.

    python -m tests.campaign.fuzz_answers -max_total_time=60 [CORPUS_DIRECTORY]

Needs `pip install atheris`; pytest does not collect it. The corpus begins with the bodies of `hostile_answers`; named,
its directory keeps what is found for the next time. The options are libFuzzer's; a finding is written to ./crash-….
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["trio_runner.inference", "trio_runner.base.redact"]):
    from tests.support.hostile_answers import CASES, assert_refusal, assert_sound
    from tests.support.makers import make_frame
    from trio_runner.config.inference import InferenceSection
    from trio_runner.inference.answer import COMPLAINT_KEYS, BadAnswerError
from trio_runner.inference.protocol import Answer
from trio_runner.inference.protocols import open_protocol, predict

# A picture that is scaled differently on its two sides, which is the hardest for boxes.
FRAME = make_frame(size=(1919, 1081), sent=(640, 361))
PROTOCOL = open_protocol(InferenceSection())
MAX_SEED_BYTES = 4096
WORDS = (
    *predict.LIST_KEYS, *predict.LABEL_KEYS, *predict.SCORE_KEYS, *predict.BOX_KEYS, *predict.CORNER_KEYS,
    *COMPLAINT_KEYS, "success", "status", "null", "true", "NaN", "1e308", "-0.0",
    "\\u0000", "\\ud83d", "\\u003a",
)  # fmt: skip

VALUES = (
    "null", "true", "false", "0", "-1", "0.5", "1.5", "640", "1e20", "1e308", "-0.0", "NaN", '""', '"dog"', '"\u0000"',
    "[]", "{}", "[0, 0, 640, 361]", "[-1, 0, 641, 1e308]", '{"class": 1, "bbox": [0, 0, 1, 1]}',
)  # fmt: skip


def check(body: bytes) -> None:
    """One execution."""
    try:
        (reading,) = PROTOCOL.read(Answer({}, body), [FRAME])
    except BadAnswerError as error:
        assert_refusal(str(error))
    else:
        assert_sound(reading.detections, FRAME)


def mutate(body: bytes, max_bytes: int, seed: int) -> bytes:
    """Bytes become other bytes, and every other time JSON other JSON: few random bytes are still JSON."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        try:
            return json.dumps(_changed(json.loads(body), chance)).encode()[:max_bytes]
        except (ValueError, RecursionError):
            pass
    mutated: bytes = atheris.Mutate(body, max_bytes)
    return mutated


def _changed(value: Any, chance: random.Random) -> Any:
    """One of the values inside, however deep, becomes another, or one is added."""
    other = json.loads(chance.choice(VALUES))
    if value and isinstance(value, list | dict) and chance.random() < 0.8:
        key: Any = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        value[key] = _changed(value[key], chance)
    elif isinstance(value, dict):
        value[chance.choice(WORDS)] = other
    elif isinstance(value, list):
        value.append(other)
    else:
        return other
    return value


def main() -> int:
    """Run until libFuzzer's limits or a finding, and return its exit code."""
    with tempfile.TemporaryDirectory() as name:
        seeds = Path(name, "seeds")
        seeds.mkdir()
        for number, case in enumerate(CASES):
            if len(case.body) <= MAX_SEED_BYTES:
                (seeds / str(number)).write_bytes(case.body)
        words = Path(name, "words")
        words.write_text("".join('"' + word.replace("\\", "\\\\") + '"\n' for word in WORDS))
        # libFuzzer ends the process it is in, and would leave the directory behind.
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # It adds to the first directory and only reads the others.
        options = [f"-dict={words}", "-max_len=4096", *sys.argv[1:], str(seeds)]
        atheris.Setup([sys.argv[0], *options], check, custom_mutator=mutate)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
