"""Data sets in the layouts that people have are read as COCO's own is; what is not there is answered with what is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_folders import CATEGORIES, annotation, draw_picture, picture, write_folder
from voc_folders import GOOD, voc_object, voc_xml, write_voc

from fpg_zoo.data.coco import CocoDataset
from fpg_zoo.data.convert_voc import convert_voc
from fpg_zoo.data.hold_out import original_of
from fpg_zoo.data.open_split import HeldOut, open_held_out, open_train, open_val
from fpg_zoo.errors import ConfigError, ImageError

BOX = [4, 5, 10, 20]  # of `GOOD` and `ROW` in an image of 40 x 48
ROW = "0 0.225 0.3125 0.25 0.416667"  # center 9, 15; 10 x 20.00002 pixels

Facts = dict[str, list[tuple[str, list[float]]]]


def _train(folder: Path, **options: Any) -> CocoDataset:
    dataset = open_train(folder, **{"masks": False} | options)
    assert isinstance(dataset, CocoDataset)
    return dataset


def _files(dataset: Any) -> list[str]:
    return [dataset.image_info(place).file.name for place in range(len(dataset))]


def _facts(dataset: Any, rename: Callable[[str], str] = lambda name: name) -> Facts:
    """Per image, classes and boxes in their order."""
    infos = [dataset.image_info(place) for place in range(len(dataset))]
    return {
        rename(info.file.name): [
            (dataset.class_names[label], box)
            for label, box in zip(info.objects.labels, info.objects.boxes.tolist(), strict=True)
        ]
        for info in infos
    }


def _assert_equal(facts: Facts, expected: Facts, tolerance: float) -> None:
    assert facts.keys() == expected.keys()
    for name, objects in expected.items():
        assert [kind for kind, _ in facts[name]] == [kind for kind, _ in objects], name
        boxes = [np.array([box for _, box in both]).reshape(-1, 4) for both in (facts[name], objects)]
        np.testing.assert_allclose(*boxes, rtol=0, atol=tolerance, err_msg=name)


# Real photographs, written in each layout


class Photographs:
    """COCO's annotations of the photographs, as its file has them, and as `CocoDataset` reads it."""

    def __init__(self, folder: Path) -> None:
        file = folder / "annotations" / "instances_val2017.json"
        self.folder = folder / "val2017"
        self.content = json.loads(file.read_text())
        self.names = {entry["id"]: entry["name"] for entry in self.content["categories"]}
        self.read = CocoDataset(file, self.folder, training=False)
        self.facts = _facts(self.read)

    def rows(self, image: dict[str, Any], *, crowds: bool = False) -> list[dict[str, Any]]:
        rows = [row for row in self.content["annotations"] if row["image_id"] == image["id"]]
        return [row for row in rows if crowds or not row["iscrowd"]]

    def link(self, folder: Path, rename: Callable[[str], str] = lambda name: name) -> None:
        for image in self.content["images"]:
            file = folder / rename(image["file_name"])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to(self.folder / image["file_name"])


@pytest.fixture(scope="module")
def photographs(data_folder: Path) -> Photographs:
    return Photographs(data_folder / "coco")


def _write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def _renamed(photographs: Photographs, rename: Callable[[str], str]) -> dict[str, Any]:
    images = [image | {"file_name": rename(image["file_name"])} for image in photographs.content["images"]]
    return {**photographs.content, "images": images}


def test_photographs_by_roboflow(photographs: Photographs, tmp_path: Path) -> None:
    def rename(name: str) -> str:
        return f"{name.removesuffix('.jpg')}_jpg.rf.{'0a1b' * 8}.jpg"

    content = _renamed(photographs, rename)
    content["categories"] = [{"id": 0, "name": "things", "supercategory": "none"}] + [
        entry | {"supercategory": "things"} for entry in content["categories"]
    ]
    for split in ("train", "valid"):
        _write_json(tmp_path / split / "_annotations.coco.json", content)
        photographs.link(tmp_path / split, rename)
    held_out = open_held_out(tmp_path, None, limit=None, masks=True)
    assert held_out.split == "valid"
    assert held_out.dataset.class_names == photographs.read.class_names
    _assert_equal(_facts(held_out.dataset, lambda name: f"{name[:12]}.jpg"), photographs.facts, 0)
    train = _train(tmp_path, masks=True)
    assert (len(train), train.mask_count) == (42, train.object_count)  # two show none of the classes
    assert train.report.counts == {
        "root category that no annotation uses (left out)": 1,
        "image without an object to train on": 2,
    }


