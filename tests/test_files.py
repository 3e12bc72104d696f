"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fssbench.errors import UserError, nearest
from fssbench.files import (
    cache_folder,
    data_folder,
    features_folder,
    sha256_file,
    sha256_text,
    weights_folder,
    write_text_whole,
    written_whole,
)


def test_text_is_written_and_hashed(tmp_path: Path) -> None:
    write_text_whole(tmp_path / "new" / "a.txt", "é\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é\n".encode()
    assert sha256_file(tmp_path / "new" / "a.txt") == sha256_text("é\n")


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_whole(path, "old")

    def fail() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.txt: No space left"):
        write_text_whole(tmp_path / "a.txt", "text")
    assert os.listdir(tmp_path) == []


def test_a_new_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_text_whole(tmp_path / "a.txt", "text")
    (tmp_path / "b.txt").write_text("text")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_hints_name_the_nearest_or_all() -> None:
    assert nearest("prototyp", ["prototype", "fsdino"]) == " Did you mean 'prototype'?"
    assert nearest("xyz", ["b", "a"]) == " Valid: a, b."
    assert nearest("xyz", []) == ""


def test_each_folder_is_the_variables_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"CACHE": cache_folder, "FEATURES": features_folder, "WEIGHTS": weights_folder, "DATA": data_folder}
    home = Path.home()
    defaults = [
        home / ".cache/fssbench",
        home / ".cache/fssbench/features",
        home / ".cache/fssbench/weights",
        Path("data"),
    ]
    for value in (None, ""):
        for name in folders:
            monkeypatch.delenv(f"FSSBENCH_{name}", raising=False)
            if value is not None:
                monkeypatch.setenv(f"FSSBENCH_{name}", value)
        assert [folder() for folder in folders.values()] == defaults
    for name, folder in folders.items():
        monkeypatch.setenv(f"FSSBENCH_{name}", f"~/of {name}")
        assert folder() == home / f"of {name}"
    monkeypatch.delenv("FSSBENCH_FEATURES")
    assert features_folder() == home / "of CACHE" / "features"


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_known(path: str) -> str:
        return path  # what Python answers for a user that the system does not know, as in some containers

    monkeypatch.setattr("os.path.expanduser", none_known)
    for name in ("CACHE", "WEIGHTS"):
        monkeypatch.delenv(f"FSSBENCH_{name}", raising=False)
    with pytest.raises(UserError, match=r"no home folder for ~/\.cache/fssbench\. Set HOME .* or FSSBENCH_CACHE"):
        cache_folder()
    monkeypatch.setenv("FSSBENCH_WEIGHTS", "/weights")
    assert weights_folder() == Path("/weights")
