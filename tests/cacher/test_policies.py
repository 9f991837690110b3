"""When frames are computed whole, and how much of the others: changes, policies, thresholds."""

from __future__ import annotations

import pytest
import torch
from cacher.conftest import Waits

import stc_kernels
from stc_stream import CacherConfig, attach_cacher
from stc_stream.cacher import RefreshPolicy


def features(tower, clip):
    with torch.no_grad():
        return tower(clip).last_hidden_state


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def changed(current, reference, patch=8):
    """The share of patches that changed, said plainly."""
    contrast = max(0.1, float((reference - reference.mean()).abs().mean()))
    count = total = 0
    for row in range(0, current.shape[1], patch):
        for column in range(0, current.shape[2], patch):
            at = (slice(None), slice(row, row + patch), slice(column, column + patch))
            count += int((current[at] - reference[at]).abs().mean() > 0.25 * contrast)
            total += 1
    return count / total


def cut_clip(make_clip, seed):
    """Eight frames with a cut before the fourth."""
    return torch.cat([make_clip(3), make_clip(5, seed=seed + 1)])


@pytest.mark.parametrize("sizes", [[1] * 8, [8], [2, 3, 3]])
def test_a_scene_cut_is_computed_whole(make_tower, make_clip, seed, sizes):
    tower, clip = make_tower(), cut_clip(make_clip, seed)
    dense = features(tower, clip)
    config = CacherConfig(refresh_interval=100, refresh_on_change=0.5)
    with attach_cacher(tower, config) as cacher:
        ours = torch.cat([features(tower, part) for part in clip.split(sizes)])
        assert (cacher.stats.refreshes, cacher.stats.changes) == (2, 1)
        assert cacher.stats.bytes > 3 * 3 * 36 * 32 * 4
    close(ours[3], dense[3])
    with attach_cacher(tower, CacherConfig.paper(refresh_interval=100)):
        late = features(tower, clip)
    assert (ours[4:] - dense[4:]).norm() < 0.5 * (late[4:] - dense[4:]).norm()


def test_what_changed_is_counted_by_patch(make_tower, make_clip, seed):
    clip = cut_clip(make_clip, seed)
    generator = torch.Generator().manual_seed(seed)
    clip[2] = torch.where(torch.rand(1, 48, 48, generator=generator) < 0.3, clip[2], clip[0])

    class Watch:
        watches_change = True
        seen = []

        def refreshes(self, frame):
            self.seen.append((frame.stream, frame.number, frame.age, frame.changed()))
            return frame.number == 4

    assert isinstance(Watch(), RefreshPolicy)
    tower = make_tower()
    with attach_cacher(tower, CacherConfig.paper(policy=Watch())) as cacher:
        for part in clip.split([2, 4, 2]):
            features(tower, part)
        assert cacher.stats.refreshes == 2
    expected = [
        ("default", t, t if t < 5 else t - 4, changed(clip[t], clip[0 if t < 5 else 4]))
        for t in range(1, 8)
    ]
    assert [x[:3] for x in Watch.seen] == [x[:3] for x in expected]
    assert [x[3] for x in Watch.seen] == pytest.approx([x[3] for x in expected])


def test_noise_in_an_empty_picture_is_no_change(make_tower, seed):
    tower = make_tower()
    noise = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    with attach_cacher(tower, CacherConfig(refresh_interval=100)) as cacher:
        features(tower, 0.01 * noise - 1)
        assert cacher.stats.refreshes == 1
        features(tower, 0.01 * noise)
        assert cacher.stats.refreshes == 2


def test_a_policy_that_does_not_watch_cannot_ask(make_tower, make_clip):
    class Asks:
        def refreshes(self, frame):
            return frame.changed() > 0.5

    tower = make_tower()
    with attach_cacher(tower, CacherConfig.paper(policy=Asks())) as cacher:
        features(tower, make_clip(1))
        with pytest.raises(RuntimeError, match="has no attribute watches_change = True"):
            features(tower, make_clip(1))
        assert cacher.stats.frames == 1


@pytest.mark.parametrize("settings", [{}, {"refresh_on_change": 0.1, "max_refresh_ratio": 0.9}])
def test_unseen_pixels_follow_the_plain_schedule_with_one_warning(make_tower, seed, settings):
    tower = make_tower()
    tokens = torch.randn(6, 36, 32, generator=torch.Generator().manual_seed(seed))

    def encoded(config):
        with torch.no_grad(), attach_cacher(tower, config) as cacher:
            parts = [tower.encoder(inputs_embeds=part) for part in tokens.split([1, 3, 2])]
            return torch.cat([part.last_hidden_state for part in parts]), cacher.stats

    expected, stats = encoded(CacherConfig.paper(refresh_interval=3))
    with pytest.warns(RuntimeWarning) as warned:
        ours, ours_stats = encoded(CacherConfig(refresh_interval=3, **settings))
    assert ["call the whole tower" in str(each.message) for each in warned] == [True]
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert ours_stats == stats


