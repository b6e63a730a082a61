"""A count model that errs: the same error of law u in every generation, beside the drift of sampling (section 2.2's errors, section 4's drift).

Generation n's model is p_n, [K]. It writes N independent tokens with shares X_n / N, and the next model is p_{n+1} = (1 - eps) X_n / N + eps u. With
u uniform this *is* ``proof.drift`` with smoothing a, eps = Ka / (N + Ka). The **homozygosity** s = sum_i p_i^2 is one minus heterozygosity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from collapse_lib.experiment.errors import UserError
from collapse_lib.theory.proof import Array, Generator, entropy, heterozygosity


def blend(p: ArrayLike, error: ArrayLike, law: ArrayLike | None = None) -> Array:
    """(1 - eps) p + eps u along the last axis; ``law`` None is uniform. ``error`` broadcasts against everything but that axis."""
    p, error = np.asarray(p, float), np.asarray(error, float)[..., None]
    if np.any((error < 0) | (error > 1)):
        raise UserError("An error eps is a share of probability, between 0 and 1.")
    return (1 - error) * p + error * (1 / p.shape[-1] if law is None else np.asarray(law, float))


def drift_with_error(
    start: ArrayLike, tokens: int, error: float, generations: int, chains: int, rng: Generator, law: ArrayLike | None = None
) -> Array:
    """Chains of count models that err, [generations + 1, chains, K]; row 0 is the initial corpus."""
    p = np.tile(np.asarray(start, float), (chains, 1))
    history = [p]
    for _ in range(generations):
        p = blend(rng.multinomial(tokens, p) / tokens, error, law)
        history.append(p)
    return np.stack(history)


def expected_homozygosity(start: ArrayLike, tokens: float, error: float, generations: int, law: ArrayLike | None = None) -> Array:
    """E s_n for n = 0 .. ``generations``, exactly, for any law u of the error; infinite ``tokens`` leave the error alone.

    Two of N tokens are the same draw with probability 1/N, so E[|X/N|^2 | p] = (1 - 1/N) s + 1/N, and with a = p . u

        s' = (1 - eps)^2 [(1 - 1/N) s + 1/N] + 2 eps (1 - eps) a + eps^2 u . u,        a' = (1 - eps) a + eps u . u.

    The solution is a constant, a multiple of B^n with B = (1 - eps)^2 (1 - 1/N), and one of (1 - eps)^n: it turns at most once. The last term is
    absent, and E s_n monotone, if p_0 . u = u . u, which a uniform u satisfies for every p_0.
    """
    start = np.asarray(start, float)
    law = np.full(start.shape, 1 / start.size) if law is None else np.asarray(law, float)
    same, overlap, concentration = float(start @ start), float(start @ law), float(law @ law)
    path = [same]
    for _ in range(generations):
        sampled = (1 - 1 / tokens) * same + 1 / tokens
        same = (1 - error) ** 2 * sampled + 2 * error * (1 - error) * overlap + error**2 * concentration
        overlap = (1 - error) * overlap + error * concentration
        path.append(same)
    return np.array(path)


def uniform_homozygosity(start: ArrayLike, tokens: ArrayLike, error: ArrayLike, generations: ArrayLike) -> Array:
    """E s_n for a uniform u in closed form, ``tokens``, ``error`` and ``generations`` broadcast: 1/K + sigma* + B^n (sigma_0 - sigma*).

    sigma = s - 1/K obeys sigma' = B sigma + (1 - eps)^2 (1 - 1/K) / N, which is affine with a factor B in [0, 1) once eps > 0 or N is finite. So
    E s_n moves monotonically to its limit: the *expected heterozygosity* never rises and then falls. Shannon's entropy may (``turning_point``).
    """
    start, tokens = np.asarray(start, float), np.asarray(tokens, float)
    uniform, kept = 1 / start.size, (1 - np.asarray(error, float)) ** 2
    first, factor = start @ start - uniform, kept * (1 - 1 / tokens)
    still = factor >= 1  # neither error nor drift
    limit = np.where(still, first, kept * (1 - uniform) / tokens / np.where(still, 1, 1 - factor))
    return uniform + limit + factor ** np.asarray(generations, float) * (first - limit)


def balance_tokens(start: ArrayLike, error: ArrayLike) -> Array:
    """The N at which drift and a uniform error leave E s_n where it is: N = (1 - eps)^2 H_0 / ([1 - (1 - eps)^2] (s_0 - 1/K)), in any generation.

    From sigma* = sigma_0. For a small error it is 2 N eps = H_0 / (s_0 - 1/K). With fewer tokens diversity falls, with more it rises.
    """
    start = np.asarray(start, float)
    kept = (1 - np.asarray(error, float)) ** 2
    with np.errstate(divide="ignore"):
        return kept * heterozygosity(start) / ((1 - kept) * (start @ start - 1 / start.size))


# Without drift: the segment from p_0 to u, on which p_n stands at 1 - (1 - eps)^n.


def rises_then_falls(start: ArrayLike, law: ArrayLike) -> bool:
    """Whether the entropy rises and then falls on the way from p_0 to u, by an error alone.

    Entropy is concave along the segment; its slopes at the ends are sum (u - p_0)(-ln p_0), to be positive, and sum (u - p_0)(-ln u), to be
    negative. So it does if and only if u on average surprises p_0 more than p_0 itself does, and p_0 surprises u more than u itself. The second
    follows from H(u) <= H(p_0): an error towards a law of *low* entropy, on tokens that were rarer than average.
    """
    start, law = np.asarray(start, float), np.asarray(law, float)
    return bool(_cross_entropy(law, start) > entropy(start) and _cross_entropy(start, law) > entropy(law))


def entropy_ceiling(start: ArrayLike, law: ArrayLike) -> float:
    """ln(e^H(p_0) + e^H(u)), which the entropy of (1 - t) p_0 + t u never exceeds: perplexities add up, at most.

    The mixture's entropy is at most h(t) + (1 - t) H(p_0) + t H(u), h being that of the toss, with equality where p_0 and u have no token in common;
    the maximum over t is at t = e^H(u) / (e^H(p_0) + e^H(u)). So an error alone that ends below its start has raised the entropy by ln 2 at most.
    """
    return float(np.logaddexp(entropy(start), entropy(law)))


def turning_point(path: ArrayLike) -> int | None:
    """The generation of the maximum of ``path`` [generations + 1] if that is neither the first nor the last one."""
    top = int(np.argmax(path))
    return top if 0 < top < len(np.asarray(path)) - 1 else None


def _cross_entropy(p: Array, q: Array) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(-np.sum(p * np.log(q), where=p > 0))
