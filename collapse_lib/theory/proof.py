"""Section 2 of the paper in numbers, and the exact results around it: plain functions on numpy arrays.

Everything is about the next token at *one* context x, as in the paper. A distribution is an array [K] over the vocabulary; a **chain** is an
array [generations + 1, K] whose row n is p_n, row 0 being the initial corpus. N is N_x, how often the context occurs. Logarithms are natural.

What grows with the generations is kept as a logarithm: y[n] of equation (2) overflows float64 once the divergences add up to 709.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError

Array = NDArray[np.float64]
Generator = np.random.Generator


# Distances between distributions. The last axis is the vocabulary; the others broadcast.


def divergence(p: ArrayLike, q: ArrayLike) -> Array:
    """Renyi's divergence of order infinity, D_inf(p || q) = ln max_i p_i / q_i, in nats; infinite where q_i = 0 < p_i for some i."""
    p, q = np.broadcast_arrays(np.asarray(p, float), np.asarray(q, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.max(np.log(p) - np.log(q), axis=-1, where=p > 0, initial=-np.inf)


def relative_entropy(p: ArrayLike, q: ArrayLike) -> Array:
    """Kullback and Leibler's divergence KL(p || q) = sum_i p_i ln p_i / q_i, in nats."""
    p, q = np.broadcast_arrays(np.asarray(p, float), np.asarray(q, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sum(p * (np.log(p) - np.log(q)), axis=-1, where=p > 0)


def total_variation(p: ArrayLike, q: ArrayLike) -> Array:
    """Half the sum of absolute differences: the largest difference in the probability of any event."""
    return np.abs(np.asarray(p, float) - np.asarray(q, float)).sum(axis=-1) / 2


def entropy(p: ArrayLike) -> Array:
    """Shannon's entropy in nats."""
    p = np.asarray(p, float)
    return -np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p)), axis=-1)


def heterozygosity(p: ArrayLike) -> Array:
    """1 - sum_i p_i^2, the probability that two draws differ: the population geneticist's measure of diversity."""
    return 1 - np.square(np.asarray(p, float)).sum(axis=-1)


# Section 2.1: one generation.


def minimal_error(counts: ArrayLike, model: ArrayLike) -> tuple[float, Array]:
    """Remark 1's smallest alpha_x and the alpha_{x;v} [K] that belong to it, so that equation (1) holds.

    ``counts`` [K] are the N_{x;v}; ``model`` [K] is p_hat. Both may be scaled: y_i[n-1] for counts gives equation (2)'s errors.
    Raises ``UserError`` where the model rules out a token that was counted: no finite error exists then.
    """
    counts, model = np.asarray(counts, float), np.asarray(model, float)
    if np.any((counts > 0) & (model <= 0)):
        raise UserError("Proposition 1 needs a model that gives every token of the corpus a probability above zero.")
    seen, total = counts > 0, counts.sum()
    alpha = float(np.max((counts[seen] - model[seen] * total) / model[seen]))
    return alpha, model * (total + alpha) - counts


def log_surplus(counts: ArrayLike, model: ArrayLike) -> float:
    """ln(1 + alpha*_x / N_x) by Remark 1; it equals ``divergence(counts / N, model)``."""
    return float(np.log1p(minimal_error(counts, model)[0] / np.sum(counts)))


# Sections 2.2 and 2.3: many generations, each with its minimal error.


def step_divergences(chain: ArrayLike) -> Array:
    """D_inf(p_{j-1} || p_j) for j = 1 .. n: the minimal error of each generation, ln(1 + alpha*[j] / y[j-1])."""
    chain = np.asarray(chain, float)
    return divergence(chain[:-1], chain[1:])


def log_weights(chain: ArrayLike) -> Array:
    """ln w_n for n = 0 .. : w_n = N / (N + sum_j alpha*[j]) is the initial corpus' share in equation (3) with minimal errors."""
    return np.concatenate([[0.0], -np.cumsum(step_divergences(chain))])


def log_memory(chain: ArrayLike) -> Array:
    """ln w*_n for n = 0 .. : the largest share of p_0 that p_n can contain, min_i p_{n,i} / p_{0,i} = exp(-D_inf(p_0 || p_n))."""
    chain = np.asarray(chain, float)
    return -divergence(chain[0], chain)


def log_totals(chain: ArrayLike, tokens: float) -> Array:
    """ln y[n] for n = 0 .. , y[0] = N = ``tokens`` and y[n] = y[n-1] + alpha*[n], the choice that makes equation (3) true."""
    return np.log(tokens) - log_weights(chain)


def log_errors(chain: ArrayLike, tokens: float) -> Array:
    """ln alpha*[j] for j = 1 .. n; minus infinity for a perfect copy."""
    with np.errstate(divide="ignore"):
        return log_totals(chain, tokens)[:-1] + np.log(np.expm1(step_divergences(chain)))


def relative_errors(chain: ArrayLike) -> Array:
    """alpha_i[j] / y[j] for j = 1 .. n, [n, K]: the part of p_j that is not a scaled copy of p_{j-1}; never overflows."""
    chain = np.asarray(chain, float)
    return chain[1:] - np.exp(-step_divergences(chain))[:, None] * chain[:-1]


def solution(chain: ArrayLike) -> Array:
    """Every p_n rebuilt by equation (3) from p_0 and the errors alone, [n + 1, K].

    Numerator and denominator are divided by y[n], so that terms have the weights y[j] / y[n] <= 1.
    """
    chain = np.asarray(chain, float)
    weights = log_weights(chain)
    parts = np.concatenate([chain[:1], relative_errors(chain)])
    shares = np.exp(np.minimum(weights[:, None] - weights[None, :], 0.0))  # y[j] / y[n] = w_n / w_j
    return np.tril(shares) @ parts


# Section 2.3.1 and 2.3.2: small chains that show what divergence and convergence of the errors do and do not say.


def alternating(generations: int, first: ArrayLike = (1 / 2, 1 / 2), second: ArrayLike = (1 / 4, 3 / 4)) -> Array:
    """p_n = ``first`` in even and ``second`` in odd generations: for ever wrong, and back at the start every other time."""
    return np.array([(first, second)[n % 2] for n in range(generations + 1)], float)


def closing_in(generations: int) -> Array:
    """p_0 = (1/2, 1/2) and p_n = (1/2 + (-1)^n / 4n, 1/2 - (-1)^n / 4n): converges to p_0, and yet its errors diverge."""
    n = np.arange(1, generations + 1)
    off = np.concatenate([[0.0], (-1.0) ** n / (4 * n)])
    return np.stack([0.5 + off, 0.5 - off], axis=1)


def towards_uniform(start: ArrayLike, generations: int, share: float = 0.5) -> Array:
    """p_n = (1 - share) p_{n-1} + share u: the errors converge, and p_0 is forgotten."""
    start = np.asarray(start, float)
    left = (1 - share) ** np.arange(generations + 1)[:, None]
    return left * start + (1 - left) / start.size


def sparse_terms(count: int) -> Array:
    """a_1 .. a_count with a_j = 1/j where j is a square and 1/j^2 elsewhere: a convergent series that is not o(1/j)."""
    j = np.arange(1, count + 1, dtype=float)
    return np.where(np.sqrt(j) % 1 == 0, 1 / j, 1 / j**2)


# Section 4's genetic drift: a model that only counts, trained on N tokens that its predecessor drew.


def drift(start: ArrayLike, tokens: int, generations: int, chains: int, rng: Generator, smoothing: float = 0.0) -> Array:
    """Chains of count models, [generations + 1, chains, K]: draw ``tokens`` tokens, add ``smoothing`` to every count, normalise, go on."""
    p = np.tile(np.asarray(start, float), (chains, 1))
    history = [p]
    for _ in range(generations):
        counts = rng.multinomial(tokens, p) + smoothing
        p = counts / counts.sum(axis=1, keepdims=True)
        history.append(p)
    return np.stack(history)


def kept_heterozygosity(tokens: float, generations: ArrayLike) -> Array:
    """E H_n / H_0 = (1 - 1/N)^n of ``drift``."""
    return np.exp(np.asarray(generations, float) * np.log1p(-1 / tokens))


def drift_variance(p: ArrayLike, tokens: float, generations: ArrayLike) -> Array:
    """Var p_n = p (1 - p) (1 - (1 - 1/N)^n) of a token that began at ``p``; its mean stays at ``p``."""
    p = np.asarray(p, float)
    return -p * (1 - p) * np.expm1(np.asarray(generations, float) * np.log1p(-1 / tokens))


def fixation_time(p: ArrayLike, tokens: int) -> Array:
    """Kimura's diffusion approximation: of two tokens, one is lost after about -2N [p ln p + (1 - p) ln(1 - p)] generations."""
    p = np.asarray(p, float)
    return 2 * tokens * entropy(np.stack([p, 1 - p], axis=-1))


def resampling_matrix(tokens: int, mutation: float = 0.0) -> Array:
    """P(X_{n+1} = j | X_n = i) for the count X of one of two tokens, [N + 1, N + 1]; each draw flips with probability ``mutation``."""
    from scipy.stats import binom

    share = np.arange(tokens + 1) / tokens
    share = share * (1 - mutation) + (1 - share) * mutation
    return binom.pmf(np.arange(tokens + 1)[None, :], tokens, share[:, None])


def exact_fixation_times(tokens: int) -> Array:
    """Mean number of generations until one of two tokens is lost, by the other's count at the start, [N + 1]: (I - Q) t = 1."""
    inner = resampling_matrix(tokens)[1:-1, 1:-1]
    times = np.zeros(tokens + 1)
    times[1:-1] = np.linalg.solve(np.eye(tokens - 1) - inner, np.ones(tokens - 1))
    return times


def mutual_information(prior: ArrayLike, transition: ArrayLike) -> float:
    """I(X; Y) in nats, of X ~ ``prior`` [states] and Y | X by the rows of ``transition`` [states, outcomes]."""
    prior, transition = np.asarray(prior, float), np.asarray(transition, float)
    return float(entropy(prior @ transition) - prior @ entropy(transition))


def extinction(generations: int) -> Array:
    """q_0 .. q_n, the probability that the descendants of one occurrence are gone: q_{k+1} = exp(q_k - 1), the Poisson limit of large N."""
    q = np.zeros(generations + 1)
    for k in range(generations):
        q[k + 1] = np.exp(q[k] - 1)
    return q


def median_loss(count: int) -> int:
    """The first generation by which a token that occurred ``count`` times is more likely lost than not: q_k^count >= 1/2."""
    q, k = 0.0, 0
    while count * np.log(max(q, 1e-300)) < -np.log(2):
        q, k = np.exp(q - 1), k + 1
    return k


def expected_survivors(tokens: float) -> float:
    """How many of N tokens that each occurred once are drawn again: N (1 - (1 - 1/N)^N)."""
    return float(-tokens * np.expm1(tokens * np.log1p(-1 / tokens)))


def entropy_loss(vocabulary: int, tokens: float) -> float:
    """About (K - 1) / 2N nats: how much lower the entropy of N drawn tokens is than that of the distribution they came from."""
    return (vocabulary - 1) / (2 * tokens)


# Section 4's ways out.


def refit_gaussian(samples: int, generations: int, chains: int, rng: Generator) -> tuple[Array, Array]:
    """Means and variances, each [generations + 1, chains], of a Gaussian (at first 0, 1) refitted by maximum likelihood to its own samples."""
    means, variances = np.zeros((generations + 1, chains)), np.ones((generations + 1, chains))
    for n in range(generations):
        drawn = rng.normal(means[n], np.sqrt(variances[n]), (samples, chains))
        means[n + 1], variances[n + 1] = drawn.mean(axis=0), drawn.var(axis=0)
    return means, variances


def drift_accumulating(start: ArrayLike, tokens: int, generations: int, chains: int, rng: Generator) -> Array:
    """As ``drift``, but nothing is thrown away: generation n learns from the real block of N tokens and n synthetic ones."""
    p = np.tile(np.asarray(start, float), (chains, 1))
    history = [p]
    for blocks in range(2, generations + 2):
        p = p + (rng.multinomial(tokens, p) / tokens - p) / blocks
        history.append(p)
    return np.stack(history)


def kept_accumulating(tokens: float, generations: int | None = None) -> float:
    """E H_n / H_0 of ``drift_accumulating``: prod_{k=2}^{n+1} (1 - 1/(N k^2)); for ever (None), sin(x)/x / (1 - 1/N) with x = pi / sqrt N."""
    if generations is None:
        return float(np.sinc(1 / np.sqrt(tokens)) / (1 - 1 / tokens))  # numpy's sinc has the pi inside
    return float(np.exp(np.log1p(-1 / (tokens * np.arange(2.0, generations + 2) ** 2)).sum()))


def drift_mixing(start: ArrayLike, tokens: int, real: int, generations: int, chains: int, rng: Generator) -> Array:
    """As ``drift``, but ``real`` of each generation's ``tokens`` tokens are drawn afresh from ``start``."""
    start = np.asarray(start, float)
    p = np.tile(start, (chains, 1))
    history = [p]
    for _ in range(generations):
        p = (rng.multinomial(real, start, chains) + rng.multinomial(tokens - real, p)) / tokens
        history.append(p)
    return np.stack(history)


def kept_mixing(tokens: float, share: ArrayLike, generations: ArrayLike = np.inf) -> Array:
    """E H_n / H_0 of ``drift_mixing`` with a real share r.

    H_{n+1} = [r(2 - r) - r/N] H_0 + [(1 - r)^2 - (1 - r)/N] H_n, hence the limit r(2 - r - 1/N) / (r(2 - r) + (1 - r)/N) for r > 0.
    """
    r = np.asarray(share, float)
    factor = (1 - r) ** 2 - (1 - r) / tokens
    limit = r * (2 - r - 1 / tokens) / (1 - factor)
    return limit + (1 - limit) * factor ** np.asarray(generations, float)


def smoothing_factor(tokens: float, vocabulary: int, smoothing: float) -> float:
    """l = N / (N + K a): with ``smoothing`` a, E p_n - u = l^n (p_0 - u), u being the uniform distribution."""
    return tokens / (tokens + vocabulary * smoothing)


def sharpen(p: ArrayLike, temperature: float, generations: int = 1) -> Array:
    """Perfect copies sampled at a temperature: p_n is proportional to p_0 to the power T^-n."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(p, float)) * float(temperature) ** -generations
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
