"""Training by several processes, and the commands: gradients are means, failures are told by all, gaps are filled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command import environment, run
from conftest import ROOT
from tiny_models import tiny_model
from training_runs import NAME, checkpoint, data, dataset_of, make_data, small_model, start, steps_logged, weights_of

import fpg_zoo
from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.loader import train_loader
from fpg_zoo.evaluation.detect import evaluate
from fpg_zoo.training import Criterion
from fpg_zoo.training.recipes import RECIPES
from fpg_zoo.training.run_checkpoints import newest_state

pytestmark = pytest.mark.usefixtures("one_thread")


# Several processes

GRADIENTS = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from training_runs import checkpoint, data, NAME, dataset_of, small_model
from fpg_zoo.data.loader import train_loader
from fpg_zoo.training import Criterion
from fpg_zoo.distributed import process_group
from fpg_zoo.training.recipes import RECIPES

torch.set_num_threads(1)
with process_group(torch.device("cpu")) as processes:
    model = small_model().eval()  # BatchNorm in eval mode: nothing but the batch decides the gradients
    criterion = DistributedDataParallel(Criterion(model, sample_all=True), broadcast_buffers=False)
    loader = train_loader(
        dataset_of(Path(sys.argv[2])), RECIPES["scratch"].augment(model.config), model.config.preprocess,
        batch_size=1, seed=0, rank=processes.rank, world_size=processes.world_size,
    )
    batch = next(loader)
    losses = criterion(batch.images, batch.sizes, batch.targets)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {key: one.grad.numpy() for key, one in model.named_parameters() if one.grad is not None}
    np.savez(Path(sys.argv[3]) / f"rank{processes.rank}.npz", **gradients)
"""


def torchrun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())


