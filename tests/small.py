"""Small networks, runs that write nowhere, and another schedule, for the tests of the main job."""

import math
from pathlib import Path

import vp_sde
from common.runs import Run
from vp_sde import VP, UNet

import torch

CPU = torch.device("cpu")


class Cosine(VP):
    """What somebody does who copies vp_sde.py: another B, and nothing else."""

    def B(self, t):
        return -2 * torch.log(torch.cos(0.495 * math.pi * t))


def run_of(config, out=Path()):
    """A Run of a config, on the CPU, in float32 unless it says bf16."""
    if config.precision == "auto":
        config.precision = "float32"
    return Run(config, config, None, None, out, device=CPU, out=out)


def small_unet(schedule):
    """The network of vp_sde.py with fewer channels, to take the place of vp_sde.UNet."""
    return UNet(schedule, widths=(16, 16, 16), d_emb=64)


def lively_unet(schedule=None):
    """A network of which every weight matters; a fresh one is zero at its end."""
    torch.manual_seed(0)
    net = UNet(schedule or VP(), widths=(8, 8, 8), d_emb=32).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net.requires_grad_(False)


def oracle_config(**settings):
    """Few small crystals by the exact denoiser."""
    usual = dict(oracle=True, cfg=1.0, img_size=32, n=4, steps=20)
    return vp_sde.Config(**(usual | settings))
