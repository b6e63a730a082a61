"""Three fates of a count model that errs: which one, by its error eps and its N_x, and how both are estimated on real models.

The chain is that of ``repeated_error``: N tokens a generation, an error eps of uniform law, from the law p_0 at one context. Two numbers, in closed
form:

- **diversity**, E H_n / H_0: the probability that two draws differ, against the truth's;
- **memory**, 2 E<p_n - u, p_0 - u> / (E|p_n - u|^2 + |p_0 - u|^2): Lin's concordance of generation n's probabilities with the initial law's over the
  vocabulary, expectations taken in numerator and denominator. 1 for p_n = p_0; 0 once the mean law is u.

A chain is **remembering** while its memory is at least one half; otherwise it is **fixating** if its diversity is below the truth's and
**dissolving** if it is not. The line between these two is the same in every generation: ``repeated_error.balance_tokens``, about N = H_0 / (2 eps
(s_0 - 1/K)).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapse_lib.experiment.errors import UserError
from collapse_lib.theory.proof import Array, heterozygosity
from collapse_lib.theory.repeated_error import uniform_homozygosity

TOY_LAW = np.append([0.4, 0.3, 0.2, 0.1], np.zeros(996))  # four successors, as in chapters 4 and 5, in a vocabulary of a thousand
REMEMBERING, FIXATING, DISSOLVING = FATES = ("remembering", "fixating", "dissolving")
LEAST_MEMORY = 0.5


class Position(NamedTuple):
    """Where chains stand: each field has the broadcast shape of ``error`` and ``tokens``."""

    diversity: Array
    memory: Array
    fate: NDArray[np.str_]


def place(error: ArrayLike, tokens: ArrayLike, law: ArrayLike = TOY_LAW, generations: int = 40) -> Position:
    """The position in the phase diagram of chains with eps = ``error`` and N_x = ``tokens`` (infinite ones allowed) after ``generations``."""
    error, tokens, law = np.asarray(error, float), np.asarray(tokens, float), np.asarray(law, float)
    if np.any((error < 0) | (error > 1)) or np.any(tokens < 1):
        raise UserError("The diagram has an error between 0 and 1 and at least one token a generation.")
    same = uniform_homozygosity(law, tokens, error, generations)
    diversity = (1 - same) / heterozygosity(law)
    first, last = law @ law - 1 / law.size, same - 1 / law.size
    memory = 2 * (1 - error) ** generations * first / (first + last)
    fate = np.where(memory >= LEAST_MEMORY, REMEMBERING, np.where(diversity < 1, FIXATING, DISSOLVING))
    return Position(diversity, memory, fate)


# Estimates from the laws of real models at fixed contexts, arrays [contexts, vocabulary].


def unseen_error(laws: ArrayLike, counts: ArrayLike, law: ArrayLike | None = None) -> Array:
    """eps at each context, [contexts], from what a model puts on tokens that never followed there: their probability over u's.

    ``laws`` are p_hat(. | x), ``counts`` the N_{x;v} of the corpus that the model learned from, ``law`` the error's u [K] (None: uniform). Exact if
    p_hat = (1 - eps) N_{x;v} / N_x + eps u. For a model that knows more than its counts it is an *upper* bound: some of what it puts there is
    language that the corpus happened not to show, about ``missing_mass`` of it. NaN where every token of u was seen.
    """
    laws, unseen = np.asarray(laws, float), np.asarray(counts) == 0
    expected = np.where(unseen, 1 / laws.shape[-1] if law is None else np.asarray(law, float), 0.0).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(unseen, laws, 0.0).sum(axis=-1) / expected


def missing_mass(counts: ArrayLike) -> Array:
    """Good and Turing's estimate of the probability, at each context [contexts], of tokens not in the corpus: singletons over N_x."""
    counts = np.asarray(counts)
    return (counts == 1).sum(axis=-1) / counts.sum(axis=-1)


class Step(NamedTuple):
    """What one generation did: how far it was drawn to u, and of how many tokens its noise is."""

    error: float
    tokens: float


def estimate_step(previous: ArrayLike, current: ArrayLike, law: ArrayLike | None = None) -> Step:
    """eps and N from the laws of two neighbouring generations at the same contexts, [contexts, K] each; no counts are needed.

    Assumed: E[p_{n+1} - u | p_n] = (1 - eps)(p_n - u) at every context, one eps for all, and the noise around it that of N independent tokens, times
    1 - eps. Then 1 - sum <p_{n+1} - u, p_n - u> / sum |p_n - u|^2 is unbiased for eps, and N = (1 - eps)^2 sum H(p_n) / sum |p_{n+1} - E p_{n+1}|^2
    is the number of tokens that would make a count model wander as far. A model that shares what it learns among contexts has an N above its N_x; one
    that errs differently at each context has one below, for a bias of each context's own passes for noise. ``law`` None is a uniform u.
    """
    previous, current = np.asarray(previous, float), np.asarray(current, float)
    law = np.full(previous.shape[-1], 1 / previous.shape[-1]) if law is None else np.asarray(law, float)
    before, after = previous - law, current - law
    strength = np.square(before).sum()
    if strength == 0:
        raise UserError("An error cannot be estimated where every law is already the error's own.")
    kept = float((before * after).sum() / strength)
    noise = float(np.square(after - kept * before).sum())
    return Step(1 - kept, float(kept**2 * heterozygosity(previous).sum() / noise) if noise else np.inf)
