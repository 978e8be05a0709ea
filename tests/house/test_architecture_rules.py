"""The imports point one way (style.md), modules stay small, and what must be quick to import stays without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fpg_zoo

PACKAGE = Path(fpg_zoo.__file__).parent

# Modules and subpackages right below fpg_zoo, lowest layer first. Each may import from its own layer and from those
# above it in this list. Some are not written yet; style.md has a place for them.
LAYERS = (
    ("errors", "text", "version", "coco_classes", "files", "ahead", "http_client", "locks"),
    ("config", "config_checks", "config_io", "boxes", "images", "structures", "fonts", "drawing", "tensor_memory"),
    ("catalog", "preprocess", "model_files"),
    ("weights",),
    ("modeling",),
    ("fitting", "optimized"),
    ("reference",),
    ("loading", "hub", "hub_push", "model_card"),
    ("factory", "predictor", "data"),
    ("evaluation", "ground_truth", "prediction_files", "processes"),
    ("evaluation_parts", "evaluation_results", "evaluation_run", "report"),
    ("export", "deploy"),
    ("training",),
    ("cli",),
)
# Beyond the layers: what lies below and is still none of their business.
FORBIDDEN = {
    "modeling": {"weights", "training", "data", "catalog"},
    "weights": {"modeling"},
}


def _modules():
    """Every module of the package by dotted name; a package stands for its __init__."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imported(module, source, known):
    """(line, dotted name) of everything of fpg_zoo that the source imports, at its head or anywhere inside."""
    package = module if known.get(module, Path()).name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from a import b` is the module a.b where there is one, and something out of a otherwise.
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "fpg_zoo":
                yield node.lineno, name


def _layer(part):
    for height, names in enumerate(LAYERS):
        if part in names:
            return height
    return None


def _broken_rules(module, source, known):
    """What is wrong with the imports of a module, a sentence each."""
    part = module.split(".")[1]
    if _layer(part) is None:
        return [f"{module} has no place yet: enter {part!r} into LAYERS of {Path(__file__).name}"]
    wrong = []
    for line, name in _imported(module, source, known):
        where = f"{module}, line {line}, imports {name}"
        if name == "fpg_zoo":
            wrong.append(f"{where}: import from the module where it is defined")
            continue
        target = name.split(".")[1]
        if _layer(target) is None:
            wrong.append(f"{where}, which has no place in LAYERS")
        elif _layer(target) > _layer(part):
            wrong.append(f"{where}, which lies above it")
        elif target in FORBIDDEN.get(part, ()):
            wrong.append(f"{where}: {part} knows nothing of {target}")
    return wrong


@pytest.mark.parametrize("module", [name for name in MODULES if name != "fpg_zoo"])
def test_imports_point_one_way(module):
    assert _broken_rules(module, MODULES[module].read_text(encoding="utf-8"), MODULES) == []


def test_the_modules_are_found():
    assert {
        "fpg_zoo",
        "fpg_zoo.config",
        "fpg_zoo.modeling",
        "fpg_zoo.modeling.necks.fpg",
        "fpg_zoo.weights.store",
    } <= set(MODULES)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("fpg_zoo.modeling.necks.fpg", "from fpg_zoo.weights.store import Store", "modeling knows nothing of weights"),
        ("fpg_zoo.modeling.necks.fpg", "import fpg_zoo.config.catalog", "modeling knows nothing of catalog"),
        ("fpg_zoo.modeling.necks.fpg", "from fpg_zoo.training.trainer import train", "lies above it"),
        ("fpg_zoo.modeling.necks.fpg", "from fpg_zoo import catalog", "modeling knows nothing of catalog"),
        ("fpg_zoo.modeling.necks.fpg", "from ..catalog import ARCHITECTURES", "modeling knows nothing of catalog"),
        ("fpg_zoo.modeling", "from ..catalog import ARCHITECTURES", "modeling knows nothing of catalog"),
        (
            "fpg_zoo.weights.store",
            "def f():\n    from fpg_zoo.modeling.necks.fpg import FPG",
            "line 2, .* lies above it",
        ),
        ("fpg_zoo.weights.store", "if x:\n    from fpg_zoo.models.loading import fetch", "lies above it"),
        ("fpg_zoo.config", "from fpg_zoo.config.catalog import R50", "lies above it"),
        ("fpg_zoo.models.factory", "from fpg_zoo.cli import main", "lies above it"),
        ("fpg_zoo.models.factory", "import fpg_zoo", "imports fpg_zoo: import from the module"),
        ("fpg_zoo.cli", "from fpg_zoo import create_model", "imports fpg_zoo: import from the module"),
        ("fpg_zoo.inference.predictor", "from . import Detections", "imports fpg_zoo: import from the module"),
        ("fpg_zoo.utils", "", "enter 'utils' into LAYERS"),
        ("fpg_zoo.cli", "from fpg_zoo.misc import helper", "no place in LAYERS"),
    ],
)
def test_the_rules_catch_a_wrong_import(module, source, complaint):
    (wrong,) = _broken_rules(module, source, MODULES)
    assert re.search(complaint, wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fpg_zoo.cli", "from fpg_zoo.models.factory import create_model\nfrom fpg_zoo import catalog\nimport torch"),
        ("fpg_zoo.weights.store", "from fpg_zoo.files import aside\nfrom fpg_zoo.errors import StorageError"),
        ("fpg_zoo.modeling.necks.fpg", "from . import layers\nfrom ..config import FPGConfig\nimport fpg_zoo_other"),
    ],
)
def test_the_rules_let_a_right_import_pass(module, source):
    assert _broken_rules(module, source, MODULES) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import fpg_zoo",
        "import fpg_zoo.config",
        "import fpg_zoo.config.catalog",
        "import fpg_zoo.models.factory",
        "import fpg_zoo.weights.manifest",
        "import fpg_zoo.cli",
        "import fpg_zoo; fpg_zoo.list_models(pretrained=True)",
        "import fpg_zoo; fpg_zoo.model_info('mask_rcnn_r50_fpg').config",
    ],
)
def test_what_must_be_quick_does_not_import_torch(statement):
    code = f"import sys; {statement}; print(sorted({{'torch', 'torchvision'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
