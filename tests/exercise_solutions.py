"""The exercises, filled in with the lectures: each adapter only changes the face of what stands there."""

from types import SimpleNamespace

import reference_gmm_sde as reference
import vp_sde
from common.distances import mmd2_unbiased
from dddm import energy_score as energy_score_of_dddm
from latent_prior import ddim as ddim_of_latent_prior
from vae import kl_nats, reparameterise

import numpy as np
import torch


def alpha_sigma(t, beta_min, beta_max):
    return reference.VPSchedule(beta_min, beta_max).alpha_sigma(t)


def mixture_score(x, alpha, sigma, weights, means, stds):
    schedule = SimpleNamespace(alpha_sigma=lambda t: (alpha, sigma))
    covs = stds[:, None, None] ** 2 * np.eye(means.shape[1])
    return reference.GaussianMixture(weights, means, covs, schedule).score(x, 0.5)


def reverse_sde(score, x, times, beta, noise):
    *_, (_, x) = reference.euler_maruyama(score, x, times, SimpleNamespace(beta=beta), noise)
    return x


def heun(score, x, times, beta):
    *_, (_, x) = reference.heun(score, x, times, SimpleNamespace(beta=beta))
    return x


class Logarithms:
    """log abar of any time, which the chain of latent_prior.py has in a table."""

    def __init__(self, alpha_sigma):
        self.alpha_sigma = alpha_sigma

    def __getitem__(self, t):
        return 2 * np.log(self.alpha_sigma(t)[0])


def ddim(eps, x, times, alpha_sigma):
    schedule = SimpleNamespace(at=lambda t: (None, *alpha_sigma(t)), log_abar=Logarithms(alpha_sigma))
    for t, z, _ in ddim_of_latent_prior(eps, x, times, schedule):
        if t == times[-1]:
            return z


def dpmpp_2m(eps, x, times, alpha_sigma):
    schedule = SimpleNamespace(at=lambda t: (None, *alpha_sigma(t)))
    for t, z, _ in vp_sde.dpmpp_2m(eps, x, times, schedule):
        if t == times[-1]:
            return z


def guided_eps(eps, x, t, condition, w):
    """Guidance is linear, so what is right for scores is right for eps."""
    unconditional = SimpleNamespace(score=lambda x, t: eps(x, t, None))
    conditional = SimpleNamespace(score=lambda x, t: eps(x, t, condition))
    return reference.guided_score(unconditional, conditional, x, t, w)


def draw_and_kl(mu, log_var, noise):
    mu, log_var, noise = map(torch.from_numpy, (mu, log_var, noise))
    return reparameterise(mu, log_var, noise), kl_nats(mu, log_var).sum(1)


def energy_score(x_0, particles):
    return energy_score_of_dddm(torch.from_numpy(x_0), torch.from_numpy(particles), beta=1, lam=1)


def mmd2(x, y, width):
    return mmd2_unbiased(x, y, width)
