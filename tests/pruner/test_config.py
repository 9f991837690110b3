"""The Pruner's settings are checked when made."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from stc_stream import CacherConfig, PrunerConfig, TokenPruner
from stc_stream.pruner import Gaussian


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, "one of tokens_per_frame and keep_ratio must be given"),
        ({"tokens_per_frame": 3, "keep_ratio": 0.5}, ValueError, r"is 3 and keep_ratio is 0\.5"),
        ({"tokens_per_frame": 0}, ValueError, "tokens_per_frame must be at least 1, but is 0"),
        ({"tokens_per_frame": 3.0}, TypeError, r"tokens_per_frame must be an int, but is 3\.0"),
        ({"keep_ratio": 0}, ValueError, r"keep_ratio must be in \(0, 1\], but is 0"),
        ({"keep_ratio": "all"}, TypeError, "keep_ratio must be a number, but is 'all'"),
        ({"keep_ratio": 1, "window": 0}, ValueError, "window must be at least 1, but is 0"),
        ({"keep_ratio": 1, "window": True}, TypeError, "window must be an int, but is True"),
        ({"keep_ratio": 1, "alpha": 1.5}, ValueError, r"alpha must be in \[0, 1\], but is 1\.5"),
        ({"keep_ratio": 1, "alpha": None}, TypeError, "alpha must be a number, but is None"),
        ({"keep_ratio": 1, "channel_keep_ratio": 2}, ValueError, "channel_keep_ratio must be in"),
        ({"keep_ratio": 1, "strategy": "x"}, ValueError, "strategy must be one of dual_anchor, "),
        ({"keep_ratio": 1, "layout": "x"}, ValueError, "layout must be one of flat, grid, but is"),
        ({"keep_ratio": 1, "history": "x"}, ValueError, "history must be one of causal, released"),
        ({"keep_ratio": 1, "history": "released"}, ValueError, "must have strategy 'gaussian'"),
    ],
)
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        PrunerConfig(**settings)


def test_released_has_no_window():
    with pytest.raises(ValueError, match="no window, but strategy is 'gaussian' and window is 4"):
        PrunerConfig.released(window=4)


def test_the_presets():
    paper, released = PrunerConfig.paper(), PrunerConfig.released()
    assert (paper.strategy, paper.alpha, paper.keep_ratio) == ("dual_anchor", 0.5, 0.25)
    assert (paper.history, paper.window, paper.tokens_per_frame) == ("causal", None, None)
    assert (released.strategy, released.channel_keep_ratio) == ("gaussian", 0.5)
    assert (released.history, released.tokens_per_frame) == ("released", 64)
    assert PrunerConfig.released(keep_ratio=0.3).tokens_per_frame is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        paper.alpha = 0.1


def test_kept_tokens():
    assert PrunerConfig.paper().kept_tokens(196) == 49
    assert PrunerConfig.paper(keep_ratio=0.3).kept_tokens(196) == 58
    assert PrunerConfig.paper(keep_ratio=0.01).kept_tokens(5) == 1
    assert PrunerConfig.released().kept_tokens(196) == 64


def test_a_share_is_counted_as_the_decimal_that_was_written(generator):
    for digits in torch.randint(1, 6, (300,), generator=generator).tolist():
        numerator = int(torch.randint(1, 10**digits, (), generator=generator))
        written = Decimal(numerator).scaleb(-digits)
        tokens = int(torch.randint(1, 4000, (), generator=generator))
        ratio, kept = float(written), max(1, int(written * tokens))
        assert PrunerConfig.paper(keep_ratio=ratio).kept_tokens(tokens) == kept, (tokens, ratio)
        assert CacherConfig(update_ratio=ratio).updated_tokens(tokens) == kept, (tokens, ratio)
        published = PrunerConfig.released(keep_ratio=ratio)
        assert published.kept_tokens(tokens) == max(1, int(tokens * ratio))


@pytest.mark.parametrize(
    ("ratio", "tokens", "kept"),
    [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (np.float32(0.29), 100, 29),
        (1 / 3, 729, 243),
        (2 / 3, 9, 6),
        (Fraction(2, 7), 49, 14),
        (1e-9, 5000, 1),
    ],
)
def test_shares_that_doubles_miss(ratio, tokens, kept):
    assert PrunerConfig.paper(keep_ratio=ratio).kept_tokens(tokens) == kept
    assert Gaussian(channel_keep_ratio=ratio).scored_channels(tokens) == kept


def test_the_pruner_takes_a_config():
    with pytest.raises(TypeError, match="config must be a PrunerConfig, but is a dict"):
        TokenPruner({"keep_ratio": 0.5})
    assert "keep_ratio=0.25" in repr(TokenPruner(PrunerConfig.paper()))
