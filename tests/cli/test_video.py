"""Frame sources: what comes out of them, whole and damaged."""

from __future__ import annotations

import random
import socket
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from PIL import Image

from stc_stream.video import DamagedVideoWarning, VideoError, open_video


def frames_and_warnings(source: Path | str, **options: object) -> tuple[list, list[str]]:
    warnings: list[str] = []
    with open_video(source, warn=warnings.append, **options) as stream:
        return list(stream), warnings


def test_frames_of_a_file_in_order_with_their_times(video: Path) -> None:
    frames, warnings = frames_and_warnings(video)
    assert [frame.index for frame in frames] == list(range(8))
    assert [frame.time for frame in frames] == pytest.approx([i / 4 for i in range(8)])
    for number, frame in enumerate(frames):
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.dtype == np.uint8
        assert abs(float(frame.image.mean()) - 30 * number) < 4
    assert not warnings


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (4, list(range(8))),
        (100, list(range(8))),
        (2, [0, 2, 4, 6]),
        (0.5, [0]),
        (3, [0, 2, 3, 4, 6, 7]),
    ],
)
def test_fps_takes_the_first_frame_of_each_slot(
    video: Path, fps: float, expected: list[int]
) -> None:
    frames, _ = frames_and_warnings(video, fps=fps)
    assert [frame.index for frame in frames] == expected


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, 2.0),
        ({"frames": 3}, 0.75),
        ({"frames": 9}, 2.0),
        ({"fps": 2}, 2.0),
        ({"fps": 2, "frames": 3}, 1.5),
        ({"fps": 9, "frames": 3}, 0.75),
    ],
)
def test_when_the_last_frame_stops_being_shown(
    video: Path, options: dict[str, int], end: float
) -> None:
    with open_video(video, **options) as stream:
        assert stream.end == pytest.approx(end)
        assert not stream.live
        times = [frame.time for frame in stream]
    shown = 1 / min(options.get("fps", 4), 4)
    assert times[-1] < end <= times[-1] + shown + 1e-6


def test_frames_limits_what_comes_and_the_total_knows(video: Path) -> None:
    with open_video(video, frames=3) as stream:
        assert stream.total == 3
        assert len(list(stream)) == 3
    with open_video(video, fps=2) as stream:
        assert stream.total == 4
    with open_video(video) as stream:
        assert stream.total == 8
        assert stream.name == "grey.mp4"


