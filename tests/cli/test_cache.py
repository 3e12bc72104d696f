"""`--feature_disk`: a second run encodes nothing and gives the same result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fssbench.cli import main
from fssbench.cli.trainer import FssbenchCLI
from fssbench.encoders.store import FeatureStore
from fssbench.files import features_folder
from tests.cli.run import LOADED


def test_off_cold_and_warm_give_the_same_scores(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSBENCH_FEATURES", str(fitted / "features"))
    records, encoded = [], []
    for name, disk in (("off", "0"), ("cold", "1"), ("warm", "1")):
        cli = FssbenchCLI(["test", *LOADED, "--results", name, "--feature_disk", disk])
        (record,) = Path(name).rglob("fold*.json")
        records.append(json.loads(record.read_text())["scores"])
        encoded.append(cli.model.cache.encoded)
    assert records[0] == records[1] == records[2]
    assert encoded[0] == encoded[1] > 0
    assert encoded[2] == 0
    assert features_folder() == fitted / "features"
    assert sum(1 for _ in FeatureStore(features_folder(), 0).entries()) == encoded[0]
    assert main(["cache", "verify"]) == 0


def test_the_compiled_encoder_gets_its_mode(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def compile_nothing(encode: object, mode: str, dynamic: bool) -> object:
        modes.append(mode)
        return encode

    monkeypatch.setattr(torch, "compile", compile_nothing)
    for mode in ("no", "default"):
        FssbenchCLI(["test", *LOADED, "--results", mode, "--compile_encoder", mode])
    assert modes == ["default"]
