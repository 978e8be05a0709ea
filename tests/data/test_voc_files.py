"""Files of Pascal VOC folders: any declared encoding, junk of other systems, and nothing hostile is followed."""

from __future__ import annotations

import codecs
import json
import os
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from coco_folders import draw_picture
from voc_folders import GOOD, HEIGHT, WIDTH, voc_object, voc_xml, write_voc

from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.convert_voc import Conversion, convert_voc
from fpg_zoo.errors import ConfigError

ENCODING = "annotation file in an unknown encoding, or not in the one it declares (UTF-8 if none)"
MALFORMED = "annotation file that is not VOC's XML"
UNREADABLE = "annotation file that cannot be read"


def _images(output: Path, split: str = "all") -> list[str]:
    content: dict[str, Any] = json.loads((output / "annotations" / f"instances_{split}.json").read_text("utf-8"))
    return [entry["file_name"] for entry in content["images"]]


def _converted(folder: Path, content: bytes) -> Conversion:
    """A folder with this annotation file, `a.xml`, and a good one."""
    write_voc(folder / "voc", {"a": "", "good": voc_xml(GOOD)})
    (folder / "voc" / "Annotations" / "a.xml").write_bytes(content)
    return convert_voc(folder / "voc", folder / "out")


# Encodings


@pytest.mark.parametrize(
    ("declared", "written", "name"),
    [
        ("gb2312", "gb2312", "自行车"),
        ("gb2312", "gbk", "镕基"),  # the first is not in GB 2312, as programs on Windows write it all the same
        ("GBK", "gbk", "檯球"),
        ("GB18030", "gb18030", "㐀"),
        ("Big5", "big5", "腳踏車"),
        ("Shift_JIS", "shift_jis", "自転車"),
        ("shift-jis", "cp932", "①髙"),  # of Windows' characters
        ("EUC-JP", "euc_jp", "自転車"),
        ("euc-kr", "euc_kr", "자전거"),
        ("windows-1252", "cp1252", "café œ €"),
        ("windows-1251", "cp1251", "велосипед"),
        ("KOI8-R", "koi8_r", "велосипед"),
        ("ISO-8859-1", "latin-1", "vélo"),
        ("iso-8859-2", "iso8859-2", "żółw"),
        ("ISO-8859-15", "iso8859-15", "œuf €"),
        ("UTF-8", "utf-8", "猫 🐶"),
        ("utf-8", "utf-8-sig", "猫"),
        ("gb2312", "utf-8-sig", "猫"),  # the mark is right, the declaration a leftover
        ("UTF-16", "utf-16", "猫 🐶"),  # with a mark
        ("UTF-16", "utf-16-le", "猫"),
        ("UTF-16BE", "utf-16-be", "猫"),
        ("UTF-32", "utf-32", "猫"),
        ("utf-16", "utf-8", "猫"),  # as .NET writes it
        (None, "utf-8", "猫"),
        (None, "utf-16", "猫"),
    ],
)
def test_a_class_in_any_encoding(declared: str | None, written: str, name: str, tmp_path: Path) -> None:
    head = f"<?xml version='1.0' encoding='{declared}' standalone=\"yes\"?>\r\n" if declared else ""
    done = _converted(tmp_path, (head + voc_xml(voc_object(name, 5, 6, 14, 25))).encode(written))
    assert (done.class_names, bool(done.report)) == (tuple(sorted((name, "cell"))), False)


def _latin(declared: str) -> bytes:
    return f'<?xml version="1.0" encoding="{declared}"?>{voc_xml(voc_object("vélo", 5, 6, 14, 25))}'.encode("latin-1")


