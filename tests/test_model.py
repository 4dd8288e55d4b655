import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pedsleepmae.channels import CHANNEL_GROUPS, RATE_HZ
from pedsleepmae.model import (
    HEADS,
    TOKEN_LAYOUTS,
    MaskedAutoencoder,
    ModelSettings,
    attend,
    flops_per_example,
    hidden_patches,
    masked_mse,
    mean_over_present,
    patchify,
    random_channels,
    random_mask,
)

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT.parent / "shared" / "golden"
NEW_LAYOUTS = ("moment", "channel")


def small_model(**settings) -> MaskedAutoencoder:
    """Patches of 20 samples (192 a channel, 12 tokens of 16), one block each, seeded weights."""
    sizes = {"patch_size": 20, "emb_dim": 2, "num_layer": 1, "num_head": 2} | settings
    model = MaskedAutoencoder(**sizes).eval()
    model.reset_parameters(torch.Generator().manual_seed(1))
    return model


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_present(n: int) -> torch.Tensor:
    return torch.ones(n, 16, dtype=torch.bool)


# ------------------------------------------------------------------ the original, exactly
@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_dir():
        pytest.skip(f"{GOLDEN} is absent: the original's numbers cannot be compared")
    content = torch.load(GOLDEN / "reference_small_checkpoint.pt", weights_only=True)
    model = MaskedAutoencoder(emb_dim=8, num_layer=2, token_layout="reference", loss_on="all")
    model.load_state_dict(content["state_dict"])
    vectors = np.load(GOLDEN / "reference_small_vectors.npz")
    return model.eval(), {name: torch.as_tensor(vectors[name]) for name in vectors}


