"""Mutated annotation files through the command, each in a process of its own; counts what came of them.

Use: python annotation_mutations.py DOOR SEED COUNT, where DOOR is results, data or train. Prints a line of JSON with
the number of each outcome, and what went wrong: an error that is not of this package, a signal, a minute without an
end, or other metrics than the clean file's though nothing was reported.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from fpg_zoo.cli import main
from fpg_zoo.data.shapes import write_coco

DOORS = ("results", "data", "train")
SECONDS = 60
# None of these is a box's number, an id that is there, or a yes.
JUNK: tuple[Any, ...] = (
    *(None, "", " ", "x", "\x1b[2J\n", "9" * 5000, [], {}, [[]], [1], {"a": 1}, [None] * 4, ["1", "2", "3", "4"]),
    *(float("nan"), float("inf"), -float("inf"), 1e308, 10**30, -(10**30)),
)
OUTLINES: tuple[Any, ...] = (
    *([[1, 1]], [[1, 1, 2, 2]], [[]], [None], [[1, 1, 2, 2, 3]], [["a"] * 6], [[1e308] * 6], [[float("nan")] * 6]),
    *([[0, 0, 1e9, 0, 1e9, 1e9]], [[5, 5] * 100_000], [[0, 0, 300, 200] * 20_000]),
    *({"size": [240, 320], "counts": "!!!"}, {"size": [240.0, 320.0], "counts": [76800]}, {"size": None, "counts": []}),
    *({"size": [10**9, 10**9], "counts": [10**18]}, {"counts": "1"}, {"size": [240, 320], "counts": [1.5, 76798.5]}),
    *({"size": [240, 320], "counts": [-1, 76801]}, {"size": [240, 320], "counts": ["76800"]}),
)


def mutate(content: dict[str, Any], generator: random.Random) -> str:
    """Change one to three places of an annotation file's content; says which."""
    changes = []
    for _ in range(generator.randint(1, 3)):
        part = generator.choice(("annotations",) * 6 + ("images",) * 2 + ("categories", "top"))
        if part == "top":
            key = generator.choice(("images", "annotations", "categories", "info", "licenses"))
            if generator.random() < 0.3:
                content[key] = generator.choice((None, {}, "x", 1, [None], [[]]))
                changes.append(key)
            continue
        entries = content.get(part)
        if not isinstance(entries, list) or not entries:
            continue
        place = generator.randrange(len(entries))
        if generator.random() < 0.05:
            entries[place] = generator.choice(JUNK)
            changes.append(f"{part}[{place}]")
            continue
        entry = entries[place]
        if not isinstance(entry, dict) or not entry:
            continue
        keys = sorted(entry)
        key = "id" if part == "annotations" and generator.random() < 0.2 else generator.choice(keys)
        if key == "segmentation":
            entry[key] = generator.choice(OUTLINES + JUNK)
        elif key == "id" and part == "annotations":
            entry[key] = generator.choice((*JUNK, 0, 1, 2.0, True, "1"))  # an id is a name and no more
        elif key == "bbox" and generator.random() < 0.5 and isinstance(entry[key], list) and entry[key]:
            entry[key][generator.randrange(len(entry[key]))] = generator.choice((None, "1", [], float("nan"), 1e308))
        elif generator.random() < 0.15:
            del entry[key]
        else:
            entry[key] = generator.choice(JUNK)
        changes.append(f"{part}[{place}].{key}")
    return ", ".join(changes)


def command_of(door: str, folder: Path, results: Path, figures: Path) -> list[str]:
    """The command's arguments for a data folder."""
    if door == "results":
        truth = folder / "annotations" / "instances_val.json"
        return ["eval", "--results", str(results), "--annotations", str(truth), "--json", str(figures)]
    if door == "data":
        given = ["eval", "--model", "mask_rcnn_nano_fpg", "--data", str(folder), "--split", "val", "--workers", "0"]
        return [*given, "--device", "cpu", "--json", str(figures)]
    run = folder / "run"
    given = ["train", "--model", "mask_rcnn_nano_fpg", "--pretrained", "--data", str(folder), "--output", str(run)]
    settings = ["--recipe", "scratch", "--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    return [*given, *settings]


def ended(arguments: list[str]) -> tuple[str, str]:
    """How a command ends in a process of its own, and what it prints."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(SECONDS)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = f"exit {main(arguments)}"
        except BaseException:
            code = "traceback"
            output.write(traceback.format_exc())
        with os.fdopen(writer, "wb") as stream:
            stream.write(f"{code}\n{output.getvalue()}".encode(errors="backslashreplace"))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}", said
    code, _, text = said.partition("\n")
    return code, text


def is_silent(text: str) -> bool:
    """Whether nothing was reported as left out or repaired: such lines are indented by two spaces, tables by more."""
    return not re.search(r"^  \S", text, re.MULTILINE) and "no mask AP" not in text


def values_of(figures: Path) -> list[Any]:
    """What was measured: a class may have got another name, and one without objects may have gone."""
    return [
        (kind, content["figures"], [value for value in content["classes"].values() if value is not None])
        for kind, content in json.loads(figures.read_bytes()).items()
    ]


def run(door: str, seed: int, count: int) -> tuple[dict[str, int], list[str]]:
    """The number of each outcome, and what went wrong."""
    torch.set_num_threads(1)  # a forked process has no other threads
    outcomes: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        clean, folder, results, figures = (Path(place, name) for name in ("clean", "data", "results.json", "figures"))
        for split in ("train", "val"):
            write_coco(clean, split, 2)
        truth = json.loads((clean / "annotations" / "instances_val.json").read_bytes())
        rows = [
            {key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
            for row in truth["annotations"]
        ]
        results.write_text(json.dumps(rows))
        code, said = ended(command_of(door, clean, results, figures))
        assert code == "exit 0", said
        expected = values_of(figures) if door != "train" else []
        changed = "val" if door != "train" else "train"
        source = json.loads((clean / "annotations" / f"instances_{changed}.json").read_bytes())
        for number in range(count):
            generator = random.Random(f"{seed} {number}")
            content = copy.deepcopy(source)
            changes = mutate(content, generator)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(clean, folder, ignore=shutil.ignore_patterns("run"))
            (folder / "annotations" / f"instances_{changed}.json").write_text(json.dumps(content))
            figures.unlink(missing_ok=True)
            # With so few objects, one that is lost is more than one in ten.
            allowance = ["--allow-losses"] if generator.random() < 0.7 else []
            code, said = ended([*command_of(door, folder, results, figures), *allowance])
            outcomes[code] += 1
            if code == "exit 2" and "fpg-zoo: " in said:
                continue
            if code != "exit 0" or "Traceback" in said:
                faults.append(f"{number}: {changes}: {code}: {said[-600:]}")
            elif door != "train" and is_silent(said):
                outcomes["nothing left out"] += 1
                if values_of(figures) != expected:
                    faults.append(f"{number}: {changes}: other figures")
    return dict(outcomes), faults


if __name__ == "__main__":
    outcomes, faults = run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(outcomes))
    print("\n".join(faults))
    sys.exit(bool(faults))
