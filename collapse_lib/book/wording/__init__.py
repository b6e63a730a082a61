"""What pages say: tables and sentences as Markdown, each true of the numbers that it is made from. ``figures`` draws; this is the text beside it."""

# ruff: noqa: F401

from collapse_lib.book.wording.alpha import attaining_by_generation, attaining_tokens, errors_in_words
from collapse_lib.book.wording.claims import claims_table, limits_of_ours, verdicts_in_words
from collapse_lib.book.wording.classification import fine_tunings, generations_compared, task_scores
from collapse_lib.book.wording.exact import judged_stories
from collapse_lib.book.wording.judged import controls_table, judge_verdict, table_a2
from collapse_lib.book.wording.literature import literature
from collapse_lib.book.wording.missing import unclassified, uncompared, undone, ungraded, unmeasured
from collapse_lib.book.wording.paper import beside_paper, page_opening, paper_figure, table_a1
from collapse_lib.book.wording.pipeline import definitions_compared, shares_of_the_rise
from collapse_lib.book.wording.texture import early_warnings, fates
from collapse_lib.book.wording.twins import twins_in_words, twins_setup
