"""What a run shows of itself as it goes: lines, `metrics.csv`, and loggers, each read back by its own reader."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import logger_sessions
import numpy as np
import pytest
import torch
from logger_sessions import CONFIG, step_metrics, two_sessions
from PIL import Image
from training_runs import dataset_of, make_data

from fpg_zoo.errors import ConfigError, StorageError, UnknownNameError
from fpg_zoo.inference import drawn_detections as drawing_module
from fpg_zoo.inference.drawn_detections import drawn_detections
from fpg_zoo.structures import Detections
from fpg_zoo.training import logger as logger_module
from fpg_zoo.training.logger import MetricLogger
from fpg_zoo.training.loggers import names as names_module
from fpg_zoo.training.loggers.group import LoggerGroup, open_loggers
from fpg_zoo.training.loggers.names import check_loggers, missing_extra
from fpg_zoo.training.loggers.progress import ProgressLines
from fpg_zoo.training.loggers.protocol import Logger
from fpg_zoo.training.loggers.run_ids import keep_id, read_ids

# Lines


def test_a_line_has_means_since_the_line_before_and_the_time_left() -> None:
    now = 100.0
    lines = ProgressLines(1000, clock=lambda: now)
    for step, loss in ((1, 3.0), (2, 1.0)):
        metrics = {"epoch": step / 8, "lr": 0.025, "loss": loss, "loss_bbox": loss / 4, "grad_norm": 9.0}
        metrics |= {"images_per_second": 20.0 * step, "data_wait": step / 10, "memory_gb": 1.234}
        lines.add(step, metrics)
        now += 4.0  # the second step took it, and then the lines are asked for
    assert lines.line(2, metrics) == (
        # 998 steps are left, at 8 s for one step since the first.
        "step 2/1000  epoch 0.25  loss 2  loss_bbox 0.5  lr 0.025  30 images/s  data wait 15%  1.23 GB  2:13:04 left"
    )
    found = {"box_AP": 0.3125, "box_AP50": 0.5, "box_AR_100": 0.7, "mask_AP75": 0.25, "memory_gb": 1.5}
    assert lines.line(2, found) == "step 2/1000  box_AP 0.312  box_AP50 0.500  mask_AP75 0.250  1.50 GB  2:13:04 left"
    lines.add(3, {"loss": 7.0})
    now = 100.0 + 2 * 86400
    assert lines.line(3, {"loss": 7.0}) == "step 3/1000  loss 7  997 days, 0:00:00 left"


def test_off_a_terminal_there_is_a_line_every_so_many_steps_and_for_each_evaluation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    journal = MetricLogger(tmp_path, True, 0, 5, log_every=2)
    journal.open()
    with journal:
        for step in range(1, 6):
            journal.note(step, step_metrics(step))
            if step == 3:
                journal.note(step, {"box_AP": 0.25, "mask_AP": None})
    printed = capfd.readouterr()
    assert printed.out == ""
    assert [line.split("  ")[:2] for line in printed.err.splitlines()] == [
        *[["step 2/5", "epoch 0.20"], ["step 3/5", "box_AP 0.250"], ["step 4/5", "epoch 0.40"]],
        ["step 5/5", "epoch 0.50"],
    ]
    rows = (tmp_path / "log.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    assert rows[0] == (
        '{"step": 1, "epoch": 0.1, "lr": 0.01, "loss": 2.0, "loss_cls": 1.0, "images_per_second": 30.0, '
        f'"memory_gb": {first["memory_gb"]}}}'
    )
    assert list(json.loads(rows[3])) == ["step", "box_AP", "memory_gb"]


def test_on_a_terminal_there_is_the_bar_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logger_module, "on_terminal", lambda: True)
    journal = MetricLogger(tmp_path, True, 0, 2, log_every=1)
    journal.open()
    with journal:
        journal.note(1, step_metrics(1))
        journal.note(2, step_metrics(2))
    printed = capfd.readouterr().err
    assert "2/2" in printed
    assert "step 2/2" not in printed


def test_a_reader_of_the_lines_that_has_gone_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        journal = MetricLogger(tmp_path, True, 0, 2, log_every=1)
        journal.open()
        with journal:
            journal.note(1, step_metrics(1))
            journal.note(2, step_metrics(2))
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            gone.close()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_process_that_does_not_write_shows_nothing(tmp_path: Path) -> None:
    journal = MetricLogger(tmp_path / "run", False, 0, 5, loggers=("csv",))
    with journal:
        journal.note(1, step_metrics(1))
        journal.log_images(1, {})
        assert not journal.takes_images
    assert not (tmp_path / "run").exists()


# Names


def test_names_are_checked_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"^no logger 'tensorbord': did you mean tensorboard\?$"):
        open_loggers(("csv", "tensorbord"), tmp_path, step=0)
    with pytest.raises(ConfigError, match=r"^the logger csv is named twice; name it once$"):
        check_loggers(("csv", "csv"))
    with pytest.raises(ConfigError, match=r"^log_every=0: it takes at least 1$"):
        MetricLogger(tmp_path, True, 0, 5, log_every=0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = {
        "wandb": None,
        "mlflow": types.SimpleNamespace(origin=None),
        "tensorboard": types.SimpleNamespace(origin="t"),
    }
    monkeypatch.setattr(names_module.importlib.util, "find_spec", specs.__getitem__)
    assert missing_extra(("csv", "tensorboard")) is None
    line = "wandb is not installed: pip install 'fpg-zoo[wandb]', or leave the logger out"
    assert missing_extra(("wandb",)) == line
    with pytest.raises(ConfigError) as caught:
        check_loggers(("csv", "wandb"))
    assert str(caught.value) == line
    # The second is a folder of that name, as a run of it leaves one.
    assert missing_extra(("wandb", "mlflow")) == (
        "wandb and mlflow are not installed: pip install 'fpg-zoo[wandb,mlflow]', or leave the loggers out"
    )


def test_the_check_needs_neither_torch_nor_the_packages() -> None:
    code = (
        "import sys; from fpg_zoo.training.loggers.names import check_loggers, missing_extra; check_loggers(('csv',)); "
        "missing_extra(('wandb', 'tensorboard')); "
        "print(sorted({'torch', 'wandb', 'mlflow', 'trackio', 'tensorboard'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# Failures


class Failing(Logger):
    """Raises in the methods that are named."""

    remote = True
    takes_images = True
    takes_curves = False

    def __init__(self, *methods: str, error: Exception | None = None) -> None:
        self._methods = methods
        self._error = error or RuntimeError("503 Service Unavailable.\nsecond line")
        self.calls: list[str] = []

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if method in self._methods:
            raise self._error

    def open(self, step: int) -> None:
        self._call("open")

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._call("log_config")

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._call("log_metrics")

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._call("log_images")

    def log_curves(self, step: int, curves: Mapping[str, np.ndarray]) -> None:
        self._call("log_curves")

    def close(self, failed: bool) -> None:
        self._call(f"close {failed}")


class FailingHere(Failing):
    remote = False


def test_a_remote_logger_that_fails_is_warned_of_once_and_left_out() -> None:
    failing, other = Failing("log_images", "close True"), Failing()
    group = LoggerGroup({"mlflow": failing, "wandb": other}, step=0, config=CONFIG)
    with warnings.catch_warnings(record=True) as printed:
        warnings.simplefilter("always")
        for step in (1, 2):
            group.log_images(step, {})
            group.log_metrics(step, {"loss": 1.0}, remote=True)
        group.close(failed=False)
    assert [str(one.message) for one in printed] == [
        "the logger mlflow failed: 503 Service Unavailable; the run goes on without it, and log.jsonl has every metric"
    ]
    assert failing.calls == ["open", "log_config", "log_images", "close True"]
    assert other.calls == ["open", "log_config", *["log_images", "log_metrics"] * 2, "close False"]
    assert not group.takes_images  # when all are closed


def test_a_remote_logger_that_cannot_be_closed_ends_no_run() -> None:
    other = Failing()
    group = LoggerGroup({"mlflow": Failing("close False"), "wandb": other}, step=0)
    with pytest.warns(UserWarning, match="the logger mlflow failed: 503"):
        group.close(failed=False)
    assert other.calls == ["open", "close False"]


def test_a_remote_logger_that_cannot_begin_ends_a_new_run_and_no_older_one() -> None:
    other = Failing()
    with pytest.raises(ConfigError, match=r"^the logger mlflow cannot begin: 503 Service Unavailable; see to that, or"):
        LoggerGroup({"wandb": other, "mlflow": Failing("open")}, step=0)
    assert other.calls == ["open", "close True"]
    with pytest.warns(UserWarning, match="the logger mlflow failed: 503 Service Unavailable; the run goes on"):
        LoggerGroup({"mlflow": Failing("open")}, step=7).log_metrics(8, {"loss": 1.0}, remote=True)


def test_a_logger_that_stores_here_ends_the_run() -> None:
    error = StorageError("cannot write in run: No space left on device; make room")
    group = LoggerGroup({"csv": FailingHere("log_metrics", error=error)}, step=0)
    with pytest.raises(StorageError, match="No space left"):
        group.log_metrics(1, {"loss": 1.0}, remote=False)
    other, closing = Failing(), FailingHere("close True", "close False", error=error)
    group = LoggerGroup({"wandb": other, "csv": closing}, step=0)
    group.close(failed=True)  # the error that is raised already is not hidden by another
    assert other.calls == ["open", "close True"]
    with pytest.raises(StorageError, match="No space left"):
        LoggerGroup({"csv": closing}, step=0).close(failed=False)


def test_remote_loggers_are_told_of_some_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, remote = FailingHere(), Failing()
    monkeypatch.setattr(
        logger_module, "open_loggers", lambda *_, **options: LoggerGroup({"csv": here, "wandb": remote}, **options)
    )
    journal = MetricLogger(tmp_path, True, 0, 5, log_every=2)
    journal.open()
    with journal:
        assert journal.takes_images
        assert not journal.takes_curves
        for step in range(1, 6):
            journal.note(step, step_metrics(step))
        journal.note(5, {"box_AP": 0.5})
    assert here.calls.count("log_metrics") == 6
    assert remote.calls.count("log_metrics") == 4  # steps 2, 4 and 5, and the evaluation


@pytest.mark.parametrize("content", ["{", "[]", '{"wandb": 5}', '{"wandb": "../../etc"}', '{"wandb": ""}'])
def test_a_damaged_record_of_ids_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "loggers.json").write_text(content)
    with pytest.raises(StorageError, match=r"loggers\.json: cannot be read \(.+\); move it away to begin anew"):
        read_ids(tmp_path)


def test_ids_are_kept_side_by_side(tmp_path: Path) -> None:
    assert read_ids(tmp_path) == {}
    keep_id(tmp_path, "wandb", "a1b2")
    keep_id(tmp_path, "mlflow", "ff00")
    assert read_ids(tmp_path) == {"wandb": "a1b2", "mlflow": "ff00"}


# Loggers, each with a run that is killed after the third step and goes on from the second


def test_csv_has_each_metric_in_its_column(tmp_path: Path) -> None:
    two_sessions(tmp_path, "csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "metrics.csv").read_text())))
    assert list(rows[0]) == [
        *["step", "epoch", "lr", "loss", "loss_cls", "images_per_second", "box_AP"],
    ]
    # What was after the second step when the run was killed is gone.
    assert [(row["step"], row["loss_cls"], row["box_AP"]) for row in rows] == [
        *[("1", "1.0", ""), ("2", "0.5", ""), ("3", "0.3333333333333333", ""), ("4", "0.25", ""), ("4", "", "0.4")],
    ]


def test_csv_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(StorageError, match=rf"^cannot write in {tmp_path}: "):
        open_loggers(("csv",), tmp_path, step=0)


@pytest.mark.slow
def test_tensorboard_has_groups_pictures_and_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    two_sessions(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        *["train/epoch", "train/lr", "train/loss", "train/loss_cls", "time/images_per_second"],
        "val/box_AP",
    }
    losses = [(one.step, one.value) for one in events.Scalars("train/loss")]
    assert losses == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3)), (4, 0.5)]
    assert [(one.step, one.value) for one in events.Scalars("val/box_AP")] == [(4, pytest.approx(0.4))]
    (picture,) = events.Images("images/7")
    with Image.open(io.BytesIO(picture.encoded_image_string)) as image:
        assert image.size == (8, 6)
        assert [image.getpixel((7, 0)), image.getpixel((0, 5))] == [(250, 20, 30), (0, 0, 0)]
    curve = events.Tensors("pr/box_AP50")[-1]
    assert curve.step == 4
    table = make_ndarray(curve.tensor_proto)
    assert table.shape == (6, 101)
    # Its rows are four counts, precision and recall, by rising threshold: recall falls.
    assert table[4:, 0].tolist() == [0.0, 1.0]
    assert table[4:, 100].tolist() == [1.0, 0.0]
    assert table[4:, 25] == pytest.approx([0.25, 0.75])
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '\n      "lr": 0.01,' in text


# The others, in processes of their own: they keep threads, and read their environment as they are imported

WRITE = (Path(logger_sessions.__file__)).read_text(encoding="utf-8")


def in_process(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    """Run code in a folder where nothing leads to the network; what it prints."""
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MLFLOW", "TRACKIO"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=kept | offline | {"HOME": str(folder), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "failed" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wandb_goes_on_with_its_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "my run"
    run.mkdir()
    in_process(WRITE, tmp_path, str(run), "wandb", WANDB_MODE="offline")
    run_id = read_ids(run)["wandb"]
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    printed = in_process(READ_WANDB, tmp_path, *map(str, files))
    sessions = [json.loads(line) for line in printed.splitlines()]
    assert [one["run"] for one in sessions] == [[run_id, "my run", "fpg-zoo"]] * 2
    assert [one["config"]["seed"] for one in sessions] == [3, 3]
    history = [row for one in sessions for row in one["history"]]
    assert [(row["step"], row["train/loss"]) for row in history if "train/loss" in row] == [
        *[(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))],
        *[(3, pytest.approx(2 / 3)), (4, 0.5)],
    ]
    assert [(row["step"], row["val/box_AP"]) for row in history if "val/box_AP" in row] == [(3, 0.3), (4, 0.4)]
    assert [(row["step"], row["images/7._type"]) for row in history if "images/7._type" in row] == [
        *[(3, "image-file"), (4, "image-file")],
    ]


# Its file is a log as LevelDB has it, after 7 bytes: in blocks of 32 KiB, records of a checksum, a length and a kind.
READ_WANDB = """
import json, struct, sys
from pathlib import Path
from wandb.proto import wandb_internal_pb2

