"""How much of a token its context decides, for a model on the text that it wrote itself.

With X a token of the text, C what stands before it and p( . | C) the model's law, of which X was drawn (at temperature 1 without truncation),

    I(X; C) = H(X) - E H(p( . | C)),

the entropy of the tokens' frequencies less the mean entropy of the laws: in nats a token, and as a share of H(X). A collapse that *dissolves* a text
raises the second entropy towards the first; one that *fixates* it lowers the second towards nothing.

H(X) is the plug-in estimate with Miller and Madow's correction, (types - 1) / 2N. For the errors each token counts with its influence on the
estimate, -ln f(x) - H for the first entropy, and rows are the units drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.estimates import Metric, measured, ratio_of_sums


def context_information(tokens: Sequence[np.ndarray], entropies: Sequence[np.ndarray]) -> dict[str, Metric]:
    """Metrics of a generation's own text: of each row the ``tokens`` [T] (integers), and the ``entropies`` [T] in nats of the laws behind them.

    Any learner's; for the network ``token_scores.token_losses_and_entropies`` gives the entropies, of a row's tokens but its first. Compare samples
    of equal size only. Raises ``UserError`` for no token.
    """
    if [len(row) for row in tokens] != [len(row) for row in entropies] or not sum(map(len, tokens)):
        raise UserError("Context information needs tokens, at least one, and the entropy of the law of each of them.")
    counts = np.bincount(np.concatenate(tokens))
    total, types = int(counts.sum()), int((counts > 0).sum())
    with np.errstate(divide="ignore"):
        surprise = -np.log(counts / total)
    lengths = np.array([len(row) for row in tokens])
    unigram, conditional = np.array([surprise[row].sum() for row in tokens]), np.array([row.sum() for row in entropies])
    correction = (types - 1) / (2 * total)
    (plain, plain_error), (information, information_error) = ratio_of_sums(unigram, lengths), ratio_of_sums(unigram - conditional, lengths)
    decided_error = ratio_of_sums(unigram - conditional, unigram)[1] if plain else None
    corrected, known = plain + correction, information + correction
    sample = {"tokens": total, "types": types}
    return {
        "unigram_entropy": measured(
            (corrected, plain_error), "nats", "entropy of the frequencies of the tokens, with Miller and Madow's correction", **sample
        ),
        "conditional_entropy": measured(ratio_of_sums(conditional, lengths), "nats", "mean entropy of the model's next-token law on its own text"),
        "context_information": measured((known, information_error), "nats", "unigram entropy less conditional entropy"),
        "context_share": measured((known / corrected if corrected else 0.0, decided_error), "1", "context information as a share of unigram entropy"),
    }
