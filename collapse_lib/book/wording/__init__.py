"""What pages say: tables and sentences as Markdown, each true of the numbers that it is made from. ``figures`` draws; this is the text beside it."""

from collapse_lib.book.wording.alpha import attaining_by_generation, attaining_tokens, errors_in_words
from collapse_lib.book.wording.classification import fine_tunings, generations_compared, task_scores
from collapse_lib.book.wording.judged import controls_table, judge_verdict, table_a2
from collapse_lib.book.wording.missing import unclassified, uncompared, ungraded, unmeasured
from collapse_lib.book.wording.paper import beside_paper, page_opening, paper_figure, table_a1
from collapse_lib.book.wording.pipeline import definitions_compared, shares_of_the_rise
from collapse_lib.book.wording.twins import twins_in_words, twins_setup

__all__ = [
    "attaining_by_generation",
    "attaining_tokens",
    "beside_paper",
    "controls_table",
    "definitions_compared",
    "errors_in_words",
    "fine_tunings",
    "generations_compared",
    "judge_verdict",
    "page_opening",
    "paper_figure",
    "shares_of_the_rise",
    "table_a1",
    "table_a2",
    "task_scores",
    "twins_in_words",
    "twins_setup",
    "unclassified",
    "uncompared",
    "ungraded",
    "unmeasured",
]
