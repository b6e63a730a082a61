"""The book's figures: functions of what runs measured, each giving a ``Picture`` (matplotlib) or an ``Interactive`` (Plotly).

from collapse_lib import figures
from collapse_lib.studies import results

figures.figure_1(results.load("demo")).save("figure_1.svg")
"""

# ruff: noqa: F401

from collapse_lib.figures.alpha import accumulated_errors, accumulated_errors_interactive, initial_weights, memory, sampling_drift
from collapse_lib.figures.any_metric import metric_by_generation
from collapse_lib.figures.classification import figure_4, figure_4_interactive
from collapse_lib.figures.exact import (
    excess_loss,
    excess_loss_interactive,
    legality,
    legality_interactive,
    loss_by_probability,
    loss_by_probability_interactive,
    still_told,
    word_survival,
)
from collapse_lib.figures.generations import perplexity_so_far, training_and_perplexity
from collapse_lib.figures.judged import figure_3, figure_3_interactive
from collapse_lib.figures.paper import figure_1, figure_1_interactive, figure_2, figure_2_interactive, loss_curve
from collapse_lib.figures.pipeline import definitions, definitions_interactive, loss_by_position, loss_by_position_interactive, story_ends
from collapse_lib.figures.schematic import figure_a1
from collapse_lib.figures.speed import ratios
from collapse_lib.figures.style import Interactive, Picture
from collapse_lib.figures.texture import likelihoods, texture_measures, texture_measures_interactive
from collapse_lib.figures.theory import Curve, draw, turn
from collapse_lib.figures.twins import twin_distances, twin_distances_interactive
