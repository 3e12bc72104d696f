"""What may be installed: releases that are known to be bad, hostile or otherwise licensed are shut out, with reasons."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PROJECT = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
ASKED = {
    requirement.name: requirement
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["sam2"]]
    for requirement in [Requirement(text)]
}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("lightning", "2.6.6", ["2.6.2", "2.6.3", "3.0.0"]),  # malicious uploads; another interface
        ("jsonargparse", "4.53.0", ["4.38.0", "5.0.0"]),  # 5 removes calls that Lightning 2.6 makes
        ("albumentations", "2.0.8", ["2.0.7", "2.1.0"]),  # 2.0.8: the last MIT release
        ("sam2", "1.1.0", ["1.0", "1.1.1", "1.2.0"]),  # a third party's upload, checked in this version only
        ("torch", "2.6.0", ["2.5.1"]),  # weights_only by default
    ],
)
def test_bad_releases_are_shut_out(name: str, good: str, bad: list[str]) -> None:
    allowed = ASKED[name].specifier
    assert good in allowed
    assert not [version for version in bad if version in allowed]


def test_a_package_of_the_same_import_name_under_the_agpl_is_not_asked_for() -> None:
    assert "albumentationsx" not in PYPROJECT.read_text(encoding="utf-8").lower()


def test_every_lower_bound_has_its_reason() -> None:
    lines = [line for line in PYPROJECT.read_text(encoding="utf-8").splitlines() if re.match(r'\s+"[^"]+>=', line)]
    assert len(lines) > 25
    assert not [line for line in lines if "#" not in line]
