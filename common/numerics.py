"""What floating-point arithmetic asks for and an equation does not mention.

Checks, sums of many Gaussians at many points, and a watch over the integrators.
"""

from collections import deque

import numpy as np

# ------------------------------------------------------------------------ checks of a mixture


def checked_mixture(weights, means, covs):
    """Weights [K], means [K, D] and covariances [K, D, D] as float64.

    Raises ValueError for other shapes, for means that are not finite, and for weights that are
    negative or do not sum to 1.
    """
    w = np.asarray(weights, dtype=np.float64)
    mu = np.asarray(means, dtype=np.float64)
    S = np.asarray(covs, dtype=np.float64)
    fit = mu.ndim == 2 and mu.size > 0 and w.shape == mu.shape[:1]
    if not fit or S.shape != (*mu.shape, mu.shape[1]):
        shapes = f"{w.shape}, {mu.shape}, {S.shape}"
        raise ValueError(f"need weights [K], means [K, D], covs [K, D, D], not {shapes}")
    if not np.isfinite(mu).all():
        raise ValueError("the means must be finite")
    if not ((w >= 0).all() and abs(w.sum() - 1) < 1e-6):
        raise ValueError("the weights must not be negative and must sum to 1")
    return w / w.sum(), mu, S


def diagonalised(covs):
    """Eigenvalues [K, D] and axes [K, D, D] of covariances; axis j of component k: axes[k, :, j].

    Raises ValueError, which names the component, where one is not symmetric positive definite.
    """
    skew = np.abs(covs - covs.transpose(0, 2, 1)).max(axis=(1, 2))
    sound = np.isfinite(covs).all(axis=(1, 2))
    sound &= skew <= 1e-9 * np.abs(covs).max(axis=(1, 2))
    refused = -np.eye(covs.shape[1])  # in the place of what cannot be diagonalised
    values, axes = np.linalg.eigh(np.where(sound[:, None, None], covs, refused))

    bad = np.flatnonzero((values <= 0).any(axis=1))
    if len(bad):
        raise ValueError(f"the covariance of component {bad[0]} is not symmetric positive definite")
    return values, axes


# --------------------------------------------------------------------------- sums of Gaussians


def component_pieces(x, weights, alpha, means, axes, variances, size=256):
    """p(k, x) = w_k N(x; alpha mu_k, C_k) for points x [N, D], in logsumexp form.

    axes [K, D, D] and variances [K, D] are those of C_k.  For pieces of at most `size` points,
    which stay in the processor's cache, yield: rows (a slice), p(k, x) over its largest value
    [K, n], the sum of that over k [n], and log p(x) [n].  Raises ValueError unless x is [N, D].
    """
    K, D = means.shape
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != D:
        raise ValueError(f"points must be [N, {D}], not {list(x.shape)}")
    with np.errstate(divide="ignore"):  # the logarithm of a weight of zero
        log_w = np.log(weights) - 0.5 * np.log(2 * np.pi * variances).sum(axis=1)

    # Whitening x - alpha mu_k is linear in x1 = [x, 1]: log p(k, x) = log_w_k - |x1 W_k|^2.
    x1 = np.concatenate([x, np.ones((len(x), 1))], axis=1)  # [N, D + 1]
    W = axes / np.sqrt(2 * variances)[:, None, :]
    offset = -alpha * np.einsum("kij,ki->kj", W, means)
    W = np.concatenate([W, offset[:, None, :]], axis=1)  # [K, D + 1, D]

    # Multiplied out it is one small matrix product, M times the products of coordinates, but loses
    # digits like (|x| / standard deviation)^2.  Four of 16 may go.
    reach = np.abs(x).max(initial=0) + alpha * np.abs(means).max()
    expand = D * reach**2 < 1e4 * variances.min()
    i, j = np.triu_indices(D + 1)
    M = np.einsum("kad,kbd->kab", W, W)
    M[:, -1, -1] -= log_w
    M = -np.where(i == j, 1, 2) * M[:, i, j]
    flat = W.transpose(2, 0, 1).reshape(-1, D + 1)  # [D K, D + 1]

    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        y = x1[rows].T  # [D + 1, n]
        if expand:
            r = M @ (y[i] * y[j])
        else:
            z = (flat @ y).reshape(D, K, -1)
            r = log_w[:, None] - np.einsum("dkn,dkn->kn", z, z)

        top = r.max(axis=0)
        r -= top  # the largest term becomes exp(0)
        np.exp(r, out=r)
        total = r.sum(axis=0)
        yield rows, r, total, top + np.log(total)


def component_average(x, pieces, constant, matrix):
    """sum_k p(k | x) (constant_k + matrix_k x): [N, D].  pieces: of `component_pieces`."""
    D = constant.shape[1]
    table = np.concatenate([constant, matrix.reshape(-1, D * D)], axis=1).T  # [D + D^2, K]
    out = np.empty(np.shape(x))
    for rows, p, total, _ in pieces:
        mean = table @ p / total
        out[rows] = mean[:D].T
        out[rows] += np.einsum("ijn,nj->ni", mean[D:].reshape(D, D, -1), x[rows])
    return out


# -------------------------------------------------------------------------------- integrators


def watched(trajectory, steps="?"):
    """A trajectory of so many steps, (t, x), (t, x), ..., as it is, until its state blows up.

    Then it raises FloatingPointError, which names the step.
    """
    for i, (t, x) in enumerate(trajectory):
        if not np.abs(x).max(initial=0) < 1e8:  # true for NaN as well
            where = f"step {i} of {steps}, at t = {t:.4g}"
            raise FloatingPointError(
                f"the state blew up in {where}: take more steps, or another grid"
            )
        yield t, x


def last(trajectory):
    """The final x of a trajectory.  Raises FloatingPointError if its state blows up."""
    [(_, x)] = deque(watched(trajectory), maxlen=1)
    return x