@pytest.mark.parametrize("masked", [False, True])
def test_reference_layout_reproduces_the_originals_features_and_reconstruction(golden, masked):
    model, vectors = golden
    ending = "masked" if masked else "unmasked"
    keep_BCK = vectors["visible_indices"].long() if masked else None
    with torch.no_grad():
        class_BCE, z_BCKE = model.encode(vectors["x"], keep_BCK=keep_BCK)
    features = torch.cat([class_BCE[:, :, None], z_BCKE], dim=2)
    torch.testing.assert_close(features, vectors[f"encoder_features_{ending}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        model.reconstruct(vectors["x"], keep_BCK),
        vectors[f"reconstruction_{ending}"],
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_reference_layout_reproduces_the_originals_embedding(golden, pooling):
    model, vectors = golden
    embedding = model.embed(vectors["x"], pooling)
    torch.testing.assert_close(embedding, vectors[f"embedding_{pooling}"], rtol=0, atol=1e-5)


def test_reference_layout_reproduces_the_originals_loss_and_mask(golden):
    model, vectors = golden
    keep_BCK = vectors["visible_indices"].long()
    with torch.no_grad():
        (error_BC,) = model(vectors["x"], all_present(2), keep_BCK)
    assert float(error_BC.mean()) == pytest.approx(float(vectors["mse_all"]), abs=1e-5)
    hidden_BCT = hidden_patches(keep_BCK, 480).repeat_interleave(8, dim=2)
    assert torch.equal(hidden_BCT, vectors["mask"].bool())


def test_default_architecture_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = MaskedAutoencoder(token_layout="reference")
    assert sum(p.numel() for p in model.parameters()) == 76_547_272


# ------------------------------------------------------------------ masks
def draw(*args, seed=0, **settings) -> torch.Tensor:
    return random_mask(*args, generator=torch.Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize("span", [1, 7, 16])
def test_mask_keeps_the_asked_number_of_distinct_patches_in_time_order(span):
    keep_BCK = draw(5, 30, 11, n_channels=3, span=span)
    assert keep_BCK.shape == (5, 3, 11)
    assert (keep_BCK.diff(dim=2) > 0).all()
    assert keep_BCK.min() >= 0
    assert keep_BCK.max() < 30


def test_kept_and_hidden_patches_are_a_partition():
    keep_BCK = draw(2, 30, 11, n_channels=3)
    hidden_BCS = hidden_patches(keep_BCK, 30)
    for b in range(2):
        for c in range(3):
            hidden = set(torch.nonzero(hidden_BCS[b, c]).flatten().tolist())
            kept = set(keep_BCK[b, c].tolist())
            assert hidden | kept == set(range(30))
            assert not hidden & kept


@pytest.mark.parametrize("span", [1, 4, 7])
def test_every_patch_is_kept_equally_often(span):
    n = 4000
    keep_BCK = draw(n, 30, 12, n_channels=2, span=span)
    times_kept = torch.bincount(keep_BCK.flatten(), minlength=30)
    expected, sd = 2 * n * 12 / 30, math.sqrt(2 * n * 0.4 * 0.6)
    assert ((times_kept - expected).abs() < 5 * sd).all()


def test_channels_and_examples_are_masked_independently():
    kept_BCS = ~hidden_patches(draw(4000, 30, 15, n_channels=2), 30)
    both = (kept_BCS[:, 0] & kept_BCS[:, 1]).double().mean()
    assert float(both) == pytest.approx(0.25, abs=0.01)
    following = (kept_BCS[:-1, 0] & kept_BCS[1:, 0]).double().mean()
    assert float(following) == pytest.approx(0.25, abs=0.01)


def test_mask_depends_on_the_seed_alone():
    assert torch.equal(draw(2, 30, 11, seed=3), draw(2, 30, 11, seed=3))
    assert not torch.equal(draw(2, 30, 11, seed=3), draw(2, 30, 11, seed=4))


def test_rows_of_a_mask_are_those_of_the_whole_draw():
    whole = draw(7, 30, 11, span=3)
    assert torch.equal(draw(7, 30, 11, span=3, rows=slice(2, 5)), whole[2:5])


def test_spans_hide_whole_runs_on_a_grid_but_for_one():
    hidden_BCS = hidden_patches(draw(20, 48, 22, n_channels=2, span=8), 48)
    for hidden in hidden_BCS.flatten(0, 1):
        sums = [hidden.roll(-phase).view(6, 8).sum(dim=1).tolist() for phase in range(8)]
        assert any(sorted(s)[1:3] == [0, 2] and sorted(s)[3:] == [8, 8, 8] for s in sums)


@pytest.mark.parametrize(("patch_size", "seconds"), [(8, 1.0), (16, 2.0), (20, 2.5)])
@pytest.mark.parametrize("span", [1, 2])
def test_every_kept_token_is_16_neighbouring_patches_from_a_multiple_of_16_on(
    patch_size, seconds, span
):
    model = small_model(patch_size=patch_size, mask_unit="token", mask_ratio=0.75, mask_span=span)
    keep_BCK = model.draw_mask(5, torch.Generator().manual_seed(0))
    assert keep_BCK.shape == (5, 16, model.n_keep)
    assert model.n_keep == 16 * round(0.25 * model.n_patches / 16)
    tokens_BCJ16 = keep_BCK.unflatten(2, (-1, 16))
    assert (tokens_BCJ16[..., 0] % 16 == 0).all()
    assert (tokens_BCJ16.diff(dim=3) == 1).all()
    assert (tokens_BCJ16[..., 0].diff(dim=2) > 0).all()
    assert 16 * patch_size / RATE_HZ == seconds


def test_every_token_is_kept_equally_often_and_in_each_channel_by_itself():
    model = small_model(mask_unit="token", mask_ratio=0.75)
    hidden_BCS = hidden_patches(model.draw_mask(3000, torch.Generator().manual_seed(0)), 192)
    share_CS = (~hidden_BCS).float().mean(dim=0)
    torch.testing.assert_close(share_CS, torch.full((16, 192), 0.25), rtol=0, atol=0.04)
    assert not torch.equal(hidden_BCS[:, 0], hidden_BCS[:, 1])


def test_tokens_of_kept_stretches_are_those_that_the_encoder_gets_with_nothing_hidden():
    """Before the first block: what a token holds must not depend on what else is hidden."""
    model, x = small_model(mask_unit="token", mask_ratio=0.6), noise(2, 16, 3840)
    seen = []
    model.encoder.transformer[0].register_forward_pre_hook(lambda _, inputs: seen.append(*inputs))
    keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
    model(x, all_present(2), keep_BCK)
    model.embed(x)
    masked_BND, whole_BND = seen
    assert torch.equal(masked_BND[:, 0], whole_BND[:, 0])  # class tokens
    kept_BCJ = keep_BCK[:, :, ::16] // 16
    whole_BCJD = whole_BND[:, 1:].unflatten(1, (16, 12))
    index = kept_BCJ[..., None].expand(-1, -1, -1, whole_BCJD.shape[3])
    assert torch.equal(masked_BND[:, 1:].unflatten(1, (16, -1)), whole_BCJD.gather(2, index))


def test_moment_layout_hides_the_same_patches_in_all_channels():
    model = small_model(token_layout="moment")
    keep_BCK = model.draw_mask(3, torch.Generator().manual_seed(0))
    assert keep_BCK.shape == (3, 16, 96)
    assert (keep_BCK == keep_BCK[:, :1]).all()
    assert not torch.equal(keep_BCK[0], keep_BCK[1])


def draw_channels(n: int, share: float, seed: int = 0, **settings) -> torch.Tensor:
    return random_channels(n, share, generator=torch.Generator().manual_seed(seed), **settings)


def test_hidden_channels_are_one_of_all_or_a_group_as_often_as_asked():
    n, share = 8000, 0.4
    hidden_BC = draw_channels(n, share)
    assert float(hidden_BC.any(dim=1).double().mean()) == pytest.approx(share, abs=0.03)
    counts = Counter(tuple(torch.nonzero(row).flatten().tolist()) for row in hidden_BC)
    half = n * share / 2
    expected = dict.fromkeys(((channel,) for channel in range(16)), half / 16)
    for group in CHANNEL_GROUPS.values():
        expected[group] = expected.get(group, 0) + half / len(CHANNEL_GROUPS)
    assert counts.keys() == {(), *expected}
    for channels, wanted in expected.items():
        assert abs(counts[channels] - wanted) < 5 * math.sqrt(wanted), channels


def test_hidden_channels_depend_on_the_seed_alone_and_rows_are_those_of_the_whole_draw():
    whole = draw_channels(40, 0.5, seed=3)
    assert torch.equal(draw_channels(40, 0.5, seed=3), whole)
    assert not torch.equal(draw_channels(40, 0.5, seed=4), whole)
    assert torch.equal(draw_channels(40, 0.5, seed=3, rows=slice(7, 20)), whole[7:20])


def test_without_hidden_channels_nothing_is_drawn():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert small_model().draw_hidden_channels(4, generator) is None
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("mask_ratio", "n_keep"), [(0.5, 96), (0.75, 48), (0.8, 32), (0.99, 16)])
def test_channel_layout_keeps_whole_tokens(mask_ratio, n_keep):
    assert small_model(mask_ratio=mask_ratio).n_keep == n_keep


@pytest.mark.parametrize(("mask_ratio", "n_keep"), [(0.8, 38), (0.999, 1), (0.001, 191)])
def test_at_least_one_patch_is_kept_and_one_hidden(mask_ratio, n_keep):
    assert small_model(mask_ratio=mask_ratio, token_layout="reference").n_keep == n_keep


# ------------------------------------------------------------------ tokens
@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
def test_tokens_can_be_taken_apart_again(layout):
    class_BCE, z_BCKE = noise(2, 16, 3), noise(2, 16, 32, 3, seed=1)
    layout = TOKEN_LAYOUTS[layout]
    tokens_BND = layout.to_tokens(class_BCE, z_BCKE)
    assert tokens_BND.shape == (2, 33, 48)
    back = layout.from_tokens(tokens_BND)
    assert torch.equal(back[0], class_BCE)
    assert torch.equal(back[1], z_BCKE)


def numbered() -> tuple[torch.Tensor, torch.Tensor]:
    """Class tokens -1 and patches 100 x channel + patch, 32 patches, width 1."""
    channel, patch = torch.arange(16.0)[:, None], torch.arange(32.0)
    return torch.full((1, 16, 1), -1.0), (100 * channel + patch)[None, :, :, None]


def test_channel_layout_has_16_patches_of_one_channel_in_a_token():
    tokens_ND = TOKEN_LAYOUTS["channel"].to_tokens(*numbered())[0]
    assert (tokens_ND[0] == -1).all()
    assert torch.equal(tokens_ND[1], torch.arange(16.0))
    assert torch.equal(tokens_ND[2], torch.arange(16.0, 32))
    assert torch.equal(tokens_ND[3], 100 + torch.arange(16.0))
    assert torch.equal(tokens_ND[32], 1500 + torch.arange(16.0, 32))


def test_moment_layout_has_one_patch_of_every_channel_in_a_token():
    tokens_ND = TOKEN_LAYOUTS["moment"].to_tokens(*numbered())[0]
    assert (tokens_ND[0] == -1).all()
    assert torch.equal(tokens_ND[5], 100 * torch.arange(16.0) + 4)


def test_reference_layout_is_a_view_that_drifts_by_one_entry_a_channel():
    tokens_ND = TOKEN_LAYOUTS["reference"].to_tokens(*numbered())[0]
    assert tokens_ND[0].tolist() == [-1, *range(15)]
    assert tokens_ND[2].tolist() == [31, -1, *range(100, 114)]


# ------------------------------------------------------------------ what enters
@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
@pytest.mark.parametrize("foreign", [3.0, float("nan")])
def test_signal_of_an_absent_channel_never_enters(layout, foreign):
    model = small_model(token_layout=layout)
    present = all_present(2)
    present[1, 4] = False
    x = noise(2, 16, 3840)
    changed = x.clone()
    changed[1, 4] = foreign
    assert torch.equal(
        model.reconstruct(x, present=present), model.reconstruct(changed, present=present)
    )
    assert torch.equal(
        model.embed(x, "class+mean", present), model.embed(changed, "class+mean", present)
    )


def test_absent_channel_is_zeros_in_the_reference_layout_and_a_learned_token_in_the_others():
    present = all_present(1)
    present[0, 4] = False
    x = noise(1, 16, 3840)
    x[0, 4] = 0
    reference = small_model(token_layout="reference")
    assert reference.encoder.absent_token is None
    assert torch.equal(reference.embed(x, "mean", present), reference.embed(x, "mean"))
    for layout in NEW_LAYOUTS:
        model = small_model(token_layout=layout)
        assert not torch.equal(model.embed(x, "mean", present), model.embed(x, "mean"))


@pytest.mark.parametrize("layout", NEW_LAYOUTS)
def test_absent_token_learns_and_bad_values_of_absent_channels_do_not_reach_the_gradient(layout):
    model = small_model(token_layout=layout)
    present = all_present(2)
    present[0, 7] = False
    x = noise(2, 16, 3840)
    x[0, 7] = float("nan")
    (error_BC,) = model(x, present, model.draw_mask(2, torch.Generator().manual_seed(0)))
    torch.where(present, error_BC, 0).sum().backward()
    assert model.encoder.absent_token.grad.abs().min() > 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
def test_reconstruction_does_not_see_hidden_patches(layout):
    model = small_model(token_layout=layout)
    keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
    hidden_BCT = hidden_patches(keep_BCK, 192).repeat_interleave(20, dim=2)
    x = noise(2, 16, 3840)
    changed = torch.where(hidden_BCT, x + 1, x)
    assert torch.equal(model.reconstruct(x, keep_BCK), model.reconstruct(changed, keep_BCK))
    visible_too = torch.where(hidden_BCT, x, x + 1)
    assert not torch.equal(model.reconstruct(x, keep_BCK), model.reconstruct(visible_too, keep_BCK))


@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
def test_a_hidden_channel_is_to_the_encoder_an_absent_one_and_to_the_loss_a_masked_one(layout):
    model = small_model(token_layout=layout)
    present = all_present(2)
    present[1, 3] = False
    hidden = torch.zeros_like(present)
    hidden[0, 7] = hidden[1, 2] = True
    keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
    x = noise(2, 16, 3840)
    with torch.no_grad():
        (error_BC,) = model(x, present, keep_BCK, hidden)
        (plain_BC,) = model(x, present & ~hidden, keep_BCK)
    pred = model.reconstruct(x, keep_BCK, present & ~hidden)
    # All patches of a hidden channel count; the others' errors are those beside an absent one.
    expected_BC = torch.where(hidden, (pred - x).square().mean(dim=2), plain_BC)
    torch.testing.assert_close(error_BC, expected_BC)


def test_the_gradient_asks_for_a_hidden_channel():
    model = small_model()
    keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 8] = True
    x = noise(2, 16, 3840).requires_grad_()
    model(x, all_present(2), keep_BCK, hidden)[0, :, 8].sum().backward()
    assert (x.grad[:, 8].abs().sum(dim=1) > 0).all()  # as the truth that is asked for
    assert model.encoder.absent_token.grad.abs().max() > 0


@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
def test_no_indices_mean_all_indices(layout):
    model = small_model(token_layout=layout)
    x = noise(2, 16, 3840)
    every = torch.arange(192).expand(2, 16, -1)
    torch.testing.assert_close(model.reconstruct(x), model.reconstruct(x, every.numpy()))


@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
def test_decoding_what_was_encoded_is_the_reconstruction(layout):
    model = small_model(token_layout=layout, decoder_emb_dim=3)
    present = all_present(2)
    present[0, 5] = False
    keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
    x = noise(2, 16, 3840)
    for keep in (None, keep_BCK):
        with torch.no_grad():
            features = model.encode(x, present, keep)
        assert torch.equal(model.decode(*features, keep), model.reconstruct(x, keep, present))


# ------------------------------------------------------------------ loss
def test_masked_error_is_the_mean_over_hidden_patches():
    x_BCSP = torch.zeros(1, 2, 3, 2)
    pred_BCSP = torch.tensor([[[[1.0, 1], [2, 4], [9, 9]], [[0, 0], [3, 3], [1, 2]]]])
    hidden_BCS = torch.tensor([[[True, True, False], [False, False, True]]])
    error_BC = masked_mse(pred_BCSP, x_BCSP, hidden_BCS)
    assert error_BC.tolist() == [[(1 + 10) / 2, 2.5]]


# Sums of errors before there were other masks and targets, at 43f17ab: seeds 3, 5, 7 and 8.
BEFORE = {
    ("channel", "masked", 0.5, 1): (442819, 41.85581588745117),  # hidden channels as drawn since
    ("reference", "all", 0.0, 1): (442819, 41.96846008300781),
    ("moment", "masked", 0.3, 3): (429360, 42.048030853271484),
    ("channel", "all", 0.0, 8): (430784, 41.97866439819336),
}


@pytest.mark.parametrize("case", BEFORE)
def test_the_waveforms_loss_and_masks_are_those_of_before(case):
    layout, loss_on, mask_channels, span = case
    masks = {"mask_channels": mask_channels, "mask_span": span}
    model = small_model(token_layout=layout, loss_on=loss_on, **masks)
    model.reset_parameters(torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(5)
    present = torch.rand(3, 16, generator=torch.Generator().manual_seed(8)) > 0.1
    keep_BCK = model.draw_mask(3, generator)
    hidden_BC = model.draw_hidden_channels(3, generator)
    with torch.no_grad():
        (error_BC,) = model(noise(3, 16, 3840, seed=7), present, keep_BCK, hidden_BC)
    kept, summed = BEFORE[case]
    assert int(keep_BCK.sum()) == kept
    assert float((error_BC * present).sum()) == pytest.approx(summed, rel=1e-6)


def test_loss_is_the_mean_over_present_channels():
    error_BC = torch.tensor([[1.0, 5], [3, 100]])
    present_BC = torch.tensor([[True, True], [True, False]])
    assert float(mean_over_present(error_BC, present_BC, 3)) == 3


@pytest.mark.parametrize("loss_on", ["masked", "all"])
@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
def test_loss_is_that_of_the_reconstruction_computed_slowly(layout, loss_on):
    model = small_model(token_layout=layout, loss_on=loss_on, decoder_emb_dim=3)
    keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
    x = noise(2, 16, 3840)
    with torch.no_grad():
        (error_BC,) = model(x.half(), all_present(2), keep_BCK)
    pred = model.reconstruct(x.half(), keep_BCK)
    for b in range(2):
        for c in range(16):
            kept = set(keep_BCK[b, c].tolist()) if loss_on == "masked" else set()
            errors = [
                (pred[b, c, 20 * s : 20 * s + 20] - x[b, c, 20 * s : 20 * s + 20].half()).square()
                for s in range(192)
                if s not in kept
            ]
            assert float(error_BC[b, c]) == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)


def test_patches_are_consecutive_samples_of_a_channel():
    x_BCT = torch.arange(24.0).view(1, 2, 12)
    assert patchify(x_BCT, 4)[0, 1].tolist() == [
        [12, 13, 14, 15],
        [16, 17, 18, 19],
        [20, 21, 22, 23],
    ]


# ------------------------------------------------------------------ embeddings
def test_poolings_reduce_the_axis_they_name():
    model = small_model(emb_dim=3)
    x = noise(2, 16, 3840)
    with torch.no_grad():
        class_BCE, z_BCSE = (part.numpy() for part in model.encode(x))
    slow = {
        "mean": z_BCSE.mean(axis=3).reshape(2, 16 * 192),
        "max": z_BCSE.max(axis=3).reshape(2, 16 * 192),
        "time_mean": z_BCSE.mean(axis=2).reshape(2, 48),
        "time_abs": np.abs(z_BCSE).mean(axis=2).reshape(2, 48),
        "class": class_BCE.reshape(2, 48),
    }
    slow["class+time_abs"] = np.concatenate([slow["class"], slow["time_abs"]], axis=1)
    calls = []
    model.encoder.transformer[0].register_forward_hook(lambda *_: calls.append(1))  # a pass each
    features = model.embed_many(x, list(slow))
    assert len(calls) == 1
    assert list(features) == list(slow)
    for name, expected in slow.items():
        np.testing.assert_allclose(features[name].numpy(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(model.embed(x, name), features[name])


def test_unknown_pooling_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'median'.*time_abs"):
        small_model().embed(noise(1, 16, 3840), "mean+median")


# ------------------------------------------------------------------ arithmetic
def test_attention_written_out_for_bfloat16_agrees_with_the_fused_one():
    q, k, v = (noise(2, 3, 50, 16, seed=i).bfloat16() for i in range(3))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    assert float((attend(q, k, v).float() - exact).abs().max()) < 0.02


@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
def test_bfloat16_changes_the_error_by_less_than_a_percent(layout):
    model = small_model(token_layout=layout, emb_dim=8)
    keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
    x = noise(2, 16, 3840)
    with torch.no_grad():
        (exact,) = model(x, all_present(2), keep_BCK)
        with torch.autocast("cpu", torch.bfloat16):
            (rounded,) = model(x, all_present(2), keep_BCK)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)


def test_operations_of_m15p8_are_those_of_the_reference_table():
    with torch.device("meta"):
        model = MaskedAutoencoder()
    assert flops_per_example(model) / 3 / 1e9 == pytest.approx(58, abs=0.5)
    assert flops_per_example(model) / 1e9 == pytest.approx(174, abs=0.5)


def test_operations_agree_with_torchs_own_count():
    model = small_model(emb_dim=16, num_layer=2, decoder_emb_dim=8)
    # torch's counter does not know the fused CPU attention
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(noise(1, 16, 3840), all_present(1), model.draw_mask(1, torch.Generator()))
    counted = counter.get_total_flops()
    patch_layers = 2 * 16 * 20 * (model.n_keep * 16 + model.n_patches * 8)
    assert flops_per_example(model) / 3 == counted - patch_layers


def test_lean_configuration_needs_at_least_three_times_fewer_operations():
    flops = {}
    for name in ("pretrain", "pretrain_lean"):
        settings = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        with torch.device("meta"):
            flops[name] = flops_per_example(MaskedAutoencoder(**settings["model"]))
    assert flops["pretrain"] >= 3 * flops["pretrain_lean"]


# ------------------------------------------------------------------ bands beside the waveform
def banded_model(**settings) -> MaskedAutoencoder:
    """A model with both targets; its envelopes measured on noise."""
    sizes = {"target": "both", "mask_unit": "token", "mask_ratio": 0.7}
    model = small_model(**sizes | settings)
    model.band_heads.measure([(noise(16, 16, 3840, seed=5), all_present(16))])
    return model


def test_encoder_and_decoder_begin_alike_whatever_the_target():
    plain, banded = small_model().state_dict(), small_model(target="both").state_dict()
    own = {name for name in banded if name.startswith(HEADS)}
    assert list(plain) == [name for name in banded if name not in own]
    assert len(own) == 6
    for name, value in plain.items():
        assert torch.equal(banded[name], value)


def test_the_waveforms_part_is_the_loss_without_the_others():
    keep_BCK = banded_model().draw_mask(2, torch.Generator().manual_seed(0))
    x, present = noise(2, 16, 3840), all_present(2)
    with torch.no_grad():
        (alone_BC,) = small_model()(x, present, keep_BCK)
        wave_BC, bands_BC, class_BC = banded_model()(x, present, keep_BCK)
    assert torch.equal(wave_BC, alone_BC)
    assert bands_BC.shape == class_BC.shape == (2, 16)


def test_parts_of_the_loss_are_those_computed_slowly():
    model, x, present = banded_model(mask_unit="patch"), noise(2, 16, 3840), all_present(2)
    keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
    heads, hidden_BCS = model.band_heads, hidden_patches(keep_BCK, 192)
    torch.nn.init.normal_(heads.of_stretch.weight, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(heads.of_epoch.weight, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        _, bands_BC, class_BC = model(x, present, keep_BCK)
        stretch_BCJF, epoch_BCGF = heads.targets(x)
        tokens_BND = model.encoder(patchify(x, 20), present, keep_BCK)
        class_BCE, _ = model.layout.from_tokens(tokens_BND)
        z_BCSE = model.decoder(tokens_BND, keep_BCK)
        for b, c in ((0, 3), (1, 15)):
            total, weight = 0.0, 0.0
            for j in range(12):
                said_F = heads.of_stretch(z_BCSE[b, c, 16 * j : 16 * j + 16].flatten())
                n_hidden = int(hidden_BCS[b, c, 16 * j : 16 * j + 16].sum())
                total += n_hidden * float((said_F - stretch_BCJF[b, c, j]).square().mean())
                weight += n_hidden
            assert float(bands_BC[b, c]) == pytest.approx(total / weight, rel=1e-5)
            said_GF = heads.of_epoch(class_BCE[b, c]).view(3, 12)
            error = float((said_GF - epoch_BCGF[b, c]).square().mean())
            assert float(class_BC[b, c]) == pytest.approx(error, rel=1e-5)


def test_only_hidden_stretches_count_and_all_of_a_hidden_channel():
    model, present = banded_model(), all_present(1)
    keep_BCK = model.draw_mask(1, torch.Generator().manual_seed(0))
    said, target = torch.zeros(1, 16, 12, 12), torch.zeros(1, 16, 12, 12)
    target[:, :, keep_BCK[0, 0, 0] // 16] = 7.0  # the first kept stretch of channel 0
    model.band_heads.foretell = lambda _: said
    model.band_heads.targets = lambda _: (target, torch.zeros(1, 16, 3, 12))
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    with torch.no_grad():
        _, masked_BC, _ = model(noise(1, 16, 3840), present, keep_BCK, hidden)
        hidden[:, 0] = True
        _, whole_BC, _ = model(noise(1, 16, 3840), present, keep_BCK, hidden)
    assert float(masked_BC[0, 0]) == 0
    assert float(whole_BC[0, 0]) == pytest.approx(49 / 12)  # one stretch of 12


def test_bands_alone_teach_encoder_and_decoder_and_the_waveform_its_own_head_only():
    gradients = {}
    for target in ("bands", "both"):
        model = banded_model(target=target)
        keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
        model(noise(2, 16, 3840), all_present(2), keep_BCK)[0].sum().backward()
        gradients[target] = {
            name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
        }
    assert gradients["bands"] == {"decoder.head.weight", "decoder.head.bias"}
    assert any(name.startswith("encoder.transformer") for name in gradients["both"])


def test_class_tokens_learn_from_their_own_part():
    model = banded_model()
    keep_BCK = model.draw_mask(2, torch.Generator().manual_seed(0))
    model(noise(2, 16, 3840), all_present(2), keep_BCK)[2].sum().backward()
    assert model.encoder.cls_token.grad.any()
    assert not model.decoder.mask_token.grad.any()


def test_parts_and_their_weights_are_those_of_the_settings():
    weights = {"band_weight": 0.5, "class_weight": 0.25}
    assert ModelSettings(**weights).part_weights == {"wave": 1}
    both = ModelSettings(target="both", **weights).part_weights
    assert both == {"wave": 1, "bands": 0.5, "class": 0.25}
    without_class = banded_model(class_weight=0.0)
    assert list(without_class.settings.part_weights) == ["wave", "bands"]
    assert without_class.band_heads.of_epoch is None
    keep_BCK = without_class.draw_mask(1, torch.Generator().manual_seed(0))
    assert len(without_class(noise(1, 16, 3840), all_present(1), keep_BCK)) == 2


def test_heads_of_bands_are_under_a_percent_of_the_operations():
    """So that flops_per_example may leave them out, at the size that ships and the full one."""
    for sizes in ({"patch_size": 16, "emb_dim": 16, "num_layer": 4, "decoder_num_layer": 1}, {}):
        with torch.device("meta"):
            model = MaskedAutoencoder(**sizes, mask_unit="token", mask_ratio=0.75)
        n_stretches, width = model.n_patches // 16, 16 * model.settings.emb_dim
        heads = 2 * 16 * (n_stretches * width * 12 + model.settings.emb_dim * 36)
        assert 3 * heads < 0.01 * flops_per_example(model)


# ------------------------------------------------------------------ two views
def viewed_model(**settings) -> MaskedAutoencoder:
    return small_model(view_weight=1.0, **settings)


def test_class_tokens_learn_from_two_views_and_the_decoder_does_not():
    model = viewed_model()
    assert model.settings.part_weights == {"wave": 1, "views": 1}
    generator = torch.Generator().manual_seed(0)
    keep_BCK = model.draw_mask(8, generator)
    dropped_BC = model.draw_dropped_channels(8, generator)
    wave_BC, views_BC = model(noise(8, 16, 3840), all_present(8), keep_BCK, None, dropped_BC)
    assert wave_BC.shape == views_BC.shape == (8, 16)
    views_BC.sum().backward()
    assert model.encoder.cls_token.grad.any()
    assert not model.decoder.mask_token.grad.any()


def test_a_second_view_leaves_the_waveforms_part_and_the_first_weights_alone():
    one, two = small_model(), viewed_model()
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value)
    keep_BCK = one.draw_mask(2, torch.Generator().manual_seed(0))
    x, present = noise(2, 16, 3840), all_present(2)
    dropped_BC = two.draw_dropped_channels(2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        (alone_BC,) = one(x, present, keep_BCK)
        assert torch.equal(two(x, present, keep_BCK, None, dropped_BC)[0], alone_BC)


def test_a_channel_is_dropped_from_the_second_view_every_other_time():
    generator = torch.Generator().manual_seed(0)
    assert small_model().draw_dropped_channels(4, generator) is None
    dropped_BC = viewed_model().draw_dropped_channels(4000, generator)
    assert (dropped_BC.float().mean(dim=0) - 0.5).abs().max() < 0.04
    generator.manual_seed(0)
    rows = viewed_model().draw_dropped_channels(4000, generator, slice(1000, 1010))
    assert torch.equal(rows, dropped_BC[1000:1010])


def test_a_second_view_costs_a_second_pass_through_the_encoder():
    one, two = (flops_per_example(model) for model in (small_model(), viewed_model()))
    without = flops_per_example(viewed_model(decoder_num_layer=2))
    decoder = without - two  # of one more block
    assert two - one == one - decoder * small_model().settings.num_layer


# ------------------------------------------------------------------ what does not fit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 7}, "patch_size is 7, which does not divide the 3,840"),
        (
            {"num_head": 3},
            r"num_head is 3, which does not divide the token width 16 x emb_dim = 32",
        ),
        (
            {"decoder_emb_dim": 3, "num_head": 32},
            "does not divide the token width 16 x decoder_emb_dim = 48",
        ),
        ({"patch_size": 32}, "120 patches a channel"),
        ({"token_layout": "time"}, r"unknown model\.token_layout 'time'"),
        ({"loss_on": "half"}, "loss_on 'half'"),
        ({"mask_unit": "second"}, "unknown model.mask_unit 'second'; give patch or token"),
        ({"target": "noise"}, "target 'noise'"),
        (
            {"mask_unit": "token", "token_layout": "moment"},
            "give token_layout channel or mask_unit",
        ),
        ({"mask_unit": "token", "mask_span": 13}, "a channel has 12 tokens"),
        (
            {"target": "both", "token_layout": "moment", "patch_size": 32},
            "target both takes 16 patches at a time, but patch_size 32 makes 120 a channel",
        ),
        ({"class_weight": -1.0}, r"model\.class_weight is -1"),
        ({"view_weight": -1.0}, r"model\.view_weight is -1"),
        ({"mask_ratio": 50.0}, r"model\.mask_ratio is 50; give more than 0 and less than 1"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small_model(**settings)


@pytest.mark.parametrize(
    ("x", "indices", "message"),
    [
        (noise(2, 15, 3840), None, "shape"),
        (noise(2, 16, 3839), None, "128 Hz"),
        (noise(2, 16, 3840), torch.arange(32).expand(1, 16, -1), r"give \(2, 16, K\)"),
        (noise(2, 16, 3840), torch.arange(30).expand(2, 16, -1), "multiple of 16"),
        (noise(2, 16, 3840), torch.arange(16).flip(0).expand(2, 16, -1), "sorted"),
        (noise(2, 16, 3840), torch.arange(177, 193).expand(2, 16, -1), "from 0 to 191"),
    ],
)
def test_inputs_of_a_wrong_shape_are_refused(x, indices, message):
    with pytest.raises(ValueError, match=message):
        small_model().reconstruct(x, indices)
