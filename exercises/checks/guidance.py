"""Exercise 7, classifier-free guidance."""

from exercises.checks.measure import Mistake, compare, finite, numbers

import numpy as np

T = 0.37


def response(answer, w, u, c):
    """The answer where the network predicts u without and c with the condition."""
    x = np.array([[0.3, -1.2], [2.0, 0.7]])
    asked = []

    def eps(x_asked, t, condition):
        if np.shape(x_asked) != x.shape or np.abs(np.subtract(x_asked, x)).max() > 1e-4:
            raise Mistake("eps is asked at another x: both predictions are at the x of the sampler")
        if np.size(t) != 1 or abs(float(np.reshape(t, ())) - T) > 1e-6:
            raise Mistake(f"eps is asked at t = {t} where t = {T} is given")
        asked.append(condition)
        return np.full(x.shape, u if condition is None else c)

    found = numbers(answer(eps, x, T, "a crystal", w), x.shape, "the noise")
    return finite(found, "the noise", "eps_u + w (eps_c - eps_u)")[0, 0], asked


def guided_eps(answer):
    weights = np.array([0.0, 0.4, 1.0, 1.7, 3.0])
    by_c = np.array([response(answer, w, 0.0, 1.0)[0] for w in weights])
    by_u = np.array([response(answer, w, 1.0, 0.0)[0] for w in weights])
    _, asked = response(answer, 1.7, 0.0, 1.0)
    if None not in asked:
        raise Mistake("eps is never asked with None: eps_u is its prediction without a condition")
    if not any(condition is not None for condition in asked):
        raise Mistake("eps is never asked with the condition")

    other = "w = 0 gives the conditional prediction, so w + 1 stands for w: the other convention"
    suspects = [
        ((weights + 1, -weights), other),
        ((1 - weights, weights), "eps_u and eps_c are exchanged: w = 0 gives the conditional one"),
        ((-weights, weights + 1), "the sign is wrong: guidance goes from eps_u towards eps_c"),
        ((weights, -weights), "eps_u is missing in front: at w = 0 nothing is left"),
        ((weights, np.ones(5)), "the difference is missing: eps_u + w (eps_c - eps_u)"),
        ((weights - 1, 2 - weights), "w - 1 stands for w: w = 1 gives the unconditional one"),
    ]
    hint = "eps_u + w (eps_c - eps_u)"
    names = [f"at w = {w:g} the factor of {part}" for part in ("eps_c", "eps_u") for w in weights]
    found = np.stack([by_c, by_u])
    suspects = [(np.stack(value), why) for value, why in suspects]
    compare(names, found, np.stack([weights, 1 - weights]), suspects, hint)

    # The prediction may be any array, and the answer is linear in it.
    mixed, _ = response(answer, 1.7, -0.8, 2.3)
    compare("at w = 1.7 the answer", mixed, -0.8 + 1.7 * (2.3 + 0.8), [], hint)
    return f"{by_c[0] + 0:g} at w = 0 and {by_c[2]:g} at w = 1, where eps_u is 0 and eps_c is 1"
