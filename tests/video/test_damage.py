"""Which pictures count as damaged: the rule itself, and files of many codecs with flipped bytes."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import av
import av.logging
import pytest

from tests.cases.video.writing import Track, write
from tests.support import clips
from tests.support.harness import PATIENCE_SECONDS
from tests.support.watching import watch
from trio_runner.video.decoder.damage import MAX_NOTES, Damage, PassedOver, reported_by

FAIL, SKIP = "fail", "skip"


def whole(damage: Damage, *pictures: tuple[int, bool]) -> list[bool]:
    return [damage.is_whole(number, key_frame=key) for number, key in pictures]


def test_without_damage_every_picture_is_whole() -> None:
    assert whole(Damage(), (0, True), (2, False), (1, False)) == [True] * 3


def test_what_is_decoded_after_a_damaged_picture_is_damaged_up_to_the_next_key_frame() -> None:
    damage = Damage()
    damage.note(2, None)
    # Picture 3 is presented before picture 2, and refers to it.
    order = [(0, True), (1, False), (3, False), (2, False), (4, False), (5, True), (6, False)]
    assert whole(damage, *order) == [True, True, False, False, False, True, True]


def test_pictures_between_a_damaged_group_and_the_next_key_frame_may_refer_to_either() -> None:
    damage = Damage()
    damage.note(1, None)
    # Pictures 3 and 4 were decoded after the key frame 2 and are presented before it.
    assert whole(damage, (0, True), (1, False), (3, False), (4, False), (2, True), (5, False)) == [
        True, False, False, False, True, True,
    ]  # fmt: skip


def test_a_damaged_key_frame_ends_nothing() -> None:
    damage = Damage()
    for number in (1, 4):
        damage.note(number, None)
    assert whole(damage, (0, True), (1, False), (4, True), (5, False), (6, True)) == [True, False, False, False, True]


def test_nothing_is_past_the_damage_before_there_is_any() -> None:
    damage = Damage()
    assert not damage.is_past(0, 0)
    damage.note(5, 200)
    assert not damage.is_past(4, 160)
    assert damage.is_past(6, 160)
    # This one was decoded before the damaged packet, whose picture may be missing, but it is presented after it.
    assert damage.is_past(4, 240)


ERROR, WARNING = av.logging.ERROR, av.logging.WARNING


@pytest.mark.parametrize(("codec", "message", "complaint"), [
    ("ffv1", (ERROR, "ffv1", "slice CRC mismatch 7AC52C5E!\n"), "FFmpeg: ffv1: slice CRC mismatch 7AC52C5E!"),
    ("hevc", (WARNING, "hevc", "Skipping invalid undecodable NALU: 21\n"),
     "FFmpeg: hevc: Skipping invalid undecodable NALU: 21"),
    ("hevc", (WARNING, "hevc", "Something else\n"), ""),
    ("mjpeg", (ERROR, "mjpeg", "unable to decode APP fields: Invalid data\n"), ""),
    # The decoder of H.264 marks the damaged picture itself, and reports as errors what is none.
    ("h264", (ERROR, "h264", "mmco: unref short failure\n"), ""),
])  # fmt: skip
def test_a_message_reports_damage_where_the_decoder_has_no_other_way(
    codec: str, message: tuple[int, str, str], complaint: str
) -> None:
    assert reported_by(codec, [message]) == complaint


def test_the_log_names_the_frames_that_are_passed_over_run_by_run() -> None:
    notes: list[str] = []
    passed_over = PassedOver(notes.append)
    for index in range(60):
        passed_over.see(index, whole=index not in {3, 10, 11, 12, 59})
    passed_over.end()
    passed_over.end()
    assert notes == [
        "frame 3 is damaged and passed over",
        "frames 10 to 12 are damaged and passed over",
        "frame 59 is damaged and passed over",
    ]


def test_the_log_names_a_bounded_number_of_runs() -> None:
    notes: list[str] = []
    passed_over = PassedOver(notes.append)
    for index in range(200):
        passed_over.see(index, whole=index % 2 == 0)
    assert notes[-1] == "frame 39 is damaged and passed over; further ones are not named"
    assert len(notes) == MAX_NOTES


async def test_the_child_names_the_frames_that_it_passes_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = clips.corrupt(tmp_path / "corrupt.mp4")
    with caplog.at_level("INFO", logger="trio_runner.video.child"):
        whole = await watch(path, on_corrupt=SKIP)
    indices = [frame.index for frame in whole.frames]
    missing = set(range(max(indices))) - set(indices)
    assert (
        {int(found) for found in re.findall(r"frame (\d+) is damaged and passed over", caplog.text)} == missing != set()
    )


async def test_each_attempt_passes_over_the_same_frames_however_many_threads_decode(tmp_path: Path) -> None:
    path = clips.corrupt(tmp_path / "corrupt.mp4")
    first = await watch(path, on_corrupt=SKIP)
    assert first.end is not None
    assert first.end.skipped_corrupt > 0
    for _ in range(15):
        again = await watch(path, on_corrupt=SKIP, decoder_threads=4)
        assert (again.frames, again.end, again.error) == (first.frames, first.end, first.error)


async def test_what_is_given_before_damage_is_whole_with_several_threads_too(tmp_path: Path) -> None:
    shown = await watch(clips.corrupt(tmp_path / "corrupt.mp4"), on_corrupt=FAIL, decoder_threads=4)
    assert shown.error is not None
    assert shown.numbers == shown.indices == list(range(len(shown.frames)))


LET_GO_EARLY = """
import gc, os, sys
from trio_runner.config.sections import VideoSection
from trio_runner.video.decoder.footage import Footage
from trio_runner.video.decoder.formats import open_container
from trio_runner.video.decoder.streams import choose_stream, describe, look

options = VideoSection(decoder_threads=3)
fd = os.open(sys.argv[1], os.O_RDONLY)
for _ in range(30):
    looks = look(fd, options)
    container = open_container(fd, options)
    stream = choose_stream(container, looks, options, fd)
    footage = Footage(container, stream, options, describe(container, stream, looks[stream.index], options, fd), fd)
    next(footage.pictures())
    del footage, stream, container
    gc.collect()
"""


def test_a_decoder_whose_threads_report_damage_can_be_let_go(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", Track(numbers=range(60), size=(1920, 1080), options={"bf": "0"}))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    content = bytearray(path.read_bytes())
    noise = random.Random(1)
    for packet in packets[1:]:
        place = (packet.pos or 0) + packet.size // 3
        content[place : place + 40] = noise.randbytes(40)
    path.write_bytes(content)
    # A thread that waits for another for ever cannot be interrupted.
    subprocess.run([sys.executable, "-c", LET_GO_EARLY, str(path)], check=True, timeout=PATIENCE_SECONDS)
