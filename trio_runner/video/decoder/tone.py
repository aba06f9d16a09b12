"""Tone mapping: pictures with the HLG or PQ transfer characteristic become pictures for an ordinary (BT.709) display.

The light of the scene is computed by the formulas of BT.2100, moved to the primaries of BT.709, and encoded for a
display whose white has 203 cd/m² (BT.2408). Colours beyond that display keep their hue and move towards the most
colourful one that it has for that hue. This is the relative colorimetric intent of FFmpeg's scaler, which takes seconds
for its table and then 50 ms for each picture of 1920 × 1080. A table over luma and chroma takes a tenth of both,
because it is applied to every fourth pixel, as often as 4:2:0 video has chroma, and luma follows a curve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PQ, HLG = 16, 18
"""Transfer characteristics (H.273) that need tone mapping."""

WHITE_NITS = 203.0
"""Luminance of white on the display, in cd/m²."""

SLACK_NITS = 1e-3
"""A colour is taken for one that the display has if it is beyond it by less than this."""

HLG_NITS = 1000.0
PQ_NITS = 10_000.0

D65 = (0.3127, 0.3290)
BT709 = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
PRIMARIES = {1: BT709, 9: BT2020, 11: DISPLAY_P3, 12: DISPLAY_P3}
"""Chromaticities of red, green and blue by the number that H.273 gives the primaries."""

LUMA_709 = (0.2126, 0.0722)
LUMA_2020 = (0.2627, 0.0593)
LUMA_601 = (0.299, 0.114)
"""What red and blue contribute to luma."""


def _from_luma(luma: tuple[float, float]) -> Floats:
    """The matrix that makes R, G and B of luma and the two differences of colour (from -0.5 to 0.5)."""
    red, blue = luma
    green = 1 - red - blue
    return np.array(
        [[1, 0, 2 - 2 * red], [1, -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green], [1, 2 - 2 * blue, 0]]
    )


# An opponent colour space in which a line of constant angle is a line of constant hue: light as the eye's three kinds
# of cones take it up (Hunt, Pointer, Estévez, with a crosstalk of 4 %), PQ-encoded, and rotated as in IPT.
CONES = (np.full((3, 3), 0.04) + 0.88 * np.eye(3)) @ np.array(
    [[0.40024, 0.70760, -0.08081], [-0.22630, 1.16532, 0.04570], [0.0, 0.0, 0.91822]]
)
OPPONENT = np.array([[0.4, 0.4, 0.2], [4.455, -4.851, 0.396], [0.8056, 0.3572, -1.1628]])

CLIP_GAMMA = 1.8
CLIP_STEPS = 14

Y_BITS, C_BITS = 6, 7
"""Bits of luma and of each chroma component that index the table."""

MARGIN = 0.25
"""How far a signal may be below 0 and above 1, by the ringing of a codec and between two nodes of the table."""

C_NODES = 65
"""Values of each chroma component for which the table is computed; it is linear in between."""


def pq_encode(nits: Floats) -> Floats:
    """The PQ signal (0 to 1) of a luminance in cd/m²."""
    x = np.maximum(nits / PQ_NITS, 0.0) ** (2610 / 16384)
    return np.asarray(((3424 / 4096 + 2413 / 128 * x) / (1 + 2392 / 128 * x)) ** (2523 / 32))


def pq_decode(signal: Floats) -> Floats:
    """The luminance in cd/m² of a PQ signal."""
    x = np.clip(signal, 0.0, 1.0) ** (32 / 2523)
    return np.asarray(PQ_NITS * (np.maximum(x - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * x)) ** (16384 / 2610))


def hlg_decode(signal: Floats) -> Floats:
    """The light in cd/m² that the reference display of 1000 cd/m² shows for an HLG signal (R, G, B)."""
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)  # noqa: PLR2004
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return np.asarray(HLG_NITS * scene * np.maximum(luminance, 1e-9)[..., None] ** 0.2)


def _to_xyz(primaries: Any) -> Floats:
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    x, y = D65
    return np.asarray(columns * np.linalg.solve(columns, np.array([x / y, 1.0, (1 - x - y) / y])))


def _hue_space(rgb: Floats, to_cones: Floats) -> Floats:
    return np.asarray(pq_encode(rgb @ to_cones.T) @ OPPONENT.T)


def _light(opponent: Floats, to_cones: Floats) -> Floats:
    return np.asarray(pq_decode(opponent @ np.linalg.inv(OPPONENT).T) @ np.linalg.inv(to_cones).T)


def to_display(rgb: Floats, primaries: int) -> Floats:
    """The display's light, 0 to 1, for light in cd/m² with the primaries of that number (H.273)."""
    source = _to_xyz(PRIMARIES.get(primaries, BT2020))
    display = _to_xyz(BT709)
    shown: Floats = rgb @ (np.linalg.inv(display) @ source).T
    outside = np.any((shown < -SLACK_NITS) | (shown > WHITE_NITS + SLACK_NITS), axis=-1)
    to_cones = CONES @ display
    lightness, *chroma = np.moveaxis(_hue_space(rgb[outside], CONES @ source), -1, 0)
    hue, colourfulness = np.arctan2(chroma[1], chroma[0]), np.hypot(*chroma)

    # The most colourful light that the display has for a hue lies on the edges of its RGB cube that touch neither
    # black nor white.
    edge = np.linspace(0, 1, 32, endpoint=False)
    one, zero = np.ones_like(edge), np.zeros_like(edge)
    ring = [(one, edge, zero), (1 - edge, one, zero), (zero, one, edge)]
    ring += [(zero, 1 - edge, one), (edge, zero, one), (one, zero, 1 - edge)]
    corners = _hue_space(WHITE_NITS * np.concatenate([np.stack(part, -1) for part in ring]), to_cones)
    hues = np.arctan2(corners[:, 2], corners[:, 1])
    peak = np.interp(hue, hues, corners[:, 0], period=2 * np.pi)
    peak_colourfulness = np.interp(hue, hues, np.hypot(corners[:, 1], corners[:, 2]), period=2 * np.pi)

    # A colour moves along a curve towards that light until the display has it. The curve is found by bisection.
    gamma = CLIP_GAMMA * np.maximum(lightness / peak, 0) ** 3 * np.minimum(colourfulness / peak_colourfulness, 1)

    def moved(share: Floats) -> Floats:
        parts = [peak + (lightness - peak) * share**gamma, chroma[0] * share, chroma[1] * share]
        return _light(np.stack(parts, -1), to_cones)

    low, high = np.zeros_like(peak), np.ones_like(peak)
    for _ in range(CLIP_STEPS):
        middle = (low + high) / 2
        light = moved(middle)
        has = np.all((light >= -SLACK_NITS) & (light <= WHITE_NITS + SLACK_NITS), axis=-1)
        low, high = np.where(has, middle, low), np.where(has, high, middle)
    shown[outside] = moved((low + high) / 2)
    return np.clip(shown / WHITE_NITS, 0.0, 1.0)


