"""Directories and zip archives of images as videos: which, in which order, at which time, and what is refused."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support import stills
from tests.support.clips import paint, read_frame_number
from tests.support.stills import SUFFIXES, directory_of, numbered, zip_of
from tests.support.watching import picture, watch
from trio_runner.config.sections import VideoSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import End
from trio_runner.video import messages
from trio_runner.video.decoder import __main__ as decoder
from trio_runner.video.decoder import archive, listing, stores
from trio_runner.video.decoder.images import ImageSequence
from trio_runner.video.decoder.opening import open_video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Make = Callable[[Path, Mapping[str, bytes]], Path]

MAKERS: dict[str, Make] = {"directory": directory_of, "zip": zip_of}
TEN = {f"img{number}.png": numbered(number) for number in range(10)}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Mapping[str, bytes]], Path]:
    """Makes a directory or a zip archive of images."""
    return lambda files: MAKERS[request.param](tmp_path / "images", files)


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[ImageSequence]:
    """The images as the child opens them."""
    section = VideoSection(path=str(path), **options)
    descriptor = open_video(section.path, section.root)
    try:
        store = stores.open_store(descriptor, section, lambda: None)
        assert store is not None
        with closing(store):
            yield ImageSequence(store, section)
    finally:
        os.close(descriptor)


@dataclass
class Shown:
    """What came out of a sequence, and how it ended: `end`, or else `error`."""

    indices: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    end: End | None = None
    error: RunnerError | None = None
    notes: list[str] = field(default_factory=list)

    def emit(self, index: int, pts_seconds: float, image: Any) -> None:
        self.indices.append(index)
        self.times.append(pts_seconds)
        self.images.append(image)

    def pass_over(self, decoded: int) -> None:
        assert decoded >= 0

    def finish(self) -> None:
        assert self.images or self.end is None

    @property
    def numbers(self) -> list[int]:
        return [read_frame_number(image) for image in self.images]


def show(path: Path, start: messages.Start = messages.Start(), **options: Any) -> Shown:  # noqa: B008 - it is frozen
    """What the child does with these images, in this process."""
    shown = Shown()
    try:
        with opened(path, **options) as sequence:
            sequence.describe()
            emitter: Any = shown
            section = VideoSection(path=str(path), **options)
            shown.end = decoder.emit_images(sequence, section, emitter, start, shown.notes.append)
    except RunnerError as error:
        shown.error = error
    return shown


def names_of(path: Path, **options: Any) -> list[str]:
    with opened(path, **options) as sequence:
        return [member.name for member in sequence.store.members]


def identity_of(path: Path) -> str:
    with opened(path) as sequence:
        return sequence.describe().identity


def refusal(path: Path, **options: Any) -> RunnerError:
    with pytest.raises(RunnerError) as caught, opened(path, **options) as sequence:
        sequence.describe()
    return caught.value


# Which images, and when.


async def test_every_kind_of_image_is_a_frame_in_natural_order(make: Any) -> None:
    files = {f"img{number}{SUFFIXES[number % 5]}": numbered(number, SUFFIXES[number % 5]) for number in range(12)}
    shown = await watch(make(files), fps=4)
    assert shown.error is None
    assert shown.numbers == shown.indices == list(range(12))
    assert [frame.pts_seconds for frame in shown.frames] == [number / 4 for number in range(12)]
    assert shown.end == End(decoded=12, selected=12, skipped_corrupt=0)
    assert shown.info is not None
    assert (shown.info.width, shown.info.height, shown.info.fps) == (320, 240, 4)
    assert (shown.info.declared_frames, shown.info.duration_seconds) == (12, 3.0)


def test_one_image_a_second_where_nothing_else_is_said(make: Any) -> None:
    assert show(make(TEN)).times == list(range(10))


@pytest.mark.parametrize(("options", "expected"), [
    ({"stride": 4}, [0, 4, 8]),
    ({"fps": 10, "max_fps": 5}, [0, 2, 4, 6, 8]),
    ({"fps": 10, "start_seconds": 0.5}, [5, 6, 7, 8, 9]),
    ({"max_frames": 3, "stride": 2}, [0, 2, 4]),
])  # fmt: skip
def test_sampling_and_a_resume_choose_the_same_images(make: Any, options: dict[str, Any], expected: list[int]) -> None:
    path = make(TEN)
    whole = show(path, **options)
    assert whole.indices == whole.numbers == expected
    for stored in range(1, len(expected) + 1):
        start = messages.Start(whole.indices[stored - 1] + 1, stored, whole.times[stored - 1])
        rest = show(path, start, **options)
        assert rest.indices == rest.numbers == expected[stored:]
        assert rest.end is not None
        assert rest.end.selected == len(expected)


def test_a_resume_reads_no_image_before_its_own(tmp_path: Path) -> None:
    with opened(directory_of(tmp_path / "images", TEN)) as sequence:
        for number in range(7):
            (tmp_path / "images" / f"img{number}.png").unlink()
        first = next(sequence.pictures(7))
        assert (first.index, first.whole) == (7, True)


def test_directories_within_are_sorted_by_the_whole_path(make: Any) -> None:
    image = numbered(0)
    listed = ["10/a2.png", "2/a10.png", "2/a9.png", "2/b/c.png", "a.png", "B.png", "c.png", "img002.png", "img2.png"]
    path = make(dict.fromkeys(listed[::-1], image))
    assert names_of(path) == [
        *("2/a9.png", "2/a10.png", "2/b/c.png", "10/a2.png", "a.png", "B.png", "c.png", "img002.png", "img2.png"),
    ]


@given(st.lists(st.text("a1029/Bß .", max_size=8), unique=True))
def test_every_order_of_the_same_names_is_sorted_alike(names: list[str]) -> None:
    ordered = sorted(names, key=listing.natural_key)
    backwards = names[::-1]
    assert sorted(backwards, key=listing.natural_key) == ordered


def test_a_number_of_any_length_is_sorted() -> None:
    names = [f"a{'9' * length}.png" for length in (6000, 5, 5000)]
    assert [len(name) for name in sorted(names, key=listing.natural_key)] == [10, 5005, 6005]


def test_files_that_are_no_images_are_passed_over_and_counted(make: Any) -> None:
    files = dict.fromkeys(["labels.txt", "a/data.json", "Thumbs.db", "desktop.ini", "readme"], b"text")
    hidden = dict.fromkeys([".DS_Store", "._img1.png", ".hidden/img1.png", "__MACOSX/._img1.png"], b"hidden")
    path = make(TEN | files | hidden)
    assert names_of(path) == list(TEN)
    with opened(path) as sequence:
        assert sequence.store.others == len(files)


@pytest.mark.parametrize("name", ["a.heic", "A.HEIC", "b/c.gif", "d.dng"])
def test_an_image_of_a_kind_that_is_not_read_is_refused_by_name(make: Any, name: str) -> None:
    path = make(TEN | {name: b"x"})
    error = refusal(path)
    assert error.code is ErrorCode.VIDEO_REFUSED
    assert name in error.message
    assert f": {Path(name).suffix.lower()} images are not read. Convert it to one of .bmp, " in error.message


@pytest.mark.parametrize("files", [{}, {"notes.txt": b"x", ".img.png": b"x"}], ids=str)
def test_without_any_image_there_is_no_video(make: Any, files: dict[str, bytes]) -> None:
    path = make(files)
    if not path.exists():
        path.mkdir()
    error = refusal(path)
    assert error.code is ErrorCode.VIDEO_NO_FRAMES
    assert f"holds no images{', only 1 other file.' if 'notes.txt' in files else '.'} Images end with" in error.message


def test_a_rate_over_the_limit_is_refused(make: Any) -> None:
    error = refusal(make(TEN), fps=300)
    assert (error.code, "video.fps = 300" in error.message) == (ErrorCode.VIDEO_REFUSED, True)


# The picture.


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_the_orientation_is_applied(suffix: str, tmp_path: Path) -> None:
    files = {f"{number}{suffix}": stills.oriented(number, suffix, number) for number in stills.TURNS}
    shown = show(directory_of(tmp_path / "images", files))
    assert shown.numbers == list(stills.TURNS)
    assert {image.shape for image in shown.images} == {(240, 320, 3)}


async def test_images_may_differ_in_size(make: Any) -> None:
    sizes = [(320, 240), (640, 360), (240, 320), (321, 241)]
    shown = await watch(make({f"{number}.png": numbered(number, size=size) for number, size in enumerate(sizes)}))
    assert shown.numbers == [0, 1, 2, 3]
    assert [(frame.width, frame.height) for frame in shown.frames] == sizes
    assert [picture(frame).shape[1::-1] for frame in shown.frames] == sizes


def encoded_as(kind: str, number: int) -> bytes:
    """A PNG or TIFF that shows the number, and whose pixels are of this kind."""
    grey = paint(number, (320, 240))
    colour = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    kinds: dict[str, tuple[Any, str]] = {
        "grey": (grey, ".png"),
        "16 bits": (colour.astype(np.uint16) * 257, ".png"),
        "grey of 16 bits": (grey.astype(np.uint16) * 257, ".png"),
        "transparent": (cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA), ".png"),
        "TIFF of 16 bits": (colour.astype(np.uint16) * 257, ".tiff"),
        "grey TIFF": (grey, ".tiff"),
        "grey JPEG": (grey, ".jpg"),
    }
    pixels, suffix = kinds[kind]
    return stills.encode(pixels, suffix)


KINDS = ("grey", "16 bits", "grey of 16 bits", "transparent", "TIFF of 16 bits", "grey TIFF", "grey JPEG")


def test_any_depth_and_number_of_channels_becomes_a_picture_of_eight_bits(tmp_path: Path) -> None:
    files = {f"{number}.png": encoded_as(kind, number) for number, kind in enumerate(KINDS)}
    shown = show(directory_of(tmp_path / "images", files))
    assert shown.numbers == list(range(len(KINDS)))


@pytest.mark.parametrize(("ink", "bgr"), [
    ((255, 255, 255, 255), (255, 255, 255)),
    ((255, 0, 0, 255), (0, 0, 255)),
    ((0, 0, 255, 255), (255, 0, 0)),
    ((255, 255, 255, 0), (0, 0, 0)),
])  # fmt: skip
def test_a_jpeg_for_print_has_its_colours(tmp_path: Path, ink: tuple[int, ...], bgr: tuple[int, ...]) -> None:
    with opened(directory_of(tmp_path / "images", {"a.jpg": stills.cmyk_jpeg(ink)})) as sequence:
        image = next(sequence.pictures()).image
    assert image.shape == (32, 48, 3)
    assert np.abs(image.astype(int) - bgr).max() <= 3


# Damage.


def damaged(kind: str) -> dict[str, bytes]:
    """Ten images, the fourth of which is broken in this way."""
    whole = numbered(3, ".jpg", (640, 480))
    return TEN | {
        "img3.png": {
            "cut short": whole[: len(whole) * 3 // 4],
            "cut short png": TEN["img3.png"][:-20],
            "empty": b"",
            "text": b"<html>404</html>",
            "a flipped bit": bytes([*TEN["img3.png"][:60], TEN["img3.png"][60] ^ 8, *TEN["img3.png"][61:]]),
            "a film": b"\0\0\0\x18ftypmp42" + bytes(200),
            "a picture of no listed kind": b"P5\n4 4\n255\n" + bytes(16),
        }[kind]
    }


BROKEN = (*("cut short", "cut short png", "empty", "text", "a flipped bit", "a film", "a picture of no listed kind"),)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_ends_the_video(kind: str, make: Any) -> None:
    shown = show(make(damaged(kind)))
    assert shown.numbers == [0, 1, 2]
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_TRUNCATED
    assert "img3.png: image 4 of 10 (frame 3) " in shown.error.message
    assert shown.error.message.endswith("as another scenario")


def test_a_broken_image_before_any_is_stored_may_be_replaced(make: Any) -> None:
    shown = show(make(TEN | {"img0.png": b"x"}))
    assert shown.error is not None
    assert shown.error.message.endswith('Give a whole copy, or set video.on_corrupt = "skip"')


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_passed_over_where_that_is_wanted(kind: str, make: Any) -> None:
    shown = show(make(damaged(kind)), on_corrupt="skip")
    assert shown.numbers == shown.indices == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert shown.end == End(decoded=10, selected=9, skipped_corrupt=1)


def overwritten(content: bytes, at: float, length: int) -> bytes:
    """These bytes with zeros from this part of them on."""
    start = int(len(content) * at)
    return content[:start] + bytes(length) + content[start + length :]


def noisy(suffix: str, *options: int) -> bytes:
    """A picture of fine detail, of which a decoder shows the rest where a part is damaged."""
    detail = np.random.default_rng(1).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    return cv2.imencode(suffix, cv2.GaussianBlur(detail, (9, 9), 0), options)[1].tobytes()


FILLED_IN = {
    "a.jpg": overwritten(noisy(".jpg"), 0.5, 4096),
    "progressive.jpg": overwritten(noisy(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 0.5, 64),
    "intervals.jpg": overwritten(noisy(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 8), 0.5, 4096),
    "lzw.tiff": overwritten(noisy(".tiff"), 0.5, 64),
}
"""Images of which OpenCV returns a picture with wrong rows."""


@pytest.mark.parametrize("name", FILLED_IN)
def test_an_image_with_a_damaged_part_is_damaged(name: str, make: Any) -> None:
    assert cv2.imdecode(np.frombuffer(FILLED_IN[name], np.uint8), cv2.IMREAD_COLOR) is not None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    path = make({"0.png": TEN["img0.png"], f"1{name}": FILLED_IN[name], "2.png": TEN["img2.png"]})
    shown = show(path)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_TRUNCATED
    complaint = rf"1{name}: image 2 of 3 \(frame 1\) is damaged: (Corrupt JPEG data|TIFF_Error)"
    assert re.search(complaint, shown.error.message)
    assert show(path, on_corrupt="skip").end == End(decoded=3, selected=2, skipped_corrupt=1)


def test_bytes_that_a_camera_leaves_after_the_picture_are_no_damage(
    make: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = numbered(0, ".jpg")
    padded = {"0.jpg": whole[:-2] + bytes(16) + whole[-2:], "1.jpg": numbered(1, ".jpg") + b"thumbnail"}
    cv2.imdecode(np.frombuffer(padded["0.jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert "extraneous bytes before marker 0xd9" in capfd.readouterr().err
    assert show(make(padded)).numbers == [0, 1]


def test_the_next_image_stands_in_for_a_broken_one_under_max_fps(make: Any) -> None:
    shown = show(make(damaged("text")), on_corrupt="skip", fps=3, max_fps=1)
    assert shown.numbers == [0, 4, 6, 9]


def test_an_image_that_is_not_selected_is_not_decoded(make: Any) -> None:
    shown = show(make(damaged("text")), stride=2)
    assert (shown.numbers, shown.error) == ([0, 2, 4, 6, 8], None)


def test_where_every_image_is_broken_there_is_no_video(make: Any) -> None:
    shown = show(make(dict.fromkeys(TEN, b"x")), on_corrupt="skip")
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_NO_FRAMES
    assert "none of 10 images can be decoded" in shown.error.message


def test_an_image_that_is_written_to_meanwhile_is_not_taken_for_whole(tmp_path: Path) -> None:
    with opened(directory_of(tmp_path / "images", TEN)) as sequence:
        (tmp_path / "images" / "img5.png").write_bytes(TEN["img5.png"] + b"more")
        with pytest.raises(RunnerError, match=r"img5.png: image 6 of 10 \(frame 5\) was written to while it was read"):
            _ = [still.image for still in sequence.pictures()]


# Limits and hostile archives.


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_an_image_over_the_limit_is_refused_before_it_is_decoded(suffix: str, tmp_path: Path) -> None:
    path = zip_of(
        tmp_path / "images.zip", {f"a{suffix}": numbered(0, suffix), f"b{suffix}": numbered(1, suffix, (330, 240))}
    )
    shown = await watch(path, limit_width=320, limit_height=240)
    assert shown.numbers == [0]
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_REFUSED
    assert f"b{suffix}" in shown.error.message
    assert "larger than 320 x 240" in shown.error.message


async def test_the_limits_hold_for_the_picture_as_it_is_shown(tmp_path: Path) -> None:
    path = directory_of(tmp_path / "images", {"a.jpg": stills.oriented(6, ".jpg", 6)})
    assert (await watch(path, limit_width=320, limit_height=240)).numbers == [6]
    error = (await watch(path, limit_width=240, limit_height=320)).error
    assert error is not None
    assert error.code is ErrorCode.VIDEO_REFUSED


def bomb() -> bytes:
    """A PNG of 256 MiB of black, in a quarter of a megabyte."""
    return stills.encode(np.zeros((16_000, 16_000), np.uint8), ".png")


async def test_a_bomb_of_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    shown = await watch(directory_of(tmp_path / "images", {"a.png": bomb()}), limit_memory_mib=256)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_REFUSED


async def test_a_bomb_of_bytes_is_refused_by_its_size(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "bomb.zip", TEN | {"bomb.png": bytes(200 * 2**20)})
    assert path.stat().st_size < 2**20
    shown = await watch(path, limit_memory_mib=256)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_REFUSED
    assert "bomb.png: an image of 209715200 bytes" in shown.error.message


def test_an_entry_that_unpacks_to_more_than_it_declares_is_broken(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "images.zip", {"a.png": TEN["img1.png"] + bytes(50 * 2**20)})
    content = path.read_bytes()
    declared = (len(TEN["img1.png"]) + 50 * 2**20).to_bytes(4, "little")
    assert content.count(declared) == 2
    path.write_bytes(content.replace(declared, len(TEN["img1.png"]).to_bytes(4, "little")))
    error = show(path).error
    assert error is not None
    assert error.code is ErrorCode.VIDEO_TRUNCATED


def test_names_that_lead_out_of_the_archive_are_names_and_nothing_else(tmp_path: Path) -> None:
    names = ["../../../img0.png", "/etc/img1.png", "C:\\img2.png", "a/../../img3.png", "img\x1b[31m4.png"]
    (tmp_path / "deep").mkdir()
    path = zip_of(tmp_path / "deep" / "images.zip", {name: numbered(k) for k, name in enumerate(names)})
    shown = show(path, root=str(tmp_path / "deep"))
    assert sorted(shown.numbers) == [0, 1, 2, 3, 4]
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", path]


def rewritten(path: Path, field: int, value: bytes) -> Path:
    """Change the same field of each entry, in the archive's table of contents and before its content."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", field - 2), (b"PK\x01\x02", field)):
        position = content.find(signature)
        while position >= 0:
            content[position + offset : position + offset + len(value)] = value
            position = content.find(signature, position + 1)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("field", "value", "named"), [
    (8, b"\x01\x00", "encrypted"),
    (10, b"\x09\x00", "compressed by method 9"),
    (10, b"\x63\x00", "compressed by method 99"),
], ids=["encrypted", "deflate64", "AES"])  # fmt: skip
def test_an_archive_that_cannot_be_unpacked_says_why(tmp_path: Path, field: int, value: bytes, named: str) -> None:
    error = refusal(rewritten(zip_of(tmp_path / "images.zip", TEN), field, value))
    assert error.code is ErrorCode.VIDEO_REFUSED
    assert f"images.zip: img0.png: is {named}" in error.message


