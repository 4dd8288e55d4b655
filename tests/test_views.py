"""The agreement of two views: what costs, and what does not."""

import pytest
import torch

from pedsleepmae.views import COVARIANCE_WEIGHT, LEAST_VARIANCE, ViewHead

EPOCHS, CHANNELS, WIDTH = 256, 3, 4


def plain_head() -> ViewHead:
    """A head that compares the tokens as they are."""
    head = ViewHead(WIDTH)
    head.expand = torch.nn.Identity()
    return head


def tokens(seed: int = 0) -> torch.Tensor:
    """(B, C, E) whose numbers are uncorrelated over the epochs, with standard deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(EPOCHS, CHANNELS * WIDTH, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(drawn - drawn.mean(dim=0))
    return (basis * EPOCHS**0.5).float().unflatten(1, (CHANNELS, WIDTH))


PRESENT = torch.ones(EPOCHS, CHANNELS, dtype=torch.bool)


def test_views_that_agree_and_vary_over_epochs_cost_nothing():
    error_BC = plain_head()(tokens(), tokens(), PRESENT)
    assert error_BC.shape == (EPOCHS, CHANNELS)
    torch.testing.assert_close(error_BC, torch.zeros_like(error_BC), rtol=0, atol=1e-5)


def test_views_that_differ_cost_their_squared_distance_in_their_own_epoch():
    other = tokens()
    other[7, 1] += 3.0
    error_BC = plain_head()(tokens(), other, PRESENT)
    assert error_BC[7, 1] == pytest.approx(9, rel=0.05)
    assert error_BC[:, 0].abs().max() < 1e-5


def test_the_same_in_every_epoch_costs_a_whole_standard_deviation():
    same = torch.ones(EPOCHS, CHANNELS, WIDTH)
    error_BC = plain_head()(same, same, PRESENT)
    torch.testing.assert_close(error_BC, torch.full_like(error_BC, 1 - LEAST_VARIANCE**0.5))


def test_numbers_that_repeat_each_other_cost_their_covariances():
    repeated = tokens()[:, :, :1].expand(-1, -1, WIDTH)
    error_BC = plain_head()(repeated, repeated, PRESENT)
    expected = COVARIANCE_WEIGHT * WIDTH * (WIDTH - 1) / WIDTH
    torch.testing.assert_close(error_BC, torch.full_like(error_BC, expected), rtol=1e-4, atol=0)


def test_epochs_without_a_channel_say_nothing_of_it():
    present = PRESENT.clone()
    present[128:, 2] = False
    ours = tokens()
    error_BC = plain_head()(ours, ours, present)
    ours[128:, 2] = 1e6
    torch.testing.assert_close(plain_head()(ours, ours, present)[:128], error_BC[:128])


def test_a_lone_epoch_and_a_channel_that_nobody_has_give_finite_slopes():
    head = ViewHead(WIDTH)
    token = torch.randn(1, CHANNELS, WIDTH, requires_grad=True)
    present = torch.tensor([[True, True, False]])
    head(token, token * 2, present).sum().backward()
    assert token.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())
