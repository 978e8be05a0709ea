"""Runs as files: from flags to a file and back, and what is refused of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import environment, run
from training_runs import NAME, checkpoint, data, make_data, start, weights_of

from fpg_zoo.errors import FPGZooError
from fpg_zoo.training.run_config import Given, build_run_config, read_assignment, read_run_file, to_toml

BASE = {"output": Given("run", ""), "data.path": Given("data", ""), "model.name": Given(NAME, "")}


def test_a_file_alone_is_the_run_of_the_flags(tmp_path: Path) -> None:
    flags = ["--model", NAME, "--data", "shapes", "--output", "runs/a", "--recipe", "scratch", "--epochs", "3"]
    flags += ["--lr", "0.002", "--warmup", "7", "--weight-decay", "0", "--freeze", "0", "--batch-size", "2", "--ema"]
    flags += [
        "--amp",
        "bf16",
        "--patience",
        "2",
        "--metric",
        "box_AP50",
        "--image-size",
        "128",
        "--max-detections",
        "9",
    ]
    flags += ["--set", "augmentation.factors=[1.0, 1.5]", "--set", "schedule.max_grad_norm=none"]
    flags += ["--set", "data.train_split=2017", "--workers", "0"]
    dumped = run("train", *flags, "--dump-config")
    assert dumped.code == 0, dumped.err
    file = tmp_path / "run.toml"
    file.write_text(dumped.out)
    again = run("train", "--config", str(file), "--dump-config")
    assert again.out == dumped.out
    config = build_run_config(read_run_file(file))
    assert config.schedule.lr == 0.002
    assert config.schedule.max_grad_norm is None  # where the recipe has 5
    assert config.data.train_split == "2017"
    assert config.augmentation["factors"] == (1.0, 1.5)
    # What is given beside a file counts.
    other = run("train", "--config", str(file), "--lr", "0.5", "--set", "schedule.lr=0.25", "--dump-config")
    assert other.out == dumped.out.replace("lr = 0.002", "lr = 0.25")


def test_steps_down_move_with_the_epochs_unless_they_are_given() -> None:
    config = build_run_config(BASE | {"recipe": Given("finetune", ""), "schedule.epochs": Given(6, "")})
    assert config.schedule.milestones == (4.0, 5.5)  # of 8 and 11 in 12
    given = BASE | {"schedule.epochs": Given(6, ""), "schedule.milestones": Given([3], "")}
    assert build_run_config(given).schedule.milestones == (3.0,)


def test_json_and_toml_are_the_same_run(tmp_path: Path) -> None:
    text = to_toml(build_run_config(BASE))
    toml, json = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text('output = "run"\n[data]\npath = "data"\n[model]\nname = "retinanet_nano_fpg"\n')
    json.write_text('{"output": "run", "data": {"path": "data"}, "model": {"name": "retinanet_nano_fpg"}}')
    assert to_toml(build_run_config(read_run_file(toml))) == text == to_toml(build_run_config(read_run_file(json)))


WRONG = [
    ("schedule.lr", "fast", "it takes a number"),
    ("schedule.lr", 0, "it takes a number above 0"),
    ("schedule.lr", -0.1, "it takes a number above 0"),
    ("schedule.lr", True, "it takes a number"),
    ("schedule.epochs", 0, "it takes a whole number of at least 1"),
    ("schedule.epochs", 1.5, "it takes a whole number"),
    ("schedule.milestones", 8, "it takes a list"),
    ("schedule.milestones", ["8"], "milestones[0]='8': it takes a number"),
    ("schedule.milestones", [-1], "at least 0"),
    ("schedule.optimizer", "adam", "it takes 'sgd' or 'adamw'"),
    ("schedule.decay", "linear", "it takes 'steps' or 'cosine'"),
    ("schedule.momentum", 2, "it takes a number from 0 to 1"),
    ("schedule.weight_decay", -1, "at least 0"),
    ("schedule.max_grad_norm", 0, "it takes a number above 0"),
    ("schedule.warmup_factor", 0, "above 0 and up to 1"),
    ("schedule.warmup_iterations", -1, "at least 0"),
    ("schedule.layer_decay", 1.5, "above 0 and up to 1"),
    ("schedule.base_batch_size", 0, "at least 1"),
    ("sampling.rois", 0, "at least 1"),
    ("augmentation.factors", [1.0], "it takes a list of 2"),
    ("augmentation.flip", "yes", "it takes a number"),
    ("training.batch_size", "large", "it takes a whole number or 'auto'"),
    ("training.batch_size", 0, "at least 1"),
    ("training.accumulate", -2, "at least 1"),
    ("training.amp", "fp8", "it takes 'bf16' or 'fp16'"),
    ("training.ema", 1, "it takes True or False"),
    ("training.frozen_stages", -1, "at least 0"),
    ("training.save_every", 0, "at least 1"),
    ("evaluation.every", 0, "at least 1"),
    ("evaluation.patience", 0, "at least 1"),
    ("evaluation.metric", 5, "it takes a text"),
    ("logging.every", "often", "it takes a whole number"),
    ("model.pretrained", "yes", "it takes True or False"),
    ("model.image_size", 0, "at least 1"),
    ("model.max_detections", -5, "at least 1"),
    ("data.workers", -1, "at least 0"),
    ("data.path", 5, "it takes a text"),
    ("seed", -1, "at least 0"),
    ("seed", "1", "it takes a whole number"),
    ("recipe", "fintune", "known are"),
    ("schedule.learning_rate", 0.1, "no field 'schedule.learning_rate': did you mean"),
    ("trainig.ema", True, "no field 'trainig.ema': did you mean training.ema"),
    ("epochs", 3, "no field 'epochs'"),
]


@pytest.mark.parametrize(("key", "value", "remedy"), WRONG)
def test_a_wrong_setting_is_one_line_with_its_file_key_and_remedy(key: str, value: object, remedy: str) -> None:
    with pytest.raises(FPGZooError) as caught:
        build_run_config(BASE | {key: Given(value, "run.toml: ")})
    message = str(caught.value)
    assert message.startswith("run.toml: ")
    assert key.rpartition(".")[2] in message or "no recipe" in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("schedule.lr", "give KEY=VALUE"),
        ("lr=1", "--set 'lr=1': no field 'lr': did you mean schedule.lr"),
        ("schedule.lr=fast", "--set 'schedule.lr=fast': schedule.lr='fast': it takes a number"),
    ],
)
def test_a_wrong_assignment_is_refused(text: str, cause: str) -> None:
    with pytest.raises(FPGZooError) as caught:
        build_run_config(BASE | dict([read_assignment(text)]))
    assert cause in str(caught.value)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("schedule = 5\noutput = 'x'", "schedule=5: it takes a table, [schedule]"),
        ("[schedule]\nlr = 'x'\n", "schedule.lr='x'"),
        ("[schedule", "no TOML"),
    ],
)
def test_a_wrong_file_is_refused_without_torch(content: str, cause: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    script = (
        "import sys\nfrom fpg_zoo.cli import main\n"
        f"code = main(['train', '--config', {str(file)!r}, '--data', 'shapes', '--output', 'x'])\n"
        "print('torch' in sys.modules)\nsys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert ended.returncode == 2
    assert ended.stdout == "False\n"
    assert ended.stderr.startswith(f"fpg-zoo: {file}: ")
    assert cause in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_writes_the_file_that_starts_it_again_to_the_bit(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ["--recipe", "scratch", "--epochs", "2", "--batch-size", "2", "--workers", "0", "--lr", "0.002"]
    first = start(data, tmp_path / "a", checkpoint, *options)
    _, printed = first.communicate(timeout=200)
    assert first.returncode == 0, printed
    ended = run("train", "--config", str(tmp_path / "a" / "run.toml"), "--output", str(tmp_path / "b"))
    assert ended.code == 0, ended.err
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    first_file, second_file = (tmp_path / name / "run.toml" for name in "ab")
    assert second_file.read_text() == first_file.read_text().replace(str(tmp_path / "a"), str(tmp_path / "b"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_finished_run_goes_on_with_more_epochs(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ["--model", NAME, "--checkpoint", str(checkpoint), "--data", str(data), "--output", str(tmp_path / "a")]
    options += ["--recipe", "scratch", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    assert run("train", *options, "--epochs", "1").code == 0
    assert run("train", *options, "--epochs", "2", "--resume").code == 0
    rows = (tmp_path / "a" / "log.jsonl").read_text().splitlines()
    assert len(rows) == 6  # three steps an epoch
    refused = run("train", *options, "--epochs", "3", "--resume", "--lr", "0.5")
    assert refused.code == 2
    assert "learning_rate was 0.001, is 0.5" in refused.err
    shorter = run("train", *options, "--epochs", "1", "--resume")
    assert shorter.code == 2
    assert "epochs was 2, is 1" in shorter.err


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_without_progress_stops_early_and_stays_so(checkpoint: Path, tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", pictures=4)
    make_data(folder, pictures=2, split="val")
    options = ["--model", NAME, "--checkpoint", str(checkpoint), "--data", str(folder), "--recipe", "scratch"]
    options += ["--epochs", "20", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--patience", "2"]
    options += ["--output", str(tmp_path / "run"), "--lr", "1e-12"]  # nothing is learned
    first = run("train", *options)
    assert first.code == 0, first.err
    rows = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(rows) == 6  # three epochs of a step and an evaluation: one that is the best, two without a better one
    again = run("train", *options, "--resume")
    assert again.code == 0, again.err
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 6