def test_paused_frames_are_not_taken_for_those_after_them(make_tower, make_clip, seed):
    tower, clip = make_tower(), make_clip(4)
    embedded = tower.embeddings(clip).detach()
    with attach_cacher(tower, CacherConfig(refresh_interval=9)) as cacher, torch.no_grad():
        features(tower, clip[:1])
        with cacher.paused():
            features(tower, make_clip(3, seed=seed + 1))
        with pytest.warns(RuntimeWarning, match="changes are not noticed"):
            tower.encoder(inputs_embeds=embedded[1:])
        assert (cacher.stats.frames, cacher.stats.changes) == (4, 0)


def test_a_policy_cannot_ask_about_unseen_pixels(make_tower):
    class Asks:
        watches_change = True

        def refreshes(self, frame):
            return frame.changed() > 0.5

    tower = make_tower()
    with attach_cacher(tower, CacherConfig(policy=Asks())):
        with pytest.warns(RuntimeWarning):
            tower.encoder(inputs_embeds=torch.zeros(1, 36, 32))
        with pytest.raises(RuntimeError, match="call the whole tower"):
            tower.encoder(inputs_embeds=torch.zeros(1, 36, 32))


def test_the_default_computes_a_cut_whole(make_tower, make_clip, seed):
    tower, clip = make_tower(), cut_clip(make_clip, seed)
    with attach_cacher(tower) as cacher, cacher.record() as recording:
        features(tower, clip)
    # The fourth frame is the cut; the fifth is due.
    assert recording.layers[0].refreshed.nonzero().flatten().tolist() == [0, 3, 4]
    assert (cacher.stats.changes, cacher.stats.forbidden) == (1, 0)


@pytest.mark.parametrize("sizes", [[1] * 6 + [6], [12], [5, 7]])
def test_a_batch_is_waited_for_once(make_tower, make_clip, seed, monkeypatch, sizes):
    tower = make_tower()
    clip = torch.cat([cut_clip(make_clip, seed), make_clip(4, seed=seed + 2)])
    clip[9, 0, 3, 3] = torch.nan
    names = ["door", "yard", "door", "door"] * 3
    counts = []
    config = CacherConfig(self_check=False)
    with attach_cacher(tower, config) as cacher, Waits(monkeypatch) as waits:
        for rows in torch.arange(12).split(sizes):
            with cacher.streams([names[row] for row in rows.numpy()]):
                before = waits.count
                features(tower, clip[rows])
                counts.append(waits.count - before)
    # Streams without a reference have nothing to be compared with.
    assert counts == ([0, 0, 1, 1, 1, 1, 1] if len(sizes) == 7 else [1] * len(sizes))
    assert cacher.stats.changes > 0


def test_waiting_is_noticed(make_tower, make_clip, monkeypatch):
    class Asks:
        watches_change = True

        def refreshes(self, frame):
            return frame.changed() > 0.01 or frame.number == 1

    tower, clip = make_tower(), make_clip(4)
    with attach_cacher(tower, CacherConfig(policy=Asks())), Waits(monkeypatch) as waits:
        features(tower, clip)
    assert waits.count > 1


def test_a_moving_camera_is_told(make_tower, make_clip, seed):
    tower = make_tower()
    moving = torch.randn(20, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    with attach_cacher(tower) as cacher:
        features(tower, make_clip(40))
        assert cacher.stats.note is None
        assert str(cacher.stats) == repr(cacher.stats)
    with attach_cacher(tower) as cacher:
        features(tower, moving[:15])
        assert cacher.stats.note is None
        features(tower, moving[15:])
        expected = "moving camera: 20 of 20 frames refreshed, little to save here"
        assert cacher.stats.note == expected
        assert str(cacher.stats) == f"{cacher.stats!r}: {expected}"


def test_frequent_refreshes_that_were_asked_for_are_no_moving_camera(make_tower, make_clip):
    tower = make_tower()
    with attach_cacher(tower, CacherConfig(refresh_interval=1)) as cacher:
        features(tower, make_clip(20))
        assert cacher.stats.note is None


def test_detached_pixels_are_not_watched(make_tower, make_clip):
    tower = make_tower()
    embedding = tower.embeddings.patch_embedding
    with attach_cacher(tower, CacherConfig(refresh_on_change=0.5)):
        assert embedding._forward_pre_hooks
    assert not embedding._forward_pre_hooks


def test_a_threshold_that_chooses_others_each_time_compiles_nothing_anew(make_tower, seed):
    torch._dynamo.reset()
    tower, graphs = make_tower(image_size=96), []
    scene = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(seed))

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(tower, backend=backend)
    config = CacherConfig.paper(threshold=0.95, update_ratio=1.0, refresh_interval=100)
    with attach_cacher(tower, config) as cacher:
        recomputed, counts = [], []
        for rows in range(0, 96, 8):
            frame = scene.clone()
            frame[:, :rows] = scene[:, 96 - rows :].flip(2)
            features(compiled, frame[None])
            recomputed.append(cacher.stats.tokens_recomputed)
            counts.append(len(graphs))
    assert torch.tensor(recomputed).diff().unique().numel() > 3
    assert counts[2:] == counts[2:3] * len(counts[2:])


