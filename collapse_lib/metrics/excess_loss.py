"""How far a model's loss lies above the smallest that is possible, where the language's law is known.

Of a story x of the language let q(x) be its probability (``StoryGrammar.log_probability``) and p(x) what the model gives to its tokens one after the
other, '<|endoftext|>' at the end included: the probability that a story of the model is x. Then

    E_q [-ln p(x)] - E_q [-ln q(x)] = KL(q || p),

in nats a *story*, so that neither the floor nor the excess depends on the tokeniser. Both means are taken over the same validation stories: most
of a story's own surprise is common to both and leaves the excess with little noise.

A text can be cut into tokens in many ways, of which p counts the tokeniser's own (the canonical one) alone. What a model gives to the others, whose
text is the same, is counted as lost: KL is that of token sequences, and at most that much larger than that of texts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.estimates import Metric, mean, measured, ratio_of_sums
from collapse_lib.metrics.token_scores import token_losses, with_end

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus


def story_losses(model: GPTNeo, stories: TokenCorpus, max_context: int, batch_tokens: int | None = None) -> np.ndarray:
    """-ln p(x) of each of the ``stories`` (complete rows), '<|endoftext|>' included: float64 [stories]."""
    return np.array([losses.sum() for losses in token_losses(model, with_end(stories), max_context, batch_tokens)])


def excess_loss(losses: ArrayLike, log_probabilities: ArrayLike) -> dict[str, Metric]:
    """Metrics from the ``losses`` -ln p(x) and true ``log_probabilities`` ln q(x) of the same stories, both [stories].

    ``log_excess_loss`` has no value where the excess is not positive, as the sampling of stories may make it for a nearly perfect model.
    Raises ``UserError`` for a story outside the language, against which no loss can be held.
    """
    losses, floors = np.asarray(losses, float), -np.asarray(log_probabilities, float)
    if len(losses) != len(floors) or not len(losses):
        raise UserError(
            f"Excess loss compares stories one by one, at least one; there are {len(losses)} losses and {len(floors)} true probabilities."
        )
    if not np.isfinite(floors).all():
        raise UserError(f"Validation story {int(np.argmin(np.isfinite(floors)))} is outside the grammar; excess loss takes stories that it wrote.")
    excess, error = mean(losses - floors)
    stories = len(losses)
    log_excess = (math.log(excess), error and error / excess) if excess > 0 else (None, None)
    return {
        "story_loss": measured(mean(losses), "nats", "loss of a validation story, '<|endoftext|>' included", stories=stories),
        "story_floor": measured(
            mean(floors), "nats", "-ln of a validation story's true probability: the smallest loss that is possible", stories=stories
        ),
        "excess_loss": measured((excess, error), "nats", "loss of a story above the floor: KL(truth || model) up to the sampling of stories"),
        "excess_share": measured(ratio_of_sums(losses - floors, floors), "1", "excess loss as a share of the floor"),
        "log_excess_loss": measured(log_excess, "ln nats", "natural logarithm of the excess loss of a story"),
    }
