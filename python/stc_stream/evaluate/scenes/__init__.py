"""Short made-up videos with questions whose answers are known: the test set of the trained model.

A clip is a photograph or a texture, filmed by a camera that stands still, pans, shakes or cuts, or
in changing light. On it a few coloured squares come, move, leave and return, a sign changes its
digit, and a coloured ring shows in a corner now and then. A clip follows from its split and its
number alone, so that a test set is a range of numbers and not a download.
"""

from stc_stream.evaluate.scenes.clip import FRAMES, Clip, make_clip, make_script
from stc_stream.evaluate.scenes.pictures import PHOTOGRAPHS, Split
from stc_stream.evaluate.scenes.questions import ANSWERS, TASKS, Question, ask, question_texts
from stc_stream.evaluate.scenes.script import (
    FRAME_SIZE,
    PATCH_SIZE,
    Script,
    Square,
    State,
    write_script,
)

__all__ = [
    "ANSWERS",
    "FRAMES",
    "FRAME_SIZE",
    "PATCH_SIZE",
    "PHOTOGRAPHS",
    "TASKS",
    "Clip",
    "Question",
    "Script",
    "Split",
    "Square",
    "State",
    "ask",
    "make_clip",
    "make_script",
    "question_texts",
    "write_script",
]