@pytest.mark.parametrize("keys", ["full", "int8"])
@pytest.mark.parametrize("threshold", [-2.0, 0.7, 0.95, 0.999, 2.0])
def test_a_threshold_chooses_how_many(clear_case, threshold, keys):
    config = CacherConfig.paper(
        update_ratio=0.5, threshold=threshold, refresh_interval=5, reference_keys=keys
    )
    tower, clip, expected, stats = clear_case(config, ["only"] * 7)
    for sizes in ([7], [3, 4], [1] * 7):
        with attach_cacher(tower, config) as cacher, torch.no_grad():
            ours, computed = [], 0.0
            for part in clip.split(sizes):
                with cacher.record() as recording:
                    ours.append(tower(part).last_hidden_state)
                counts = [_check_counts(layer, threshold) for layer in recording]
                computed += sum(counts) / len(counts)
            assert cacher.stats.tokens_recomputed == pytest.approx(computed, abs=len(sizes))
            assert cacher.stats.tokens_recomputed + cacher.stats.tokens_reused == 7 * 36
            assert cacher.stats.refreshes == stats.refreshes
        close(torch.cat(ours), expected)


def _check_counts(layer, threshold):
    """Hold a layer's choice against the similarities it was made by; return the tokens computed."""
    for row, similarity in enumerate(layer.similarity()):
        chosen = layer.recomputed[row]
        if layer.refreshed[row]:
            assert chosen.all()
            continue
        below = int((similarity < threshold).sum())
        # A step is a sixteenth of 36 tokens, rounded up: 3; half of them, 18, at most.
        assert chosen.sum() == min(18, max(3, -(-below // 3) * 3))
        assert similarity[chosen].max() <= similarity[~chosen].min()
    return int(layer.recomputed.sum())


def test_a_threshold_chooses_what_cannot_be_compared(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(2)
    clip[1, :, :8, 8:16] = torch.nan
    with (
        attach_cacher(tower, CacherConfig.paper(threshold=-2.0)) as cacher,
        cacher.record() as recording,
    ):
        features(tower, clip)
    chosen = recording.layers[0].recomputed[1].nonzero().flatten().tolist()
    assert 1 in chosen and len(chosen) == 3


def test_staggered_streams_equal_themselves_one_by_one(clear_case):
    names = [f"camera {number % 8}" for number in range(40)]
    config = CacherConfig.paper(refresh_interval=4, stagger=True)
    tower, clip, expected, stats = clear_case(config, names)
    for size in (8, 40):
        with attach_cacher(tower, config) as cacher:
            parts = []
            for rows in torch.arange(40).split(size):
                with cacher.streams([names[row] for row in rows]), cacher.record() as recording:
                    parts.append(features(tower, clip[rows]))
                if size == 8 and rows[0] > 0:
                    assert recording.layers[0].refreshed.sum() == 2
            assert cacher.stats == stats
        close(torch.cat(parts), expected)


def test_similarity_is_what_was_compared(make_tower, make_clip):
    tower, clip = make_tower(), make_clip(3)
    with attach_cacher(tower, CacherConfig.paper()) as cacher, cacher.record() as recording:
        features(tower, clip)
    for layer in recording:
        similarity = layer.similarity()
        assert similarity[0].isnan().all()
        index, _ = stc_kernels.select_dynamic(
            *(each[None] for each in _pair(layer, 2)), k=int(layer.recomputed[2].sum())
        )
        assert index[0].tolist() == layer.recomputed[2].nonzero().flatten().tolist()


def _pair(layer, row):
    for comparison in layer._comparisons:
        for place, number in enumerate(comparison.rows.tolist()):
            if number == row:
                return comparison.current[place], comparison.reference[place]
    raise AssertionError(f"row {row} was compared with nothing")
