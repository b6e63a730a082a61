"""Other works beside what the same questions gave here."""

from __future__ import annotations

import pytest
from pandas import DataFrame

from collapse_lib.book import wording
from collapse_lib.book.wording.literature import WORKS
from collapse_lib.experiment.files import write_json
from collapse_lib.studies.design import read_study
from collapse_lib.studies.results import COLUMNS


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    return tmp_path


def test_every_question_is_a_contrast_of_its_study_or_a_comparison_with_its_control():
    for work in WORKS:
        for name, arm, against in work.asked_here:
            study = read_study(name)
            is_contrast = (arm, against) in [(contrast.arm, contrast.against) for contrast in study.contrasts]
            assert is_contrast or (arm in study.arms and against == study.control_arm)


def test_what_was_not_run_is_said_and_what_was_is_computed(runs):
    table = wording.literature().data
    assert table.count("not run") == len(WORKS) + sum(len({study for study, _, _ in work.asked_here}) for work in WORKS)
    study = read_study("shumailov-2024")
    first_chain = f"{study.name}-replace-1"
    rows = [
        [f"{study.name}-another-1", "another", 1, 1, "train", "parameters", 9000.0, "", None],  # of a model that the question is not about
        [first_chain, "replace", 1, 0, "corpus", "train_tokens", 1000.0, "tokens", None],
        [first_chain, "replace", 1, 1, "train", "parameters", 5000.0, "", None],
    ]
    for arm, level in (("replace", 3.0), ("real-10", 1.0)):
        for seed in study.seeds_of(arm):
            rows += [[f"{study.name}-{arm}-{seed}", arm, seed, n, "exact", "log_excess_loss", level + seed / 10, "", None] for n in range(1, 11)]
    folder = runs / "studies" / study.name
    folder.mkdir(parents=True)
    DataFrame(rows, columns=["run", "arm", "seed", *COLUMNS[1:]]).to_parquet(folder / "numbers.parquet")
    chains = {chain.label: {"generations": 10, "seconds": 1.0, "manifests": ""} for chain in study.chains()}
    head = {"study": study.name, "hash": study.hash}
    write_json(folder / "study.json", head | {"specification": study.model_dump(mode="json"), "chains": chains})
    first = wording.literature().data.splitlines()[2]
    assert "5,000 parameters, 1,000 tokens in the initial corpus, 10 generations |" in first
    assert "2.000 [" in first and ", 5 and 5 chains, **reproduced**" in first
