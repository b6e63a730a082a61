"""How generation 1 sees what its successors write: the histogram of perplexities of Shumailov et al. (2024).

If the bulk of the samples grows more probable under the first model the text sharpens; if ever more samples lie where the first model hardly ever
wrote, an improbable tail grows. Both can happen at once, and a mean would show neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.estimates import measured, quantile, share

EDGES = np.linspace(0.0, 12.0, 121)  # of ln perplexity, nats a token: from certain to beyond a uniform law over 2^16 tokens
LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def likelihood_histogram(losses: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> dict[str, Any]:
    """The samples of a generation by their perplexity under generation 1.

    ``losses`` are generation 1's losses [T] in nats at the tokens of each sample, ``reference`` those at samples of generation 1 itself; samples
    should be of one length, for the mean over fewer tokens spreads more. Samples without a token are left out.

    Returns ``counts`` [bins] of samples with a mean loss between neighbouring ``EDGES`` (the last bin takes what is beyond), ``quantiles`` of the
    mean loss by level, and two shares: of samples above 99% of the reference's mean losses (``above_reference``, the improbable tail) and below half
    of them (``below_reference``), 0.01 and 0.5 as long as nothing changes. Errors are over samples; the reference is taken as known.
    """
    means, known = (np.array([row.mean() for row in rows if len(row)]) for rows in (losses, reference))
    if not len(means) or not len(known):
        raise UserError("A histogram needs samples with a token in them, of the generation and of generation 1.")
    high, middle = np.quantile(known, (0.99, 0.5))
    return {
        "edges": EDGES.tolist(),
        "counts": np.histogram(np.minimum(means, EDGES[-1]), EDGES)[0].tolist(),
        "quantiles": {
            f"{level:g}": measured(quantile(means, level), "nats", f"{level:.0%} quantile of the mean loss of a sample under generation 1")
            for level in LEVELS
        },
        "above_reference": measured(
            share(means > high), "1", "share of samples less probable to generation 1 than 99% of its own", samples=len(means)
        ),
        "below_reference": measured(share(means < middle), "1", "share of samples more probable to generation 1 than half of its own"),
    }
