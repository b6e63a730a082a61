"""T20 and T21: text that accumulates, with the error of every generation, and with a fixed budget (the advice of section 4).

Block 0 is the real corpus, block n what generation n wrote, N tokens each. U_n, [K], are the shares of all blocks up to n: generation n + 1 learns
from them, errs by eps of law u (``repeated_error.blend``) and writes the next block. So E[U_n - u] = (1 - eps / (n + 1)) E[U_{n-1} - u].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from collapse_lib.experiment.errors import UserError
from collapse_lib.theory.proof import Array, Generator
from collapse_lib.theory.repeated_error import blend


def kept_of_union(error: float, generations: ArrayLike) -> Array:
    """The share of p_0 - u that the union keeps, E U_n - u = (that) (p_0 - u): prod_{k=2}^{n+1} (1 - eps/k) = G(n + 2 - eps) / (G(2 - eps) G(n + 2)).

    G is Euler's gamma function. By Stirling's formula it falls like n^-eps / G(2 - eps): sum 1/k diverges. A fixed budget changes nothing about it,
    for a subsample has the union's mean.
    """
    from scipy.special import gamma, poch

    return 1 / (gamma(2 - error) * poch(np.asarray(generations, float) + 2 - error, error))


def kept_of_mix(error: float, share: float, generations: ArrayLike = np.inf) -> Array:
    """The same for a corpus of which a share r is always drawn afresh from p_0: E c_n - u = (that) (p_0 - u).

    c_{n+1} = r p_0 + (1 - r) [(1 - eps) c_n + eps u], so with f = (1 - r)(1 - eps) the limit is r / (1 - f), i.e. the corpus stays at
    eps (1 - r) / (1 - f) of the way from p_0 to u, and generation n at r / (1 - f) + f^n [1 - r / (1 - f)].
    """
    factor = (1 - share) * (1 - error)
    limit = share / (1 - factor)
    return limit + (1 - limit) * factor ** np.asarray(generations, float)


def overtaking(error: float, share: float) -> float:
    """The first generation in which an accumulating union keeps less of p_0 - u than a corpus with a persistent real share r (``kept_of_mix``).

    The order then never changes again: both keep 1 at n = 0, and in generation n they lose the parts eps / (n + 1) and g_n of what is left. As
    ln(g_n (n + 1) / eps) is concave in n, 0 at n = 0 and falls without bound, the union loses less for a while (if r < 1/2) and more for ever after.
    Found by doubling and halving; infinite if later than 10^15. Raises ``UserError`` where error or share is not inside (0, 1).
    """
    if not (0 < error < 1 and 0 < share < 1):
        raise UserError("Accumulating is overtaken only where both the error and the real share lie between 0 and 1.")
    low, high = 0, 1
    while kept_of_union(error, high) >= kept_of_mix(error, share, high):
        low, high = high, 2 * high
        if high > 1e15:
            return np.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kept_of_union(error, middle) >= kept_of_mix(error, share, middle) else (low, middle)
    return high


def union_homozygosity(start: ArrayLike, tokens: float, error: float, generations: int, law: ArrayLike | None = None) -> Array:
    """E sum_i U_{n,i}^2 for n = 0 .. : noise and bias of accumulation in one recursion; eps = 0 is T14, infinite ``tokens`` T20.

    With q = (1 - eps) U + eps u and k = n + 1, U' = U + (X/N - U) / k has the mean m = U + eps (u - U) / k and the variance (1 - |q|^2) / (N k^2).
    All of it is quadratic in U, so that s = E|U|^2 and a = E U . u suffice.
    """
    start = np.asarray(start, float)
    law = np.full(start.shape, 1 / start.size) if law is None else np.asarray(law, float)
    same, overlap, concentration = float(start @ start), float(start @ law), float(law @ law)

    def blended(weight: float) -> float:  # E|(1 - weight) U + weight u|^2
        return (1 - weight) ** 2 * same + 2 * weight * (1 - weight) * overlap + weight**2 * concentration

    path = [same]
    for k in range(2, generations + 2):
        same, overlap = blended(error / k) + (1 - blended(error)) / (tokens * k**2), overlap + (concentration - overlap) * error / k
        path.append(same)
    return np.array(path)


def kept_subsampling(tokens: float, generations: int) -> Array:
    """E H(U_n) / H_0 for n = 0 .. at a fixed budget without error: generation n learns from N tokens drawn from the union without replacement.

    Of two different places among the union's M = kN tokens, the types differ with probability H(U) M / (M - 1); those are the pairs of a subsample,
    so that E H(subsample) = (1 - 1/N) H(U) M / (M - 1). The next block, N draws *with* replacement, has (1 - 1/N) of that. Its mean is U, it enters
    with weight 1 / (k + 1), and what H loses is its variance over (k + 1)^2:

        E H(U') / H(U) = 1 - [1 - (1 - 1/N)^2 kN / (kN - 1)] / (k + 1)^2,        k = 1, 2, ...

    About 1 - (pi^2/2 - 4) / N = 1 - 0.93 / N is kept for ever, where accumulating everything keeps 1 - 0.64 / N.
    """
    k = np.arange(1.0, generations + 1)
    union = k * tokens
    variance = 1 - (1 - 1 / tokens) ** 2 * union / (union - 1)
    return np.append(1.0, np.exp(np.cumsum(np.log1p(-variance / (k + 1) ** 2))))


# Simulations.


def accumulate(start: ArrayLike, tokens: int, error: float, generations: int, chains: int, rng: Generator, law: ArrayLike | None = None) -> Array:
    """Shares of the union, [generations + 1, chains, K]: ``proof.drift_accumulating`` with an error."""
    union = np.tile(np.asarray(start, float), (chains, 1))
    history = [union]
    for k in range(2, generations + 2):
        union = union + (rng.multinomial(tokens, blend(union, error, law)) / tokens - union) / k
        history.append(union)
    return np.stack(history)


def accumulate_subsample(corpus: ArrayLike, error: float, generations: int, chains: int, rng: Generator) -> Array:
    """Shares of the union, [generations + 1, chains, K], from a ``corpus`` of N counted tokens [K]; each generation learns from N of the union."""
    corpus = np.asarray(corpus, np.int64)
    tokens, counts = int(corpus.sum()), np.tile(corpus, (chains, 1))
    history = [counts / tokens]
    for k in range(2, generations + 2):
        learned = blend(_without_replacement(counts, tokens, rng) / tokens, error)
        counts = counts + rng.multinomial(tokens, learned)
        history.append(counts / (k * tokens))
    return np.stack(history)


def _without_replacement(counts: np.ndarray, size: int, rng: Generator) -> np.ndarray:
    """Counts of ``size`` tokens drawn from each row of ``counts`` [chains, K]: one type after the other, numpy's own takes a single row."""
    left, remaining = np.full(len(counts), size), counts.sum(axis=1)
    taken = np.zeros_like(counts)
    for token in range(counts.shape[1]):
        remaining = remaining - counts[:, token]
        taken[:, token] = rng.hypergeometric(counts[:, token], remaining, left)
        left = left - taken[:, token]
    return taken
