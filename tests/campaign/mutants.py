"""The program broken on purpose, one guard at a time: a campaign that finds nothing then has no teeth."""

from __future__ import annotations

from dataclasses import dataclass

from trio_runner.database import schema


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A patch: of the schema, function by function as (name, old text, new text), or of the code."""

    caught_by: tuple[str, ...]
    """The invariants that it must violate; a violation of another one proves nothing."""
    faults: tuple[str, ...]
    """The faults that the broken guard is for: with these alone it is soon needed."""
    sql: tuple[tuple[str, str, str], ...] = ()
    python: str = ""

    def schema_patch(self) -> str:
        """The changed functions as SQL."""
        changed: dict[str, str] = {}
        for name, old, new in self.sql:
            text = changed.get(name) or _function(name)
            assert old in text, f"{name}() does not contain {old!r} any more"
            changed[name] = text.replace(old, new)
        return "\n".join(changed.values())


def _function(name: str) -> str:
    """The text of that function, with the rights that the schema gives it."""
    text = schema.files()[f"functions/{name}.sql"]
    return f"{text}\nALTER FUNCTION {name} SECURITY DEFINER SET search_path = trio_runner, pg_temp;"


def _mute(reporter: str) -> str:
    """This reporter takes its events for published, and publishes none."""
    return (
        "from trio_runner.failure import outbox, report\n"
        "publish = outbox.publish\n"
        "async def mute(config, event, *topic):\n"
        f"    return True if event.reporter == '{reporter}' else await publish(config, event, *topic)\n"
        "outbox.publish = report.publish = mute"
    )


MUTANTS = {
    "store without the fence": Mutant(
        caught_by=("I5",),
        faults=("store in transit",),
        sql=(
            (
                "store",
                "id = p_id AND epoch = p_epoch AND instance_id = p_instance AND next_frame",
                "id = p_id AND next_frame",
            ),
        ),
    ),
    "fail without the epoch check": Mutant(
        caught_by=("I4", "report"),
        faults=("kill", "term", "old news"),
        sql=(("fail", " OR s.epoch <> p_epoch OR s.instance_id IS DISTINCT FROM p_instance\n", "\n"),),
    ),
    "claim gives a taken epoch": Mutant(
        caught_by=("I3",),
        faults=("double start",),
        sql=(
            ("claim", "(p_epoch <> s.epoch OR s.instance_id IS NOT NULL)", "p_epoch <> s.epoch"),
            ("claim", "ELSIF s.instance_id IS NOT NULL THEN", "ELSIF false THEN"),
            ("claim", "p_retry_topic, s.next_frame);", "p_retry_topic, s.next_frame) ON CONFLICT DO NOTHING;"),
        ),
    ),
    "writer without the ordered window": Mutant(
        caught_by=("I1", "I2", "I7", "liveness"),
        faults=("kill", "term"),
        python="from trio_runner.pipeline.writer import Reorder\nReorder.add = lambda self, result: [result]",
    ),
    "outbox that forgets": Mutant(
        caught_by=("I9",),
        faults=("kafka on the way out",),
        python=(
            "from trio_runner.failure import report\n"
            "mark = report.mark\n"
            "async def forget(config, claim, *, published):\n    await mark(config, claim, published=True)\n"
            "report.mark = forget"
        ),
    ),
    "a superseded runner publishes": Mutant(
        caught_by=("superseded",),
        faults=("pause",),
        python=(
            "import dataclasses\n"
            "from trio_runner.failure import report\n"
            "record = report._record\n"
            "async def forced(*args):\n    return dataclasses.replace(await record(*args), refused=None)\n"
            "report._record = forced"
        ),
    ),
    "resume a frame too late": Mutant(
        caught_by=("I1", "liveness"),
        faults=("kill", "term"),
        python=(
            "from trio_runner.video.child import Video\n"
            "start = Video.start\n"
            "Video.start = lambda self, first, **stored: start(self, first + (first > 0), **stored)"
        ),
    ),
    "resume from the beginning": Mutant(
        caught_by=("resume", "liveness"),
        faults=("kill", "term"),
        python=(
            "from trio_runner.video.child import Video\n"
            "start = Video.start\nVideo.start = lambda self, first, **stored: start(self, 0)"
        ),
    ),
    "answers of the frame before": Mutant(
        caught_by=("I8",),
        faults=("kill", "term"),
        python=(
            "import dataclasses\n"
            "from trio_runner.inference.client import InferenceClient\n"
            "infer, last = InferenceClient.infer, []\n"
            "async def late(self, frames):\n"
            "    (result,) = await infer(self, frames)\n    last.append(result)\n"
            "    return [dataclasses.replace(result, detections=last[-2].detections) if len(last) == 30 else result]\n"
            "InferenceClient.infer = late"
        ),
    ),
    "report-death does nothing": Mutant(
        caught_by=("report",),
        faults=("kill",),
        python=(
            "from trio_runner.failure import unreported\n"
            "async def nothing(*_):\n    return None\n"
            "unreported.report_invocation = nothing"
        ),
    ),
    "a reaper publishes nothing": Mutant(
        caught_by=("I9",),
        faults=("kill",),
        python=_mute("reaper"),
    ),
    "report-death publishes nothing": Mutant(
        caught_by=("I9",),
        faults=("kill",),
        python=_mute("stop-post"),
    ),
}
