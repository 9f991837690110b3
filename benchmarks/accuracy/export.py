"""Write trained weights as a folder that transformers loads, and the model's card.

    python -m benchmarks.accuracy.export --state build/accuracy dense.json [gaps.json]

The files are what `measure --split test --json` said of the LLMs. The dense model lies in the
folder itself, the one trained on random gaps, where there is one, in its subfolder `gaps`; both
have the tower.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlavaOnevisionForConditionalGeneration

from benchmarks.accuracy.loop import StateError
from benchmarks.accuracy.measure import load, read_json, words
from benchmarks.accuracy.model import END, GRID, IMAGE, PAD, VIDEO, build_tokenizer, vocabulary
from stc_stream.evaluate.scenes import FRAME_SIZE, PHOTOGRAPHS, TASKS

FOLDER = Path(__file__).parents[2] / "python" / "stc_stream" / "data" / "model"
NAMES = ("dense", "gaps")

_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}" + VIDEO + "{% elif part['type'] == 'image' %}" + IMAGE + ""
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
"""The model knows no roles: frames, then a question, then the answer."""


def main() -> int:
    arguments = _arguments()
    try:
        given = (arguments.measured, arguments.gaps)
        measured = [read_json(file) for file in given if file is not None]
        for name, found in zip(NAMES, measured, strict=False):
            if (found["model"], found["split"]) != (name, "test"):
                raise StateError(
                    f"measured must be of dense and gaps on the test split, in this order, but "
                    f"holds {found['model']} on {found['split']}"
                )
        for name in NAMES[: len(measured)]:
            model, _ = load(arguments.state, name)
            write_model(model, arguments.to if name == "dense" else arguments.to / name)
    except (StateError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    settings = json.loads((arguments.state / "settings.json").read_text(encoding="utf-8"))
    text = card(measured, settings, model.num_parameters(), arguments.note)
    (arguments.to / "README.md").write_text(text, encoding="utf-8")
    print(
        f"{arguments.to}: {sum(file.stat().st_size for file in files(arguments.to)) / 1e6:.1f} MB"
    )
    return 0


def write_model(model: LlavaOnevisionForConditionalGeneration, folder: Path) -> None:
    """Write a model in float16, with its tokenizer and processor, as `from_pretrained` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = vocabulary()
    model.generation_config = GenerationConfig(
        pad_token_id=tokens.index(PAD), eos_token_id=tokens.index(END), max_new_tokens=2
    )
    model.to(torch.float16).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    # Written by hand: making a video processor needs torchvision, and reading its settings doesn't.
    text = json.dumps(processor_settings(), indent=2)
    (folder / "processor_config.json").write_text(text + "\n", encoding="utf-8")


def processor_settings() -> dict[str, Any]:
    """Return the settings of transformers' `LlavaOnevisionProcessor`."""
    pictures = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": FRAME_SIZE, "width": FRAME_SIZE},
    }
    return {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": GRID**2,
        "vision_feature_select_strategy": "full",
        "image_token": IMAGE,
        "video_token": VIDEO,
        "image_processor": {
            **pictures,
            "do_pad": True,
            "image_grid_pinpoints": [[FRAME_SIZE, FRAME_SIZE]],
            "image_processor_type": "LlavaOnevisionImageProcessor",
        },
        "video_processor": {
            **pictures,
            "do_sample_frames": False,
            "video_processor_type": "LlavaOnevisionVideoProcessor",
        },
    }