@pytest.mark.parametrize(
    "content",
    [
        _latin("klingon"),
        *(_latin(codec) for codec in ("rot13", "zlib", "hex", "base64", "bz2", "uu", "quopri")),
        *(
            _latin(codec)
            for codec in ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7", "undefined")
        ),
        _latin("utf-8"),
        _latin("us-ascii"),
        _latin("euc-jp"),
        voc_xml(voc_object("vélo", 5, 6, 14, 25)).encode("latin-1"),
        codecs.BOM_UTF8 + _latin("latin-1"),
        codecs.BOM_UTF16_LE + voc_xml(GOOD).encode("utf-16-le")[:-1],
    ],
)
def test_an_encoding_that_is_none_or_another(content: bytes, tmp_path: Path) -> None:
    assert _converted(tmp_path, content).report.ids_by_problem == {ENCODING: ("a",)}


@pytest.mark.parametrize(
    ("head", "encoding"), [("\ufeff", "utf-8"), ("", "utf-8"), ("\ufeff", "utf-16-le"), ("\ufeff", "utf-16-be")]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_of_names_by_other_systems(head: str, end: str, encoding: str, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"000001": voc_xml(GOOD), "猫": voc_xml(GOOD)}, {"train": []})
    text = head + end.join(["000001", "", "  猫 ", ""])
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes(text.encode(encoding))
    done = convert_voc(folder, tmp_path / "out")
    assert (done.splits["train"].image_count, bool(done.report)) == (2, False)


def test_a_list_of_one_class_lists_its_images(tmp_path: Path) -> None:
    """In a second column VOC says whether the image shows the class; all of them belong to the split."""
    names = ("a", "b", "c", "my 1", "x y")
    lists = {"train": ["a  1", "b -1", "c\t0", "my 1", "x y  -1", "a 7", "d 1"]}
    done = convert_voc(write_voc(tmp_path / "voc", dict.fromkeys(names, voc_xml(GOOD)), lists), tmp_path / "out")
    assert _images(tmp_path / "out", "train") == ["a.jpg", "b.jpg", "c.jpg", "my 1.jpg", "x y.jpg"]
    assert done.report.ids_by_problem == {"listed image without an annotation file": ("a 7", "d 1")}


def test_accents_of_macos_in_names(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "pélican") for form in ("NFC", "NFD"))
    folder = write_voc(tmp_path / "voc", {composed: voc_xml(GOOD)}, {"train": [decomposed], "val": [composed]})
    (folder / "JPEGImages" / f"{composed}.jpg").rename(folder / "JPEGImages" / f"{decomposed}.jpg")
    done = convert_voc(folder, tmp_path / "out")
    assert ({split.image_count for split in done.splits.values()}, bool(done.report)) == ({1}, False)
    assert len(CocoDataset.from_folder(tmp_path / "out", "train")) == 1


