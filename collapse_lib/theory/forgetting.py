"""T19: with positive probabilities and a fixed recipe every corpus is forgotten in the limit, by Doeblin's argument, at a rate that is vacuous.

Assumed are the paper's positivity (section 2.1: no p_hat is zero), its Markov property (section 5.1.1), corpora of a fixed number of tokens over a
fixed vocabulary, so that there are finitely many, and *one* recipe, whose randomness is fresh in every generation. Then corpus c is followed by
corpus c' with a probability K(c -> c') > 0, and for delta = sum_c' min_c K(c -> c') > 0

    ||law of c_n from c - law of c_n from d|| <= (1 - delta)^n        and        I(D; c_n) <= (1 - delta)^n I(D; c_0).

Proof. K = delta nu + (1 - delta) R with the law nu(c') = min_c K(c -> c') / delta and a transition R. So one may toss a coin in every generation,
blind to the corpus: with probability delta the next corpus is drawn from nu, whatever the last one was. Two chains that share the coins and those
draws are one from the first success on; the probability of none in n generations is (1 - delta)^n. And whoever is told the coin B learns no less:
I(D; c_{n+1}) <= I(D; c_{n+1} | B) = (1 - delta) I(D; R's outcome) <= (1 - delta) I(D; c_n), the last by data processing.

What is learned from D once and kept (vocabulary, number of epochs) is part of the recipe: the theorem holds given it, and *it* is never forgotten.

Corpora of a count model are counts, [K]; a set of corpora is [corpora, K], a transition [corpora, corpora].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from collapse_lib.theory.proof import Array, mutual_information


def corpora(vocabulary: int, tokens: int) -> np.ndarray:
    """All corpora of N ``tokens`` over K types as counts, [(N + K - 1) choose (K - 1), K]: the order of the tokens tells a count model nothing."""
    if vocabulary == 1:
        return np.array([[tokens]])
    parts = []
    for first in range(tokens + 1):
        rest = corpora(vocabulary - 1, tokens - first)
        parts.append(np.column_stack([np.full(len(rest), first), rest]))
    return np.concatenate(parts)


def transition(written: ArrayLike, laws: ArrayLike) -> Array:
    """K(c -> c'), [models, corpora]: the probability that each of ``laws`` [models, K] writes each of the corpora ``written`` [corpora, K]."""
    from scipy.special import gammaln, xlogy

    written = np.asarray(written, float)
    ways = gammaln(written.sum(axis=-1) + 1) - gammaln(written + 1).sum(axis=-1)
    return np.exp(ways + xlogy(written, np.asarray(laws, float)[:, None, :]).sum(axis=-1))


def doeblin(matrix: ArrayLike) -> float:
    """delta = sum_c' min_c K(c -> c'): what all corpora agree about, of the next one."""
    return float(np.asarray(matrix, float).min(axis=0).sum())


def counting_doeblin(tokens: int, error: float) -> float:
    """delta of a count model of two tokens that errs uniformly by ``error``, without the matrix: sum_j (N choose j) min(m^j M^(N-j), M^j m^(N-j)).

    m = eps/2 and M = 1 - eps/2 are the two extreme laws: the logarithm of a multinomial probability is concave in the law, so that its least value
    is attained at a corpus of one token only.
    """
    from scipy.stats import binom

    count = np.arange(tokens + 1)
    return float(np.minimum(binom.pmf(count, tokens, error / 2), binom.pmf(count, tokens, 1 - error / 2)).sum())


def log_doeblin_bound(vocabulary: int, tokens: float, error: float) -> float:
    """An upper bound of ln delta for K types and any N: N ln(2 sqrt(ab) + (K - 2) b), a = 1 - eps + eps/K, b = eps/K.

    delta is at most what two rows have in common, sum min <= sum sqrt (Bhattacharyya), here those of two corpora of one token each.
    """
    b = error / vocabulary
    return float(tokens * np.log(2 * np.sqrt((1 - error + b) * b) + (vocabulary - 2) * b))


def eigenvalues(tokens: int, error: float) -> Array:
    """lambda_j = (1 - eps)^j N (N - 1) ... (N - j + 1) / N^j for j = 0 .. N: how fast such a count model *really* forgets, [N + 1].

    Of N tokens drawn from q, E[product of falling factorials of the counts, j in all] = N (N - 1) ... (N - j + 1) times a product of j of the q_i,
    and q = (1 - eps) c / N + eps u. So a polynomial of degree j in the counts becomes one of degree j whose leading part has the factor lambda_j: the
    transition is triangular, for any law u. lambda_j occurs as often as there are monomials of degree j in K - 1 variables. The second largest is
    1 - eps, for any K and N: what is forgotten last is the mean.
    """
    return np.cumprod(np.append(1.0, (1 - error) * (1 - np.arange(tokens) / tokens)))


def information(prior: ArrayLike, matrix: ArrayLike, generations: int) -> Array:
    """I(D; c_n) in nats for n = 0 .. ``generations``, c_0 = D being drawn from ``prior`` [corpora]."""
    prior, matrix = np.asarray(prior, float), np.asarray(matrix, float)
    power, path = np.eye(len(matrix)), []
    for _ in range(generations + 1):
        path.append(mutual_information(prior, power))
        power = power @ matrix
    return np.array(path)
