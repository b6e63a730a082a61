"""The steps of a generation, as the notebooks call them: ``from collapse_lib import steps; steps.train(run, 1)``."""

from collapse_lib.steps.alpha import alpha
from collapse_lib.steps.classification import classification
from collapse_lib.steps.completions import completions
from collapse_lib.steps.compose import compose
from collapse_lib.steps.continuations import continuations
from collapse_lib.steps.corpus import corpus
from collapse_lib.steps.exact import exact
from collapse_lib.steps.free_text import free_text
from collapse_lib.steps.gpt_eval import gpt_eval
from collapse_lib.steps.perplexity import perplexity
from collapse_lib.steps.sample import sample
from collapse_lib.steps.texture import texture
from collapse_lib.steps.train import train

__all__ = [
    "alpha",
    "classification",
    "completions",
    "compose",
    "continuations",
    "corpus",
    "exact",
    "free_text",
    "gpt_eval",
    "perplexity",
    "sample",
    "texture",
    "train",
]
