"""The same pipeline on real stories, where they are at hand."""

import pytest
from command import collapse

from .test_smoke import measured


@pytest.mark.slow
def test_smoke_on_real_tinystories(real_data, tmp_path):
    changes = [f"corpus.source={real_data / 'tinystories'}", "corpus.stories=400", "corpus.validation_stories=20"]
    arguments = [part for change in changes for part in ("--set", change)]
    done = collapse("run", "smoke", "--name", "real", "--generations", "1", *arguments, runs=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = measured(tmp_path / "real")
    initial = found["generation-00/metrics/corpus.json"]["metrics"]
    assert initial["train_stories"]["value"] + initial["holdout_stories"]["value"] == 400
    assert initial["validation_stories"]["value"] == 20
    assert 1 < found["generation-01/metrics/perplexity.json"]["metrics"]["perplexity"]["value"] < 512
