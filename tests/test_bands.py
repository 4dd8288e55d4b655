import math

import numpy as np
import pytest
import torch

from pedsleepmae import bands
from pedsleepmae.bands import BAND_EDGES_HZ, FLOOR, LEAST_SD, N_BANDS, BandEnvelopes, BandHeads

RATE_HZ, N_SAMPLES = 128, 3840
TIME_S = torch.arange(N_SAMPLES) / RATE_HZ


def envelopes_of(x_T: torch.Tensor, n_stretches: int = 15) -> torch.Tensor:
    """(J, F) of one signal."""
    return BandEnvelopes(n_stretches, N_SAMPLES, RATE_HZ)(x_T.expand(1, 1, -1))[0, 0]


def tone(hz: float, amplitude: float = 1.0) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * hz * TIME_S + 0.4)


def band_of(hz: float) -> int:
    return int(np.searchsorted(BAND_EDGES_HZ, hz, side="right")) - 1


def heads(n_channels: int = 2, class_width: int | None = 3) -> BandHeads:
    return BandHeads(BandEnvelopes(15, N_SAMPLES, RATE_HZ), n_channels, 32, class_width)


# ------------------------------------------------------------------ known signals
def test_bands_are_log_spaced_from_an_eighth_of_a_hertz_to_half_the_rate():
    assert N_BANDS == 12
    assert BAND_EDGES_HZ[[0, 4, 8, 12]].tolist() == [0.125, 1, 8, 64]
    np.testing.assert_allclose(np.diff(np.log2(BAND_EDGES_HZ)), 0.75)


@pytest.mark.parametrize("hz", [0.75, 1.25, 2.25, 3.5, 6, 10, 18, 30, 50])
def test_a_tone_lands_in_the_band_that_holds_it_with_its_rms(hz):
    envelope_JF = envelopes_of(tone(hz, amplitude=3.0))
    assert (envelope_JF.argmax(dim=1) == band_of(hz)).all()
    rms_J = envelope_JF[:, band_of(hz)].exp()
    torch.testing.assert_close(rms_J, torch.full((15,), 3 / math.sqrt(2)), rtol=0.05, atol=0)
    power_JF = (2 * envelope_JF).exp()
    assert (power_JF[:, band_of(hz)] > 0.8 * power_JF.sum(dim=1)).all()


def test_ten_hertz_lie_in_the_band_from_8_to_13_hertz():
    envelope_JF = envelopes_of(tone(10))
    low, high = BAND_EDGES_HZ[8:10]
    assert (low, round(high, 2)) == (8, 13.45)
    assert (envelope_JF.argmax(dim=1) == 8).all()


def test_twice_the_amplitude_adds_log_2_in_every_band():
    noise = torch.randn(N_SAMPLES, generator=torch.Generator().manual_seed(0))
    gained = envelopes_of(2 * noise) - envelopes_of(noise)
    torch.testing.assert_close(gained, torch.full((15, 12), math.log(2)), rtol=0, atol=1e-4)


def test_a_constant_is_silence_in_every_band():
    silence = 0.5 * math.log(FLOOR)
    assert envelopes_of(torch.zeros(N_SAMPLES)) == pytest.approx(silence)
    offset = envelopes_of(torch.full((N_SAMPLES,), 7.0))
    torch.testing.assert_close(offset, torch.full((15, 12), silence), rtol=0, atol=0.01)