def card(
    measured: Sequence[Mapping[str, Any]], settings: Mapping[str, int], parameters: int, note: str
) -> str:
    """Return the model's card, in Markdown.

    Args:
        measured: of the dense model and, where there is one, of that trained on gaps.
        settings: seed, steps and clips of the training.
        parameters: of one model.
        note: what else a reader should know.
    """
    dense, *others = measured
    photographs = "; ".join(f"{split}: {', '.join(names)}" for split, names in PHOTOGRAPHS.items())
    stages = {
        "tower": dense["stages"]["tower"],
        "LLM, dense": dense["stages"]["dense"],
    }
    if others:
        stages["LLM, gaps"] = others[0]["stages"]["gaps"]
    lines = [
        "# A small video LLM, trained here",
        "",
        f"Transformers' LLaVA-OneVision with {parameters / 1e6:.1f} million weights, trained from "
        "nothing on made-up clips: a yardstick for what token compression does to answers, not a "
        "model of the world. It answers eight kinds of questions about coloured squares, a sign "
        "and a ring, in their exact words, and nothing else; "
        "`stc_stream.evaluate.scenes.question_texts()` lists them.",
        "",
        "The model in this folder has only ever seen whole frames."
        + (
            " The one in `gaps` has the same tower; its LLM saw a random part of each frame's "
            "tokens in training, at least three, which favours no method."
            if others
            else ""
        ),
        "",
        "```python",
        "from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration",
        "",
        "from stc_stream.evaluate.small_model import model_folder",
        "",
        "model = LlavaOnevisionForConditionalGeneration.from_pretrained(model_folder())",
        "tokenizer = AutoTokenizer.from_pretrained(model_folder())",
        "```",
        "",
        "## Training",
        "",
        f"`python -m benchmarks.accuracy.train`, seed {settings['seed']}, "
        f"{settings['clips']:,} clips of 16 frames for the LLMs, new ones at every step for the "
        "tower; dense, on frames as they are; nothing of any compression method.",
        "",
        "| stage | steps | minutes |",
        "|---|---|---|",
        *(
            f"| {name} | {stage['steps']:,} | {stage['minutes']:.0f} |"
            for name, stage in stages.items()
        ),
        "",
        *([note, ""] if note else []),
        "## Data",
        "",
        f"Clips of {FRAME_SIZE} × {FRAME_SIZE} pixels from `stc_stream.evaluate.scenes`, made from "
        "numbers: still cameras with noise, pans, jitter, changing light, cuts, long still "
        "stretches; textures, and photographs that scikit-image ships, no one in two splits "
        f"({photographs}).",
        "",
        f"## Accuracy on {dense['clips']:,} test clips",
        "",
        "Percent right, with 95% intervals over clips. Blind: another clip's video. Memory: "
        "questions that the last frame isn't enough for.",
    ]
    for name, found in zip(NAMES, measured, strict=False):
        first = next(iter(found["rows"].values()))
        lines += [
            "",
            f"Trained on {'whole frames' if name == 'dense' else 'random gaps'}:",
            "",
            f"| | {' | '.join(first)} |",
            f"|---|{'---|' * len(first)}",
            f"| questions | {' | '.join(f'{cell.asked:,}' for cell in first.values())} |",
            *(
                f"| {row} | {' | '.join(words(cell) for cell in cells.values())} |"
                for row, cells in found["rows"].items()
            ),
        ]
    weak = [
        f"{task} ({words(dense['rows']['dense'][task])})"
        for task in TASKS
        if (dense["rows"]["dense"][task].percent or 0) < 80
    ]
    lines += [
        "",
        "Closeness of the tokens that the LLM sees with a Cacher to those without, cosine, mean "
        "and worst frame: "
        + "; ".join(
            f"{name} {cosine['mean']:.4f}, {cosine['worst frame']:.4f}"
            for name, cosine in dense["closeness"].items()
        )
        + ".",
        "",
        "## Limits",
        "",
        *([f"Below 80% and no yardstick: {', '.join(weak)}.", ""] if weak else []),
        "Frames are tiny and sharp-edged and the questions few; a difference here says which way a "
        "method errs, not how far a large model would. One answer is one token.",
        "",
    ]
    return "\n".join(lines)


def files(folder: Path) -> list[Path]:
    """Return all files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measured", type=Path, metavar="JSON", help="of the dense model")
    parser.add_argument("gaps", type=Path, nargs="?", metavar="JSON", help="of the one with gaps")
    parser.add_argument(
        "--state", type=Path, default=Path("build/accuracy"), help="folder of the training"
    )
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder to write")
    parser.add_argument("--note", default="", help="a sentence for the card")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