def records(content):
    place, whole = 7, b""
    while place < len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""

for file in sys.argv[1:]:
    printed = {"run": None, "config": {}, "history": []}
    for content in records(Path(file).read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            printed["run"] = [record.run.run_id, record.run.display_name, record.run.project]
        updates = {"run": record.run.config.update, "config": record.config.update}.get(kind, ())
        printed["config"].update({item.key: json.loads(item.value_json) for item in updates})
        if kind == "history":
            printed["history"].append({
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            })
    print(json.dumps(printed))
"""


@pytest.mark.slow
def test_mlflow_goes_on_with_its_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    run = tmp_path / "my run"
    run.mkdir()
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/store.db"}
    in_process(WRITE, tmp_path, str(run), "mlflow", "failed", **store)
    printed = json.loads(in_process(READ_MLFLOW, tmp_path, read_ids(run)["mlflow"], **store))
    assert (printed["runs"], printed["name"], printed["status"]) == (1, "my run", "FAILED")
    assert printed["params"] == {"recipe.lr": "0.01", "recipe.steps": "[8, 11]", "seed": "3"}
    assert printed["loss"] == [
        [1, 2.0],
        [2, 1.0],
        [3, pytest.approx(2 / 3)],
        [3, pytest.approx(2 / 3)],
        [4, 0.5],
    ]
    assert printed["ap"] == [[3, 0.3], [4, 0.4]]
    assert printed["curves"] == ["pr/00000003.json", "pr/00000004.json"]
    assert len([name for name in printed["images"] if name.endswith(".png")]) == 2


READ_MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient()
run = client.get_run(sys.argv[1])
history = lambda name: sorted([one.step, one.value] for one in client.get_metric_history(sys.argv[1], name))
print(json.dumps({
    "runs": len(client.search_runs([run.info.experiment_id])),
    "name": run.info.run_name,
    "status": run.info.status,
    "params": run.data.params,
    "loss": history("train/loss"),
    "ap": history("val/box_AP"),
    "curves": sorted(one.path for one in client.list_artifacts(sys.argv[1], "pr")),
    "images": [one.path for one in client.list_artifacts(sys.argv[1], "images")],
}))
"""


@pytest.mark.slow
def test_an_mlflow_server_that_is_not_there_is_told_before_training(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    code = """
import sys
from pathlib import Path
from fpg_zoo.errors import ConfigError
from fpg_zoo.training.loggers.group import open_loggers
try:
    open_loggers(("mlflow",), Path(sys.argv[1]), step=0)
except ConfigError as error:
    print(error)
"""
    printed = in_process(code, tmp_path, str(tmp_path), MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert printed.startswith("the logger mlflow cannot begin: ")
    assert printed.endswith("see to that, or leave the logger out\n")


@pytest.mark.slow
def test_trackio_goes_on_with_its_run(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    run = tmp_path / "my run"
    run.mkdir()
    store = {"TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    assert in_process(WRITE, tmp_path, str(run), "trackio", **store) == ""
    name = read_ids(run)["trackio"]
    assert name.startswith("my-run-")
    printed = json.loads(in_process(READ_TRACKIO, tmp_path, name, **store))
    assert printed["runs"] == [name]
    assert printed["config"] == [3, {"lr": 0.01, "steps": [8, 11]}]
    losses = [[row["step"], row["train/loss"]] for row in printed["logs"] if "train/loss" in row]
    assert sorted(losses) == [[1, 2.0], [2, 1.0], [3, pytest.approx(2 / 3)], [3, pytest.approx(2 / 3)], [4, 0.5]]
    assert [row["images/7"]["_type"] for row in printed["logs"] if "images/7" in row] == ["trackio.image"] * 2


READ_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
name = sys.argv[1]
config = SQLiteStorage.get_run_config("fpg-zoo", name)
print(json.dumps({
    "runs": list(SQLiteStorage.get_runs("fpg-zoo")),
    "config": [config["seed"], config["recipe"]],
    "logs": SQLiteStorage.get_logs("fpg-zoo", name),
}, default=str))
"""


# Pictures


def test_detections_are_drawn_on_the_images_that_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_of(make_data(tmp_path / "data", pictures=3))
    boxes = torch.tensor([[20.0, 40.0, 50.0, 60.0]])

    class Detecting:
        def __init__(self, model: Any) -> None:
            assert model == "the model"

        def __call__(self, image: Image.Image, *, score: float) -> list[Detections]:
            assert (image.size, score) == ((64, 64), 0.3)
            return [Detections(boxes, torch.tensor([0.9]), torch.tensor([0]), None, ("dark", "light"), (64, 64))]

    monkeypatch.setattr(drawing_module, "Predictor", Detecting)
    monkeypatch.setattr(drawing_module, "_LONGEST_SIDE", 32)
    drawn = drawn_detections("the model", dataset, (2, 0))  # type: ignore[arg-type]
    assert list(drawn) == ["3", "1"]  # which are the images' ids
    for pixels in drawn.values():
        assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
        colored = pixels.max(axis=2) - pixels.min(axis=2) > 60  # the photographs are gray
        assert colored[20:30, 10:13].any()  # the box's left edge, at half the size
        assert not colored[:10].any()  # the name is just above the box
        assert not colored[31:].any()
