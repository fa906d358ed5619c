"""A run is done once, by whoever is there; a kill or a failure costs no other run."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from stabledllm.errors import UserError
from stabledllm.experiment import run as experiment_run
from stabledllm.experiment import workers
from stabledllm.experiment.board import Board, State, cells
from stabledllm.experiment.claims import attempt, claimant, claimed, failure, finished, forget_failures, is_free
from stabledllm.experiment.run import run_experiment
from stabledllm.runtime.files import write_json
from tests.cli.forked import Forked, command
from tests.cli.runner import assert_refused, in_process
from tests.fakes.study import BASE, quiet, settings


def planned(tmp_path, n: int = 3) -> list:
    run = settings(tmp_path).base
    return [run.model_copy(update={"out": str(tmp_path / f"run-{i}"), "seed": i}) for i in range(n)]


def finish(run) -> None:
    write_json(Path(run.out) / "run.json", {"seed": run.seed})


def _take(runs, log) -> None:
    def train(run):
        with open(log, "a") as file:
            file.write(f"{run.seed}\n")
        time.sleep(0.02)
        finish(run)

    for run in runs:
        attempt(run, train)


@pytest.mark.processes
def test_processes_share_runs_and_none_is_done_twice(tmp_path):
    runs, log = planned(tmp_path, 12), tmp_path / "log"
    context = multiprocessing.get_context("fork")
    takers = [context.Process(target=_take, args=(runs, log)) for _ in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    _take(runs, log)
    assert sorted(int(line) for line in log.read_text().split()) == list(range(12))


def _hold(run) -> None:
    attempt(run, lambda _: time.sleep(60))


@pytest.mark.processes
def test_a_killed_process_leaves_its_run_to_others_at_once(tmp_path):
    (run,) = planned(tmp_path, 1)
    worker = multiprocessing.get_context("fork").Process(target=_hold, args=(run,))
    worker.start()
    while claimant(run) is None:
        time.sleep(0.01)
    assert not is_free(run)
    assert not attempt(run, finish), "another is at it"
    assert claimant(run)["pid"] == worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert claimant(run) is None
    assert is_free(run)
    assert attempt(run, finish)
    assert finished(run)
    assert not attempt(run, lambda _: pytest.fail("a finished run is never repeated"))


def test_a_failure_is_recorded_and_tried_again_when_asked(tmp_path):
    first, second = planned(tmp_path, 2)

    def refuse(run):
        raise UserError("data: expected something else, found this.")

    assert attempt(first, refuse)
    assert failure(first) == "data: expected something else, found this."
    assert not attempt(first, lambda _: pytest.fail("not again in this session"))
    assert attempt(second, lambda _: 1 / 0)
    assert failure(second).startswith("ZeroDivisionError")
    assert "1 / 0" in json.loads((tmp_path / "run-1" / "failed.json").read_text())["details"]
    forget_failures([first, second])
    assert attempt(first, finish)
    assert failure(first) is None


def test_one_runs_failure_stops_no_other_run(tmp_path, monkeypatch):
    def train(run, **_):
        if (run.method, run.seed) == ("mirror", 1):
            raise RuntimeError("out of memory")
        return real(run, **_)

    real = experiment_run.train
    monkeypatch.setattr(experiment_run, "train", train)
    with pytest.raises(
        UserError, match=r"found 1 that failed, the first mirror with seed 1 \(RuntimeError: out of mem"
    ):
        run_experiment(settings(tmp_path), quiet)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["status"] == {"finished": 3, "planned": 4}
    monkeypatch.setattr(experiment_run, "train", real)
    assert run_experiment(settings(tmp_path), quiet)["status"] == {"finished": 4, "planned": 4}


def undisturbed(results: dict) -> dict:
    """What does not depend on time, place or threads."""
    kept = json.loads(json.dumps(results))
    for run in (*kept["runs"], *kept.get("reference_runs", ())):
        run.pop("seconds")
        for metric in run["metrics"].values():
            metric.pop("decoding_stats", None)
    for metric in kept["untuned"]["metrics"].values():
        metric.pop("decoding_stats", None)
    for entry in kept.get("compute_saved", {}).get("metrics", ()):
        for method in entry["methods"]:
            del method["seconds_per_forward"], method["wall_time"]
    kept["config"].pop("out")
    return kept


@pytest.mark.long
@pytest.mark.processes
def test_killed_again_and_again_it_ends_with_the_same_results(tmp_path):
    """SIGKILL of the whole experiment, alone in its first run and with two jobs in later ones, then once to the end."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"base": BASE | {"steps": 6, "save_every": 2}, "methods": ["standard", "ppots"]}))
    small = ["base.ppots.rows=4", "base.ppots.rates=4", "base.ppots.masks=2", "base.ppots.starts=2", "seeds=[1,2]"]
    small.append("standard_at=[1.5]")

    def run(out: str, *more: str) -> Forked:
        forks = lambda: setattr(workers, "START", "fork")  # noqa: E731, in place of two new interpreters
        return command("experiment", str(recipe), *small, f"out={out}", *more, cwd=tmp_path, before=forks)

    def reached(pattern: str, count: int) -> Callable[[], bool]:
        return lambda: len(list((tmp_path / "cut" / "runs").glob(pattern))) >= count

    whole = run("whole").ended()
    assert whole.returncode == 0, whole.stderr[-2000:]
    for jobs, found in ((), reached("*/*/checkpoint-2", 1)), (("--jobs", "2"), reached("*/*/checkpoint-4", 2)):
        process = run("cut", *jobs)
        process.until(found)
        process.kill()
    finished_runs = list((tmp_path / "cut" / "runs").glob("*/*/run.json"))
    assert len(finished_runs) < 4, "killed before it finished"
    last = run("cut").ended()
    assert last.returncode == 0, last.stderr[-2000:]
    found = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut")]
    assert undisturbed(found[0]) == undisturbed(found[1])
    assert [run["steps"] for run in found[1]["reference_runs"]] == [9, 9]