def map_codes(y: Floats, u: Floats, v: Floats, transfer: int, primaries: int) -> Floats:
    """Luma and chroma of BT.709 for those of BT.2020, both as 8-bit codes of limited range, with fractions.

    Codes far from any colour give black, because no picture has them.
    """
    differences = np.stack([(y - 16) / 219, (u - 128) / 224, (v - 128) / 224], -1)
    signal = differences @ _from_luma(LUMA_2020).T
    plausible = np.all(np.abs(signal - 0.5) < 0.5 + MARGIN, axis=-1)
    signal = np.clip(signal[plausible], 0.0, 1.0)
    light = pq_decode(signal) if transfer == PQ else hlg_decode(signal)
    encoded = np.zeros((*y.shape, 3))
    # FFmpeg's scaler has its result pass through luma of BT.601 and back by the matrix of BT.2020, which shifts hues a
    # little. Its pictures are the reference, so that the same video gives the same detections as before.
    shift = _from_luma(LUMA_2020) @ np.linalg.inv(_from_luma(LUMA_601))
    encoded[plausible] = np.clip(to_display(light, primaries) ** (1 / 2.4) @ shift.T, 0.0, 1.0)
    codes: Floats = encoded @ np.linalg.inv(_from_luma(LUMA_709)).T * np.array([219, 224, 224])
    return np.asarray(codes + np.array([16, 128, 128]))


