"""Ten exercises: fill in a function, and a closed form tells you whether it is right.

    python exercises/check.py            all ten
    python exercises/check.py heun       one of them

Replace `raise NotImplementedError` by your own lines.  NumPy is enough.  Time t is 0 for data and 1
for noise, and a sampler steps from t to an earlier s < t:

    x_t = alpha_t x_0 + sigma_t eps
    dx  = [-beta x/2 - beta score] dt + sqrt(beta) dW,   score = -eps / sigma_t

N points of D coordinates are an array [N, D].  score(x, t), eps(x, t), beta(t) and alpha_sigma(t)
are functions that you are given; their t is one number.  times: decreasing, [n + 1], for n steps.
"""

import numpy as np


def alpha_sigma(t, beta_min, beta_max):
    """1. Signal and noise at times t [N], as a pair: alpha [N], sigma [N].

        beta(t) = beta_min + (beta_max - beta_min) t,    B(t) = int_0^t beta
        alpha_t = exp(-B(t) / 2),    sigma_t = sqrt(1 - exp(-B(t)))

    Hint: at t = 1e-14 your sigma should still have all its digits.  NumPy has a function for that.
    """
    raise NotImplementedError


def mixture_score(x, alpha, sigma, weights, means, stds):
    """2. The gradient of log p_t at points x [N, D], where p_t is a mixture of Gaussians: [N, D].

        p_t(x) = sum_k w_k N(x; alpha mu_k, v_k I),    v_k = alpha^2 s_k^2 + sigma^2
        score  = sum_k r_k (alpha mu_k - x) / v_k,     r_k = the share of component k in p_t(x)

    alpha and sigma are numbers; weights w [K], means mu [K, D], stds s [K].

    Hint: far away every density is 0 in a computer.  Work with logarithms, and take the largest off
    before you exponentiate.
    """
    raise NotImplementedError


def reverse_sde(score, x, times, beta, noise):
    """3. The reverse SDE by Euler-Maruyama: from x [N, D] at times[0] to x at times[-1], [N, D].

        dx = [-beta x/2 - beta score(x, t)] dt + sqrt(beta) dW,    dt = s - t < 0

    noise [n, N, D]: standard normals, one for each step.

    Hint: what is the variance of dW over a step of length t - s?
    """
    raise NotImplementedError


def heun(score, x, times, beta):
    """4. The probability flow by Heun: from x [N, D] at times[0] to x at times[-1], [N, D].

        dx/dt = f(x, t) = -beta(t) / 2 (x + score(x, t))
        x_s   = x_t + (s - t) (d1 + d2) / 2

    d1 is the slope where the step begins, d2 the one where Euler's step with d1 arrives.

    Hint: a slope needs a place and a time.  So d2 needs a new place and a new time.
    """
    raise NotImplementedError


def ddim(eps, x, times, alpha_sigma):
    """5. DDIM without noise (eta = 0): from x [N, D] at times[0] to x at times[-1], [N, D].

        x0_hat = (x_t - sigma_t eps(x_t, t)) / alpha_t
        x_s    = alpha_s x0_hat + sigma_s eps(x_t, t)

    alpha_sigma(t) returns the pair alpha_t, sigma_t.  The last time may be 0.

    Hint: it is the forward process to time s, with a guess at x_0 and at eps.
    """
    raise NotImplementedError


def dpmpp_2m(eps, x, times, alpha_sigma):
    """6. DPM-Solver++(2M): from x [N, D] at times[0] to x at times[-1] > 0, [N, D].

        lambda_t = log(alpha_t / sigma_t),    h = lambda_s - lambda_t
        x_s = sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) D
        D   = x0_hat + h / (2 h_before) (x0_hat - x0_before)

    x0_hat as for DDIM, from a call at t; x0_before and h_before are those of the step before.  The
    first step has none: there D = x0_hat.  One call of eps a step.

    Hint: D is x0_hat half a step ahead, on the line through the last two calls.
    """
    raise NotImplementedError


def guided_eps(eps, x, t, condition, w):
    """7. Classifier-free guidance: the noise in x [N, D] with weight w, [N, D].

        eps_u + w (eps_c - eps_u),    so w = 0 is unconditional and w = 1 conditional

    eps(x, t, condition) predicts the noise; eps(x, t, None) does it without a condition.

    Hint: there is another convention, in which w = 0 is conditional.  It is not this one.
    """
    raise NotImplementedError


def draw_and_kl(mu, log_var, noise):
    """8. What a VAE needs of q = N(mu, s^2): a pair, a draw z [N, D] of it and its KL [N] in nats.

        z  = mu + s noise,    log_var = log(s^2)
        KL(q || N(0, I)) = sum over the D latents of (mu^2 + s^2 - 1 - log(s^2)) / 2

    mu, log_var and noise (standard normal) are [N, D].

    Hint: the KL is 0 where mu = 0 and s = 1.
    """
    raise NotImplementedError


def energy_score(x_0, particles):
    """9. How well m particles, draws of a model, fit data x_0 [N, D]: [N], the lower the better.

        1/m sum_j |x_j - x_0|  -  1 / (2 m (m - 1)) sum_{j != k} |x_j - x_k|

    particles x_j: [N, m, D].  |.| is the Euclidean length.

    Hint: m points make m (m - 1) ordered pairs of different ones.
    """
    raise NotImplementedError


def mmd2(x, y, width):
    """10. MMD^2 of two samples x [N, D] and y [M, D] without bias: a number.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)
        k(a, b) = exp(-|a - b|^2 / (2 width^2))

    Hint: k of a point with itself is 1, whatever the data.  It tells nothing, and must not count.
    """
    raise NotImplementedError
