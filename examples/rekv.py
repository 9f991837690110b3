"""Ask about a stream as ReKV with STC does: Cacher, Pruner and a memory that is searched.

A frame every two seconds: a quarter of the tower recomputed on every second one, 64 of 196 tokens
of each sent on, their keys and values kept in host memory. A question brings back, in each layer,
the 64 frames that are nearest to it.

Run: python examples/rekv.py [VIDEO] [--model NAME_OR_PATH] [--ask TEXT] [--frames N]

VIDEO is a file, a folder of images, a camera number or an rtsp:// address; without it, all frames
of the sample clip are taken. Without --model the model is a small one with random weights, whose
answers mean nothing, and everything is smaller. Needs pip install 'stc-kernels[video]'.
"""

from __future__ import annotations

import argparse
from importlib.resources import as_file, files

from stc_stream import CacherConfig, PrunerConfig, RetrievalMemory, StreamingSession
from stc_stream.session.load import load_video_llm
from stc_stream.video import open_video

CACHER = CacherConfig.paper(update_ratio=0.25, refresh_interval=2)
PUBLISHED = 64, RetrievalMemory(window_tokens=15000, blocks=64)
"""Tokens kept of a frame's 196, and the memory; of the small model's 16, and a small one."""
SMALL = 5, RetrievalMemory(window_tokens=60, blocks=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video", nargs="?", help="default: the sample clip")
    parser.add_argument("--model", help="a LLaVA-OneVision: a folder, or a name on the hub")
    parser.add_argument("--ask", action="append", help="a question at the end; may be repeated")
    parser.add_argument("--frames", type=int, help="stop after so many")
    options = parser.parse_args()

    session = open_session(options.model)
    sample = files("stc_stream").joinpath("data/sample.mp4")
    rate = 0.5 if options.video else None
    with (
        as_file(sample) as clip,
        open_video(options.video or clip, fps=rate, frames=options.frames) as frames,
        session,
    ):
        seen, kept = 0, 0
        for frame in frames:
            fed = session.feed(frame.image[None], [frame.time])
            seen, kept = seen + fed.tokens, kept + fed.kept
        stats = session.stats
        print(
            f"{stats.frames} frames: {seen} tokens from the projector, {kept} sent on; "
            f"{stats.bytes_device / 1e6:.2f} MB on the device, {stats.bytes_host / 1e6:.2f} MB in "
            "host memory"
        )
        for question in options.ask or ["What happens in the video?"]:
            answer = session.ask(question, max_new_tokens=32)
            first = ", ".join(map(str, session.retrieved[0]))
            print(f"{question} {answer!r}; the first layer looked at frames {first}")


def open_session(name: str | None) -> StreamingSession:
    """Return a session on a model, or on a small one with random weights."""
    if name is None:
        from stc_stream.session.untrained import build_llava_onevision

        (model, processor), (tokens, memory) = build_llava_onevision(), SMALL
    else:
        llm = load_video_llm(name)
        model, processor, (tokens, memory) = llm.model, llm.processor, PUBLISHED
    return StreamingSession(
        model,
        processor,
        cacher=CACHER,
        pruner=PrunerConfig.paper(tokens_per_frame=tokens),
        memory=memory,
        # So that a stream without an end stays within the model's context.
        positions="contiguous",
    )


if __name__ == "__main__":
    main()
