"""Short made-up videos with questions whose answers are known: the test set of the trained model.

A clip is a photograph or a texture, filmed by a camera that stands still, pans, shakes or cuts, on
which a few coloured squares come, move, leave and return, a sign changes its digit and a ring shows
in a corner. Everything follows from a seed, so that a test set is a number, not a download.
"""

from stc_stream.evaluate.scenes.clip import Clip, Split, make_clip
from stc_stream.evaluate.scenes.questions import ANSWERS, TASKS, Question, ask, question_texts
from stc_stream.evaluate.scenes.script import (
    FRAME_SIZE,
    PATCH_SIZE,
    Script,
    State,
    write_script,
)

__all__ = [
    "ANSWERS",
    "FRAME_SIZE",
    "PATCH_SIZE",
    "TASKS",
    "Clip",
    "Question",
    "Script",
    "Split",
    "State",
    "ask",
    "make_clip",
    "question_texts",
    "write_script",
]
