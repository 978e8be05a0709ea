"""The card of a model on the Hugging Face hub: what it is, how to use it, which metrics are known and from whom."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fpg_zoo.config import DetectorConfig, FPGConfig, PreprocessConfig, TimmConfig
from fpg_zoo.config.catalog import ARCHITECTURES
from fpg_zoo.errors import ConfigError
from fpg_zoo.text import quoted
from fpg_zoo.weights.manifest import Published, load_manifest

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from fpg_zoo.modeling.detectors import Detector

_MOST_NAMES, _MOST_LETTERS = 100, 60  # class names that a card lists, and letters of each
_SIGNATURE = re.compile(r"<!-- made by fpg_zoo ([0-9a-f]{64}): [^\n]*-->\n")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_LABELS = {"box_ap": "box AP", "mask_ap": "mask AP"}
_MARKUP = re.compile(r"([!#$&()*./:<=>@\[\\\]^_`{|}~])")
_CITATION = """\
@article{chen2020feature,
  title   = {Feature Pyramid Grids},
  author  = {Chen, Kai and Cao, Yuhang and Loy, Chen Change and Lin, Dahua and Feichtenhofer, Christoph},
  journal = {arXiv preprint arXiv:2004.03580},
  year    = {2020}
}"""


def model_card(
    model: Detector,
    repo_id: str,
    *,
    revision: str | None = None,
    published: Published | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
) -> str:
    """The card as Markdown with YAML front matter, signed so that `is_own_card` knows it again.

    Args:
        model: what it describes.
        repo_id: OWNER/REPO, where the model is or will be.
        revision: the branch it is on; None for the default one.
        published: the published checkpoint whose weights are the model's, and whose metrics it therefore has.
        metrics: those that whoever pushes it has measured, by name; `box_ap` and `mask_ap` stand beside the published.
        license: the hub's identifier of the weights' license, as "apache-2.0"; None for the published checkpoint's, or
            to state none.

    Raises:
        ConfigError: metrics that are no finite numbers, or without a name that fits in a line; no license identifier.
    """
    measured = checked_metrics(metrics or {})
    check_license(license)
    if license is None and published is not None:
        license = published.license.lower()
    parts = (
        _title(model, repo_id),
        _usage(repo_id, revision, model.config),
        _facts(model),
        _metrics_table(model.config, published, measured),
        _origin(published, license),
        f"## Citation\n\n```bibtex\n{_CITATION}\n```",
    )
    front = _front_matter(model, repo_id, published, measured, license)
    return _signed(f"---\n{front}\n---\n", "\n\n".join(parts) + "\n")


def is_own_card(text: str) -> bool:
    """Whether `model_card` made it and nobody has changed it since."""
    signature = _SIGNATURE.search(text)
    return signature is not None and signature.group(1) == _digest(text[: signature.start()] + text[signature.end() :])


def check_license(license: str | None) -> None:
    """Whether it can be a license's identifier on the hub; None is none.

    Raises:
        ConfigError: it cannot.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise ConfigError(f"license {quoted(license)}: give the hub's identifier, as 'apache-2.0', or leave it out")


def checked_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics by the card's names (`box AP` counts as `box_ap`), if each is a finite number with a name.

    Raises:
        ConfigError: one is not, or is there by two names.
    """
    keys = {label: key for key, label in _LABELS.items()}
    for name, value in metrics.items():
        if not isinstance(name, str) or not name.strip() or len(name) > _MOST_LETTERS or not name.isprintable():
            raise ConfigError(
                f"metrics: {quoted(str(name))} is no name of a figure; give a text of at most {_MOST_LETTERS} letters"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -math.inf < value < math.inf:
            raise ConfigError(f"metrics: {name}={quoted(value)} is no finite number; leave out what was not measured")
    checked = {keys.get(name, name): value for name, value in metrics.items()}
    if len(checked) < len(metrics):
        raise ConfigError(f"metrics: {', '.join(metrics)} name one metric twice; give each once")
    return checked


def _signed(front: str, body: str) -> str:
    digest = _digest(front + body)
    return f"{front}<!-- made by fpg_zoo {digest}: the next push replaces this card unless it was changed -->\n{body}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _escaped(text: str) -> str:
    """A text that stands for itself wherever Markdown or HTML may read it, on one line and not too long."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    line = line if len(line) <= _MOST_LETTERS else line[: _MOST_LETTERS - 1] + "…"
    return _MARKUP.sub(r"\\\1", line)


def _front_matter(
    model: Detector, repo_id: str, published: Published | None, measured: Mapping[str, float], license: str | None
) -> str:
    from huggingface_hub import ModelCardData

    results = [*_published_results(published), *_measured_results(_task(model.config), measured)]
    tags = ["object-detection"]
    if model.config.has_masks:
        tags.append("instance-segmentation")
    if isinstance(model.config.neck, FPGConfig):
        tags.append("feature-pyramid-grids")
    return ModelCardData(
        license=license,
        library_name="fpg_zoo",
        pipeline_tag=_task(model.config),
        tags=[*tags, "arxiv:2004.03580"],
        datasets=["coco"] if published and _is_of_coco(published) else None,
        model_name=repo_id.partition("/")[2] if results else None,
        eval_results=results or None,
    ).to_yaml()


