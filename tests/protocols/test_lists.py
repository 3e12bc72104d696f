"""Published lists: the formats in circulation, and what is refused."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import pytest

from fssbench.errors import UserError
from fssbench.files import sha256_text
from fssbench.protocols.list_dataset import ListDataset
from fssbench.protocols.lists import read_list

PAIRS = ((1, "val2014/a.jpg"), (5, "val2014/a.jpg"), (5, "val2014/b.jpg"))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"val2014/a.jpg__01\nval2014/a.jpg__05\nval2014/b.jpg__05\n",
        b"01 val2014/a.jpg\r\n05 val2014/a.jpg\r\n05 val2014/b.jpg",
        gzip.compress(b"1 val2014/a.jpg\n5 val2014/a.jpg\n5 val2014/b.jpg\n", mtime=0),
        pickle.dumps({0: ["val2014/a.jpg"], 4: ["val2014/a.jpg", "val2014/b.jpg"]}),
        pickle.dumps({4: ["val2014/a.jpg", "val2014/b.jpg"], 0: ["val2014/a.jpg"]}),
    ],
)
def test_pairs(content: bytes, tmp_path: Path) -> None:
    found = read_list(write(tmp_path / "list", content))
    assert found.pairs == PAIRS
    assert found.sha256 == sha256_text("01 val2014/a.jpg\n05 val2014/a.jpg\n05 val2014/b.jpg\n")
    assert found.by_class() == {1: ["val2014/a.jpg"], 5: ["val2014/a.jpg", "val2014/b.jpg"]}


def test_an_order_is_the_first_column(tmp_path: Path) -> None:
    found = read_list(write(tmp_path / "val.txt", b"val/b.jpg val/b.png\nval/a.jpg val/a.png\n"))
    assert (found.names, found.pairs) == (("val/b.jpg", "val/a.jpg"), ())


class Evil:
    def __reduce__(self) -> Any:
        return print, ("never",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a__01\nb__02\na__01\n", "lists .*twice"),
        (b"a__01\nb c d\n", "entry 2: 'b c d'"),
        (pickle.dumps({0: [Evil()]}), "asks for builtins.print"),
        (pickle.dumps([1]), "expected a dictionary"),
        (gzip.compress(b"a__01\n" * 99, mtime=0)[:-20], "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_damaged_lists_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", content)
    with pytest.raises(UserError, match=message) as error:
        read_list(path)
    assert str(path) in str(error.value)


def test_missing_and_wrong_kinds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.txt does not exist"):
        read_list(tmp_path / "nothing.txt")
    names = write(tmp_path / "names.txt", b"zebra\nab_wheel\n")
    with pytest.raises(UserError, match="holds no classes"):
        ListDataset.read("pascal-5i", names)
    with pytest.raises(UserError, match="one class name per line"):
        ListDataset.read("fss-1000", write(tmp_path / "pairs.txt", b"a__01\n"))
    with pytest.raises(UserError, match="Did you mean 'coco-20i'"):
        ListDataset.read("coco20i", names)
    with pytest.raises(UserError, match="no pixels"):
        ListDataset.read("fss-1000", names).read_image("1.jpg")


def test_classes_of_a_list_of_names_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    data = ListDataset.read("fss-1000", write(tmp_path / "names.txt", b"zebra\nab_wheel\n"))
    assert data.class_names == {1: "ab_wheel", 2: "zebra"}
    assert data.ordered_pairs(0)[:2] == [(1, "1.jpg"), (1, "10.jpg")]
    assert data.support_pool(1)[:2] == ["1.jpg", "2.jpg"]
