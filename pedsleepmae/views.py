"""Agreement of two views of an epoch: its class tokens, from these channels and from those.

The easiest way to agree is to say the same of every epoch. So what the tokens say must also vary
over epochs, and not all of it alike: invariance, variance and covariance, after Bardes, Ponce and
LeCun 2022 (VICReg, arXiv:2105.04906), here for each channel's class token by itself.

Axes: B batch, C 16 channels, E width of a class token, Z of what is compared.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4  # Z over E: covariances of more numbers than a token holds leave it less to repeat
COVARIANCE_WEIGHT = 0.04  # beside invariance and variance; VICReg's 1 to 25
LEAST_VARIANCE = 1e-4  # the slope of a root of 0 is infinite


class ViewHead(nn.Module):
    """What two views' class tokens are compared by, and how far they are from agreeing."""

    def __init__(self, width: int):
        super().__init__()
        wide = EXPANSION * width
        self.expand = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, wide))

    def forward(self, one_BCE: Tensor, other_BCE: Tensor, present_BC: Tensor) -> Tensor:
        """``error_BC`` float32: squared distance of the views, and how alike the epochs are.

        The second is one number for a channel, from those of the B epochs that have it.
        """
        one_BCZ, other_BCZ = self.expand(one_BCE).float(), self.expand(other_BCE).float()
        apart_BC = (one_BCZ - other_BCZ).square().mean(dim=2)
        return apart_BC + (_likeness(one_BCZ, present_BC) + _likeness(other_BCZ, present_BC)) / 2


def _likeness(z_BCZ: Tensor, present_BC: Tensor) -> Tensor:
    """How far a channel's epochs fall short of a standard deviation of 1 in every number, and what
    these numbers repeat of each other: ``(C,)``."""
    with torch.autocast(z_BCZ.device.type, enabled=False):
        counts_BC1 = present_BC[:, :, None].to(z_BCZ.dtype)
        n_C1 = counts_BC1.sum(dim=0).clamp(min=1)
        centred_BCZ = (z_BCZ - (z_BCZ * counts_BC1).sum(dim=0) / n_C1) * counts_BC1
        centred_CBZ = centred_BCZ.transpose(0, 1)
        covariance_CZZ = centred_CBZ.transpose(1, 2) @ centred_CBZ / n_C1[:, :, None]
        variance_CZ = covariance_CZZ.diagonal(dim1=1, dim2=2)
        short_C = F.relu(1 - (variance_CZ + LEAST_VARIANCE).sqrt()).mean(dim=1)
        repeated_C = covariance_CZZ.square().sum(dim=(1, 2)) - variance_CZ.square().sum(dim=1)
        return short_C + COVARIANCE_WEIGHT * repeated_C / z_BCZ.shape[2]
