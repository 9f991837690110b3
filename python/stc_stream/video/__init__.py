"""Frames of a file, a camera, a network stream or a folder of images, one by one.

Nothing of a decoder is imported before it is needed: files, cameras and network streams need PyAV,
folders need Pillow (both in the extra ``video``).
"""

from __future__ import annotations

from stc_stream.video.frames import DamagedVideoWarning, Frame, VideoError
from stc_stream.video.live import LiveCounts, LiveQueue
from stc_stream.video.source import FrameStream, open_video

__all__ = [
    "DamagedVideoWarning",
    "Frame",
    "FrameStream",
    "LiveCounts",
    "LiveQueue",
    "VideoError",
    "open_video",
]
