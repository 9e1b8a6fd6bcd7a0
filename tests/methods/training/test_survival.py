from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from squares import few, history_of, random_squares, short, states_equal

from saccade.errors import ModelError, OutputError, UsageError
from saccade.methods import checkpoint as checkpoint_module
from saccade.methods import train as train_module
from saccade.methods.checkpoint import load_training_state, read_record, save_samples
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.model import LTXExplainer
from saccade.methods.train import train_explainer
from saccade.methods.training.processes import OneProcess

FILES = {"checkpoint.json", "explainer.safetensors", "history.jsonl", "training_state.pt"}


@pytest.fixture(autouse=True)
def _save_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "SAVE_EVERY", 4)


def train(out: Path, config: LTXConfig | None = None, *, resume: bool = False) -> LTXExplainer:
    return train_explainer(random_squares(), few, config or short(), out, data="squares", resume=resume)


def assert_one_step(folder: Path) -> int:
    """Record, weights and training state are of the same step; returns it."""
    step = read_record(folder).step
    state = load_training_state(folder)
    assert state is not None
    assert state["course"]["step"] == step == len(state["course"]["history"])
    weights = load_file(checkpoint_module._current(folder, "explainer.safetensors"))
    assert weights.keys() == state["network"].keys()
    assert all(torch.equal(weights[name], value) for name, value in state["network"].items())
    return step


# ---- killed

PROGRAM = """
import sys
from pathlib import Path
import torch
from squares import few, random_squares, short
from saccade.methods import train

torch.set_num_threads(1)
train.SAVE_EVERY = 1  # so that most of the time is spent in saving
score = lambda explainer: float(explainer.network.read.bias)
config = short(steps=150, validate_every=7, patience=100)
print("ready", flush=True)
train.train_explainer(random_squares(), few, config, Path(sys.argv[1]), data="squares", resume=True, validate=score)
"""


def start(out: Path) -> subprocess.Popen[str]:
    """A training in a process of its own, about to begin."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(out)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_training_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with start(whole) as undisturbed:
        began = time.monotonic()
        assert undisturbed.wait() == 0
    seconds = time.monotonic() - began

    rng = np.random.default_rng()
    steps = [0]
    for _ in range(4):
        with start(parts) as process:
            while process.poll() is None and not (parts / "checkpoint.json").exists():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, seconds / 4))
            process.send_signal(signal.SIGKILL)
        steps.append(assert_one_step_or_best(parts))
    assert steps == sorted(steps)
    with start(parts) as last:
        assert last.wait() == 0
    assert history_of(parts) == history_of(whole)
    assert len(history_of(whole)) == 150
    for name in ("explainer.safetensors", "checkpoint.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def assert_one_step_or_best(folder: Path) -> int:
    """As `assert_one_step`, where the weights are the best ones once there are some."""
    state = load_training_state(folder)
    assert state is not None
    course = state["course"]
    assert read_record(folder).step == course["step"] == len(course["history"])
    assert read_record(folder).best_step == course["best_step"]
    used = course["best_network"] or state["network"]
    weights = load_file(checkpoint_module._current(folder, "explainer.safetensors"))
    assert all(torch.equal(weights[name], value) for name, value in used.items())
    step: int = course["step"]
    return step


class Killed(BaseException):
    """The process ends here: nothing of ours is run any more."""


@pytest.mark.parametrize("before", range(12))
def test_between_any_two_operations_on_the_disk_the_folder_holds_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """The second save ends before its n-th write, mark, rename or removal; nothing after it happens."""
    whole = train(tmp_path / "whole")
    operations = 0
    dead = False

    def counted(operation: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            nonlocal operations, dead
            saves = (tmp_path / "parts" / "history.jsonl").exists()
            if dead or (saves and operations == before):
                dead = True
                raise Killed
            operations += saves
            return operation(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "_write_whole", counted(checkpoint_module._write_whole))
        patch.setattr(Path, "touch", counted(Path.touch))
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        with pytest.raises(Killed):
            train(tmp_path / "parts")
    assert assert_one_step(tmp_path / "parts") in (4, 8)
    resumed = train(tmp_path / "parts", resume=True)
    assert states_equal(resumed.network, whole.network)
    assert history_of(tmp_path / "parts") == history_of(tmp_path / "whole")
    assert {file.name for file in (tmp_path / "parts").iterdir()} == FILES


# ---- a full disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_full_disk_keeps_the_last_checkpoint_whichever_file_does_not_fit(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"

    def fill(report: train_module.StepReport, _: LTXExplainer) -> None:
        if report.step == 5:
            (run / f".new-{name}").symlink_to("/dev/full")

    with pytest.raises(OutputError, match=r"cannot write the checkpoint '.*run': .*(space|write|fail)"):
        train_explainer(random_squares(), few, short(), run, data="squares", on_step=fill)
    assert assert_one_step(run) == 4
    assert {file.name for file in run.iterdir()} == FILES
    resumed = train(run, resume=True)
    assert_one_step(run)
    assert states_equal(resumed.network, train(tmp_path / "whole").network)


def test_samples_that_do_not_fit_leave_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_samples(tmp_path, few(0))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = (tmp_path / "samples.npz").read_bytes()
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OutputError, match="No space left on device"):
        save_samples(tmp_path, few(1))
    assert (tmp_path / "samples.npz").read_bytes() == before


# ---- damage


@pytest.mark.parametrize("content", [b"", b"no state", None])
def test_a_damaged_training_state_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    train(tmp_path)
    file = tmp_path / "training_state.pt"
    file.write_bytes(file.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(ModelError, match=r"training_state.pt' is damaged and cannot be resumed: .*; .*--out") as caught:
        train(tmp_path, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["course", "network", "optimizer", "processes", "made_of"])
def test_a_training_state_that_lacks_something_is_damaged(tmp_path: Path, key: str) -> None:
    train(tmp_path)
    state = load_training_state(tmp_path)
    assert state is not None
    del state[key]
    torch.save(state, tmp_path / "training_state.pt")
    with pytest.raises(ModelError, match=rf"is damaged and cannot be resumed: .*{key}"):
        train(tmp_path, resume=True)


def test_a_result_without_its_training_is_not_resumed_and_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "training_state.pt").unlink()
    with pytest.raises(UsageError, match="holds no training state"):
        train(tmp_path, resume=True)
    with pytest.raises(UsageError, match="already holds a training"):
        train(tmp_path)


def test_resuming_on_other_images_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(UsageError, match="was trained on other images, squares;"):
        train_explainer(random_squares(), few, short(), tmp_path, data="circles", resume=True)


def test_resuming_in_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    class Two(OneProcess):
        count = 2

    train(tmp_path)
    processes = Two("cpu")
    with pytest.raises(UsageError, match="was trained in 1 process; resume with as many devices"):
        train_explainer(random_squares(), few, short(), tmp_path, data="squares", resume=True, processes=processes)
