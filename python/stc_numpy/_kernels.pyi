import numpy as np
from numpy.typing import NDArray

def patch_similarity(
    current: NDArray[np.float32],
    reference: NDArray[np.float32],
    reference_index: NDArray[np.int64] | None,
    metric: int,
) -> NDArray[np.float32]: ...
def select_scores(
    scores: NDArray[np.float32], k: int, largest: bool, with_slot: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32]]: ...
def frame_difference(
    current: NDArray[np.uint8], reference: NDArray[np.uint8], patch: int
) -> NDArray[np.float32]: ...
