"""Numbers of a model while it trains."""

from common.seeds import generator

import torch


@torch.no_grad()
def score_errors(learned, exact, x0, *condition, seed, bins=8):
    """The error of a score by t: E|eps_theta - eps*|^2 / D in the middle of each of `bins` ranges.

    learned and exact: models with eps(x, t, *condition), of which exact is the closed form, so the
    best possible value is 0; where there is none (None), the noise itself takes its place, and the
    result is the loss of a network that predicts eps.  x0: held-out data.  Returns the mean and the
    bins, for a line of the log.
    """
    eps = torch.randn(x0.shape, generator=generator(seed, 2**40))
    errors = {}
    for i in range(bins):
        t = (i + 0.5) / bins
        _, alpha, sigma = learned.schedule.at(t)
        x = alpha * x0 + sigma * eps
        best = exact.eps(x, t, *condition) if exact else eps
        errors[f"{t:.2f}"] = float((learned.eps(x, t, *condition) - best).square().mean())
    return {"score_error": sum(errors.values()) / bins, "bins": errors}