@pytest.mark.parametrize(
    "spelled",
    ["images/{}", "..\\/..\\/images\\{}", "../../data/images/{}", "images\\my%20{}", "/data/upload/images/{}"],
)
def test_photographs_by_label_studio(spelled: str, photographs: Photographs, tmp_path: Path) -> None:
    spaces = "%20" in spelled
    _write_json(tmp_path / "result.json", _renamed(photographs, spelled.format))
    photographs.link(tmp_path / "images", lambda name: f"my {name}" if spaces else name)
    held_out = open_held_out(tmp_path, None, limit=None, masks=False)
    _assert_equal(_facts(held_out.dataset, lambda name: name.removeprefix("my ")), photographs.facts, 0)


@pytest.mark.parametrize("below", ["images", "images/default"])
def test_photographs_by_cvat(below: str, photographs: Photographs, tmp_path: Path) -> None:
    _write_json(tmp_path / "annotations" / "instances_default.json", _renamed(photographs, "part/{}".format))
    photographs.link(tmp_path / below / "part")
    _assert_equal(_facts(open_held_out(tmp_path, None, limit=None, masks=False).dataset), photographs.facts, 0)
    assert len(_train(tmp_path)) == 42


def test_a_file_and_its_images_apart(photographs: Photographs, tmp_path: Path) -> None:
    photographs.link(tmp_path / "photos")
    file = tmp_path / "elsewhere" / "labels.json"
    _write_json(file, photographs.content)
    data = open_held_out(None, None, limit=None, masks=False, annotations=file, images=tmp_path / "photos")
    _assert_equal(_facts(data.dataset), photographs.facts, 0)
    assert (len(_train(tmp_path / "photos", annotations=file)), data.digest) == (
        42,
        _train(file.parent.parent / "photos", annotations=file).digest,
    )


def test_photographs_by_voc(photographs: Photographs, tmp_path: Path) -> None:
    photographs.link(tmp_path / "JPEGImages")
    (tmp_path / "Annotations").mkdir()
    for image in photographs.content["images"]:
        objects = ""
        for row in photographs.rows(image, crowds=True):
            x, y, width, height = row["bbox"]
            hard = f"<difficult>{row['iscrowd']}</difficult>"
            # Pixels count from 1, and the last one is in.
            objects += voc_object(photographs.names[row["category_id"]], x + 1, y + 1, x + width, y + height, rest=hard)
        text = voc_xml(objects, width=image["width"], height=image["height"])
        (tmp_path / "Annotations" / image["file_name"]).with_suffix(".xml").write_text(text)
    data = open_held_out(tmp_path, None, limit=None, masks=False)
    _assert_equal(_facts(data.dataset), photographs.facts, 1e-4)
    assert sum(row["iscrowd"] for row in data.annotations["annotations"]) == photographs.read.crowd_count
    shown = {kind for objects in photographs.facts.values() for kind, _ in objects}
    assert set(data.dataset.class_names) >= shown


