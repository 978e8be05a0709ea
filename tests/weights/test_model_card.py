"""The card that goes to the hub with a model: its front matter as huggingface_hub reads it, and its text."""

from __future__ import annotations

import dataclasses
import math

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_models import tiny_model

from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.build import build_on_meta
from fpg_zoo.weights.hub.card import is_own_card, model_card
from fpg_zoo.weights.manifest import load_manifest

PUBLISHED = load_manifest().find("mask_rcnn_r50_fpg", None)
ODD_NAMES = (
    "[click](https://evil.example)",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "`code` & *bold*",
    "two\nlines --- three",
    "www.evil.example",
    "very long " * 20,
    "\u202egnorts\u202c",
    "größer",
)


def _named(names: tuple[str, ...], architecture: str = "retinanet_nano_fpg"):
    return build_on_meta(dataclasses.replace(tiny_model(architecture).config, class_names=names), architecture)


def test_the_front_matter_of_a_published_model():
    card = ModelCard(model_card(tiny_model(), "owner/some-model", published=PUBLISHED, metrics={"box_ap": 42.75}))
    data = card.data.to_dict()
    assert (data["license"], data["library_name"]) == ("apache-2.0", "fpg_zoo")
    assert data["pipeline_tag"] == "image-segmentation"
    assert data["datasets"] == ["coco"]
    assert {"object-detection", "instance-segmentation", "feature-pyramid-grids"} <= set(data["tags"])
    assert data["model-index"][0]["name"] == "some-model"
    results = {(one.metric_type, one.metric_name): one for one in card.data.eval_results}
    # As the manifest has it: box AP 43.0, mask AP 38.1.
    published = results["box_ap", "box AP, published"]
    assert (published.metric_value, published.dataset_name) == (43.0, "COCO val2017")
    assert published.source_url == PUBLISHED.config_url
    assert results["mask_ap", "mask AP, published"].metric_value == 38.1
    measured = results["box_ap", "box AP, measured by the uploader"]
    assert (measured.metric_value, measured.dataset_name) == (42.75, "not stated")
    assert len(results) == 3


def test_the_front_matter_of_any_other_model():
    data = ModelCard(model_card(tiny_model("retinanet_nano_fpg"), "owner/mine")).data.to_dict()
    assert data["pipeline_tag"] == "object-detection"
    assert "instance-segmentation" not in data["tags"]
    assert not {"license", "datasets", "model-index", "model_name"} & set(data)


def test_the_text_of_a_published_model():
    text = model_card(tiny_model(), "owner/some-model", published=PUBLISHED, metrics={"box_ap": 42.75, "recall": 0.5})
    assert '\nmodel = fpg_zoo.create_model("hf-hub:owner/some-model")\n' in text
    assert "Mask R-CNN" in text
    assert "- Parameters: 2,234,376\n" in text
    assert "longest side has 128 pixels, less the mean (123.675, 116.28, 103.53)" in text
    assert "- Classes: 80: person, bicycle, car, " in text
    assert "| box AP | 43.0 | 42.75 |\n| mask AP | 38.1 |  |\n| recall |  | 0.5 |\n" in text
    assert f"<{PUBLISHED.url}>, whose SHA-256 begins with `233b8334`" in text
    assert "Training recipe: SGD 0\\.08 at batch 64, momentum 0\\.9" in text
    assert "License of the weights: `apache-2.0`." in text
    assert "arXiv:2004.03580}" in text
    assert "@article{chen2020feature," in text


def test_the_text_of_any_other_model_has_no_figure_but_the_given():
    text = model_card(tiny_model("retinanet_nano_fpg"), "owner/mine", revision="wip/x", metrics={"mask_ap": 1e-3})
    assert 'create_model("hf-hub:owner/mine@wip/x")' in text
    assert "| box AP |  |  |\n| mask AP |  | 0.001 |\n" in text
    assert "These weights are not known to be a published checkpoint" in text
    assert "Training recipe" not in text
    assert "License of the weights: not stated" in text
    assert "License of the weights: `mit`" in model_card(tiny_model(), "owner/mine", license="mit")


