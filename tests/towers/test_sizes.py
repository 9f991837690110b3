"""The sizes of real models."""

from __future__ import annotations

import subprocess
import sys

import torch

from stc_stream.towers import read_tower
from stc_stream.towers.sizes import MODEL_SIZES


def test_sizes_are_read_without_transformers() -> None:
    code = (
        "import sys; from stc_stream.towers.sizes import MODEL_SIZES; "
        "assert MODEL_SIZES['clip-l'].tokens == 577; "
        "sys.exit(any(name.split('.')[0] == 'transformers' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tower_has_the_sizes_that_are_said() -> None:
    for sizes in MODEL_SIZES.values():
        with torch.device("meta"):
            tower = read_tower(sizes.make(2))
        assert len(tower.layers) == 2
        assert (tower.width, tower.prefix_tokens) == (sizes.width, sizes.prefix_tokens)
        layer = tower.layers[0]
        assert layer.heads == sizes.heads
        linear = [each for each in layer.module.modules() if isinstance(each, torch.nn.Linear)]
        assert sizes.mlp in {each.out_features for each in linear}
