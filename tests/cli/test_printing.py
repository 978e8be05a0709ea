"""What the command prints of files, names and arguments: no control characters, bounded, one line a message."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_folders import annotation, picture, write_folder
from command import run
from PIL import Image
from tiny_models import tiny_model

import fpg_zoo
from fpg_zoo import cli
from fpg_zoo.cli.printing import print_line, print_lines, print_notice
from fpg_zoo.config.validation import MOST_CLASSES
from fpg_zoo.errors import CheckpointError
from fpg_zoo.modeling.build import build_detector
from fpg_zoo.modeling.detectors import Detector

RETINA = "retinanet_nano_fpg"
ESCAPE = "\x1b]0;PWNED\x07\x1b[2J\nfpg-zoo: good"
ESCAPED = "\\x1b]0;PWNED\\x07\\x1b[2J\\nfpg-zoo: good"
HOSTILE = (ESCAPE, "\u202egnp.exe", "\x9b31m", "x" * 100_000, f"{'y' * 100_000}{ESCAPE}")
MOST = 1500  # characters of a message that quotes several things


def assert_fit_to_print(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable()
        assert len(line) < MOST


# One place


def test_nothing_else_in_the_package_prints() -> None:
    places = set()
    for path in sorted(Path(fpg_zoo.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                places.add(path.relative_to(Path(fpg_zoo.__file__).parent).as_posix())
    # The store says that it waits, in words of its own and a name of the manifest. A run's lines are of numbers. What
    # is written above a bar is printed where there are no bars.
    assert places - {"weights/store.py", "training/logger.py", "progress.py"} == {"cli/printing.py"}


def test_a_line_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(f"class {ESCAPE}")
    print_lines("one\ntwo\x1b", to_stderr=True)
    print_notice(f"no {ESCAPE}")
    assert capsys.readouterr() == (f"class {ESCAPED}\n", f"one\ntwo\\x1b\nfpg-zoo: no {ESCAPED}\n")


def test_without_standard_error_nothing_goes_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    print_notice("an error")
    assert capsys.readouterr().out == ""


# Arguments and warnings


@pytest.mark.parametrize("given", HOSTILE)
@pytest.mark.parametrize(
    "arguments",
    [
        lambda given: [given],
        lambda given: ["list", f"--{given}"],
        lambda given: ["eval", "--limit", given],
        lambda given: ["cache", given],
        lambda given: ["verify", f"{given[:150]}.safetensors"],
        lambda given: ["convert", f"{given[:150]}.pth", "x.safetensors"],
        lambda given: ["predict", "a.png", "--model", RETINA, "--device", given[:150]],
    ],
    ids=["command", "option", "number", "choice", "file to verify", "file to convert", "device"],
)
def test_what_was_typed_is_escaped(arguments: Callable[[str], list[str]], given: str) -> None:
    code, out, err = run(*arguments(given))
    assert (code, out) == (2, "")
    assert_fit_to_print(err)


def test_a_warning_of_any_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(options: object) -> int:
        for text in (f"two\n  lines {ESCAPE}", "x" * 100_000):
            warnings.warn(text, stacklevel=1)
        return 0

    monkeypatch.setattr(cli.models, "_list", warn)
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["list"]) == 0
    first, second, rest = err.getvalue().split("\n")
    assert first == "fpg-zoo: two lines \\x1b]0;PWNED\\x07\\x1b[2J fpg-zoo: good"
    assert (len(second), rest) == (len("fpg-zoo: ") + 1000, "")


# Files of models

Header = dict[str, Any]


@pytest.fixture(scope="module")
def taken_apart(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """A described safetensors file's header, as text, and the rest."""
    path = tmp_path_factory.mktemp("whole") / "nano.safetensors"
    tiny_model(RETINA).save_pretrained(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length].decode(), data[8 + length :]


def _described(change: Callable[[Any, str], Any]) -> Callable[[Header, str], None]:
    def altered(header: Header, text: str) -> None:
        description = json.loads(header["__metadata__"]["description"])
        change(description, text)
        header["__metadata__"]["description"] = json.dumps(description)

    return altered


