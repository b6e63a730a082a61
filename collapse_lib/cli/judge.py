"""``collapse judge``: what there is to do about the judge that grades completions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from collapse_lib.cli.arguments import add_run, add_set, assignment, count, port

if TYPE_CHECKING:
    from collapse_lib.experiment.run import Run


def add_commands(commands: Any) -> None:
    judge = commands.add_parser(
        "judge", help="ask what a judge would cost, try it, serve one", description="What there is to do about the judge that grades completions."
    )
    tasks = judge.add_subparsers(required=True, metavar="TASK")

    def add(name: str, words: str, work: Any) -> argparse.ArgumentParser:
        task = tasks.add_parser(name, help=words, description=words)
        add_run(task)
        task.set_defaults(command=work)
        return task

    trying = "try another value, e.g. gpt_eval.judge=MODEL"
    add_set(add("estimate", "how many requests, tokens and how much money grading a run takes; sends nothing", _estimate), trying)
    about_check = "have the judge grade the run's control rows alone: can it tell stories from noise? (paid, and kept for the run)"
    add_set(add("check", about_check, _check), trying)
    add("forget", "drop a run's grades, so that another judge can grade it; completions and paid answers stay", _forget)
    words = "serve a judge on this machine, for those without a key: weights of your choice, or a small and weak model"
    serve = tasks.add_parser("serve", help=words, description=f"{words.capitalize()}. Ctrl-C stops it.")
    about_weights = "a GGUF file, or one on the model hub: owner/repository:file.gguf; default: a weak model, good for trying things out"
    serve.add_argument("--weights", metavar="FILE", default=None, help=about_weights)
    serve.add_argument("--port", type=port, default=8123)
    serve.add_argument("--threads", type=count, default=None, help="default: all cores")
    serve.set_defaults(command=_serve)


def print_estimate(run: Run) -> None:
    """What grading a run would take, a line a generation."""
    from collapse_lib.steps.gpt_eval import estimate

    found = estimate(run)
    for generation, expected in found.items():
        print(f"judge {run.protocol.gpt_eval.judge}, generation {generation:>2}: {expected}", flush=True)
    if not found:
        print(f"judge {run.protocol.gpt_eval.judge}: every generation is graded")
    elif None not in (costs := [expected.cost for expected in found.values()]):
        print(f"judge {run.protocol.gpt_eval.judge}: about {sum(costs):.4f} in all", flush=True)


def _estimate(options: argparse.Namespace) -> None:
    print_estimate(_changed_run(options))


def _check(options: argparse.Namespace) -> None:
    from collapse_lib.steps.gpt_eval import check

    for name, metric in check(_changed_run(options)).items():
        print(f"{name:<30} {metric['value']:>8.3g}  {metric['unit']:<14} {metric['definition']}")


def _forget(options: argparse.Namespace) -> None:
    from collapse_lib.experiment.run import Run
    from collapse_lib.steps.gpt_eval import forget

    run = Run.open(options.run)
    print(f"dropped the grades of {forget(run)} generations of run {run.name}")


def _serve(options: argparse.Namespace) -> None:
    import shlex
    import threading

    from collapse_lib.judge.local_server import local_judge

    with local_judge(options.weights, options.port, threads=options.threads) as judge:
        kind = "A judge" if options.weights else "A WEAK judge, good for trying things out and not for conclusions,"
        print(f"{kind} answers at {judge.url} until Ctrl-C. Elsewhere:\n")
        chosen = shlex.quote(f"gpt_eval.judge={judge.name}")
        print(f"    export OPENAI_BASE_URL={judge.url}")
        print(f"    collapse judge check NAME --set {chosen}  # can it tell stories from noise?\n    collapse run NAME --set {chosen}")
        print("\nA judge that gives everything the same grades may tell more in other words: --set gpt_eval.wording=strict in both.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("\nstopped")


def _changed_run(options: argparse.Namespace) -> Run:
    """A run with some fields changed for this command alone."""
    from collapse_lib.experiment.run import Run

    run = Run.open(options.run)
    return Run(run.folder, run.protocol.with_changes(dict(assignment(text) for text in options.set)))
