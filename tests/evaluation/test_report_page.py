"""`fpg-zoo eval --report`: one page that needs nothing else, whatever its names; looked at in Chromium."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import html.parser
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import document, screenshot, told
from command import run
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from reporting import HOSTILE, SIDES, write_eighty, write_hostile

from fpg_zoo.config.coco_classes import COCO_CLASSES
from fpg_zoo.evaluation.report.html import embedded, printable

pytestmark = pytest.mark.usefixtures("one_thread")


class _Elements(html.parser.HTMLParser):
    """Every element of a page with its attributes, and the texts of some."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def _data(text: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    done = run(*write_hostile(folder), "--images", folder / "pictures", "--report", folder / "report.html")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"written: {folder / 'report.html'}"
    return folder / "report.html"


@pytest.fixture(scope="module")
def eighty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eighty")
    done = run(*write_eighty(folder), "--report", folder / "report.html")
    assert done.code == 0, done.err
    return folder / "report.html"


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a Mask R-CNN that comes with the package, on drawn scenes."""
    file = tmp_path_factory.mktemp("nano") / "made" / "report.html"  # the folder is made
    options = ["--model", "mask_rcnn_nano_fpg", "--data", "shapes", "--limit", 6, "--device", "cpu", "--workers", 0]
    done = run("eval", *options, "--report", file)
    assert done.code == 0, done.err
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]
    return file


# What stands in the page


@pytest.mark.parametrize("name", ["hostile", "eighty", "nano"])
def test_the_page_refers_to_nothing_outside_and_runs_its_own_script_only(
    name: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(name).read_text(encoding="utf-8")
    page = _Elements(text)
    references = [
        value or ""
        for _, attributes in page.found
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
    ]
    assert [value for value in references if not value.startswith(("#", "data:"))] == []
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [one["content"] for one in page.named("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    pieces = [re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script")]
    digests = [base64.b64encode(hashlib.sha256(piece.encode()).digest()).decode() for (piece,) in pieces]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert len(page.named("script")) == 2  # the data and the script
    assert {tag for tag, _ in page.found} & {"img", "iframe", "object", "embed", "base", "form"} == set()
    assert [key for _, attributes in page.found for key in attributes if key.startswith("on") or key == "style"] == []


def test_hostile_names_are_texts(hostile: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    names = [printable(name) for name in HOSTILE]
    assert names[0] == HOSTILE[0]  # it is but escaped
    assert names[1] == "'\"><svg onload=document.title='owned'></title><!--" + "\ufffd" * 3
    assert [text.count(html.escape(name)) for name in names] == [2, 2]  # in the table and in the choice of curves
    assert text.count(html.escape(names[0][:29] + "…") + "</text>") == 3  # its objects' labels
    assert _data(text)["classes"] == names
    assert text.count("<title>") == 1 + 4 + 5  # of the page, and of what is annotated and detected in one image


def test_texts_that_end_elements_are_embedded_as_json() -> None:
    given = {"name": "</script><!--&\u2028\ud800", "number": 1.5}
    text = embedded(given)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == given
    assert printable("a\tb\n" + "x" * 100) == "a b " + "x" * 75 + "…"


def test_the_counts_are_those_by_hand(hostile: Path) -> None:
    data = _data(hostile.read_text(encoding="utf-8"))
    assert data["truth"] == [3, 1]
    # Rows: class of the object (2: none), class of the detection, then step and number.
    assert data["cells"] == [[0, 0, [30, 1, 90, 1]], [0, 1, [80, 1]], [1, 1, [100, 1]], [2, 0, [60, 1]]]
    assert data["matrix"] == [0, 1]
    assert (data["thresholds"][0], data["thresholds"][29], data["thresholds"][100]) == ("0.00", "0.29", "1.00")


def test_the_picture_with_mistakes_is_there_with_what_is_in_it(hostile: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    page = _Elements(text)
    (image,) = page.named("image")  # the other image has no mistakes
    kind, _, encoded = str(image["href"]).partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        assert picture.size == SIDES
    shapes = [(one["class"], one["data-step"]) for one in page.named("g") if "data-step" in one]
    assert shapes == [
        ("shape crowd", "-1"),
        ("shape object", "90"),
        ("shape object missed", "-1"),
        ("shape object missed", "30"),
        ("shape right below", "30"),
        ("shape wrong", "60"),
        ("shape ignored", "70"),
        ("shape wrong", "80"),
        ("shape right", "90"),
    ]
    # Without scripts it says so, too: at 0.5 the object of another class and the one missed are not found.
    counts = re.findall(r'<span data-count="\w+">(\d+)</span> (\w+)', text)
    assert counts == [("1", "right"), ("2", "wrong"), ("2", "missed")]


def test_precisions_are_pycocotools(eighty: Path) -> None:
    folder = eighty.parent
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        content = json.loads((folder / "annotations.json").read_text())
        for row in content["annotations"]:
            row |= {"id": row["id"] + 1, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
        annotations.dataset = content
        annotations.createIndex()
        judged = COCOeval(annotations, annotations.loadRes(str(folder / "results.json")), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    precisions = judged.eval["precision"][:, :, :, 0, 2]
    text = eighty.read_text(encoding="utf-8")
    curves = _data(text)["curves"]["box"]
    assert len(curves) == 81
    assert curves[80] is None  # no toothbrush in the truth
    for label in (0, 33, 78):
        expected = [precisions[0, :, label], precisions[5, :, label], precisions[:, :, label].mean(axis=0)]
        assert np.abs(np.array(curves[1 + label]["precision"]) / 10_000 - expected).max() <= 0.5e-4
    assert curves[0]["ap"] == [f"{judged.stats[place]:.3f}" for place in (1, 2, 0)]
    assert 0.05 < judged.stats[0] < 0.95
    mean = np.array(curves[0]["precision"]).mean(axis=1) / 10_000
    assert mean == pytest.approx([judged.stats[1], judged.stats[2], judged.stats[0]], abs=1e-4)
    for figure in judged.stats:
        assert f'<td class="number">{figure:.3f}</td>' in text or figure == -1


def test_eighty_classes_stay_small_and_say_that_pictures_are_not_there(eighty: Path) -> None:
    text = eighty.read_text(encoding="utf-8")
    assert len(text) < 600_000
    assert text.count('<figure class="worst">') == 12
    assert text.count("Without the image: no folder of images was given") == 12
    assert all(html.escape(name) in text for name in COCO_CLASSES)


def test_a_page_of_masks_has_both_kinds_and_their_outlines(nano: Path) -> None:
    text = nano.read_text(encoding="utf-8")
    assert list(_data(text)["curves"]) == ["box", "mask"]
    assert '<th scope="col" class="number">Box</th><th scope="col" class="number">Mask</th>' in text
    assert text.count('<path class="region" d="M') > 20
    assert "<dd>mask_rcnn_nano_fpg.shapes</dd>" in text  # the weights, with their tag
    assert "$</span> <code>fpg-zoo eval --model mask_rcnn_nano_fpg --data shapes --limit 6 --device cpu" in text
    assert len(text) < 1_500_000


def test_of_very_many_objects_and_detections_some_are_drawn(tmp_path: Path) -> None:
    options = write_hostile(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    (crowd,) = [row for row in content["annotations"] if row["iscrowd"]]
    row = content["annotations"][0]
    content["annotations"] = [*[row | {"id": place} for place in range(1, 401)], crowd | {"id": 401}]
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": place / 400} for place in range(400)]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert run(*options, "--report", tmp_path / "r.html").code == 0
    shapes = [
        one for one in _Elements((tmp_path / "r.html").read_text(encoding="utf-8")).named("g") if "data-step" in one
    ]
    assert [one["class"] for one in shapes[:2]] == ["shape crowd", "shape object missed"]
    assert len(shapes) == 300 + 100
    assert shapes[-1]["data-step"] == "99"  # of 399 / 400
    assert shapes[300]["data-step"] == "75"  # of 300 / 400, the last of the best hundred


# The command


def test_pictures_that_cannot_be_read_are_left_out_with_a_note(tmp_path: Path) -> None:
    options = write_hostile(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    secret = tmp_path / "secret.png"
    secret.write_bytes((tmp_path / "pictures" / "plain.png").read_bytes())
    for name, note in (
        ("../secret.png", f"../secret.png: leads out of {tmp_path / 'pictures'}; copy the image into this folder"),
        (str(secret), f"{secret}: leads out of {tmp_path / 'pictures'}"),
        ("no\0ne.png", "ne.png: no such file"),
        ("", "its entry has no file name"),
        (7, "its entry has no file name"),
        ("none.png", "none.png: no such file"),
    ):
        content["images"][0]["file_name"] = name
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        done = run(*options, "--images", tmp_path / "pictures", "--report", tmp_path / "r.html")
        assert done.code == 0, done.err
        text = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert re.search(f'<p class="note">Without the image: [^<]*{re.escape(note)}', text)
        assert "data:image/jpeg" not in text
        assert text.count('<rect class="blank"') == 2


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--report", "."), ".: a folder; name the file to write"),
        (("--report", "file/r.html"), "file: cannot be a folder, "),
        (("--json", "file/deeper/f.json"), "file/deeper: cannot be a folder, "),
        (("--report", "r.html", "--json", "./r.html"), "two files to write have this name"),
        (("--images", "."), "--images DIR: with --results, it has the images of --report F; give that"),
        (("--images", "none", "--report", "r.html"), "none: no such folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(
    options: Sequence[str], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    ended = run("eval", "--results", "none.json", "--annotations", "none.json", *options)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert cause in line
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["file"]


def test_pictures_of_a_data_set_need_no_folder(tmp_path: Path) -> None:
    options = ["--model", "mask_rcnn_nano_fpg", "--data", "shapes", "--report", tmp_path / "r.html"]
    ended = run("eval", *options, "--images", tmp_path)
    assert ended.code == 2
    assert "--images DIR: it has the images of --annotations F; give that, too" in ended.err


def test_scores_of_any_range_and_no_detections(tmp_path: Path) -> None:
    options = write_hostile(tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())
    for row in rows:
        row["score"] = row["score"] * 200 - 100
    for content, thresholds in ((rows, ["-40", "30", "100"]), ([], ["0.00", "0.50", "1.00"])):
        (tmp_path / "results.json").write_text(json.dumps(content))
        done = run(*options, "--report", tmp_path / "r.html")
        assert done.code == 0, done.err
        values = _data((tmp_path / "r.html").read_text(encoding="utf-8"))["thresholds"]
        assert [values[0], values[50], values[100]] == thresholds


# In the browser


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.slow
def test_it_looks_like_a_page_light_and_dark(dark: bool, nano: Path, tmp_path: Path) -> None:
    picture = screenshot(nano, tmp_path / "page.png", (1280, 3200), dark=dark)
    pixels = np.asarray(picture, dtype=np.int64)
    paper = (19, 21, 23) if dark else (252, 252, 251)
    assert tuple(pixels[5, 5]) == paper
    background = (pixels == paper).all(axis=2)
    assert 0.4 < background.mean() < 0.95
    # Text stands out by more than 7 to 1, which is more than a difference of 150 gray levels here.
    brightness = pixels[40:140, 40:700].mean(axis=2)
    assert abs(brightness - paper[0]).max() > 150
    assert not background[-400:].all()  # the images


def test_the_script_fills_in_what_depends_on_the_threshold(hostile: Path) -> None:
    shown = document(hostile)
    assert '<html lang="en" data-ready="yes">' in shown
    assert "<title>results.json on annotations.json</title>" in shown  # nobody has set another
    matrix = re.search('<div id="matrix".*?</div>', shown, re.DOTALL)
    assert matrix is not None
    # At 0.5, by hand: annotated first class, second class, background; detected first, second, missed.
    cells = re.findall("<td class=[^>]*>(.*?)</td>", matrix.group())
    assert cells == ["1", "1", "1", "", "1", "", "1", "", ""]


def test_the_slider_moves_everything(hostile: Path) -> None:
    texts = "(one, by = ' ') => [...document.querySelectorAll(one)].map((found) => found.textContent).join(by)"
    # At 0.75 the detection of nothing is gone, at 0.3 another object is found. Right, wrong, missed of the images.
    doing = f"""
      const slider = document.getElementById("threshold"), texts = {texts}, said = [];
      for (const value of [75, 30, 95]) {{
        slider.value = value;
        slider.dispatchEvent(new Event("input"));
        said.push([
          texts("#shown"), texts("[data-overall]"), texts("[data-count]"), texts("#matrix td", ","),
          texts("#by-class tr:first-child [data-mark]"), texts("#frequent tbody td"),
        ].join("; "));
      }}
      document.getElementById("class").value = "1";
      document.getElementById("class").dispatchEvent(new Event("change"));
      said.push(texts(".key b"));
      const titles = [...document.querySelectorAll("#by-class th button")];
      titles[1].click();
      titles[1].click();
      said.push(texts("#by-class tbody td:nth-child(2)"));
      tell(said.join("|"));
    """
    said = told(hostile, doing).replace(printable(HOSTILE[1]), "second")
    assert said.split("|") == [
        # Two right, one wrong, of four objects: F1 = 4 / (3 + 4).
        "0.75; 0.667 0.500 0.571; 1 1 2; 1,1,1,,1,,,,; 1.000 0.333 0.500; second 1 33 %",
        # Three right, two wrong.
        "0.30; 0.600 0.750 0.667; 2 2 1; 2,1,,,1,,1,,; 0.667 0.667 0.667; second 1 33 %",
        "0.95; 1.000 0.250 0.400; 0 0 3; ,,3,,1,,,,; \N{EN DASH} 0.000 0.000; No class is taken for another.",
        # By hand: precision 1 up to recall 1/3, then 2/3 up to 2/3, nothing beyond: (34 + 33 * 2 / 3) / 101.
        "0.554 0.554 0.554",
        "1 3",
    ]


@pytest.mark.parametrize(("name", "width"), [("nano", 400), ("nano", 1600), ("eighty", 400), ("hostile", 400)])
@pytest.mark.slow
def test_nothing_reaches_over_the_edge(name: str, width: int, request: pytest.FixtureRequest) -> None:
    doing = "tell([innerWidth, document.documentElement.scrollWidth].join(' '))"
    assert told(request.getfixturevalue(name), doing, width=width) == f"{width} {width}"