@pytest.mark.parametrize("kind", ["latin-1", "pipe", "device", "folder", "endless"])
def test_a_list_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": voc_xml(GOOD)}, {"val": ["a"]})
    file = folder / "ImageSets" / "Main" / "train.txt"
    if kind == "latin-1":
        file.write_bytes("é".encode("latin-1"))
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        with file.open("wb") as stream:
            stream.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"train\.txt: cannot be read \(.*\); write a name per line, in UTF-8"):
        convert_voc(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Junk, endings, twins


def test_what_other_systems_leave_in_folders_is_passed_over(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": voc_xml(GOOD), "b": voc_xml(GOOD)})
    for name in ("._a.xml", ".DS_Store", "Thumbs.db", "desktop.ini", "a.xml~", "notes.txt"):
        (folder / "Annotations" / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "._b.JPG"):
        (folder / "JPEGImages" / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (folder / "__MACOSX" / "Annotations").mkdir(parents=True)
    done = convert_voc(folder, tmp_path / "out")
    assert (done.splits["all"].image_count, bool(done.report)) == (2, False)


@pytest.mark.parametrize(("annotation", "image"), [("a.XML", "a.JPG"), ("a.Xml", "a.jpg"), ("a.xml", "a.JPEG")])
def test_endings_in_capitals(annotation: str, image: str, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": voc_xml(GOOD)})
    (folder / "Annotations" / "a.xml").rename(folder / "Annotations" / annotation)
    (folder / "JPEGImages" / "a.jpg").rename(folder / "JPEGImages" / image)
    assert not convert_voc(folder, tmp_path / "out").report
    assert _images(tmp_path / "out") == [image]


@pytest.mark.parametrize(
    ("filename", "image"),
    [
        ("a.png", "a.png"),
        ("a.jpg", "a.jpg"),
        ("C:\\data\\a.png", "a.png"),
        ("/home/alice/a.jpg", "a.jpg"),
        (" a.JPG\n", "a.JPG"),
        ("a.bmp", None),
        ("a", None),
        ("", None),
        ("../../a.png/x", None),
    ],
)
def test_of_images_of_one_name_the_annotation_decides(filename: str, image: str | None, tmp_path: Path) -> None:
    text = voc_xml(GOOD).replace("<filename>x<", f"<filename>{filename}<")
    folder = write_voc(tmp_path / "voc", {"a": text, "b": voc_xml(GOOD)})
    for name in ("a.png", "a.JPG"):
        draw_picture(folder / "JPEGImages" / name, WIDTH, HEIGHT)
    done = convert_voc(folder, tmp_path / "out")
    taken = "image with others of its name and other endings beside it (the one that the annotation names is taken)"
    left_out = "several images of one name, of which the annotation names none"
    assert done.report.ids_by_problem == {taken if image else left_out: ("a",)}
    assert _images(tmp_path / "out") == ([image] if image else []) + ["b.jpg"]


def test_two_annotation_files_of_one_name_contradict_each_other(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": voc_xml(GOOD), "b": voc_xml(GOOD)})
    (folder / "Annotations" / "a.XML").write_text(voc_xml(voc_object("dot", 1, 1, 9, 9)))
    assert convert_voc(folder, tmp_path / "out").report.ids_by_problem == {"two annotation files of one name": ("a",)}
    assert _images(tmp_path / "out") == ["b.jpg"]


# Hostile files


def test_names_are_looked_up_and_never_opened(tmp_path: Path) -> None:
    draw_picture(tmp_path / "private.jpg", WIDTH, HEIGHT)
    (tmp_path / "private.xml").write_text(voc_xml(voc_object("secret", 1, 1, 9, 9)))
    text = voc_xml(GOOD).replace("<filename>x<", f"<folder>/</folder><filename>{tmp_path}/private.jpg<")
    names = ("../private", "../../private", str(tmp_path / "private"), "..\\..\\private", "a/../../../private", "a\0")
    done = convert_voc(write_voc(tmp_path / "voc", {"a": text}, {"train": ["a", *names]}), tmp_path / "out")
    assert done.report.ids_by_problem == {"listed image without an annotation file": tuple(sorted(names))}
    assert (done.class_names, _images(tmp_path / "out", "train")) == (("cell",), ["a.jpg"])


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse", "folder", "loop"])
def test_what_is_no_file_in_place_of_an_annotation_file_or_an_image(kind: str, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", dict.fromkeys("abc", voc_xml(GOOD)))
    for file in (folder / "Annotations" / "a.xml", folder / "JPEGImages" / "b.jpg"):
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "sparse":
            with file.open("wb") as stream:
                stream.truncate(1 << 40)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to(file.name)
    done = convert_voc(folder, tmp_path / "out")
    assert done.report.ids_by_problem == {UNREADABLE: ("a",), "image that cannot be read": ("b",)}
    assert _images(tmp_path / "out") == ["c.jpg"]


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>{voc_xml(voc_object("&l9;", 5, 6, 14, 25))}', "DOCTYPE"),
        (f'<!DOCTYPE a [<!ENTITY % x SYSTEM "file:///etc/passwd">%x;]>{voc_xml(GOOD)}', "DOCTYPE"),
        ("<a>" * 1_000_000, MALFORMED),
        ("<annotation>" + "<a>" * 1_000_000 + "</a>" * 1_000_000 + "</annotation>", "none"),
        (f"<annotation>{'<object>' * 500_000}{'</object>' * 500_000}{voc_xml(GOOD)[12:]}", "none"),
        (f"<annotation>{'<a/>' * 1_000_000}</annotation>", "none"),
        (voc_xml(GOOD).replace("<object>", f"<object a='{'x' * (15 << 20)}'>"), "none"),
        (voc_xml(GOOD).replace("<object>", f"<object a='{'x' * (17 << 20)}'>"), UNREADABLE),
        (voc_xml(GOOD) + "<annotation/>", MALFORMED),
        (voc_xml(GOOD) + "\0" * 100, MALFORMED),
    ],
    ids=["laughs", "outside", "unclosed", "deep", "deep objects", "wide", "attribute", "large", "two roots", "zeros"],
)
@pytest.mark.slow
def test_xml_that_is_made_to_exhaust(content: str, kind: str, tmp_path: Path) -> None:
    begin = time.perf_counter()
    done = _converted(tmp_path, content.encode())
    assert time.perf_counter() - begin < 30
    kind = "annotation file with a document type, which can make it endless" if kind == "DOCTYPE" else kind
    assert done.report.ids_by_problem.get(kind, ()) == (() if kind == "none" else ("a",))
    assert _images(tmp_path / "out")[-1] == "good.jpg"


def test_images_that_are_links(tmp_path: Path) -> None:
    """A link within the folder is followed, so that the image stays when the folder goes; one out of it stays one."""
    folder = write_voc(tmp_path / "voc", dict.fromkeys(("a", "b", "c"), voc_xml(GOOD)))
    images, blob = folder / "JPEGImages", folder / "blobs" / "1"
    blob.parent.mkdir()
    (images / "a.jpg").rename(blob)
    (images / "a.jpg").symlink_to(Path("..", "blobs", "2"))
    (blob.parent / "2").symlink_to("1")
    (images / "b.jpg").rename(tmp_path / "elsewhere.jpg")
    (images / "b.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    for _ in range(2):
        assert not convert_voc(folder, tmp_path / "out").report
        assert not (tmp_path / "out" / "images" / "a.jpg").is_symlink()
        assert (tmp_path / "out" / "images" / "a.jpg").samefile(blob)
        assert (tmp_path / "out" / "images" / "b.jpg").readlink() == tmp_path / "elsewhere.jpg"
    assert len(CocoDataset.from_folder(tmp_path / "out", "all")) == 3


def test_a_link_to_what_was_converted_before_loses_nothing(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": voc_xml(GOOD)})
    convert_voc(folder, tmp_path / "out")
    given, taken = folder / "JPEGImages" / "a.jpg", tmp_path / "out" / "images" / "a.jpg"
    content = given.read_bytes()
    given.unlink()
    given.symlink_to(taken)
    convert_voc(folder, tmp_path / "out")
    assert (taken.is_symlink(), taken.read_bytes()) == (False, content)


def test_a_damaged_png_is_found_before_it_is_trained_on(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", dict.fromkeys(("a", "b"), voc_xml(GOOD)))
    (folder / "JPEGImages" / "a.jpg").unlink()
    draw_picture(folder / "JPEGImages" / "a.png", WIDTH, HEIGHT)
    content = (folder / "JPEGImages" / "a.png").read_bytes()
    (folder / "JPEGImages" / "a.png").write_bytes(content[: len(content) // 2])
    assert convert_voc(folder, tmp_path / "out").report.ids_by_problem == {"image that cannot be read": ("a",)}


def test_what_is_printed_of_names_is_printable(tmp_path: Path) -> None:
    name = "a\u202eb\n  \u2028c"
    folder = write_voc(tmp_path / "voc", {"e\x1b[2Jx": voc_xml(voc_object(name, 5, 6, 14, 25), width=9)})
    summary = convert_voc(folder, tmp_path / "out").summary()
    assert "1 classes, a\\u202eb\\n  \\u2028c" in summary
    assert "1 x image of another size than its annotation says (the image's taken): e\\x1b[2Jx" in summary
    assert all(line.isprintable() for line in summary.split("\n"))