def _published_results(published: Published | None) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    if published is None:
        return
    rows = (("object-detection", "box_ap", published.box_ap), ("instance-segmentation", "mask_ap", published.mask_ap))
    for task, metric, value in rows:
        if value is not None:
            yield EvalResult(
                task_type=task,
                dataset_type="coco" if _is_of_coco(published) else "fpg_zoo.data.shapes",
                dataset_name=published.data,
                dataset_split="val2017" if _is_of_coco(published) else "val",
                metric_type=metric,
                metric_name=f"{_LABELS[metric]}, published",
                metric_value=value,
                # The two go together, and what comes with the zoo has no address.
                source_name=None if published.packaged else "the published checkpoint",
                source_url=None if published.packaged else published.config_url or published.url,
            )


def _measured_results(task: str, measured: Mapping[str, float]) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    for name, value in measured.items():
        yield EvalResult(
            task_type=task,
            dataset_type="unknown",
            dataset_name="not stated",
            metric_type=name,
            metric_name=f"{_LABELS.get(name, name)}, measured by the uploader",
            metric_value=value,
        )


def _task(config: DetectorConfig) -> str:
    """The hub's name of what the model does."""
    return "image-segmentation" if config.has_masks else "object-detection"


def _title(model: Detector, repo_id: str) -> str:
    config = model.config
    known = ARCHITECTURES.get(model.name)
    if known:
        method, neck = known.method, known.neck
    else:
        method = config.method
        neck = type(config.neck).__name__.removesuffix("Config")
    # Parentheses make no link without brackets, which stay escaped.
    backbone = re.sub(r"\\([()])", r"\1", _escaped(config.backbone.label))
    does = "boxes, classes and masks" if config.has_masks else "boxes and classes"
    return (
        f"# {_escaped(repo_id.partition('/')[2])}\n\n"
        f"{_escaped(method)} on a {backbone} with the neck {_escaped(neck)} "
        f"(`fpg_zoo` architecture {_escaped(model.name)}): finds objects in images, as {does}. Of the zoo of "
        "[Feature Pyramid Grids](https://arxiv.org/abs/2004.03580)."
    )


def _usage(repo_id: str, revision: str | None, config: DetectorConfig) -> str:
    needs = "It needs `pip install 'fpg-zoo[timm]'`.\n\n" if isinstance(config.backbone, TimmConfig) else ""
    spec = json.dumps(f"hf-hub:{repo_id}" + (f"@{revision}" if revision else ""))
    return (
        f"## How to use it\n\n{needs}```python\nimport fpg_zoo\n\n"
        f"model = fpg_zoo.create_model({spec})\n"
        'detections = fpg_zoo.Predictor(model)(["picture.jpg"])\n'
        "print(detections[0].above(0.5).names)\n```"
    )


def _facts(model: Detector) -> str:
    config, names = model.config, model.class_names
    before = config.preprocess
    listed = ", ".join(map(_escaped, names[:_MOST_NAMES]))
    more = f", and {len(names) - _MOST_NAMES:,} more, all in `config.json`" if len(names) > _MOST_NAMES else ""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (before.mean, before.std))
    return (
        "## What it is\n\n"
        f"- Parameters: {parameters:,}\n"
        f"- Input: {before.channel_order}, {_scaling(before)}, less the mean ({mean}), over the standard "
        f"deviation ({std}), padded with zeros to multiples of {before.pad_divisor}; "
        "`fpg_zoo.Predictor` does it\n"
        f"- Classes: {len(names):,}: {listed}{more}"
    )


def _scaling(config: PreprocessConfig) -> str:
    if config.fixed_size is not None:
        return f"stretched to {config.fixed_size[1]} x {config.fixed_size[0]} pixels"
    limit = "" if config.shortest_side is None else f" and the shortest at most {config.shortest_side}"
    return f"scaled so that the longest side has {'at most ' if limit else ''}{config.longest_side} pixels{limit}"


def _metrics_table(config: DetectorConfig, published: Published | None, measured: Mapping[str, float]) -> str:
    names = ["box_ap", *(["mask_ap"] if config.has_masks else [])]
    rows = [
        (_LABELS.get(name, name), getattr(published, name, None) if name in _LABELS else None, measured.get(name))
        for name in [*names, *(name for name in measured if name not in names)]
    ]
    table = "".join(
        f"| {_escaped(name)} | {_formatted(first, '.1f')} | {_formatted(second, 'g')} |\n"
        for name, first, second in rows
    )
    data = published.data if published else "COCO val2017"
    return (
        f"## Metrics\n\n| metric | published | measured |\n|---|---|---|\n{table}\n"
        f"Published: AP in percent on {data}, as the authors of the checkpoint state it, for weights equal to these. "
        "Measured: by whoever uploaded this model. Blank: not known."
    )


def _formatted(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def _is_of_coco(published: Published) -> bool:
    return published.data.startswith("COCO")


def _origin(published: Published | None, license: str | None) -> str:
    stated = f"`{license}`" if license else "not stated by whoever uploaded this model"
    if published is None:
        return (
            "## Origin\n\nThese weights are not known to be a published checkpoint; this card knows nothing of their "
            f"training.\n\nLicense of the weights: {stated}."
        )
    note = f" Note: {_sentence(published.note)}" if published.note else ""
    place = "which comes with fpg_zoo" if published.packaged else f"<{published.url}>"
    return (
        f"## Origin\n\nEvery tensor is equal to that of the published checkpoint `{published.name}`, "
        f"{place}, whose SHA-256 begins with `{published.sha256}`.{note}\n\n"
        f"Training recipe: {_sentence(load_manifest().recipes[published.recipe])}\n\nLicense of the weights: {stated}."
    )


def _sentence(text: str) -> str:
    return _MARKUP.sub(r"\\\1", text) + "."