@pytest.mark.slow
def test_gradients_of_two_processes_are_the_mean_of_what_each_has_alone(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    done = torchrun(2, str(script), str(ROOT / "tests" / "support"), str(data), str(tmp_path))
    assert done.returncode == 0, done.stderr
    alone = []
    for rank in range(2):
        model = small_model().eval()
        loader = train_loader(
            dataset_of(data),
            RECIPES["scratch"].augment(model.config),
            model.config.preprocess,
            batch_size=1,
            seed=0,
            rank=rank,
            world_size=2,
        )
        batch = next(loader)
        losses = Criterion(model, sample_all=True)(batch.images, batch.sizes, batch.targets)
        torch.stack(list(losses.values())).sum().backward()
        alone.append({key: one.grad for key, one in model.named_parameters() if one.grad is not None})
    with np.load(tmp_path / "rank0.npz") as first, np.load(tmp_path / "rank1.npz") as second:
        assert set(first.files) == alone[0].keys()
        for key in first.files:
            assert np.array_equal(first[key], second[key]), key
            mean = ((alone[0][key] + alone[1][key]) / 2).numpy()
            scale = max(np.abs(mean).max(), 1e-8)
            assert np.abs(first[key] - mean).max() <= 1e-6 * scale, key


@pytest.mark.slow
def test_two_processes_train_and_resume_as_one_command(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["-m", "fpg_zoo.cli", "train", "--model", NAME, "--checkpoint", str(checkpoint), "--data", str(data)]
    arguments += ["--recipe", "scratch", "--epochs", "4", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    for name in ("a", "b"):
        done = torchrun(2, *arguments, "--output", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path / name}: trained\n"
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_processes_evaluate_together_what_is_saved(checkpoint: Path, tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", pictures=4)
    make_data(folder, pictures=5, split="val")
    arguments = ["-m", "fpg_zoo.cli", "train", "--model", NAME, "--checkpoint", str(checkpoint), "--data", str(folder)]
    arguments += ["--recipe", "scratch", "--epochs", "2", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    done = torchrun(2, *arguments, "--ema", "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "run" / "best" / "figures.json").read_text())
    assert done.stdout == f"{tmp_path / 'run'}: trained, box_AP {told['box_AP']:.3f}\n"
    # All images counted once, of the main process's model, which is the one that was saved.
    data = CocoDataset.from_folder(folder, "val", masks=False, training=False)
    model = fpg_zoo.create_model(f"local-dir:{tmp_path / 'run' / 'best'}").eval()
    assert told == pytest.approx(evaluate(model, data, data.category_ids), abs=1e-6)


NO_NUMBERS = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from training_runs import checkpoint, data, dataset_of, settings, small_model
from fpg_zoo.errors import TrainingError
from fpg_zoo.training import trainer
from fpg_zoo.distributed import process_group

torch.set_num_threads(1)
with process_group(torch.device("cpu")) as processes:
    losses = trainer._Run._losses
    calls = []

    def bad_at_last(run, criterion, batch):
        calls.append(batch)
        found = losses(run, criterion, batch)
        return {key: one * float("nan") for key, one in found.items()} if len(calls) == 2 and processes.rank else found

    trainer._Run._losses = bad_at_last
    try:
        trainer.train(
            small_model(), dataset_of(Path(sys.argv[2])), Path(sys.argv[3]), settings(batch_size=2),
            processes=processes, save_every=1,
        )
    except TrainingError as error:
        Path(sys.argv[3], f"rank{processes.rank}").write_text(str(error))
"""


@pytest.mark.slow
def test_losses_that_are_no_numbers_in_one_process_spoil_no_state(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "no_numbers.py"
    script.write_text(NO_NUMBERS)
    run = tmp_path / "run"
    done = torchrun(2, str(script), str(ROOT / "tests" / "support"), str(data), str(run))
    assert done.returncode == 0, done.stderr
    told = [(run / f"rank{rank}").read_text() for rank in range(2)]
    assert "step 2: the gradient is nan; the losses of this process are numbers" in told[0]
    assert "step 2: the gradient is nan; loss_cls = nan, loss_bbox = nan on the images" in told[1]
    state = newest_state(run)
    assert state is not None
    assert state.name == "state-00000001"
    weights = fpg_zoo.create_model(f"local-dir:{state}").state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


# The command


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--model", "retinanet_nano"), "did you mean retinanet_nano_fpg"),
        (("--recipe", "fast"), "no recipe 'fast': known are crop640_50e, finetune, scratch"),
        (("--recipe", "finetune"), "does not train the stem, which would stay at its random beginning"),
        (("--epochs", "0"), "epochs=0"),
        (("--batch-size", "0"), "batch_size=0"),
        (("--train-split", "test"), "no split 'test' in {data} (COCO): it has train"),
        (("--device", "tpu"), "device 'tpu' cannot be used here"),
        (("--save-every", "0"), "--save-every: training.save_every=0: it takes a whole number of at least 1"),
    ],
)
def test_train_refuses_in_one_line_and_writes_nothing(
    arguments: tuple[str, ...], cause: str, data: Path, tmp_path: Path
) -> None:
    base = {"--model": NAME, "--data": str(data), "--output": str(tmp_path / "run"), "--device": "cpu"}
    base |= {"--recipe": "scratch"}
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    flags = [*arguments] if len(arguments) == 1 else []
    line = [part for pair in (base | given).items() for part in pair] if not flags else []
    if flags:
        line = [part for pair in base.items() for part in pair] + flags
    ended = run("train", *line)
    assert ended.code == 2
    assert cause.format(data=data) in ended.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the workers in /proc")
@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_one_line_and_it_is_resumed(
    data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    options = ("--recipe", "scratch", "--epochs", "40", "--batch-size", "2", "--save-every", "1")
    process = start(data, tmp_path / "run", checkpoint, *options, "--workers", "2")
    while steps_logged(tmp_path / "run") < 2:
        assert process.poll() is None
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    lines = [line for line in errors.splitlines() if not line.startswith(str(data))]  # which say what the data hold
    assert lines == [
        "fpg-zoo: a process that reads images has died (it was killed by SIGKILL, as the system does when memory runs "
        "out): use smaller batches, fewer --workers, or --workers 0"
    ]
    steps = steps_logged(tmp_path / "run")
    process = start(data, tmp_path / "run", checkpoint, *options, "--workers", "0", "--resume")
    while steps_logged(tmp_path / "run") < steps + 1:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_files_that_lack_what_evaluation_needs_are_made_good(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", pictures=2)
    shutil.copytree(folder / "train", folder / "val")
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    bad = {"id": 99, "image_id": 1, "category_id": 1, "bbox": None}
    for row in content["annotations"]:
        del row["area"], row["iscrowd"]
    content["annotations"].append(bad)
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    # One of five annotations is lost.
    options = ("--recipe", "scratch", "--epochs", "1", "--batch-size", "2", "--workers", "0", "--allow-losses")
    process = start(folder, tmp_path / "run", checkpoint, *options)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert told.startswith(f"{tmp_path / 'run'}: trained, box_AP 0.")
    assert (tmp_path / "run" / "best" / "figures.json").is_file()
    assert "99" in errors  # reported with its id


def test_what_is_not_loaded_of_a_checkpoint_is_told_in_a_line(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", pictures=2)
    tiny_model(NAME).save_pretrained(tmp_path / "of80.safetensors")
    options = ["--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    ended = run(
        *["train", "--model", NAME, "--checkpoint", tmp_path / "of80.safetensors", "--data", folder],
        *["--output", tmp_path / "run", *options],
    )
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.err.splitlines() if "initialised at random" in line]
    assert line.startswith(f"fpg-zoo: {NAME} for 2 classes: not loaded, initialised at random: head.classes.")
    assert ended.out == f"{tmp_path / 'run'}: trained\n"


def test_a_held_out_file_of_other_classes_is_refused(data: Path, tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", pictures=2)
    shutil.copytree(folder / "train", folder / "val")
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    content["categories"] = [{"id": 1, "name": "light"}, {"id": 2, "name": "dark"}]
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    ended = run("train", "--model", NAME, "--data", folder, "--output", tmp_path / "run", "--recipe", "scratch")
    assert ended.code == 2
    assert "its classes, in the order of their ids, are not those that are trained on" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_convert_data_tells_what_it_left_out(data_folder: Path, tmp_path: Path) -> None:
    ended = run("convert-data", data_folder / "BCCD", tmp_path / "bccd")
    assert ended.code == 1  # done, but for two boxes of no size
    assert "2 x box of no size: BloodImage_00338/object[12], BloodImage_00343/object[3]" in ended.out
    assert CocoDataset.from_folder(tmp_path / "bccd", "test").class_names == ("Platelets", "RBC", "WBC")