def test_bands_of_white_noise_have_its_power_together():
    noise = torch.randn(40, 1, N_SAMPLES, generator=torch.Generator().manual_seed(0))
    power_F = (2 * BandEnvelopes(15, N_SAMPLES, RATE_HZ)(noise)).exp().mean(dim=(0, 1, 2))
    share_F = torch.tensor(np.diff(BAND_EDGES_HZ) / 64, dtype=torch.float32)
    torch.testing.assert_close(power_F[5:], share_F[5:], rtol=0.15, atol=0)
    assert float(power_F.sum()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("n_stretches", [12, 15, 16, 24, 30, 60])
def test_a_burst_is_largest_in_the_stretch_that_holds_it(n_stretches):
    middle_s = (torch.arange(n_stretches) + 0.5) * 30 / n_stretches
    for stretch in (0, n_stretches // 2, n_stretches - 1):
        burst = tone(20) * torch.exp(-(((TIME_S - middle_s[stretch]) / 0.4) ** 2))
        envelope_JF = envelopes_of(burst, n_stretches)
        assert envelope_JF.shape == (n_stretches, 12)
        assert int(envelope_JF[:, band_of(20)].argmax()) == stretch


def test_envelopes_are_those_of_a_slow_reference():
    """One stretch and band at a time, by numpy's Fourier transform, written without the code's."""
    x = torch.randn(N_SAMPLES, generator=torch.Generator().manual_seed(3)) + 2
    ours_JF = envelopes_of(x).double().numpy()
    for stretch, band, length_s, hop_s in ((0, 1, 8, 2.0), (7, 5, 4, 2.0), (9, 10, 1, 0.5)):
        n, low, high = length_s * RATE_HZ, *BAND_EDGES_HZ[band : band + 2]
        window = np.hanning(n + 1)[:-1]
        powers = []
        for start in np.arange(0, N_SAMPLES - n + 1, int(hop_s * RATE_HZ)):
            if abs(start / RATE_HZ + length_s / 2 - (2 * stretch + 1)) <= max(2, length_s) / 2:
                frame = x[start : start + n].double().numpy()
                weighted = window * (frame - frame.mean())
                spectrum = np.abs(np.fft.rfft(weighted)) ** 2 * 2 / (n * (window**2).sum())
                hz = np.fft.rfftfreq(n, 1 / RATE_HZ)
                powers.append(spectrum[(hz >= low) & (hz < high)].sum())
        assert ours_JF[stretch, band] == pytest.approx(0.5 * np.log(np.mean(powers)), abs=0.02)


def test_envelopes_stay_exact_under_autocast():
    x = torch.randn(1, 2, N_SAMPLES, generator=torch.Generator().manual_seed(0))
    module = BandEnvelopes(15, N_SAMPLES, RATE_HZ)
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), exact)
    assert exact.dtype == torch.float32


# ------------------------------------------------------------------ targets
def test_targets_have_mean_0_and_sd_1_over_the_data_that_were_measured():
    generator = torch.Generator().manual_seed(0)
    loud = torch.randn(60, 2, 1, generator=generator).exp() * torch.tensor([[1.0], [30.0]])
    x_BCT = torch.randn(60, 2, N_SAMPLES, generator=generator) * loud
    present_BC = torch.ones(60, 2, dtype=torch.bool)
    module = heads()
    module.measure([(x_BCT[:25], present_BC[:25]), (x_BCT[25:], present_BC[25:])])
    stretch_BCJF, epoch_BCGF = module.targets(x_BCT)
    assert (stretch_BCJF.shape, epoch_BCGF.shape) == ((60, 2, 15, 12), (60, 2, 3, 12))
    for target, axes in ((stretch_BCJF, (0, 2)), (epoch_BCGF, (0,))):
        mean, sd = target.mean(dim=axes), target.std(dim=axes, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-3)
        torch.testing.assert_close(sd, torch.ones_like(sd), rtol=0, atol=0.02)


def test_summaries_are_mean_largest_and_least_over_the_stretches():
    envelope_BCJF = torch.tensor([1.0, 4.0, 1.0]).reshape(1, 1, 3, 1)
    assert bands.epoch_summaries(envelope_BCJF)[0, 0, :, 0].tolist() == [2, 4, 1]


def test_absent_channels_are_not_measured_and_a_constant_band_has_the_least_sd():
    x_BCT = torch.randn(8, 3, N_SAMPLES, generator=torch.Generator().manual_seed(0))
    x_BCT[:, 2] = 0.0
    present_BC = torch.ones(8, 3, dtype=torch.bool)
    present_BC[4:, 0] = present_BC[:, 1] = False
    x_BCT[4:, 0] = torch.nan  # whatever stands in an absent channel
    module, of_present = heads(3), heads(3)
    module.measure([(x_BCT, present_BC)])
    of_present.measure([(x_BCT[:4], torch.ones(4, 3, dtype=torch.bool))])
    torch.testing.assert_close(module.mean[0], of_present.mean[0])
    torch.testing.assert_close(module.sd[0], of_present.sd[0])
    assert (module.mean[1] == 0).all()
    assert (module.sd[1] == 1).all()
    assert module.sd[2].numpy() == pytest.approx(LEAST_SD)


def test_an_artefact_is_no_target_beyond_the_largest():
    module = heads(1)
    quiet = torch.randn(4, 1, N_SAMPLES, generator=torch.Generator().manual_seed(0))
    module.measure([(quiet, torch.ones(4, 1, dtype=torch.bool))])
    stretch_BCJF, _ = module.targets(1e6 * quiet)
    assert (stretch_BCJF == bands.LARGEST).all()
