"""Clocks that go back or start again, ends that are late or early, damage that is only logged."""

from __future__ import annotations

import errno
import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stc_stream.video import Frame, FrameStream, VideoError, open_video
from stc_stream.video.clock import Clock
from stc_stream.video.decoder import _packets
from stc_stream.video.frames import Opened

RATE = 10


def encode(
    path: Path, codec: str = "libx264", frames: int = 20, hold: int = 1, **options: str
) -> Path:
    """Write a clip in which every frame differs; the last one is shown for `hold` frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        generator = np.random.default_rng(0)
        scene = generator.integers(0, 255, (6, 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
        packets = []
        for number in range(frames):
            picture = np.roll(scene, 3 * number, axis=1).astype(np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        packets += stream.encode()
        last = max(packets, key=lambda packet: packet.pts)
        last.duration *= hold
        container.mux(packets)
    return path


def streamed(source: Path | str, **options: object) -> tuple[list[float], list[str]]:
    warnings: list[str] = []
    with open_video(source, warn=warnings.append, **options) as video:
        return [frame.time for frame in video], warnings


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "libx264"), ("b.avi", "mpeg4"), ("c.mp4", "libx264"), ("d.mkv", "mpeg2video")],
)
def test_frames_that_are_stored_out_of_order(tmp_path: Path, name: str, codec: str) -> None:
    clip = encode(tmp_path / name, codec, bf="2")
    times, warnings = streamed(clip)
    assert len(times) == 20
    assert np.diff(times).min() > 0
    # AVI stamps the first frames as they are decoded, so a few frames may seem to be left out.
    assert times[-1] == pytest.approx(1.9, abs=0.35)
    assert len(streamed(clip, fps=RATE)[0]) == 20
    assert len(streamed(clip, fps=RATE / 2)[0]) == pytest.approx(10, abs=1)
    assert not warnings


@pytest.mark.parametrize(("suffix", "codec"), [("ts", "libx264"), ("mpg", "mpeg2video")])
def test_a_clock_that_starts_again(tmp_path: Path, suffix: str, codec: str) -> None:
    rates = {"mpeg2video": 25}  # MPEG-2 knows no other here
    clip = encode(tmp_path / f"once.{suffix}", codec, bf="2")
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(clip.read_bytes() * 3)
    once, (times, warnings) = streamed(clip)[0], streamed(joined)
    assert len(times) == 60
    assert np.diff(times).min() > 0
    assert times[-1] == pytest.approx(3 * once[-1] + 2 / rates.get(codec, RATE), abs=0.35)
    assert len(streamed(joined, fps=1000)[0]) == 60
    assert warnings == []


@dataclass
class Picture:
    pts: int | None
    dts: int | None
    duration: int = 0
    time_base: Fraction = Fraction(1, RATE)


stamps = st.one_of(st.none(), st.integers(-(2**40), 2**40), st.integers(0, 30))


@given(st.lists(st.tuples(stamps, stamps), min_size=1))
def test_time_always_rises(pairs: list[tuple[int | None, int | None]]) -> None:
    clock = Clock(RATE)
    times = [clock.read(Picture(*pair)) for pair in pairs]
    assert times[0] == 0
    assert all(later > earlier for earlier, later in pairwise(times))


@given(st.lists(st.integers(-(10**6), 10**6), unique=True, min_size=1), st.booleans())
def test_stamps_that_rise_are_taken_as_they_are(numbers: list[int], by_dts: bool) -> None:
    numbers.sort()
    clock = Clock(None)
    times = [
        clock.read(Picture(None if by_dts else number, number if by_dts else None))
        for number in numbers
    ]
    assert times == pytest.approx([(number - numbers[0]) / RATE for number in numbers])


def test_after_a_new_start_the_clock_goes_on_a_frame_later() -> None:
    clock = Clock(RATE)
    numbers = [50, 51, 53, 7, 8, 12, None, 3, 4]
    times = [clock.read(Picture(number, number)) for number in numbers]
    assert times == pytest.approx([0, 0.1, 0.3, 0.4, 0.5, 0.9, 1.0, 1.1, 1.2])


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
def test_a_last_frame_that_is_shown_long_is_no_cut(tmp_path: Path, suffix: str) -> None:
    times, warnings = streamed(encode(tmp_path / f"held.{suffix}", hold=40))
    assert len(times) == 20
    assert not warnings


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_a_recording_whose_clock_began_before_it(tmp_path: Path, suffix: str) -> None:
    codec = "libvpx" if suffix == "webm" else "libx264"
    late = tmp_path / f"late.{suffix}"
    whole = encode(tmp_path / f"a.{suffix}", codec, frames=40, g="5", bf="0")
    with av.open(str(whole)) as source, av.open(str(late), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                packet.pts += 70_000
                packet.dts += 70_000
                target.mux(packet)
    times, warnings = streamed(late)
    assert times == pytest.approx(np.arange(40) / RATE, abs=2e-3)
    assert warnings == []
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(late.read_bytes()[: late.stat().st_size // 2])
    times, warnings = streamed(cut)
    assert 5 < len(times) < 35
    assert "cut short" in warnings[-1]
    assert f"of the {RATE * 40 / 100:.2f} s" in warnings[-1]


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("avi", "mpeg4")])
def test_a_pipe_gives_what_its_file_does(tmp_path: Path, suffix: str, codec: str) -> None:
    clip, pipe = encode(tmp_path / f"a.{suffix}", codec), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(clip.read_bytes()), daemon=True)
    writer.start()
    assert streamed(pipe) == streamed(clip)
    writer.join(10)
    assert not writer.is_alive()


@pytest.mark.parametrize("lost", [0.2, 0.5])
def test_a_recording_that_starts_in_the_middle_is_not_cut_short(
    tmp_path: Path, lost: float
) -> None:
    whole, rest = encode(tmp_path / "whole.ts", frames=60, g="10"), tmp_path / "rest.ts"
    packets = whole.stat().st_size // 188
    rest.write_bytes(whole.read_bytes()[188 * int(lost * packets) :])
    times, warnings = streamed(rest)
    assert 5 < len(times) < 60
    assert not any("cut short" in warning for warning in warnings)


@pytest.mark.parametrize("last", [100, 2500])
def test_an_animated_picture(tmp_path: Path, last: int) -> None:
    pages = [Image.new("RGB", (64, 48), (50 * page, 0, 0)) for page in range(5)]
    held = [100, 40, 100, 100, last]
    for suffix in ("gif", "webp"):
        path = tmp_path / f"turning.{suffix}"
        pages[0].save(path, save_all=True, append_images=pages[1:], duration=held, lossless=True)
        with open_video(path) as video:
            assert video.total == 5
            frames = list(video)
        assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.14, 0.24, 0.34])
        assert [frame.image[0, 0, 0] for frame in frames] == pytest.approx(
            [0, 50, 100, 150, 200], abs=4
        )
        assert streamed(path)[1] == []


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_pictures_that_are_shown_for_no_time(tmp_path: Path, suffix: str) -> None:
    pages = [Image.new("RGB", (64, 48), (50 * page, 0, 0)) for page in range(4)]
    path = tmp_path / f"hasty.{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=[200, 0, 0, 0])
    assert streamed(path)[0] == pytest.approx([0, 0.2, 0.3, 0.4])


def test_an_animation_that_ends_early_says_so(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.webp", tmp_path / "cut.webp"
    generator = np.random.default_rng(0)
    pages = [Image.fromarray(generator.integers(0, 255, (48, 64, 3), np.uint8)) for _ in range(4)]
    pages[0].save(whole, save_all=True, append_images=pages[1:], duration=100, lossless=True)
    cut.write_bytes(whole.read_bytes()[:-9000])
    with pytest.raises(VideoError, match=r"cut\.webp is not a video that can be read"):
        streamed(cut)
    data = bytearray(whole.read_bytes())
    third = [at for at in range(len(data)) if data[at : at + 4] == b"ANMF"][2]
    data[third + 40 : third + 400] = bytes(360)
    cut.write_bytes(data)
    times, warnings = streamed(cut)
    assert len(times) == 2
    assert "could not be read beyond frame 1" in warnings[0]


@pytest.mark.parametrize("broken", [7, 14])
def test_damage_that_is_only_logged_is_a_warning(tmp_path: Path, broken: int) -> None:
    whole = encode(tmp_path / "whole.mp4", bf="0", g="100")
    damaged = tmp_path / "damaged.mp4"
    with av.open(str(whole)) as source, av.open(str(damaged), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is None:
                continue
            data = bytearray(packet)
            if number == broken:
                # Says that it can be decoded alone, and isn't: the decoder leaves it out.
                data[4] = data[4] & 0xE0 | 5
            copy = av.Packet(bytes(data))
            copy.stream, copy.time_base = stream, packet.time_base
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.is_keyframe = packet.is_keyframe
            target.mux(copy)
    for _ in range(2):  # the second time FFmpeg logs the same line again
        level = av.logging.get_level()
        times, warnings = streamed(damaged)
        assert av.logging.get_level() == level
        assert len(times) < 20
        assert len(warnings) == 1
        assert f"damaged near frame {broken}" in warnings[0]
    assert streamed(whole)[1] == []


def test_a_number_of_frames_that_nobody_knows_is_not_guessed(tmp_path: Path) -> None:
    known, unknown = encode(tmp_path / "a.mp4"), encode(tmp_path / "a.mkv")
    with open_video(known) as video:
        assert video.total == 20
    for clip in (unknown, encode(tmp_path / "a.avi", "mpeg4")):
        with open_video(clip) as video:
            assert video.total is None
            assert len(list(video)) == 20
    # A screen recording: no frame where nothing changes.
    held = encode(tmp_path / "held.mp4", hold=60)
    with open_video(held, fps=5) as video:
        assert video.total is None or video.total == len(list(video))
    with open_video(unknown, frames=7) as video:
        assert video.total == 7


@given(st.integers(1, 200), st.floats(0.5, 240), st.floats(0.1, 240), st.none() | st.integers(1, 9))
def test_the_number_that_is_promised_comes(
    count: int, rate: float, fps: float, frames: int | None
) -> None:
    image = np.zeros((1, 1, 3), np.uint8)
    all_frames = (Frame(index, index / rate, image) for index in range(count))
    opened = Opened("steady", all_frames, lambda: None, count, rate)
    video = FrameStream(opened, fps, frames)
    assert video.total == len(list(video))
    unsteady = FrameStream(Opened("unsteady", iter(()), lambda: None, count, None), fps, frames)
    assert unsteady.total == frames


class Camera:
    """Stands for a container whose driver has nothing yet, as often as `waits` says."""

    def __init__(self, *waits: int) -> None:
        self.waits = list(waits)
        self.sent = 0

    def demux(self, stream: object) -> Iterator[int]:
        while self.sent < len(self.waits):
            if self.waits[self.sent] > 0:
                self.waits[self.sent] -= 1
                raise av.error.BlockingIOError(errno.EAGAIN, "nothing yet")
            self.sent += 1
            yield self.sent


def test_a_camera_that_has_no_picture_yet_is_waited_for() -> None:
    assert list(_packets(Camera(3, 0, 0, 5, 1), None, 60.0)) == [1, 2, 3, 4, 5]
    stalled = _packets(Camera(2, 0, 10**9), None, 0.1)
    assert [next(stalled), next(stalled)] == [1, 2]
    with pytest.raises(av.error.TimeoutError):
        next(stalled)


@pytest.mark.parametrize("sent", [0, 0.6])
def test_a_source_that_stalls(tmp_path: Path, sent: float) -> None:
    """Nothing comes, or a part and then nothing: both end after the timeout, with what there is."""
    clip = encode(tmp_path / "clip.ts", frames=60, g="5")
    data = clip.read_bytes()[: int(sent * clip.stat().st_size)]
    over = threading.Event()

    class Stalling(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
            over.wait(30)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/yard.ts"
    try:
        if not sent:
            with pytest.raises(VideoError, match=r"yard\.ts did not answer for 3 s"):
                streamed(url, timeout=3)
            return
        times, warnings = streamed(url, timeout=3)
        assert 10 < len(times) < 60
        assert warnings[-1].endswith(f"beyond frame {len(times) - 1} (it did not answer for 3 s)")
    finally:
        over.set()
        server.shutdown()
        server.server_close()