def _bare(header: Header, text: str) -> None:
    del header["__metadata__"]
    header[text] = header.pop("backbone.conv1.weight")


def _twice(header: Header, text: str) -> None:
    described = header["__metadata__"]["description"]
    key = json.dumps(text)
    header["__metadata__"]["description"] = f"{{{key}: 1, {key}: 2, {described[1:]}"


IN_A_HEADER: dict[str, Callable[[Header, str], None]] = {
    "a tensor": lambda header, text: header.update({text: header.pop("backbone.conv1.weight")}),
    "a tensor without a description": _bare,
    "a kind of number": lambda header, text: header["backbone.conv1.weight"].update(dtype=text),
    "a shape": lambda header, text: header["backbone.conv1.weight"].update(shape=text),
    "a schema": _described(lambda it, text: it.update(schema_version=text)),
    "a schema in lists": _described(lambda it, text: it.update(schema_version=[[text] * 20] * 20)),
    "an architecture": _described(lambda it, text: it.update(architecture=text)),
    "a config": _described(lambda it, text: it.update(config=text)),
    "a type": _described(lambda it, text: it["config"].update(type=text)),
    "a field": _described(lambda it, text: it["config"].update({text: 1})),
    "a value": _described(lambda it, text: it["config"]["neck"].update(width=text)),
    "a choice": _described(lambda it, text: it["config"]["neck"].update(extra_levels=text)),
    "a class name twice": _described(lambda it, text: it["config"].update(class_names=[text] * 80)),
    "a key twice": _twice,
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("where", IN_A_HEADER)
@pytest.mark.slow
def test_what_a_header_holds_is_escaped_and_bounded(
    where: str, text: str, taken_apart: tuple[str, bytes], tmp_path: Path
) -> None:
    header = json.loads(taken_apart[0])
    IN_A_HEADER[where](header, text)
    encoded = json.dumps(header).encode()
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + taken_apart[1])
    code, out, err = run("convert", tmp_path / "odd.safetensors", tmp_path / "out.safetensors")
    assert (code, out) == (2, "")
    assert err.startswith(f"fpg-zoo: {tmp_path / 'odd.safetensors'}: ")
    assert err.count("\n") == 1
    assert_fit_to_print(err)
    assert not (tmp_path / "out.safetensors").exists()