def test_an_entry_without_a_name_is_no_image(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "images", TEN | {"nameless.png": b""})
    path.write_bytes(path.read_bytes().replace(b"nameless", b"\0ameless"))
    assert len(names_of(path)) == 10


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_deflate_is_unpacked(tmp_path: Path, method: int) -> None:
    assert f"compressed by method {method}" in refusal(zip_of(tmp_path / "images.zip", TEN, method)).message


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("img1.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(link, "/etc/passwd")
    assert "is a link" in refusal(path).message


def test_a_name_that_is_in_the_archive_twice_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "images.zip", {"img1.png": TEN["img1.png"]})
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("img1.png", TEN["img2.png"])
    assert "is in the archive twice" in refusal(path).message


def test_an_archive_of_the_64_bit_kind_is_read(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as packed, packed.open("img1.png", "w", force_zip64=True) as file:
        file.write(TEN["img1.png"])
    with opened(path) as sequence:
        assert [(still.index, still.whole) for still in sequence.pictures()] == [(0, True)]


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_an_archive_that_is_cut_short_is_named_so(part: float, tmp_path: Path) -> None:
    path = zip_of(tmp_path / "images.zip", TEN)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    error = show(path).error
    assert error is not None
    assert error.code is ErrorCode.VIDEO_TRUNCATED
    assert "cut short or damaged" in error.message


@given(st.data())
def test_an_archive_with_any_bytes_changed_gives_right_pictures_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = zip_of(tmp_path_factory.mktemp("zip") / "images.zip", TEN)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    assume(bytes(content[:4]) in archive.SIGNATURES)
    try:
        with opened(path, on_corrupt="skip") as sequence:
            sequence.describe()
            pictures = [still.image for still in sequence.pictures()]
    except RunnerError:
        return
    originals = {paint(number, (320, 240)).tobytes() for number in range(10)}
    assert all(image is None or image[..., 0].tobytes() in originals for image in pictures)


# Places outside the root.


def test_a_link_to_an_image_outside_the_root_is_refused(tmp_path: Path) -> None:
    directory_of(tmp_path / "root" / "images", TEN)
    (tmp_path / "secret.png").write_bytes(numbered(5))
    link = tmp_path / "root" / "images" / "link.png"
    link.symlink_to(tmp_path / "secret.png")
    assert "link.png" in names_of(tmp_path / "root" / "images")
    error = refusal(tmp_path / "root" / "images", root=str(tmp_path / "root"))
    assert error.code is ErrorCode.VIDEO_REFUSED
    assert f"{link}: is {tmp_path / 'secret.png'}, outside video.root" in error.message


def test_a_linked_directory_outside_the_root_is_refused(tmp_path: Path) -> None:
    directory_of(tmp_path / "root" / "images", TEN)
    directory_of(tmp_path / "elsewhere", {"a.png": numbered(5)})
    (tmp_path / "root" / "images" / "more").symlink_to(tmp_path / "elsewhere")
    assert "more/a.png" in names_of(tmp_path / "root" / "images")
    error = refusal(tmp_path / "root" / "images", root=str(tmp_path / "root"))
    assert (error.code, "outside video.root" in error.message) == (ErrorCode.VIDEO_REFUSED, True)


def test_an_image_that_becomes_a_link_after_the_listing_is_refused(tmp_path: Path) -> None:
    path = directory_of(tmp_path / "root" / "images", TEN)
    (tmp_path / "secret.png").write_bytes(TEN["img1.png"])
    with opened(path, root=str(tmp_path / "root")) as sequence:
        (path / "img1.png").unlink()
        (path / "img1.png").symlink_to(tmp_path / "secret.png")
        with pytest.raises(RunnerError, match=r"outside video\.root"):
            _ = [still.image for still in sequence.pictures()]


def test_a_directory_that_links_to_itself_is_an_error(tmp_path: Path) -> None:
    path = directory_of(tmp_path / "images", TEN)
    (path / "again").symlink_to(path)
    error = refusal(path)
    assert error.code is ErrorCode.VIDEO_MISSING
    assert "Too many levels of symbolic links" in error.message


def test_a_fifo_among_the_images_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    path = directory_of(tmp_path / "images", TEN)
    os.mkfifo(path / "img11.png")
    error = refusal(path)
    assert error.code is ErrorCode.VIDEO_REFUSED
    assert "img11.png: is a FIFO" in error.message


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_FILES", 9)
    for maker in MAKERS.values():
        assert "holds more than 9 files" in refusal(maker(tmp_path / maker.__name__, TEN)).message


@pytest.mark.parametrize("limit", [zipfile.ZIP_FILECOUNT_LIMIT, 3])
def test_a_table_of_contents_that_takes_long_to_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    # With the second limit the archive ends with the record of 64 bits. That holds what the other one has no room for.
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", limit)
    path = zip_of(tmp_path / "images.zip", TEN)
    if limit == 3:
        content = bytearray(path.read_bytes())
        end = content.rfind(archive.END)
        content[end + 12 : end + 16] = b"\xff" * 4
        path.write_bytes(content)
    assert len(names_of(path)) == 10
    monkeypatch.setattr(archive, "CONTENTS_BYTES", 300)
    assert "lists too many files" in refusal(path).message


# Whether it is the same video.


def test_the_identity_is_that_of_the_content_and_not_of_the_place(make: Any, tmp_path: Path) -> None:
    path = make(TEN)
    before = identity_of(path)
    moved = path.rename(tmp_path / "moved")
    assert identity_of(moved) == before


@pytest.mark.parametrize("change", [
    {"img10.png": numbered(10)},
    {"img4.png": numbered(5)},
    {"img4.png": numbered(4, size=(640, 480))},
    {"sub/img4.png": numbered(4)},
], ids=["one more", "other content", "another size", "a directory more"])  # fmt: skip
def test_other_images_have_another_identity(make: Any, change: dict[str, bytes], tmp_path: Path) -> None:
    before = identity_of(make(TEN))
    other = directory_of if (tmp_path / "images").is_dir() else zip_of
    assert identity_of(other(tmp_path / "other", TEN | change)) != before