def test_a_backbone_and_a_name_out_of_the_catalogue():
    config = dataclasses.replace(tiny_model("faster_rcnn_nano_fpg").config)
    text = model_card(build_on_meta(config, "custom"), "owner/mine")
    assert "Faster R-CNN on a ResNet of basic blocks (1, 1, 1, 1), 24 channels wide with the neck FPG (" in text


def test_no_name_is_read_as_markup():
    text = model_card(_named(ODD_NAMES), "owner/mine", metrics={"a|b": 1.0, "<b>": 2.0})
    (classes,) = [line for line in text.splitlines() if line.startswith("- Classes: 9: ")]
    assert "\\[click\\]\\(https\\:\\/\\/evil\\.example\\)" in classes
    assert "\\<img src\\=x onerror\\=alert\\(1\\)\\>" in classes
    assert "two lines" in classes
    assert "www\\.evil" in classes
    assert "very long very long …" not in classes
    assert "…, " in classes
    assert "\u202e" not in text
    assert "größer" in classes
    assert "| a\\|b |  | 1 |\n| \\<b\\> |  | 2 |\n" in text
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"][0]["metrics"][0]["type"] == "a|b"


def test_names_of_repository_and_architecture_are_no_markup_either():
    odd = build_on_meta(tiny_model("retinanet_nano_fpg").config, "`x`\n# heading <b>")
    text = model_card(odd, 'owner/"x"\n```\n: - {', metrics={"box_ap": 1.0})
    data = ModelCard(text).data.to_dict()
    assert data["model-index"][0]["name"] == '"x"\n```\n: - {'
    body = text.split("\n---\n")[1]
    assert "architecture \\`x\\` \\# heading \\<b\\>)" in body
    assert '\nmodel = fpg_zoo.create_model("hf-hub:owner/\\"x\\"\\n```\\n: - {")\n' in body
    assert body.count("\n```") == 4  # the two fences, opened and closed


def test_many_classes_make_no_giant_card():
    text = model_card(_named(tuple(f"thing {index}" for index in range(1203))), "owner/mine")
    assert "- Classes: 1,203: thing 0, " in text
    assert "thing 99, and 1,103 more, all in `config.json`" in text
    assert len(text) < 6000


def test_a_card_is_its_own_until_it_is_changed():
    text = model_card(tiny_model(), "owner/mine", published=PUBLISHED)
    assert is_own_card(text)
    assert text == model_card(tiny_model(), "owner/mine", published=PUBLISHED)
    for changed in (
        text.replace("Metrics", "Our metrics"),
        text.replace("license: apache-2.0", "license: mit"),
        text.replace("\n", "\r\n"),
        text + "More.\n",
        "# By hand\n",
        "",
    ):
        assert not is_own_card(changed)


@pytest.mark.parametrize(
    ("figures", "complaint"),
    [
        ({"box_ap": math.nan}, "box_ap=nan is no finite number; leave out what was not measured"),
        ({"box_ap": -math.inf}, "box_ap=-inf is no finite number"),
        ({"box_ap": "43"}, "box_ap='43' is no finite number"),
        ({"box_ap": True}, "box_ap=True is no finite number"),
        ({"box_ap": None}, "box_ap=None is no finite number"),
        ({"": 1.0}, "'' is no name of a figure"),
        ({"two\nlines": 1.0}, r"'two\\nlines' is no name of a figure"),
        ({3: 1.0}, "'3' is no name of a figure"),
        ({"x" * 61: 1.0}, "is no name of a figure; give a text of at most 60 letters"),
    ],
)
def test_figures_are_finite_numbers_with_names(figures, complaint):
    with pytest.raises(ConfigError, match=complaint):
        model_card(tiny_model(), "owner/mine", metrics=figures)


@pytest.mark.parametrize("licence", ["", "Apache 2.0", "mit`", "a\nb", "MIT"])
def test_a_licence_is_an_identifier_of_the_hub(licence):
    with pytest.raises(ConfigError, match=r"give the hub's identifier, as 'apache-2\.0'"):
        model_card(tiny_model(), "owner/mine", license=licence)
