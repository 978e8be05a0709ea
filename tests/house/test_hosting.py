"""The Dockerfile and the workflows, as far as they can be looked at without their hosts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_image_gets_all_that_the_package_is_built_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        PROJECT["tool"]["hatch"]["version"]["path"],
        *wheel["packages"],
        *wheel["force-include"],
    ]
    for name in needed:
        assert (ROOT / name).exists(), name
        assert not {part.as_posix() for part in (Path(name), *Path(name).parents)} & set(ignored), name


def test_the_image_installs_extras_that_there_are() -> None:
    (extras,) = re.findall(r"/src\[([\w,-]+)\]", DOCKERFILE)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    (python,) = re.findall(r"^FROM python:3\.(\d+)-slim$", DOCKERFILE, re.MULTILINE)
    assert int(python) >= int(PROJECT["project"]["requires-python"].removeprefix(">=3."))
    assert re.search(r'^ENTRYPOINT \["fpg-zoo"\]$', DOCKERFILE, re.MULTILINE)
    assert "fpg-zoo" in PROJECT["project"]["scripts"]


@pytest.mark.slow
def test_the_image_builds() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("needs a Docker engine")
    subprocess.run([docker, "build", "-t", "fpg-zoo-test", "."], cwd=ROOT, check=True)
    listed = subprocess.run(
        [docker, "run", "--rm", "fpg-zoo-test", "list", "--pretrained"], check=True, capture_output=True, text=True
    )
    assert "mask_rcnn_nano_fpg" in listed.stdout


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_run_what_is_here(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for job in content["jobs"].values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            for script in re.findall(r"\.ci/\w+", step.get("run", "")):
                assert (ROOT / script).is_file()
