"""What a run made opens in other people's programs, and a run begins from papermill's parameters alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command import ROOT
from refusal import refusal

from collapse_lib.experiment.execute import environment
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.experiment.warm_kernel import warm_kernel
from collapse_lib.steps.inputs import open_artefact, open_text


@pytest.fixture
def run(finished_runs, monkeypatch) -> Run:
    monkeypatch.setenv("COLLAPSE_RUNS", str(finished_runs))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Run.open("smoke")


def test_a_model_folder_alone_writes_text_in_a_pipeline(run):
    import torch
    import transformers

    write = transformers.pipeline("text-generation", str(run.generation_folder(2) / "model"), device="cpu")
    torch.manual_seed(0)
    (written,) = write("Tom ran", return_tensors=True)
    tokenizer = open_artefact(run.step(0, "corpus"), "tokenizer")
    prompt = tokenizer.encode("Tom ran")
    tokens = list(written["generated_token_ids"])
    assert tokens[: len(prompt)] == prompt and len(prompt) < len(tokens) <= run.protocol.model.max_position_embeddings
    torch.manual_seed(0)
    assert write("Tom ran")[0]["generated_text"] == tokenizer.decode(tokens).removesuffix("<|endoftext|>")
    config = write.model.generation_config
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)  # the model's own distribution


def test_a_model_folder_alone_scores_text_as_the_run_does(run):
    import torch
    import transformers

    folder = run.generation_folder(1) / "model"
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Mia had a café.", return_tensors="pt").input_ids
    assert ids[0].tolist() == open_artefact(run.step(0, "corpus"), "tokenizer").encode("Mia had a café.")
    assert tokenizer.decode(ids[0]) == "Mia had a café."
    with torch.inference_mode():
        ours = open_artefact(run.step(1, "train"), "model")
        torch.testing.assert_close(model(ids).logits, ours.logits(ours(ids)), atol=1e-4, rtol=1e-4)


def test_a_corpus_opens_with_the_documented_line(run, tmp_path):
    import datasets

    (line,) = [line for line in (ROOT / "book" / "rerun.md").read_text().splitlines() if "datasets.load_dataset" in line]
    folder = "papermill_runs/demo/generation-01/corpus"
    assert folder in line
    program = line.replace(folder, str(run.generation_folder(1) / "corpus")).partition("=")[2]
    datasets.config.HF_DATASETS_CACHE = tmp_path
    opened, corpus = eval(program, {"datasets": datasets}), open_text(run, 1)
    assert opened["input_ids"] == [row.tolist() for row in corpus.iter_rows()]


def begin_with_papermill(tmp_path, *parameters: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", "notebooks/steps/corpus.ipynb", str(tmp_path / "out.ipynb"), *parameters, "-k", "python3"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_papermill_sets_any_field_of_the_protocol(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    changes = "changes: {seed: 2, sampling.temperature: 0.9, corpus: {stories: 60}, training: {learning_rate: 1e-3}}"
    done = begin_with_papermill(tmp_path, "-p", "run", "mine", "-p", "preset", "smoke", "-y", changes)
    assert done.returncode == 0, done.stderr
    wanted = {"seed": "2", "sampling.temperature": "0.9", "corpus.stories": "60", "training.learning_rate": "1e-3"}
    assert Run.open("mine").protocol == load_preset("smoke").with_changes(wanted)
    again = begin_with_papermill(tmp_path, "-p", "run", "mine", "-y", "changes: {seed: 3}")  # of a run that is there
    assert again.returncode != 0 and "Run 'mine' exists with seed = 2, not 3" in again.stderr


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel whose runs folder is not there yet."""
    with environment({"COLLAPSE_RUNS": str(tmp_path_factory.mktemp("none") / "runs")}), warm_kernel() as manager:
        yield manager


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training.batch_sise": 8}, "There is no field 'training.batch_sise'; did you mean training.batch_size."),
        ({"sampling": {"temperature": -1}}, "field 'sampling.temperature' is -1"),
        ("hot", "Changes of a protocol are values by field"),
    ],
)
def test_papermill_is_refused_what_the_command_is_refused(kernel, tmp_path, changes, said):
    parameters = {"run": "mine", "preset": "smoke", "changes": changes}
    sentence = refusal(ROOT / "notebooks" / "steps" / "corpus.ipynb", parameters, kernel, tmp_path)
    assert sentence.replace("The changed protocol: ", "").startswith(said)
    assert not runs_root().exists()
