"""Mutated VOC folders and `images` entries; as a program, reads each in a process of its own and counts the outcomes.

Use: python data_mutations.py SEED FOLDERS ENTRIES. Prints a line of JSON with the number of each outcome, and says what
went wrong: an error that is not of this package, a signal, ten seconds, or a loss of what was not mutated.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coco_folders import CATEGORIES, annotation, draw_picture, picture
from voc_folders import GOOD, HEIGHT, WIDTH, voc_object, voc_xml, write_voc

from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.convert_voc import convert_voc
from fpg_zoo.errors import FPGZooError, ImageError

SECONDS = 10
BOX = [4, 5, 10, 20]  # of `GOOD`, as COCO has it
WORDS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1e309",
        "nan",
        "inf",
        "1_0",
        "٣",
        "9" * 400,
        "0x10",
        "-0",
        "1e-320",
        "&",
        "<",
        "]]>",
        "&lt;",
    ),
    *(
        "<object>",
        "</object>",
        "<bndbox/>",
        "<name>x</name>",
        "<!--",
        "-->",
        "<![CDATA[",
        "<?x?>",
        "<a:b/>",
        "\0",
        "\ufffe",
    ),
    *(
        '<!DOCTYPE a [<!ENTITY x "y">]>',
        "&x;",
        "&#0;",
        "&#xD800;",
        "<?xml version='1.1'?>",
        "encoding='rot13'",
        "é",
        "🐶",
    ),
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "shift_jis", "cp1252", "utf-7")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 40, 48, 40.0, 40.5, 1e300, -0.0, float("nan"), float("inf"), 10**30, 10**400),
    *(
        "",
        "40",
        "a.png",
        "sub/a.png",
        "sub\\a.png",
        "..",
        "../x.png",
        "/etc/passwd",
        "/dev/zero",
        "C:\\a\\keep.png",
        "a%20b.png",
    ),
    *(
        "%00",
        "%",
        "%zz",
        "\ud800",
        "\0",
        "a" * 10_000,
        "/" * 5000,
        "http://[",
        "https://x/y/a.png?z",
        "file:///a.png",
        "é.png",
    ),
    *(
        [],
        [1],
        {},
        {"id": 1},
        [[[]]],
        "pipe.png",
        "loop.png",
        "link.png",
        "folder.png",
        "text.png",
        "cut.png",
        "turned.jpg",
    ),
)


def mutated_bytes(content: bytes, random: random.Random) -> bytes:
    """A few of: bits turned, pieces cut out, repeated or exchanged, words put in, another encoding."""
    for _ in range(random.choice((1, 1, 2, 5))):
        begin, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
        end = min(end, begin + random.choice((1, 4, 30, 10_000)))
        kind = random.randrange(7)
        if kind == 0 and begin < len(content):
            content = content[:begin] + bytes([content[begin] ^ 1 << random.randrange(8)]) + content[begin + 1 :]
        elif kind == 1:
            content = content[:begin] + content[end:]
        elif kind == 2:
            content = content[:end] + content[begin:end] * random.choice((1, 1, 500)) + content[end:]
        elif kind == 3:
            content = content[:begin]
        elif kind == 4:
            with contextlib.suppress(UnicodeError):
                content = content.decode().encode(random.choice(ENCODINGS))
        else:
            word = random.choice(WORDS).encode("utf-8", "surrogatepass")
            content = content[:begin] + word + content[begin if kind == 5 else end :]
    return content


def mutate_folder(folder: Path, random: random.Random) -> None:
    """A VOC folder whose image `a` or lists are mutated; `good` stays as it is."""
    text = voc_xml(GOOD, voc_object("dot", 1, 1, WIDTH, HEIGHT, rest="<difficult>1</difficult>"))
    text = f'<?xml version="1.0" encoding="{random.choice(("utf-8", "gb2312", "utf-16", "cp1252"))}"?>\n{text}'
    write_voc(folder, {"a": text, "good": voc_xml(GOOD)}, {"train": ["a", "good"]} if random.random() < 0.5 else None)
    names = ("Annotations/a.xml", "JPEGImages/a.jpg", "ImageSets/Main/train.txt")
    file = folder / random.choices(names, (6, 2, 1 if (folder / names[2]).exists() else 0))[0]
    kind = random.random()
    if kind < 0.75:
        file.write_bytes(mutated_bytes(file.read_bytes(), random))
    elif kind < 0.83:
        other = random.choice(
            ("a.XML", "a.png", "._a.xml", "a", "good.txt", "é.xml", "a.jpg", "train.txt", "a\udce9.xml")
        )
        file.rename(file.with_name(other))
    else:
        exchange(file, random)


def exchange(file: Path, random: random.Random) -> None:
    """Something that is no file in place of a file."""
    file.unlink(missing_ok=True)
    make: Callable[[], Any] = random.choice(
        (
            lambda: os.mkfifo(file),
            lambda: file.mkdir(),
            lambda: file.symlink_to("/dev/zero"),
            lambda: file.symlink_to(file.name),
            lambda: file.symlink_to("/etc/passwd"),
            lambda: file.write_bytes(b""),
        )
    )
    make()


def read_folder(folder: Path, random: random.Random) -> None:
    """Convert a mutated folder and read what came of it; `good` must be in it as it was."""
    mutate_folder(folder / "voc", random)
    done = convert_voc(folder / "voc", folder / "out")
    assert all(line.isprintable() for line in done.summary().split("\n")), done.summary()
    for split in done.splits:
        dataset = CocoDataset.from_folder(folder / "out", split, training=False)
        read_pixels(dataset)
        kept = [
            dataset.image_info(place) for place in range(len(dataset)) if dataset.image_info(place).file.stem == "good"
        ]
        if split == "all":
            assert [picture.objects.boxes.tolist() for picture in kept] == [[[4, 5, 14, 25]]]


def read_entries(folder: Path, random: random.Random) -> None:
    """Read an annotation file with mutated entries of images; those of ids from 100 on must be read as they were."""
    train = folder / "train"
    for name in ("a.png", "sub/a.png", "a b.png", "é.png", "cut.png", "keep0.png", "keep1.png"):
        draw_picture(train / name, 40, 48)
    (train / "cut.png").write_bytes((train / "cut.png").read_bytes()[:60])
    (train / "text.png").write_text("text")
    (train / "folder.png").mkdir()
    os.mkfifo(train / "pipe.png")
    (train / "loop.png").symlink_to("loop.png")
    (train / "link.png").symlink_to("a.png")
    images: list[Any] = [picture(place) | {"file_name": "a.png"} for place in range(4)]
    for image in images:
        for _ in range(random.choice((1, 1, 2, 4))):
            key = random.choice(("id", "file_name", "file_name", "width", "height", "coco_url"))
            image[key] = random.choice(VALUES)
            if random.random() < 0.2:
                image.pop(random.choice(tuple(image)))
    if random.random() < 0.2:
        images[random.randrange(4)] = random.choice(VALUES)
    kept = [picture(100 + place) | {"file_name": f"keep{place}.png"} for place in range(2)]
    images += kept
    rows = [annotation(number, number, BOX) for number in (0, 1, 2, 3, 100, 101)]
    text = json.dumps({"images": images, "annotations": rows, "categories": CATEGORIES})
    content = text.encode(random.choice(("utf-8", "utf-8-sig", "utf-16", "utf-32")))
    whole = random.random() < 0.8
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train.json").write_bytes(content if whole else mutated_bytes(content, random))
    dataset = CocoDataset.from_folder(folder, "train", training=random.random() < 0.5)
    assert all(line.isprintable() for line in dataset.summary().split("\n")), dataset.summary()
    read_pixels(dataset)
    pictures = [dataset.image_info(place) for place in range(len(dataset))]
    if whole:
        by_id = {picture.image_id: picture for picture in pictures}
        for image in kept:
            assert (by_id[image["id"]].size, by_id[image["id"]].file) == ((48, 40), train / image["file_name"])
            assert by_id[image["id"]].objects.boxes.tolist() == [[4, 5, 14, 25]]


def read_pixels(dataset: CocoDataset) -> None:
    """All of them; those that cannot be read are an ImageError."""
    for place in range(len(dataset)):
        assert all(type(side) is int and side > 0 for side in dataset.image_info(place).size)
        with contextlib.suppress(ImageError):
            sample = dataset[place]
            assert tuple(sample.image.shape) == (3, *sample.info.size)


def outcome(read: Callable[[Path, random.Random], None], seed: str) -> str:
    """`read`, the error's name, or what went wrong, of a case in a process of its own."""
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiver)
        signal.alarm(SECONDS)
        told = "read"
        try:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                read(Path(folder), random.Random(seed))
        except FPGZooError as error:
            told = type(error).__name__ if str(error).isprintable() else f"FAULT {error!r}"
        except BaseException:
            told = f"FAULT {traceback.format_exc()}"
        os.write(sender, told.encode("utf-8", "backslashreplace")[:60_000])
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, encoding="utf-8", errors="replace") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    return told if status == 0 else f"FAULT ended by signal {os.WTERMSIG(status)}"


def main(seed: str, folders: int, entries: int) -> None:
    """Print what came of so many mutated folders and so many mutated lists of entries."""
    counts: dict[str, collections.Counter[str]] = {}
    for name, read, number in (("folders", read_folder, folders), ("entries", read_entries, entries)):
        counts[name] = collections.Counter()
        for place in range(number):
            told = outcome(read, f"{seed} {name} {place}")
            if told.startswith("FAULT"):
                print(f"{seed} {name} {place}: {told}", file=sys.stderr)
                told = "FAULT"
            counts[name][told] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