def test_a_closed_stream_gives_nothing_more(video: Path) -> None:
    stream = open_video(video)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize(
    ("options", "name"),
    [({"fps": 0}, "fps"), ({"fps": float("nan")}, "fps"), ({"frames": 0}, "frames"),
     ({"timeout": 0}, "timeout")],
)  # fmt: skip
def test_bad_options_are_named(video: Path, options: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        open_video(video, **options)


def test_a_cut_file_is_streamed_as_far_as_it_goes(sample: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    whole, _ = frames_and_warnings(sample)
    cut.write_bytes(sample.read_bytes()[: sample.stat().st_size // 2])
    frames, warnings = frames_and_warnings(cut)
    assert 5 < len(frames) < len(whole)
    np.testing.assert_array_equal(frames[4].image, whole[4].image)
    assert f"ends at frame {frames[-1].index}" in warnings[-1]


def test_a_cut_matroska_file_warns_too(sample: Path, tmp_path: Path) -> None:
    remuxed, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    with av.open(str(sample)) as source, av.open(str(remuxed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert frames_and_warnings(remuxed)[1] == []
    cut.write_bytes(remuxed.read_bytes()[: remuxed.stat().st_size // 2])
    frames, warnings = frames_and_warnings(cut)
    assert f"ends at frame {frames[-1].index}" in warnings[-1]


def test_damage_in_the_middle_is_passed_over_with_the_frame_named(
    sample: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    data = bytearray(sample.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = random.Random(0).randbytes(3000)
    broken.write_bytes(data)
    frames, warnings = frames_and_warnings(broken)
    assert len(frames) > 30
    assert len(warnings) == 1
    assert "damaged near frame" in warnings[0]
    named = int(warnings[0].partition("frame ")[2].partition(":")[0])
    assert 5 < named < 38


def test_by_default_damage_is_a_python_warning(sample: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(sample.read_bytes()[: sample.stat().st_size // 2])
    with pytest.warns(DamagedVideoWarning, match="ends at frame"), open_video(cut) as stream:
        list(stream)


def test_a_header_without_frames_is_an_error(sample: Path, tmp_path: Path) -> None:
    header = tmp_path / "header.mp4"
    header.write_bytes(sample.read_bytes()[:3000])
    stream = open_video(header, warn=lambda message: None)
    with pytest.raises(VideoError, match="not one frame"):
        next(stream)


def test_a_turned_picture_is_turned_back(sample: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    with av.open(str(sample)) as source, av.open(str(turned), "w") as target:
        pictures = source.streams.video[0]
        stream = target.add_stream_from_template(pictures)
        turn = "h264_metadata=rotate=90:display_orientation=insert"
        notes = BitStreamFilterContext(turn, pictures)
        for packet in source.demux(pictures):
            for noted in notes.filter(packet if packet.dts is not None else None):
                noted.stream = stream
                target.mux(noted)
    upright = next(open_video(sample)).image
    np.testing.assert_array_equal(next(open_video(turned)).image, np.rot90(upright))


def test_a_folder_comes_in_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.new("RGB", (8 + number, 8), (number, 0, 0)).save(tmp_path / f"shot{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "shot3.png").write_bytes(b"not a png")
    frames, warnings = frames_and_warnings(tmp_path)
    assert [frame.image[0, 0, 0] for frame in frames] == [1, 2, 10]
    assert [frame.index for frame in frames] == [0, 1, 3]
    assert [frame.time for frame in frames] == pytest.approx([0, 1 / 25, 3 / 25])
    assert len(warnings) == 1
    assert "frame 2, shot3.png" in warnings[0]


def test_a_grey_or_transparent_image_is_made_rgb(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 7).save(tmp_path / "a.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / "b.png")
    frames, _ = frames_and_warnings(tmp_path)
    assert [frame.image[0, 0].tolist() for frame in frames] == [[7, 7, 7], [1, 2, 3]]


@pytest.mark.parametrize(
    ("name", "content"),
    [("words.txt", b"hello\n" * 50), ("words.mp4", b"hello\n" * 50), ("empty.mp4", b""),
     ("page.html", b"<html></html>"), ("talk.srt", b"1\n00:00:01,000 --> 00:00:02,000\nhi\n")],
)  # fmt: skip
def test_what_is_not_a_video_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoError, match="is not a video") as caught:
        open_video(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sound_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(VideoError, match="no stream of pictures"):
        open_video(path)


def test_missing_sources_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no file or folder"):
        open_video(tmp_path / "nothing.mp4")
    with pytest.raises(VideoError, match=r"holds no image: put files ending in \.bmp"):
        open_video(tmp_path)
    with pytest.raises(VideoError, match="there is no camera 97"):
        open_video("97")
    with pytest.raises(VideoError, match="connection refused"):
        open_video("rtsp://127.0.0.1:1/door")


def test_a_silent_network_stream_gives_up_and_hides_its_password() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}/door"
        with pytest.raises(VideoError, match=r"did not answer for 0\.5 s") as caught:
            open_video(url, timeout=0.5)
    assert "secret" not in str(caught.value)


def test_a_relative_name_with_a_colon(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video.rename(tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)
    frames, _ = frames_and_warnings("12:30.mp4")
    assert len(frames) == 8


def test_an_image_too_large_to_be_meant_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for number, side in enumerate((20, 60, 20)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{number}.png")
    frames, warnings = frames_and_warnings(tmp_path)
    assert [frame.index for frame in frames] == [0, 2]
    assert len(warnings) == 1
    assert warnings[0].startswith("frame 1, 1.png, is left out: Image size (3600 pixels)")


def test_an_empty_source_is_no_folder() -> None:
    with pytest.raises(VideoError, match="^the source is empty: give"):
        open_video("")


def test_a_folder_named_like_a_camera_is_hinted_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError) as error:
        open_video("97")
    assert "./97" not in str(error.value)
    (tmp_path / "97").mkdir()
    with pytest.raises(VideoError, match=r"there is no camera 97 .* is \./97$"):
        open_video("97")
