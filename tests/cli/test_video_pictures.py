"""Pictures as they are meant: turned, mirrored, with more than 8 bits a colour."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stc_stream.video import VideoError, open_video

UNIT = 65536
ORIENTATIONS = {
    "as it is": ((1, 0, 0, 1), lambda picture: picture),
    "a quarter turn": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "half a turn": ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    "three quarter turns": ((0, -1, 1, 0), lambda picture: np.rot90(picture, 1)),
    "left to right": ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
    "top to bottom": ((1, 0, 0, -1), lambda picture: picture[::-1]),
    "transposed": ((0, 1, 1, 0), lambda picture: picture.swapaxes(0, 1)),
    "transversed": ((0, -1, -1, 0), lambda picture: picture.swapaxes(0, 1)[::-1, ::-1]),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_film_is_shown_as_its_matrix_says(sample: Path, tmp_path: Path, name: str) -> None:
    (a, b, c, d), shown = ORIENTATIONS[name]
    data = sample.read_bytes()
    identity = struct.pack(">9i", UNIT, 0, 0, 0, UNIT, 0, 0, 0, 1 << 30)
    at = data.index(identity, data.index(b"tkhd"))
    matrix = struct.pack(">9i", a * UNIT, b * UNIT, 0, c * UNIT, d * UNIT, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data[:at] + matrix + data[at + len(matrix) :])
    upright = next(open_video(sample)).image
    image = next(open_video(turned)).image
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, shown(upright))


def test_a_phone_that_is_held_askew_turns_to_the_nearest_side(sample: Path, tmp_path: Path) -> None:
    data = sample.read_bytes()
    identity = struct.pack(">9i", UNIT, 0, 0, 0, UNIT, 0, 0, 0, 1 << 30)
    at = data.index(identity, data.index(b"tkhd"))
    cos, sin = round(UNIT * np.cos(0.2)), round(UNIT * np.sin(0.2))
    matrix = struct.pack(">9i", cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data[:at] + matrix + data[at + len(matrix) :])
    np.testing.assert_array_equal(next(open_video(turned)).image, next(open_video(sample)).image)


def folder_of(path: Path, values: np.ndarray) -> tuple[list[np.ndarray], list[str]]:
    Image.fromarray(values).save(path)
    warnings: list[str] = []
    images: list[np.ndarray] = []
    with open_video(path.parent, warn=warnings.append) as video, suppress(VideoError):
        images += [frame.image for frame in video]
    return images, warnings


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)]
)
def test_sixteen_bits_keep_their_greys(tmp_path: Path, suffix: str, dtype: type) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(dtype), (48, 1))
    (image,), warnings = folder_of(tmp_path / f"thermal.{suffix}", ramp)
    assert not warnings
    expected = np.rint(ramp / 257).astype(int)
    for channel in range(3):
        assert np.abs(image[..., channel] - expected).max() <= 1


def test_floating_point_from_0_to_1(tmp_path: Path) -> None:
    ramp = np.random.default_rng(0).random((48, 64), np.float32)
    (image,), warnings = folder_of(tmp_path / "depth.tif", ramp)
    assert not warnings
    assert np.abs(image[..., 1] - 255 * ramp).max() < 0.51


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 4), 300.0, np.float32),
        np.full((4, 4), -0.1, np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), 70000, np.int32),
        np.full((4, 4), -1, np.int32),
    ],
)
def test_values_without_a_known_white_are_left_out(tmp_path: Path, values: np.ndarray) -> None:
    images, warnings = folder_of(tmp_path / "depth.tif", values)
    assert not images
    assert "frame 0, depth.tif, is left out: its " in warnings[0]
    assert "what is white is not known" in warnings[0]


def test_a_film_of_ten_bits(tmp_path: Path) -> None:
    path = tmp_path / "ten.mkv"
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 1, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p10le"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="rgb24")))
        container.mux(stream.encode())
    image = next(open_video(path)).image
    assert np.abs(image.astype(int) - ramp).max() <= 3
