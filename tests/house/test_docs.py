"""What the documents point to is there."""

from __future__ import annotations

import ast
import re

import pytest
from conftest import ROOT

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
_PROMISE = re.compile(r"^\d+\. \*\*", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document):
    for file, name in _TEST.findall(document.read_text(encoding="utf-8")):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        if name:
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_every_promise_of_the_cache_names_its_test():
    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8").split("## Checkpoints")[0]
    promises = _PROMISE.split(text)[1:]
    assert len(promises) == 10
    assert all(_TEST.search(promise) for promise in promises)
