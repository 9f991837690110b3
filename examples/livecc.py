"""Comment on a video as LiveCC does, with the Cacher on the tower of Qwen2-VL.

Two frames a second: six of them first, then two at a time. Behind each the model says a few words,
which stay in its context, and waits for what comes. The authors of STC published no code for this.

Run: python examples/livecc.py [VIDEO] [--model NAME_OR_PATH] [--query TEXT] [--frames N]

VIDEO is a file, a folder of images, a camera number or an rtsp:// address; without it, the sample
clip is taken, at a quarter of its speed. Without --model the model is a small one with random
weights, whose words mean nothing. Needs pip install 'stc-kernels[video]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stc_stream import CacherConfig, FullMemory, SessionProcessor, attach_cacher
from stc_stream.session.load import load_video_llm
from stc_stream.session.models import read_model
from stc_stream.session.numbering import Place, TemporalPatch
from stc_stream.video import open_video

FRAMES_A_SECOND = 2
FIRST_FRAMES, NEXT_FRAMES = 6, 2
MOST_TOKENS = 16
"""Of what is said at a time."""
MOST_PIXELS = 384 * 28**2
"""Of a frame, as LiveCC's demo has it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video", nargs="?", help="default: the sample clip")
    parser.add_argument("--model", help="a LiveCC or a Qwen2-VL: a folder, or a name on the hub")
    parser.add_argument("--query", default="Please describe the video.")
    parser.add_argument("--frames", type=int, help="stop after so many")
    options = parser.parse_args()

    model, processor = load(options.model)
    sample = files("stc_stream").joinpath("data/sample.mp4")
    rate = FRAMES_A_SECOND if options.video else 4 * FRAMES_A_SECOND
    with (
        torch.inference_mode(),
        as_file(sample) as clip,
        open_video(options.video or clip, fps=rate, frames=options.frames) as frames,
        attach_cacher(model, CacherConfig.paper(update_ratio=0.25, refresh_interval=4)) as cacher,
    ):
        commentary = Commentary(model, processor, options.query)
        for images in parts(frame.image for frame in frames):
            start = commentary.seconds
            words = commentary.watch(torch.from_numpy(images))
            print(f"{start:.1f}-{commentary.seconds:.1f} s: {words!r}")
        stats = cacher.stats
    print(
        f"{stats.frames} temporal patches, {stats.refreshes} of them refreshes; "
        f"{stats.tokens_recomputed} tokens recomputed, {stats.tokens_reused} reused"
    )


def load(name: str | None) -> tuple[Any, SessionProcessor]:
    """Return a model and its processor, or a small one with random weights."""
    if name is None:
        from stc_stream.session.untrained import build_qwen2_vl

        return build_qwen2_vl()
    llm = load_video_llm(name)
    pixels = replace(llm.processor.pixels, max_pixels=MOST_PIXELS)
    return llm.model, replace(llm.processor, pixels=pixels)


def parts(images: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Give frames as they are looked at together, [F, H, W, 3]; the last one twice if it is odd."""
    waiting: list[NDArray[np.uint8]] = []
    wanted = FIRST_FRAMES
    for image in images:
        waiting.append(image)
        if len(waiting) == wanted:
            yield np.stack(waiting)
            waiting, wanted = [], NEXT_FRAMES
    if waiting:
        yield np.stack(waiting + waiting[-1:] * (len(waiting) % 2))


class Commentary:
    """What is said on one video: frames and words by turns, in one context.

    Args:
        model: a Qwen2-VL of transformers.
        processor: its processor.
        query: what is asked for, with the first frames.

    Attributes:
        seconds: how much of the video has been watched.
    """

    def __init__(self, model: Any, processor: SessionProcessor, query: str) -> None:
        self.seconds = 0.0
        self._model, self._processor, self._query = read_model(model), processor, query
        self._numbering = self._model.numbering("kept")
        self._cache = FullMemory().open(model.config.get_text_config())
        self._place = Place()

    def watch(self, frames: Tensor) -> str:
        """Return what is said behind the next frames, uint8 [F, H, W, 3], an even number."""
        return self.say(self.see(frames))

    def see(self, frames: Tensor) -> Tensor:
        """Put frames behind what is in the context; return the next token's logits."""
        before, after = self._prompt(self.seconds + len(frames) / FRAMES_A_SECOND)
        like = self._model.pixels_like
        pixels = self._processor.pixels(frames.to(like.device)).to(like.dtype)
        rows, columns = self._model.grid(tuple(pixels.shape[2:]))
        inputs, positions = [self._model.embed(before)], [self._text(len(before))]
        # Each part of the video is a video of its own in the prompt.
        self._place = replace(self._place, start=None)
        for tokens in self._model.encode(pixels):
            times = (self.seconds, self.seconds + 1 / FRAMES_A_SECOND)
            patch = TemporalPatch(rows, columns, times)
            index = torch.arange(patch.tokens, device=tokens.device)
            inputs.append(tokens.to(inputs[0]))
            positions.append(self._numbering.positions(self._place, patch, index))
            self._place = self._numbering.after(self._place, patch, patch.tokens)
            self.seconds += 2 / FRAMES_A_SECOND
        inputs.append(self._model.embed(after))
        positions.append(self._text(len(after)))
        return self._run(torch.cat(inputs), torch.cat(positions, dim=1))

    def say(self, logits: Tensor) -> str:
        """Return the likeliest words, up to `MOST_TOKENS` tokens or the end of the turn."""
        said: list[int] = []
        while int(logits.argmax()) not in self._model.stop_tokens:
            said.append(int(logits.argmax()))
            # The last token is said, but not written: so it is in LiveCC's own code.
            if len(said) == MOST_TOKENS:
                break
            logits = self._run(self._model.embed(said[-1:]), self._text(1))
        words: str = self._processor.tokenizer.decode(said, skip_special_tokens=True)
        return words

    def _prompt(self, end: float) -> tuple[list[int], list[int]]:
        """Return the tokens of the next turn, before its frames and after them."""
        first = self.seconds == 0
        content = [{"type": "text", "text": f"Time={self.seconds:.1f}-{end:.1f}s"}]
        content += [{"type": "video"}, *([{"type": "text", "text": self._query}] if first else [])]
        tokenizer = self._processor.tokenizer
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self._processor.template,
            tokenize=False,
            add_generation_prompt=True,
        )
        if not first:
            text = "<|im_end|>\n" + text[text.index("<|im_start|>user") :]
        tokens: list[int] = tokenizer(text)["input_ids"]
        place = tokens.index(self._model.video_token)
        return tokens[:place], tokens[place + 1 :]

    def _text(self, count: int) -> Tensor:
        """Return the positions of the next tokens of text, [axes, count]."""
        positions = self._model.text_positions(self._place.text, count)
        self._place = self._place.after_text(count)
        return positions

    def _run(self, inputs: Tensor, positions: Tensor) -> Tensor:
        hidden = self._model.run(inputs, positions, self._cache)
        return self._model.logits(hidden[-1:])[0]


if __name__ == "__main__":
    main()