IN_A_PICKLE: dict[str, Callable[[dict[str, Any], str], object]] = {
    "a tensor": lambda state, text: {text: state.popitem()[1], **state},
    "a key that is no tensor": lambda state, text: {**state, text: text},
    "a place": lambda state, text: {text: state},
    "a class name twice": lambda state, text: {"state_dict": state, "meta": {"CLASSES": (text,) * 80}},
    "no class names": lambda state, text: {"state_dict": state, "meta": {"CLASSES": {text: text}}},
    "an empty state dict": lambda state, text: {"state_dict": text},
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("where", IN_A_PICKLE)
@pytest.mark.slow
def test_what_a_pickle_holds_is_escaped_and_bounded(where: str, text: str, tmp_path: Path) -> None:
    state = dict(tiny_model(RETINA).state_dict())
    torch.save(IN_A_PICKLE[where](state, text), tmp_path / "odd.pth")
    code, out, err = run("convert", tmp_path / "odd.pth", tmp_path / "out.safetensors")
    assert (code, out) == (2, "")
    assert err.startswith(f"fpg-zoo: {tmp_path / 'odd.pth'}: ")
    assert err.count("\n") == 1
    assert_fit_to_print(err)


def test_many_long_names_of_classes_that_a_pickle_asks_for_are_bounded(tmp_path: Path) -> None:
    names = b"".join(f"cos\n{'x' * 450}{number}\n0".encode() for number in range(90))  # GLOBAL, POP
    path = tmp_path / "odd.pth"
    torch.save({}, path)
    with torch.serialization._open_zipfile_writer(str(path)) as writer:
        content = b"\x80\x02" + names + b"}."
        writer.write_record("data.pkl", content, len(content))
    with pytest.raises(CheckpointError, match=r"its pickle asks for ") as caught:
        fpg_zoo.create_model(checkpoint=path)
    assert_fit_to_print(str(caught.value))


@pytest.mark.parametrize("name", ["a\x1b", "x" * 201, "\ud800", 7])
def test_a_models_name_that_would_not_be_read_again_is_not_written(name: Any, tmp_path: Path) -> None:
    model = build_detector(tiny_model(RETINA).config, name)
    with pytest.raises(fpg_zoo.FPGZooError, match=r"architecture=.*: it takes a name of at most 200 printable"):
        model.save_pretrained(tmp_path / "odd.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_half_a_character_is_no_class_name(tmp_path: Path) -> None:
    config = fpg_zoo.model_info(RETINA).config
    for name in ("\ud800", "cell\udfff", "\udc80x"):
        with pytest.raises(fpg_zoo.FPGZooError, match=r"class_names\[0\]='.*\\ud[8cf].*half a character"):
            dataclasses.replace(config, class_names=(name,))
    assert dataclasses.replace(config, class_names=("🐶", "собака")).class_names == ("🐶", "собака")
    model = build_detector(dataclasses.replace(config, class_names=("a",)), RETINA)
    torch.save({"state_dict": model.state_dict(), "meta": {"CLASSES": ("\ud800",)}}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"its meta's class names cannot be used .*: pass class_names, as in"):
        fpg_zoo.create_model(checkpoint=tmp_path / "odd.pth")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[" * 1_000_000, "it is nested too deeply"),
        ('{"a":' * 100_000, "it is nested too deeply"),
        ('{"schema_version": 1, "schema_version": 1}', "the key 'schema_version' is there twice"),
        ('{"schema_version": 1, "config": {"type": "x", "type": "y"}}', "the key 'type' is there twice"),
        (f'{{"schema_version": {"9" * 5000}}}', "has 5000 digits"),
        ('{"schema_version": 1e400}', "schema_version inf, this version reads 1"),
        ('{"schema_version": true}', "schema_version True, this version reads 1"),
        ("7", "it is 7, not an object"),
        ("", "Expecting value"),
        ("\ud800".encode("utf-8", "surrogatepass"), "codec can't decode"),
        ("{}".encode("utf-16"), "codec can't decode"),
    ],
)
def test_what_is_no_description_is_told_in_one_line(text: str | bytes, cause: str, tmp_path: Path) -> None:
    tiny_model(RETINA).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(CheckpointError) as caught:
        fpg_zoo.create_model(f"local-dir:{tmp_path}")
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert cause in str(caught.value)
    assert_fit_to_print(str(caught.value))


@pytest.mark.parametrize("value", ["1e400", "-1e400", "NaN", "Infinity", "1" * 19, "1e-400", '"640"', "[640]", "null"])
def test_numbers_that_no_config_has_are_told_with_their_field(value: str, tmp_path: Path) -> None:
    tiny_model(RETINA).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert text.count('"nms_iou": 0.5') == 1
    (tmp_path / "config.json").write_text(text.replace('"nms_iou": 0.5', f'"nms_iou": {value}'))
    if value == "1e-400":  # is 0
        assert fpg_zoo.create_model(f"local-dir:{tmp_path}").config.head.nms_iou == 0  # type: ignore[union-attr]
        return
    with pytest.raises(CheckpointError, match=r"config\.json: does not describe a model of the zoo \(.*nms_iou="):
        fpg_zoo.create_model(f"local-dir:{tmp_path}")


def test_a_config_that_an_editor_wrote_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    tiny_model(RETINA).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert fpg_zoo.create_model(f"local-dir:{tmp_path}").name == RETINA


# Class names and annotations


def _named(*names: str) -> Detector:
    """Finds things of the first classes in noise."""
    model = tiny_model("faster_rcnn_nano_fpg")
    classes = (*names, *map(str, range(len(names), len(model.class_names))))
    renamed = build_detector(dataclasses.replace(model.config, class_names=classes), model.name).eval()
    renamed.load_state_dict(model.state_dict())
    return renamed


@pytest.mark.slow
def test_class_names_are_escaped_in_the_lines_of_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"{number}{HOSTILE[number % len(HOSTILE)]}" for number in range(80)]
    _named(*names).save_pretrained("odd.safetensors")
    Image.effect_noise((96, 96), 90).convert("RGB").save("noise\x1b[2J.png")
    code, out, err = run(
        "predict", "--checkpoint", "odd.safetensors", "--score", "0.06", "--json", "x.json", "noise\x1b[2J.png"
    )
    assert (code, err) == (0, "")
    line, *rest = out.splitlines()
    assert rest[0] == "written: x.json"
    assert line.startswith("noise\\x1b[2J.png: ")
    assert line.isprintable()
    objects = json.loads(Path("x.json").read_text())
    assert objects
    for row in objects:
        number = row["category_id"] - 1
        assert f"{number}{HOSTILE[number % len(HOSTILE)]}"[:2] in line
    assert len(line) < 250 * len(objects) + 100


