"""Real processes: a recipe that is interrupted, and ranks that die under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssl_fast.train.checkpoint import Checkpoints
from tests.train.children import differing, wait_for

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "pretrain.py"
TINY = ["run=tiny", "data.num_train=320", "data.num_val=160", "data.num_test=160", "data.workers=0"]
TINY += ["backbone.width=8", 'backbone.depth="1,1,1,1"', "train.batch_size=32", "train.log_every=1"]
TINY += ["train.precision=fp32", "train.checkpoint_steps=3", "train.epochs=3", "method.view.size=32"]
STEPS = 30
PATIENCE = 5.0  # seconds from a signal to the end of the process
Process = subprocess.Popen[str]


@pytest.fixture
def launch() -> Iterator[Callable[..., Process]]:
    """launch(folder, ranks=0, restarts=0) starts the recipe, with ranks under torchrun; all end with the test."""
    started: list[Process] = []

    def start(folder: Path, ranks: int = 0, restarts: int = 0) -> Process:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        torchrun += [f"--max-restarts={restarts}", "--monitor-interval=0.2"]
        command = [sys.executable, *(torchrun if ranks else []), str(RECIPE), *TINY]
        # Without the variable a restarted gloo rank finds the dead one's addresses in the store that torchrun shares.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        folder.mkdir(exist_ok=True)
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True, process_group=0)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def finish(process: Process, code: int = 0) -> tuple[list[str], str]:
    out, err = process.communicate(timeout=150)
    assert process.returncode == code, err
    return out.splitlines(), err


def stage(folder: Path) -> Path:
    return folder / "runs" / "tiny" / "pretrain"


def reached(folder: Path, step: int) -> Callable[[], bool]:
    path = stage(folder) / "metrics.jsonl"
    return lambda: path.exists() and path.read_bytes().count(b'"loss"') >= step


def status(folder: Path) -> dict:
    return json.loads((stage(folder) / "stage.json").read_text())


def final_state(folder: Path) -> dict:
    found = Checkpoints(stage(folder) / "checkpoints").load()
    assert found is not None
    return {key: value for key, value in found[0].items() if key != "seconds"}


def test_a_recipe_stops_on_sigterm_and_resumes(tmp_path: Path, launch):
    process = launch(tmp_path)
    wait_for(reached(tmp_path, 4))
    sent = time.monotonic()
    process.terminate()
    out, err = finish(process, 143)
    assert time.monotonic() - sent < PATIENCE
    assert out == [] and "Traceback" not in err
    assert (status(tmp_path)["status"], status(tmp_path)["reason"]) == ("interrupted", "SIGTERM")
    interrupted = final_state(tmp_path)["step"]
    assert 4 <= interrupted < STEPS
    out, err = finish(launch(tmp_path))
    assert f"at step {interrupted}" in err
    result = json.loads(out[-1])
    assert result == json.loads((stage(tmp_path) / "result.json").read_text()) and result["steps"] == STEPS


@pytest.mark.nightly
def test_torchrun_goes_on_when_a_rank_is_killed(tmp_path: Path, launch):
    """At the first restart, with the weights of the run in which nobody died."""
    clean, hit = tmp_path / "clean", tmp_path / "hit"
    finish(launch(clean, ranks=2))
    process = launch(hit, ranks=2, restarts=3)
    wait_for(reached(hit, 8))
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    killed = time.monotonic()
    _, err = finish(process)
    assert time.monotonic() - killed < 60
    assert err.count("resumed from step_") == 1
    assert list(differing(final_state(hit), final_state(clean))) == []


@pytest.mark.nightly
def test_torchrun_passes_sigterm_on_and_the_stage_holds_the_truth(tmp_path: Path, launch):
    process = launch(tmp_path, ranks=2)
    wait_for(reached(tmp_path, 4))
    process.terminate()
    process.communicate(timeout=60)  # torchrun's own exit code says nothing of the ranks'
    assert (status(tmp_path)["status"], status(tmp_path)["reason"]) == ("interrupted", "SIGTERM")
    assert final_state(tmp_path)["step"] < STEPS
    finish(launch(tmp_path, ranks=2))
    assert status(tmp_path)["status"] == "finished"