class ToneMap:
    """Turns planes of 10-bit 4:2:0 video of limited range, HLG or PQ, into 8-bit planes for a BT.709 display."""

    def __init__(self, transfer: int, primaries: int) -> None:
        codes = np.arange(1024) / 4
        neutral = np.full(1024, 128.0)
        curve = map_codes(codes, neutral, neutral, transfer, primaries)[:, 0]
        self._curve = _ten_bits(np.rint(curve).astype(np.uint8))
        self._table = _table(transfer, primaries, curve)
        positions = np.arange(1024, dtype=np.int32)
        self._y_index = _ten_bits((positions >> (10 - Y_BITS)) << (2 * C_BITS))
        self._u_index = _ten_bits((positions >> (10 - C_BITS)) << C_BITS)
        self._v_index = _ten_bits(positions >> (10 - C_BITS))

    def apply(self, y: NDArray[np.uint16], u: NDArray[np.uint16], v: NDArray[np.uint16]) -> list[NDArray[np.uint8]]:
        """The three planes, mapped; width and height of `y` are even."""
        height, width = u.shape
        index: Any = cv2.LUT(cv2.resize(y, (width, height), interpolation=cv2.INTER_AREA), self._y_index)
        cv2.add(index, cv2.LUT(u, self._u_index), dst=index)
        cv2.add(index, cv2.LUT(v, self._v_index), dst=index)
        found = np.take(self._table, index, mode="clip").view(np.uint8).reshape(height, width, 4)
        mapped_u, mapped_v, up, down = cv2.split(found)
        luma = cv2.LUT(y, self._curve)
        # A plane merged with itself has each pixel twice in a row.
        up, down = (cv2.merge([plane, plane]).reshape(height, 2 * width) for plane in (up, down))
        for row in (0, 1):
            lines = luma[row::2]
            cv2.subtract(lines, down, dst=lines)
            cv2.add(lines, up, dst=lines)
        return [luma, mapped_u, mapped_v]


def _ten_bits(values: NDArray[Any]) -> NDArray[Any]:
    """A table for OpenCV, which wants an entry for each number of 16 bits; larger ones than 10 bits do not occur."""
    return np.concatenate([values, np.full(65_536 - len(values), values[-1], values.dtype)])


def _table(transfer: int, primaries: int, curve: Floats) -> NDArray[np.uint32]:
    """For each (luma, chroma, chroma): two bytes of chroma, and how far luma is above and below `curve`."""
    luma = (np.arange(2**Y_BITS) + 0.5) * 256 / 2**Y_BITS - 0.5
    nodes = np.linspace(0, 255, C_NODES)
    y, u, v = np.meshgrid(luma, nodes, nodes, indexing="ij")
    mapped = map_codes(y, u, v, transfer, primaries).astype(np.float32)
    mapped[..., 0] -= np.interp(luma, np.arange(1024) / 4, curve)[:, None, None]
    # Linear interpolation between the nodes is a matrix that has two entries other than 0 in each row.
    chroma = (np.arange(2**C_BITS) + 0.5) * 256 / 2**C_BITS - 0.5
    weights = np.maximum(1 - np.abs(chroma[:, None] - nodes) * (C_NODES - 1) / 255, 0).astype(np.float32)
    above, blue, red = (weights @ mapped[..., part] @ weights.T for part in range(3))
    parts = np.stack([blue, red, above, -above], -1)
    table: NDArray[np.uint32] = np.rint(np.clip(parts, 0, 255)).astype(np.uint8).view(np.uint32).reshape(-1)
    return table
