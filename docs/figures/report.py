"""Draw docs/figures/report.png, the README's picture: four moments of the sample clip.

Usage: python docs/figures/report.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import stc_stream
from stc_stream.evaluate.stream import StreamComparison
from stc_stream.report.gallery import Gallery
from stc_stream.report.pictures import overlay, similarity_map
from stc_stream.towers.load import load_tower
from stc_stream.video import open_video

MOMENTS = ("A refresh: all is computed", "Right after a refresh", "Part of the picture moves")
GAP = 12
COLUMN = 420


def main() -> None:
    gallery = Gallery()
    clip = Path(stc_stream.__file__).parent / "data" / "sample.mp4"
    with StreamComparison(load_tower()) as comparison, open_video(str(clip)) as frames:
        for frame in frames:
            gallery.offer(comparison.step(frame))
    shown = [moment for moment in gallery.moments() if moment.title in MOMENTS]
    views = [moment.result.view for moment in shown]
    maps = [view.similarity for view in views if view.similarity is not None]
    lowest = min(float(similarity.min()) for similarity in maps)
    pictures = [overlay(view) for view in views]
    height = round(COLUMN * pictures[0].height / pictures[0].width)
    sheet = Image.new("RGB", (len(views) * (COLUMN + GAP) - GAP, 2 * height + GAP), (255, 255, 255))
    for i, (view, picture) in enumerate(zip(views, pictures, strict=True)):
        left = i * (COLUMN + GAP)
        sheet.paste(picture.resize((COLUMN, height), Image.Resampling.LANCZOS), (left, 0))
        if view.similarity is None:
            below = Image.new("RGB", (COLUMN, height), (236, 236, 236))
        else:
            below = similarity_map(view.similarity, lowest, (COLUMN, height))
        sheet.paste(below, (left, height + GAP))
    sheet.quantize(192, method=Image.Quantize.MEDIANCUT).save(
        Path(__file__).with_name("report.png"), optimize=True
    )


if __name__ == "__main__":
    main()