@pytest.mark.parametrize("polygons", [False, True], ids=["boxes", "polygons"])
def test_photographs_by_yolo(polygons: bool, photographs: Photographs, tmp_path: Path) -> None:
    index = {identity: place for place, identity in enumerate(photographs.names)}
    photographs.link(tmp_path / "images" / "train")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    masks, expected = 0, {}
    for image in photographs.content["images"]:
        lines, expected[image["file_name"]] = [], []
        for row in photographs.rows(image):
            x, y, width, height = row["bbox"]
            shares = [x + width / 2, y + height / 2, width, height]
            if polygons and len(row["segmentation"]) == 1:
                (shares,) = row["segmentation"]
                x, y = min(shares[::2]), min(shares[1::2])
                width, height = max(shares[::2]) - x, max(shares[1::2]) - y
                masks += 1
            sides = (image["width"], image["height"])
            shares = [share / sides[place % 2] for place, share in enumerate(shares)]
            lines.append(" ".join([str(index[row["category_id"]]), *(f"{share:.6f}" for share in shares)]))
            box = [x, y, min(x + width, image["width"]), min(y + height, image["height"])]
            expected[image["file_name"]].append((photographs.names[row["category_id"]], box))
        if lines:
            (tmp_path / "labels" / "train" / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines))
    names = "".join(f"  {place}: {name}\n" for place, name in enumerate(photographs.names.values()))
    (tmp_path / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/train\nnc: 80\nnames:\n{names}")
    data = open_held_out(tmp_path, None, limit=None, masks=polygons)
    assert data.dataset.class_names == photographs.read.class_names
    _assert_equal(_facts(data.dataset), expected if polygons else photographs.facts, 640 * 2e-6)
    assert sum("segmentation" in row for row in data.annotations["annotations"]) == masks
    assert len(_train(tmp_path)) == 42


@pytest.mark.slow
def test_photographs_by_datasets(photographs: Photographs, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = list(photographs.names.values())
    objects = [
        {
            "bbox": [row["bbox"] for row in photographs.rows(image)],
            "category": [names.index(photographs.names[row["category_id"]]) for row in photographs.rows(image)],
            "area": [row["area"] for row in photographs.rows(image)],
        }
        for image in photographs.content["images"]
    ]
    columns = {
        "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float64"), length=4)),
        "category": datasets.Sequence(datasets.ClassLabel(names=names)),
        "area": datasets.Sequence(datasets.Value("float64")),
    }
    files = [str(photographs.folder / image["file_name"]) for image in photographs.content["images"]]
    rows = datasets.Dataset.from_dict(
        {"image": files, "objects": objects},
        features=datasets.Features({"image": datasets.Image(), "objects": columns}),
    )
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "set"))
    data = open_held_out(tmp_path / "set", None, limit=None, masks=False)
    assert (data.split, data.folder, data.dataset.class_names) == ("validation", None, tuple(names))
    _assert_equal(_facts(data.dataset), photographs.facts, 1e-4)
    areas = [row["area"] for row in photographs.content["annotations"] if not row["iscrowd"]]
    assert sorted(row["area"] for row in data.annotations["annotations"]) == sorted(areas)
    for place in (0, 1):
        assert bool((data.dataset[place].image == photographs.read[place].image).all())


@pytest.mark.slow
def test_blood_cells_are_read_as_their_conversion_is(data_folder: Path, tmp_path: Path) -> None:
    convert_voc(data_folder / "BCCD", tmp_path / "out")
    for split, images, objects in (("train", 205, 2804), ("test", 72, 945)):
        direct = _train(data_folder / "BCCD", split=split)
        assert (len(direct), direct.object_count) == (images, objects)
        _assert_equal(_facts(direct), _facts(CocoDataset.from_folder(tmp_path / "out", split)), 0)
    assert direct.class_names == ("Platelets", "RBC", "WBC")


# YOLO's quirks


