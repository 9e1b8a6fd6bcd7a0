from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from squares import few, history_of, random_squares, short
from torch import Tensor

from saccade.errors import MissingDependencyError, UsageError
from saccade.methods.ltx.model import LTXExplainer
from saccade.methods.train import StepReport, train_explainer
from saccade.methods.training.processes import FabricProcesses, OneProcess, open_processes

PROGRAM = """
import sys
from pathlib import Path
import torch
from squares import few, random_squares, short
from saccade.methods.training.processes import open_processes
from saccade.methods.train import train_explainer

torch.set_num_threads(1)
processes = open_processes("fp32", "cpu", devices=2)
for form in ("shared", "own"):
    out = Path(sys.argv[1]) / form
    config = short(form=form, validate_every=4, patience=9)
    score = lambda explainer: 0.1
    train_explainer(random_squares(), few, config, out, data="squares", validate=score, processes=processes)
print(processes.rank, processes.count)
"""


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make together."""
    pytest.importorskip("lightning_fabric")
    out = tmp_path_factory.mktemp("two")
    program = out / "program.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(program), str(out)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.split("\n"))[1:] == ["0 2", "1 2"]
    return out


@pytest.mark.parametrize("form", ["shared", "own"])
def test_two_processes_train_what_one_trains(of_two: Path, tmp_path: Path, form: str) -> None:
    """The decoder of the shared form has batch norm, whose statistics must be those of all images."""
    config = short(form=form, validate_every=4, patience=9)
    train_explainer(random_squares(), few, config, tmp_path, data="squares", validate=lambda _: 0.1)
    one, two = (load_file(folder / "explainer.safetensors") for folder in (tmp_path, of_two / form))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)
    rows = list(zip(history_of(tmp_path), history_of(of_two / form), strict=True))
    assert len(rows) == 12
    for ours, theirs in rows:
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-5)


def test_one_process_needs_no_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert type(open_processes("bf16", "cpu")) is OneProcess
    train_explainer(random_squares(), few, short(steps=1), tmp_path, data="squares")


def test_several_devices_without_lightning_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"lightning_fabric.*several devices.*pip install 'saccade\[train\]'"
    ):
        open_processes("fp32", "cpu", devices=2)


def test_fp16_on_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp16 needs a GPU and the device is 'cpu'; take bf16"):
        open_processes("fp16", "cpu")
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        train_explainer(random_squares(), few, short(precision="fp16"), tmp_path, data="squares")


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has as many GPUs")
def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--devices 8: there (are|is) \d+ GPU"):
        open_processes("fp32", "cuda", devices=8)


def half_precision(scale: float) -> FabricProcesses:
    """fp16 as on a GPU, slowly: the same precision plugin with a scaler for the processor."""
    fabric = pytest.importorskip("lightning_fabric")
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    return FabricProcesses(fabric.Fabric(accelerator="cpu", devices=1, plugins=plugin))


def test_a_step_whose_scaled_gradients_overflow_is_left_out_and_the_next_scale_is_half(tmp_path: Path) -> None:
    weights: list[Tensor] = []
    processes = half_precision(2.0**40)
    scales: list[float] = []

    def on_step(_: StepReport, explainer: LTXExplainer) -> None:
        weights.append(explainer.network.read.weight.detach().clone())
        scales.append(processes.state()["scale"])

    config = short(precision="fp16", steps=40)
    train_explainer(random_squares(), few, config, tmp_path, data="squares", processes=processes, on_step=on_step)
    assert scales[:2] == [2.0**39, 2.0**38]
    steps = [(scales[place] == scales[place - 1], place) for place in range(1, 40)]
    assert {kept for kept, _ in steps} == {True, False}
    for kept, place in steps:
        assert kept != torch.equal(weights[place], weights[place - 1])
    totals = [row["total"] for row in history_of(tmp_path)]
    assert sum(totals[-5:]) < sum(totals[:5])


def test_the_scale_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saccade.methods.train.SAVE_EVERY", 5)
    config = short(precision="fp16")

    def run(name: str, processes: FabricProcesses, stop: int = 0) -> None:
        def on_step(report: StepReport, _: LTXExplainer) -> None:
            if report.step == stop:
                raise KeyboardInterrupt

        out = tmp_path / name
        train_explainer(
            *(random_squares(), few, config, out), data="squares", resume=True, processes=processes, on_step=on_step
        )

    run("whole", half_precision(2.0**40))
    with pytest.raises(KeyboardInterrupt):
        run("parts", half_precision(2.0**40), stop=7)
    run("parts", half_precision(1.0))
    assert history_of(tmp_path / "parts") == history_of(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "explainer.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


def test_more_processes_than_images_are_refused(tmp_path: Path) -> None:
    processes = OneProcess("cpu")
    processes.count = 9
    with pytest.raises(UsageError, match="9 processes cannot share a batch of 8"):
        train_explainer(random_squares(), few, short(), tmp_path, data="squares", processes=processes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_fp16_trains_on_a_gpu_and_resumes_with_its_scale(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    explainee = random_squares()
    explainee.model.cuda()
    train_explainer(explainee, few, short(precision="fp16"), tmp_path, data="squares")
    rows = history_of(tmp_path)
    assert rows[-1]["total"] < rows[0]["total"]
    assert torch.load(tmp_path / "training_state.pt", weights_only=True)["processes"]["scale"] > 0
