"""What a recording holds, against the outputs and a plain similarity."""

from __future__ import annotations

import torch

from stc_stream import CacherConfig, attach_cacher


def test_layers_say_what_they_recomputed(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(5)
    with torch.no_grad(), attach_cacher(tower, CacherConfig.paper(refresh_interval=3)) as cacher:
        tower(clip[:1])
        with cacher.record() as recording:
            assert len(recording) == 0
            tower(clip[1:])
        records = recording.layers
        tower(clip)
        assert recording.layers is records
    assert len(records) == 3
    for record in recording:
        assert record.refreshed.tolist() == [False, False, True, False]
        assert record.recomputed.dtype == torch.bool
        assert record.recomputed.sum(1).tolist() == [9, 9, 36, 9]


def test_similarity_is_of_the_keys_that_were_compared(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(4)
    keys = []
    tower.encoder.layers[0].self_attn.k_proj.register_forward_hook(
        lambda module, inputs, output: keys.append(output)
    )
    config = CacherConfig.paper(refresh_interval=2, self_check=False)
    with torch.no_grad(), attach_cacher(tower, config) as cacher:
        tower(clip[:1])
        with cacher.record() as recording:
            tower(clip[1:])
        tower(clip)
    first, rest = keys[:2]
    record = recording.layers[0]
    similarity = record.similarity()
    expected = torch.stack(
        [
            torch.cosine_similarity(rest[0], first[0], dim=-1),
            torch.full((36,), torch.nan),
            torch.cosine_similarity(rest[2], rest[1], dim=-1),
        ]
    )
    torch.testing.assert_close(similarity, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    for row in (0, 2):
        chosen = record.recomputed[row]
        assert similarity[row, chosen].max() <= similarity[row, ~chosen].min()


def test_an_error_leaves_the_recording(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    with (
        torch.no_grad(),
        attach_cacher(tower, CacherConfig.paper()) as cacher,
        cacher.record() as recording,
    ):
        tower(clip)
        records = recording.layers
        try:
            with cacher.streams([]):
                tower(clip)
        except ValueError:
            pass
        assert recording.layers is records