def _yolo(folder: Path, yaml: str, **files: str) -> Path:
    """Each file is a text, or for an empty one with the ending of an image, an image of 40 x 48."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(yaml, encoding="utf-8")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            draw_picture(folder / name, 40, 48)
        else:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


PAIR = {"images/train/a.png": "", "labels/train/a.txt": ROW}


@pytest.mark.parametrize(
    ("yaml", "files"),
    [
        ("train: images/train\nnames: [cell]", PAIR),
        ("path: nowhere\ntrain: images/train\nnames: {0: cell}", PAIR),
        ("path: /content/mine\ntrain: images/train\nval:\nnames: [cell]", PAIR),
        ("path: 'C:\\Users\\me'\ntrain: 'images\\train'\nnames:\n- cell", PAIR),
        ("path: images\ntrain: train\nnames: [cell]", PAIR),
        ("train: ../images/train\nnames: [cell]\nnc: 1\nroboflow:\n  version: 1", PAIR),
        ("train: /content/mine/images/train\nnames: [cell]", PAIR),
        ("train: [images/train, images/more]\nnames: [cell]", PAIR | {"images/more/b.png": ""}),
        ("train: list.txt\nnames: [cell]", PAIR | {"list.txt": "\ufeff./images/train/a.png\r\n\r\n"}),
        ("train: lists/l.txt\nnames: [cell]", PAIR | {"lists/l.txt": "/home/me/images/train/a.png\n"}),
        ("train: images\nnames: [cell]", PAIR | {"images/train/b.png": "", "images/train/c.txt": "text"}),
        ("train: train/images\nnames: [cell]", {"train/images/a.png": "", "train/labels/a.txt": f"\ufeff{ROW}\r\n\n"}),
        ("train: photos\nnames: [cell]", {"photos/a.png": "", "photos/a.txt": ROW, "photos/._a.png": ""}),
        ("train: train\nnames: [cell]", {"train/a.png": "", "train/a.txt": ROW.replace("0 ", "0.0 ", 1)}),
    ],
)
def test_yolo(yaml: str, files: dict[str, str], tmp_path: Path) -> None:
    dataset = _train(_yolo(tmp_path / "set", yaml, **files))
    assert dataset.class_names == ("cell",)
    assert _files(dataset) == ["a.png"]
    np.testing.assert_allclose(dataset.image_info(0).objects.boxes, [[4, 5, 14, 25]], atol=1e-4)
    assert dataset.report.counts.keys() <= {"image without an object to train on"}
    assert tuple(dataset[0].image.shape) == (3, 48, 40)


def test_yolo_by_a_list_of_classes(tmp_path: Path) -> None:
    """As Label Studio exports it; a YAML file, if there is one, tells more."""
    files = {"classes.txt": "\ufeffcell\r\nnucleus\r\n\n", "notes.json": "{}", "images/a.png": "", "labels/a.txt": ROW}
    (_yolo(tmp_path / "one", "", **files) / "data.yaml").unlink()
    dataset = _train(tmp_path / "one")
    assert (dataset.class_names, _files(dataset)) == (("cell", "nucleus"), ["a.png"])
    np.testing.assert_allclose(dataset.image_info(0).objects.boxes, [[4, 5, 14, 25]], atol=1e-4)
    (_yolo(tmp_path / "two", "", **PAIR, **{"classes.txt": "cell", "images/val/b.png": ""}) / "data.yaml").unlink()
    assert _files(_train(tmp_path / "two")) == ["a.png"]
    with pytest.raises(ConfigError, match=r"no split 'test' in .*classes\.txt \(YOLO\): it has train, val"):
        open_held_out(tmp_path / "two", "test", limit=None, masks=False)
    _yolo(tmp_path / "two", "train: images/train\nnames: [from the yaml]")
    assert _train(tmp_path / "two").class_names == ("from the yaml",)


def test_a_yaml_file_of_any_name_and_classes_as_they_are_written(tmp_path: Path) -> None:
    _yolo(tmp_path, "", **PAIR)
    (tmp_path / "data.yaml").rename(tmp_path / "mine.yml")
    (tmp_path / "mine.yml").write_text("train: images/train\nnames: [no, 1e3, 2020-01-01, null]")
    for place in (tmp_path, tmp_path / "mine.yml"):
        assert _train(place).class_names == ("no", "1e3", "2020-01-01", "null")


def test_rows_of_polygons_and_key_points(tmp_path: Path) -> None:
    # A right triangle of 20 x 24 pixels, and a box followed by two key points.
    triangle, pose = "0 0.25 0.25 0.75 0.25 0.25 0.75", f"{ROW} 0.5 0.5 2 0.1 0.1 2"
    files = PAIR | {"labels/train/a.txt": triangle}
    dataset = _train(_yolo(tmp_path / "a", "train: images/train\nnames: [cell]", **files), masks=True)
    objects = dataset.image_info(0).objects
    assert (objects.boxes.tolist(), objects.areas.tolist(), dataset.mask_count) == ([[10, 12, 30, 36]], [240], 1)
    files["labels/train/a.txt"] = pose
    dataset = _train(_yolo(tmp_path / "b", "train: images/train\nkpt_shape: [2, 3]\nnames: [cell]", **files))
    np.testing.assert_allclose(dataset.image_info(0).objects.boxes, [[4, 5, 14, 25]], atol=1e-4)


def test_label_files_without_their_images_are_told(tmp_path: Path) -> None:
    files = PAIR | {"labels/train/gone.txt": ROW, "labels/train/classes.txt": "cell"}
    dataset = _train(_yolo(tmp_path, "train: images/train\nnames: [cell]", **files))
    assert dataset.report.ids_by_problem == {"image whose file is not there": ("gone",)}


# What is left out, in every layout


def _coco_of(folder: Path, wrong: int) -> Path:
    boxes = [BOX] * 10 + [[4, 5, 0, 9]] * wrong
    return write_folder(folder, [picture(1)], [annotation(place, 1, box) for place, box in enumerate(boxes)])


def _yolo_of(folder: Path, wrong: int) -> Path:
    rows = [ROW] * 10 + ["0 0.5 0.5 0.1", "1 0.5 0.5 0.1 0.1", "0 0.5 x 0.1 0.1"][:wrong]
    return _yolo(folder, "train: images/train\nnames: [cell]", **PAIR | {"labels/train/a.txt": "\n".join(rows)})


def _voc_of(folder: Path, wrong: int) -> Path:
    bad = [voc_object("cell", 9, 9, 9, 9), voc_object("", 1, 1, 9, 9), voc_object("cell", 1, 1)][:wrong]
    return write_voc(folder, {"a": voc_xml(*[GOOD] * 10, *bad)}, {"train": ["a"]})


def _datasets_of(folder: Path, wrong: int) -> Path:
    datasets = pytest.importorskip("datasets")
    draw_picture(folder / "a.png", 40, 48)
    boxes = [BOX] * 10 + [[4, 5, 0, 9]] * wrong
    rows = {"image": [str(folder / "a.png")], "objects": [[{"bbox": box, "label": "cell"} for box in boxes]]}
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.save_to_disk(str(folder / "set"))
    return folder / "set"


@pytest.mark.parametrize("write", [_coco_of, _yolo_of, _voc_of, _datasets_of])
def test_more_than_one_loss_in_ten_is_refused(write: Callable[[Path, int], Path], tmp_path: Path) -> None:
    assert _train(write(tmp_path / "one", 1)).object_count == 10  # of 11
    with pytest.raises(ConfigError, match=r"2 of 12 annotations cannot be used, more than one in ten \(") as refused:
        _train(write(tmp_path / "two", 2))
    assert str(refused.value).isprintable()
    assert _train(tmp_path / "two" / ("set" if write is _datasets_of else ""), allow_losses=True).object_count == 10


def test_annotation_files_that_cannot_be_read_are_losses(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", {"a": voc_xml(GOOD), "b": "<annotation>"}, {"train": ["a", "b"]})
    with pytest.raises(ConfigError, match=r"1 of 2 annotations .* annotation file that is not VOC's XML: b\)"):
        _train(tmp_path / "voc")
    _yolo(tmp_path / "yolo", "train: images/train\nnames: [cell]", **PAIR | {"images/train/b.png": ""})
    (tmp_path / "yolo" / "labels" / "train" / "b.txt").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ConfigError, match=r"1 of 2 annotations .* annotation file that cannot be read: images/train/b"):
        _train(tmp_path / "yolo")


def test_images_without_objects_are_kept_if_asked_for(tmp_path: Path) -> None:
    rows = [annotation(number, 1, BOX) for number in range(9)] + [annotation(9, 3, [0, 0, 0, 0])]
    folder = write_folder(tmp_path, [picture(number) for number in (1, 2, 3)], rows)
    plain, kept = _train(folder), _train(folder, keep_background=True)
    # In 3 something was marked, so it is no background.
    assert (_files(plain), _files(kept)) == (["1.png"], ["1.png", "2.png"])
    assert len(kept.image_info(1).objects) == 0
    assert plain.digest != kept.digest
    with pytest.raises(ConfigError, match="no image that can be used, of 2"):
        _train(write_folder(tmp_path / "none", [picture(1), picture(2)], []), keep_background=True)


# Splits


@pytest.mark.parametrize(
    ("there", "asked", "found"),
    [
        (("train", "val"), (None, None), ("train", "val")),
        (("train2017", "val2017"), (None, None), ("train2017", "val2017")),
        (("train2017", "val2017"), ("train", "val"), ("train2017", "val2017")),
        (("train", "valid", "test"), ("train", "val"), ("train", "valid")),
        (("train", "test2017"), ("train", "test"), ("train", "test2017")),
        (("Train", "Validation"), (None, None), ("Train", "Validation")),
    ],
)
def test_names_of_splits(there: tuple[str, ...], asked: Any, found: Any, tmp_path: Path) -> None:
    for split in there:
        write_folder(tmp_path, [picture(split)], [annotation(1, split, BOX)], split=split, pictures=split)
    train = _train(tmp_path, split=asked[0])
    held_out = open_val(tmp_path, train, split=asked[1], masks=False)
    assert held_out is not None
    assert (_files(train), _files(held_out.dataset), held_out.split) == (
        [f"{found[0]}.png"],
        [f"{found[1]}.png"],
        found[1],
    )


def test_training_without_images_to_evaluate_on(tmp_path: Path) -> None:
    train = _train(write_folder(tmp_path, [picture(1)], [annotation(1, 1, BOX)], split="default", pictures="images"))
    assert open_val(tmp_path, train, masks=False) is None
    assert open_val(None, train, masks=False) is None
    with pytest.raises(ConfigError, match=r"split val and val_fraction=0\.2: leave one of them out"):
        open_val(tmp_path, train, split="val", masks=False, val_fraction=0.2)
    assert open_held_out(tmp_path, None, limit=None, masks=False).split == "default"


def test_training_and_evaluation_have_the_same_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, [picture(1)], [annotation(1, 1, BOX)])
    write_folder(tmp_path, [picture(1)], [annotation(1, 1, BOX)], CATEGORIES[:1], split="val", pictures="val")
    with pytest.raises(
        ConfigError, match=r"split val of .*: its classes, in the order of their ids, are not those that"
    ):
        open_val(tmp_path, _train(tmp_path), masks=False)


# A share that is held out


def _sides(folder: Path, fraction: float, seed: int = 0) -> tuple[CocoDataset, HeldOut]:
    train = _train(folder, val_fraction=fraction, seed=seed)
    held_out = open_val(folder, train, masks=False, val_fraction=fraction, seed=seed)
    assert held_out is not None
    assert not set(_files(train)) & set(_files(held_out.dataset))
    return train, held_out


def test_a_share_is_held_out(tmp_path: Path) -> None:
    rows = [annotation(number, number, BOX, category_id=2 if number < 3 else 7) for number in range(1, 21)]
    folder = write_folder(tmp_path, [picture(number) for number in range(1, 21)], rows)
    train, held_out = _sides(folder, 0.25)
    assert (len(train), len(held_out.dataset), held_out.split) == (15, 5, "held out")
    assert len(set(_files(train)) & {"1.png", "2.png"}) == 1  # of the rare class, one on each side
    again, other = _sides(folder, 0.25), _sides(folder, 0.25, seed=1)
    assert (_files(again[0]), again[1].digest) == (_files(train), held_out.digest)
    assert _files(other[0]) != _files(train)
    assert len({train.digest, held_out.digest, other[0].digest, other[1].digest, _train(folder).digest}) == 5
    assert not train.report
    assert held_out.summary is not None
    assert "\n" not in held_out.summary


def test_copies_of_an_image_are_on_one_side(tmp_path: Path) -> None:
    names = [f"{part}/cell{number}_png.rf.{number}{part}.png" for number in range(6) for part in "abc"]
    images = [picture(place) | {"file_name": name} for place, name in enumerate(names)]
    write_folder(tmp_path, images, [annotation(place, place, BOX) for place in range(18)])
    train, held_out = _sides(tmp_path, 0.34)
    assert (len(train), len(held_out.dataset)) == (12, 6)
    sides = [{name[:5] for name in _files(side)} for side in (train, held_out.dataset)]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("IMG_1_jpg.rf.0a1B2c.jpg", "img_1"),
        ("IMG_1.rf.aZ9.jpg", "img_1"),
        ("train/a.png", "a"),
        ("x\\a.PNG", "a"),
        ("a_flip.png", "a"),
        ("a_hflip_rot90.png", "a"),
        ("a-aug-12.png", "a"),
        ("a (2).png", "a"),
        ("a_1.png", "a_1"),
        ("aug_1.png", "aug_1"),
        ("darkroom.png", "darkroom"),
        ("a.b.png", "a.b"),
    ],
)
def test_what_copies_have_in_common(name: str, original: str) -> None:
    assert original_of(name) == original


def test_classes_of_a_single_image_are_trained_on_and_told(tmp_path: Path) -> None:
    rows = [annotation(number, number, BOX, category_id=2 if number == 4 else 7) for number in range(10)]
    train, held_out = _sides(write_folder(tmp_path, [picture(number) for number in range(10)], rows), 0.3)
    assert "4.png" in _files(train)
    assert not train.report
    assert held_out.summary is not None
    assert held_out.summary.endswith("1 x class of which the images held out show no object: dot")


def test_images_of_one_id_are_on_one_side(tmp_path: Path) -> None:
    images = [picture(number) for number in range(10)] + [picture(3) | {"file_name": "other.png"}]
    folder = write_folder(tmp_path, images, [annotation(number, number, BOX) for number in range(10)])
    for seed in range(8):
        train, held_out = _sides(folder, 0.5, seed)
        sides = (train.report.ids_by_problem, (held_out.summary or "").partition("image id used before: ")[2])
        assert sides in (({"image id used before": (3,)}, ""), ({}, "3"))


def test_every_layout_has_a_share(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", {f"n{number}": voc_xml(GOOD) for number in range(8)} | {"bad": "<annotation>"})
    files = {
        f"{kind}/{number}.{end}": text
        for number in range(8)
        for kind, end, text in (("images", "png", ""), ("labels", "txt", ROW))
    }
    _yolo(tmp_path / "yolo", "train: images\nnames: [cell]", **files)
    for name in ("voc", "yolo"):
        train = _train(tmp_path / name, val_fraction=0.25, allow_losses=True)
        held_out = open_held_out(tmp_path / name, None, limit=None, masks=False, val_fraction=0.25, allow_losses=True)
        assert (len(train), len(held_out.dataset)) == (6, 2)
        assert not set(_files(train)) & set(_files(held_out.dataset))


# What is refused


def _plain(folder: Path) -> Path:
    return write_folder(folder, [picture(1)], [annotation(1, 1, BOX)])


@pytest.mark.parametrize(
    ("files", "options", "complaint"),
    [
        ({}, {}, r"none of the layouts that are read: looked for .*\. It holds nothing$"),
        ({str(n): "" for n in range(9)}, {}, r"It holds 0, 1, 2, 3, 4, 5, \.\.\. \(9 in all\)$"),
        ({"\x1b[2J.txt": ""}, {}, r"It holds \\x1b\[2J\.txt$"),
        ({"data.yaml": "train: [", **PAIR}, {}, r"data\.yaml: cannot be read \("),
        ({"data.yaml": "[" * 1000, **PAIR}, {}, r"data\.yaml: cannot be read \(nested too deeply\)"),
        ({"data.yaml": '"\\UFFFFFFFF"', **PAIR}, {}, r"data\.yaml: cannot be read \("),
        ({"data.yaml": "#" * (1 << 20) + "\n", **PAIR}, {}, r"cannot be read \(1048577 bytes, more than the 1048576"),
        ({"data.yaml": "text", **PAIR}, {}, r"data\.yaml: no table in it"),
        ({"data.yaml": "train: x", **PAIR}, {}, "names=None: give the classes as a list"),
        ({"data.yaml": "train: x\nnames: {a: b}", **PAIR}, {}, "names: index 'a': it takes whole numbers"),
        ({"data.yaml": "train: x\nnames: [[a]]", **PAIR}, {}, r"names: 0: \['a'\]: it takes a text"),
        ({"data.yaml": "train: x\nnames: &a [*a]", **PAIR}, {}, "found unconstructable recursive node"),
        ({"data.yaml": "a: &a [x]\nnames: [*a]\ntrain: x", **PAIR}, {}, r"names: 0: \['x'\]: it takes a text"),
        ({"data.yaml": "train: images\nnames: [a, a]", **PAIR}, {}, "category name 'a' is there twice"),
        ({"data.yaml": "train: x\nnames: [a]\nnc: 2", **PAIR}, {}, "nc='2', and 1 names; correct one of them"),
        ({"data.yaml": "names: [a]", **PAIR}, {}, "no split in it; name folders of images under train, val, test"),
        ({"data.yaml": "train: {a: b}\nnames: [a]", **PAIR}, {}, "train={'a': 'b'}: it takes a path, or a list"),
        ({"data.yaml": "train: img\nnames: [a]", **PAIR}, {}, "train: no 'img' in .*; correct the path"),
        ({"data.yaml": "train: labels\nnames: [a]", **PAIR}, {}, "train: no images in 'labels'"),
        ({"data.yaml": "train: images\nnames: [a]", "images/a.png": ""}, {}, "1 images and no label file; looked for"),
        (
            {"data.yaml": "train: images\ntest: images\nnames: [a]", **PAIR},
            {"split": "val"},
            r"^no split 'val' in .*data\.yaml \(YOLO\): it has train, test$",
        ),
        ({"classes.txt": "", **PAIR}, {}, r"classes\.txt: empty; give each line the name of a class"),
        ({"classes.txt": "a\n\nb", **PAIR}, {}, r"classes\.txt: an empty line; give each line the name"),
        ({"classes.txt": "a\na", **PAIR}, {}, "category name 'a' is there twice"),
        ({"classes.txt": "a", "images/b.png": "", **PAIR}, {}, r"b\.png: beside folders of splits \(train\)"),
        ({"Annotations/x.txt": "", "JPEGImages/a.png": ""}, {}, r"no files ending in \.xml"),
        ({"a.json": "[]"}, {"annotations": "a.json"}, "no list 'images' in it"),
        ({"a.json": "[]"}, {"annotations": "b.json"}, "no such file; name an annotation file in COCO's format"),
        ({"a.json": "[]"}, {"annotations": "a.json", "images": "x"}, "x: no such folder; name the one that the"),
        ({"a.json": "[]"}, {"images": "x"}, "a folder of images without its annotation file"),
        ({"result.json": "[]"}, {}, r"result\.json: no list 'images' in it \(it is a list, as of detections\)"),
    ],
)
def test_what_cannot_be_opened(files: dict[str, str], options: dict[str, str], complaint: str, tmp_path: Path) -> None:
    yaml = files.get("data.yaml")
    _yolo(tmp_path, yaml or "", **{name: text for name, text in files.items() if name != "data.yaml"})
    if yaml is None:
        (tmp_path / "data.yaml").unlink()
    places = {name: tmp_path / value if name != "split" else value for name, value in options.items()}
    with pytest.raises(ConfigError, match=complaint) as refused:
        _train(tmp_path, **places)
    assert str(refused.value).isprintable()


def test_places_that_are_no_data_sets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: no such folder; name the one of the data set"):
        _train(tmp_path / "none")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"a\.json: a file; name the folder of the data set, or an annotation file"):
        _train(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="no data: name the folder"):
        open_train(None, masks=False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"split": "test"}, r"^no split 'test' in .* \(COCO\): it has train, val$"),
        ({"val_fraction": 0.2}, "val_fraction=0.2: .* has a split val to evaluate on; leave the share out, or name"),
        (
            {"val_fraction": 0.0, "split": "train"},
            "val_fraction=0.0: it takes a share of the images, above 0 and below",
        ),
        ({"val_fraction": 1.0, "split": "train"}, "val_fraction=1.0: it takes a share"),
        ({"val_fraction": float("nan"), "split": "train"}, "val_fraction=nan: it takes a share"),
        ({"val_fraction": 0.2, "split": "train"}, "no images to hold out, as all 1 are one or copies of one"),
    ],
)
def test_splits_and_shares_that_are_refused(options: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    write_folder(_plain(tmp_path), [picture(1)], [annotation(1, 1, BOX)], split="val")
    with pytest.raises(ConfigError, match=complaint):
        _train(tmp_path, **options)


def test_a_split_to_evaluate_on_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no split 'val' in .* \(COCO\): it has train$"):
        open_held_out(_plain(tmp_path), None, limit=None, masks=False)


def test_the_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "dataset_dict.json").write_text("{}")
    for place in (tmp_path, Path("hf:owner/name")):
        with pytest.raises(
            ConfigError, match=r"needs the datasets library, which is not installed; pip install 'fpg-zoo"
        ):
            _train(place)


def test_saved_data_sets_that_cannot_be_used(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, rows, complaint in (
        (
            "plain",
            {"image": ["x"], "text": ["a"]},
            "all: its columns are image, text; it takes image, and objects with",
        ),
        ("numbers", {"image": ["x"], "objects": [[{"bbox": BOX, "label": 3}]]}, "no names of classes"),
    ):
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / name))
        with pytest.raises(ConfigError, match=complaint):
            _train(tmp_path / name)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "dataset_dict.json").write_text("{")
    with pytest.raises(ConfigError, match="bad: cannot be loaded") as refused:
        _train(tmp_path / "bad")
    assert str(refused.value).isprintable()


def test_pixels_of_a_row_that_cannot_be_read(tmp_path: Path) -> None:
    folder = _datasets_of(tmp_path, 0)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:80])
    datasets = pytest.importorskip("datasets")
    content = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}
    rows = {"image": [content], "objects": [[{"bbox": BOX, "label": "cell"}]]}
    features = datasets.load_from_disk(str(folder)).features
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "cut"))
    with pytest.raises(ImageError, match=r"a\.png, row 1: cannot be read"):
        _train(tmp_path / "cut")[0]
