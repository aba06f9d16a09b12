# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["av==18.1.0", "numpy==2.4.6", "opencv-python-headless==4.14.0.94", "scikit-image==0.26.0"]
# ///
"""Make test_video.mp4 and test_video.toml out of the free stills that ship inside the scikit-image wheel.

    uv run test_videos/make_test_video.py [DIRECTORY]

or, in any environment that holds the four packages pinned above: python test_videos/make_test_video.py.
Under the same versions on the same kind of CPU the result is the same to the byte; another x264 or OpenCV
moves a few bytes and nothing that the table says. Origin and licence of every still: see README.md.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import av
import cv2
import numpy as np
import numpy.typing as npt
import skimage

if TYPE_CHECKING:
    from collections.abc import Iterator

Image = npt.NDArray[np.uint8]

WIDTH, HEIGHT, FPS = 640, 360, 25
DIVIDER = 4


@dataclass(frozen=True)
class Window:
    """What the camera sees of a still: centre and width, in its pixels; the height follows from the panel."""

    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Move:
    """One camera move over one still; mirrored stills are given in mirrored coordinates."""

    still: str
    start: Window
    end: Window
    mirrored: bool = False


@dataclass(frozen=True)
class Shot:
    """A stretch of frames between two hard cuts; two moves share the frame side by side."""

    title: str
    frames: int
    moves: tuple[Move, ...]
    expect: tuple[str, ...]


class ShotFacts(TypedDict):
    """One `[[shot]]` of test_video.toml."""

    first_frame: int
    last_frame: int
    title: str
    expect: list[str]


# The windows were searched for where the detector is sure of the expected label and of nothing else: in every
# frame the label scores above 0.5, and the strongest wrong one stays below the threshold of 0.45.
SHOTS = (
    Shot(
        "an astronaut, zooming in",
        100,
        (Move("astronaut.png", Window(240, 146, 480), Window(225, 130, 343)),),
        ("person",),
    ),
    Shot(
        "a man at a film camera",
        90,
        (Move("camera.png", Window(218, 148, 391), Window(192, 161, 336)),),
        ("person",),
    ),
    Shot("a cup of espresso", 80, (Move("coffee.png", Window(300, 185, 480), Window(330, 175, 460)),), ("cup",)),
    Shot("a rocket at dusk", 75, (Move("rocket.jpg", Window(310, 150, 430), Window(320, 246, 640)),), ()),
    Shot(
        "a cat, zooming in",
        90,
        (Move("chelsea.png", Window(221, 129, 406), Window(238, 119, 364), mirrored=True),),
        ("cat",),
    ),
    Shot(
        "a horse against the evening sky",
        80,
        (Move("horse.png", Window(560, 330, 720), Window(440, 330, 720)),),
        ("horse",),
    ),
    Shot(
        "an astronaut and a cat, side by side",
        100,
        (
            Move("astronaut.png", Window(228, 239, 419), Window(221, 206, 359)),
            Move("chelsea.png", Window(180, 150, 260), Window(200, 150, 250), mirrored=True),
        ),
        ("person", "cat"),
    ),
    Shot("a brick wall", 50, (Move("brick.png", Window(256, 190, 470), Window(256, 310, 470)),), ()),
)


def load_still(name: str, *, mirrored: bool = False) -> Image:
    """Read a still of the wheel as BGR (h, w, 3); the horse, a bare silhouette, is given sky and ground."""
    path = Path(skimage.__file__).parent / "data" / name
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise FileNotFoundError(f"{path} is missing: install the scikit-image version named at the top")
    still = np.asarray(pixels, np.uint8)
    if name == "horse.png":
        still = horse_at_dusk(still[:, :, 0])
    return np.ascontiguousarray(still[:, ::-1]) if mirrored else still


def horse_at_dusk(silhouette: Image) -> Image:
    """Stand the black-on-white silhouette (h, w) on a ground before an evening sky (560, 1000, 3)."""
    height, width, horizon, left, size, hooves = 560, 1000, 440, 340, 0.8, 318
    sky_top, sky_bottom, ground, coat = np.array(
        [[150, 90, 60], [120, 190, 250], [40, 50, 60], [30, 45, 70]], np.float32
    )
    blend = np.linspace(0, 1, horizon, dtype=np.float32)[:, None]
    scene = np.empty((height, width, 3), np.float32)
    scene[:horizon] = ((1 - blend) * sky_top + blend * sky_bottom)[:, None]
    scene[horizon:] = ground
    scene = np.asarray(cv2.GaussianBlur(scene, (0, 0), 2), np.float32)

    horse = np.asarray(cv2.resize(silhouette, None, fx=size, fy=size, interpolation=cv2.INTER_CUBIC), np.float32)
    top = horizon + 10 - round(hooves * size)
    opaque = np.zeros((height, width, 1), np.float32)
    opaque[top : top + horse.shape[0], left : left + horse.shape[1], 0] = 1 - horse / 255
    return np.asarray((scene * (1 - opaque) + coat * opaque).clip(0, 255), np.uint8)


def look(still: Image, move: Move, progress: float, width: int) -> Image:
    """Render one panel (HEIGHT, width, 3) of a move at progress 0..1, at sub-pixel positions: it glides.

    The zoom is geometric, which the eye takes for constant speed.

    Raises:
        ValueError: the window leaves the still, and the panel would show a border.
    """
    start, end = move.start, move.end
    view_width = start.width * (end.width / start.width) ** progress
    scale = width / view_width
    x = start.x + (end.x - start.x) * progress
    y = start.y + (end.y - start.y) * progress
    room_x = min(x, still.shape[1] - x) - view_width / 2
    room_y = min(y, still.shape[0] - y) - HEIGHT / scale / 2
    if min(room_x, room_y) < 0:
        raise ValueError(f"the window {view_width:.1f} wide around {x:.1f}, {y:.1f} leaves {move.still}")
    # The halves: OpenCV counts from the centre of the first pixel, the windows from its corner.
    matrix = np.array(
        [[scale, 0, width / 2 - 0.5 - scale * (x - 0.5)], [0, scale, HEIGHT / 2 - 0.5 - scale * (y - 0.5)]]
    )
    panel = cv2.warpAffine(still, matrix, (width, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(panel, np.uint8)


def render(shot: Shot) -> Iterator[Image]:
    """Yield the frames (HEIGHT, WIDTH, 3) BGR of a shot."""
    stills = [load_still(move.still, mirrored=move.mirrored) for move in shot.moves]
    panel_width = (WIDTH - DIVIDER * (len(stills) - 1)) // len(stills)
    for index in range(shot.frames):
        frame = np.full((HEIGHT, WIDTH, 3), 16, np.uint8)
        for number, (still, move) in enumerate(zip(stills, shot.moves, strict=True)):
            left = number * (panel_width + DIVIDER)
            frame[:, left : left + panel_width] = look(still, move, index / (shot.frames - 1), panel_width)
        yield frame


def write_video(path: Path) -> None:
    """Encode all shots as H.264 in MP4, the index in front of the data and the frame count in the header."""
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        # One thread, because x264 cuts a frame differently for another number of them.
        stream.options = {"crf": "21", "preset": "slow", "g": "50", "threads": "1", "flags": "+bitexact"}
        for shot in SHOTS:
            for image in render(shot):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())


def shot_table() -> list[ShotFacts]:
    """Say which frames show what, as test_video.toml has it."""
    table: list[ShotFacts] = []
    first = 0
    for shot in SHOTS:
        last = first + shot.frames - 1
        table.append(ShotFacts(first_frame=first, last_frame=last, title=shot.title, expect=list(shot.expect)))
        first = last + 1
    return table


def to_toml(shots: list[ShotFacts]) -> str:
    """Write the table down: its strings, numbers and lists of strings look in TOML as they do in JSON."""
    facts = {"name": "test_video.mp4", "codec": "h264", "width": WIDTH, "height": HEIGHT, "fps": FPS}
    facts["frames"] = shots[-1]["last_frame"] + 1
    lines = [
        "# Written by make_test_video.py. `expect` lists the COCO labels that are found in every frame of",
        "# the shot, the last included; an empty list means that nothing at all must be found.",
        "",
        "[file]",
        *(f"{key} = {json.dumps(value)}" for key, value in facts.items()),
    ]
    for shot in shots:
        lines += ["", "[[shot]]", *(f"{key} = {json.dumps(value)}" for key, value in shot.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both files into the directory given, or beside this script."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    write_video(directory / "test_video.mp4")
    (directory / "test_video.toml").write_text(to_toml(shot_table()), encoding="utf-8")


if __name__ == "__main__":
    main()