def test_the_board_shows_every_run(tmp_path):
    runs = planned(tmp_path, 60)
    for run in runs[:10]:
        finish(run)
    attempt(runs[10], lambda _: 1 / 0)
    said: list[str] = []
    with claimed(tmp_path / "run-11") as mine:
        assert mine
        figures = {"step": 30, "steps": 40, "loss": 0.123, "first_step": 10, "started": 1000.0, "updated": 1040.0}
        write_json(tmp_path / "run-11" / "progress.json", figures)
        board = Board(runs, said.append, Console(width=100, height=30, force_terminal=True, record=True))
        board.live = None
        states = board.update()
        running = State.of(runs[11])
        assert (running.kind, running.step, running.seconds_left) == ("running", 30, 20.0)
        assert cells(running) == ("standard, seed 11", "running", "30/40", "0.123", "00:00:20")
        board.console.print(board.table(states))
    lines = board.console.export_text().splitlines()
    assert lines[0].strip() == "10 of 60 runs finished"
    assert any("seed 11" in line and "30/40" in line for line in lines)
    assert any(re.search(r"seed 10 .*failed: ZeroDivisionError", line) for line in lines)
    assert any("and 38 more" in line for line in lines)
    assert len(lines) <= 30
    assert all(len(line) <= 100 for line in lines)
    assert "standard, seed 11: running" in said
    (time_of_all,) = [line for line in said if line.startswith("about ")]
    assert "to train 49 runs of 40 steps" in time_of_all
    assert len(said) == 12 + 1, "one line for each run that is not waiting, and one for the time of all"
    board.update()
    assert len(said) == 14, "and one when a run's state changes: the claim was given back"


def _die_at(run) -> None:
    attempt(run, lambda _: os._exit(9))


@pytest.mark.processes
def test_a_worker_that_dies_fails_its_run_only_and_one_that_never_starts_ends_the_experiment(tmp_path, monkeypatch):
    runs = planned(tmp_path, 3)
    context = multiprocessing.get_context("fork")
    started = []

    def start(planned, slot, threads, devices):
        left = next(run for run in planned if not finished(run) and failure(run) is None and is_free(run))
        target = _die_at if not started else _take_one
        started.append(left)
        worker = context.Process(target=target, args=(left,))
        worker.start()
        return worker

    monkeypatch.setattr(workers, "_start", start)
    board = Board(runs, quiet, Console(force_terminal=False))
    workers.train_all(runs, 1, board)
    assert failure(runs[0]) == "its process ended with exit code 9"
    assert finished(runs[1])
    assert finished(runs[2])

    def stillborn(*_):
        worker = context.Process(target=os._exit, args=(3,))
        worker.start()
        return worker

    monkeypatch.setattr(workers, "_start", stillborn)
    with pytest.raises(UserError, match="ended with exit code 3 before it took a run"):
        workers.train_all(planned(tmp_path / "more", 2), 1, Board(planned(tmp_path / "more", 2), quiet, Console()))


def _take_one(run) -> None:
    attempt(run, finish)


def test_devices_are_given_one_to_each_job(tmp_path):
    assert_refused(in_process("experiment", "quickstart", "--devices", "0,,1", cwd=tmp_path), "--devices such as 0,1,2")