def test_the_table_of_classes_is_as_wide_as_its_printed_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    categories = [{"id": number, "name": name} for number, name in enumerate((ESCAPE, "x" * 100_000, "cell"), 1)]
    rows = [annotation(number, 1, [4, 4, 20, 20], category_id=number, area=400) for number in (1, 2, 3)]
    write_folder(tmp_path, [picture(1)], rows, categories, split="val")
    found = [{"image_id": 1, "category_id": number, "bbox": [4, 4, 20, 20], "score": 0.5} for number in (1, 2, 3)]
    Path("found.json").write_text(json.dumps(found))
    code, out, err = run("eval", "--results", "found.json", "--annotations", "annotations/instances_val.json")
    assert (code, err) == (0, "")
    table = out.rstrip("\n").split("\n")[-4:]
    title, *classes = table
    assert {len(line) for line in table} == {200 + 1 + 6}
    assert title == f"{'AP of class'.ljust(200)}    box"
    assert [line.split()[-1] for line in classes] == ["1.000"] * 3
    assert classes[0].startswith(ESCAPED)
    assert classes[1].startswith("x" * 197 + "...")
    assert_fit_to_print(out)


@pytest.mark.parametrize("identity", [ESCAPE, "\u202e7", "x" * 100_000])
def test_ids_of_annotations_that_are_left_out_are_escaped(
    identity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = [annotation(number, 1, [4, 4, 20, 20]) for number in range(1, 31)]
    write_folder(tmp_path / "data", [picture(1)], [*good, annotation(identity, 1, [3, 3, 0, 0])])
    config = fpg_zoo.model_info(RETINA).config
    build_detector(dataclasses.replace(config, class_names=("dot", "cell")), RETINA).eval().save_pretrained("m")
    code, _, err = run("eval", "--checkpoint", "m", "--data", "data", "--split", "train", "--workers", "0")
    assert code == 0
    assert "box of no size" in err
    assert_fit_to_print(err)


def test_names_of_the_models_and_the_datas_classes_are_bounded_where_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data", [picture(1)], [annotation(1, 1, [4, 4, 20, 20])])
    _named(*HOSTILE).save_pretrained("m")
    code, out, err = run("eval", "--checkpoint", "m", "--data", "data", "--split", "train")
    assert (code, out) == (2, "")
    assert "only the model has" in err
    assert_fit_to_print(err)


def test_as_many_classes_as_there_may_be_are_told_in_a_bounded_line() -> None:
    names = (*(str(number) for number in range(MOST_CLASSES)), "one more")
    with pytest.raises(fpg_zoo.FPGZooError, match=f"class_names holds {MOST_CLASSES + 1} names") as caught:
        fpg_zoo.create_model(RETINA, class_names=names)
    assert_fit_to_print(str(caught.value))
