"""Features on disk: exact in float32, bounded, safe against damage, killed writers and many processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fssbench.cli import main
from fssbench.encoders.cache import ALL, FeatureCache, numerics
from fssbench.encoders.store import FeatureStore
from fssbench.encoders.vit import ViTEncoder
from fssbench.encoders.weights import save_vit, tensors_sha256
from fssbench.errors import UserError


def image(number: int) -> str:
    return tensors_sha256({"pixels": torch.tensor(number)})


def features(number: int, size: int = 256, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {"tokens": torch.randn(4, size // 4, generator=generator).to(dtype), "count": torch.tensor([number])}


@pytest.mark.parametrize("made", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3)])
def test_what_is_put_is_what_is_got(tmp_path: Path, dtype: str, tolerance: float, made: torch.dtype) -> None:
    store = FeatureStore(tmp_path, 1, dtype)  # type: ignore[arg-type]
    assert store.get("kind", image(1)) is None
    kept = store.put("kind", image(1), features(1, dtype=made))
    found = store.get("kind", image(1))
    assert found is not None
    for name, value in features(1, dtype=made).items():
        assert found[name].dtype == kept[name].dtype == value.dtype
        assert torch.equal(found[name], kept[name]), "the first run computes with what later runs read"
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance / 10)
    assert store.get("other kind", image(1)) is None
    assert FeatureStore(tmp_path, 1, "float16" if dtype != "float16" else "float32").get("kind", image(1)) is None


def test_the_size_is_bounded_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 40 * 1.3 / 2**20)  # forty files of about 1.3 KiB
    for number in range(40):
        store.put("kind", image(number), features(number))
        path = next(tmp_path.glob(f"*/??/{image(number)}.safetensors"), None)
        if path:
            os.utime(path, (number, number))
        if number == 20:
            os.utime(next(tmp_path.glob(f"*/??/{image(0)}.safetensors")))  # the first is used again
    for number in range(40, 60):
        store.put("kind", image(number), features(number))
    assert store.size() <= store.limit
    assert store.get("kind", image(0)) is not None
    assert store.get("kind", image(1)) is None
    assert store.get("kind", image(59)) is not None


def test_features_beyond_the_stored_type_are_refused(tmp_path: Path) -> None:
    large = {"tokens": torch.tensor([1.0, 7e4])}
    with pytest.raises(UserError, match=r"tokens.*65504.*--feature_dtype bfloat16"):
        FeatureStore(tmp_path, 1, "float16").put("kind", image(1), large)
    for dtype in ("bfloat16", "float32"):
        assert FeatureStore(tmp_path, 1, dtype).put("kind", image(1), large)["tokens"].isfinite().all()  # type: ignore[arg-type]
    infinite = {"tokens": torch.tensor([1.0, float("inf")])}
    assert torch.equal(
        FeatureStore(tmp_path, 1, "float16").put("kind", image(2), infinite)["tokens"], infinite["tokens"]
    )


def test_several_writers_together_keep_to_the_size(tmp_path: Path) -> None:
    """Each of them sees only what it writes itself, but looks again from time to time."""
    stores = [FeatureStore(tmp_path, 40 * 1.3 / 2**20) for _ in range(3)]
    largest = 0
    for number in range(40):
        for writer, store in enumerate(stores):
            store.put("kind", image(1000 * writer + number), features(number))
        largest = max(largest, stores[0].size())
    assert largest <= 1.1 * stores[0].limit


@pytest.mark.parametrize("refused", ["unlink", "lock"])
def test_files_that_may_not_be_removed_do_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Those of another user in a shared folder; the lock is such a file too."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    if refused == "unlink":
        monkeypatch.setattr(Path, "unlink", refuse)
    else:
        monkeypatch.setattr("fssbench.encoders.store.FileLock", refuse)
    store = FeatureStore(tmp_path, 3 * 1.3 / 2**20)
    with pytest.warns(UserWarning, match="not stored any more") as told:
        kept = [store.put("kind", image(number), features(number)) for number in range(9)]
    assert all(torch.equal(kept[number]["tokens"], features(number)["tokens"]) for number in range(9))
    assert len(told) == 1
    assert store.written < 9


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1)
    store.put("kind", image(1), features(1))
    (path,) = tmp_path.glob("*/??/*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert store.get("kind", image(1)) is None
    store.put("kind", image(1), features(1))
    assert store.get("kind", image(1)) is not None


def test_no_damage_of_the_header_ends_a_run(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1)
    store.put("kind", image(1), features(1))
    (path,) = tmp_path.glob("*/??/*.safetensors")
    content = path.read_bytes()
    for damaged in (b"", bytes(len(content))):
        path.write_bytes(damaged)
        assert store.get("kind", image(1)) is None
    for position in range(8 + int.from_bytes(content[:8], "little")):
        changed = bytearray(content)
        changed[position] ^= 1 + position % 7
        path.write_bytes(changed)
        found = store.get("kind", image(1))
        assert found is None or found.keys() == features(1).keys()


def test_what_was_read_does_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    """A view of a mapped file would change with it, and end the process where a network drive loses it."""
    store = FeatureStore(tmp_path, 1)
    store.put("kind", image(1), features(1))
    found = store.get("kind", image(1))
    assert found is not None
    (path,) = tmp_path.glob("*/??/*.safetensors")
    with open(path, "rb+") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(found["tokens"], features(1)["tokens"])


def test_a_damaged_file_in_a_folder_that_may_only_be_read_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path, 1)
    store.put("kind", image(1), features(1))
    (path,) = tmp_path.glob("*/??/*.safetensors")
    path.write_bytes(path.read_bytes()[:100])

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    assert store.get("kind", image(1)) is None
    assert path.exists()


def test_a_changed_byte_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(tmp_path, 1)
    for number in (1, 2):
        store.put("kind", image(number), features(number))
    assert main(["cache", "verify", "--folder", str(tmp_path)]) == 0
    path = sorted(tmp_path.glob("*/??/*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["cache", "verify", "--folder", str(tmp_path)]) == 1
    assert f"damaged, removed: {path}" in capsys.readouterr().out
    assert not path.exists()
    assert main(["cache", "info", "--folder", str(tmp_path)]) == 0
    assert "1 images" in capsys.readouterr().out


def test_clear_removes_only_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FeatureStore(tmp_path, 1).put("kind", image(1), features(1))
    (part,) = [p.parent / f".{p.name}.x.part" for p in tmp_path.glob("*/??/*.safetensors")]
    part.write_text("of a killed writer")
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["cache", "clear", "--folder", str(tmp_path)]) == 0
    assert "1 file(s) removed" in capsys.readouterr().out
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["notes.txt"]


def _write_sixty(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # a forked process cannot use the thread pool of its parent
    store = FeatureStore(folder, 30 * 1.3 / 2**20)
    for number in range(60):
        store.put("kind", image(number), features(number))


def test_processes_write_at_once(tmp_path: Path) -> None:
    # a spawned process imports torch again, which takes many times longer than the test; Windows has no fork
    method = "fork" if "fork" in mp.get_all_start_methods() else "spawn"
    mp.start_processes(_write_sixty, args=(str(tmp_path),), nprocs=3, start_method=method)
    store = FeatureStore(tmp_path, 1)
    assert store.damaged() == []
    assert not list(tmp_path.glob("*/??/.*"))
    for number in range(60):
        found = store.get("kind", image(number))
        assert found is None or torch.equal(found["tokens"], features(number)["tokens"])
    assert store.read > 0


def test_a_full_disk_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = FeatureStore(tmp_path, 1)
    monkeypatch.setattr("os.replace", full)
    with pytest.warns(UserWarning, match="not stored any more"):
        kept = store.put("kind", image(1), features(1))
    assert torch.equal(kept["tokens"], features(1)["tokens"])
    store.put("kind", image(2), features(2))  # no second warning
    assert store.written == 0


def test_a_second_run_encodes_nothing(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 4, 4)
    keys = ["a", "b#17", "a"]
    results = []
    for expected in (2, 1):  # the augmented image is encoded again
        cache = FeatureCache(store=FeatureStore(tmp_path, 1), kinds={ALL: "double"})
        results.append(cache.features(keys, images, lambda x: {"double": 2 * x}))
        assert cache.encoded == expected
    assert torch.equal(results[0]["double"], results[1]["double"])
    assert torch.equal(results[0]["double"][1], 2 * images[1])


def test_what_a_file_says_of_its_model_beside_the_weights_is_seen(tmp_path: Path) -> None:
    """The number of heads changes features, but neither name, nor shape, nor value of a weight."""
    shape = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1}
    found = []
    for heads in (2, 4):
        args, path = {**shape, "num_heads": heads}, tmp_path / str(heads) / "vit.safetensors"
        path.parent.mkdir()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            save_vit(path, VisionTransformer(**args, num_classes=0), args, (0.5,) * 3, (0.5,) * 3)
        found.append(ViTEncoder("from_weights", str(path), 32, (1,)))
    one, two = (encoder(torch.ones(1, 3, 32, 32))["block1"] for encoder in found)
    assert not torch.equal(one, two)
    assert found[0].kinds() != found[1].kinds()


def test_how_products_are_rounded_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = numerics(torch.device("cuda"), "32-true")
    assert f"torch {torch.__version__}" in before
    assert numerics(torch.device("cpu"), "32-true") != before != numerics(torch.device("cuda"), "bf16-mixed")
    torch.set_float32_matmul_precision("high")
    try:
        assert numerics(torch.device("cuda"), "32-true") != before
    finally:
        torch.set_float32_matmul_precision("highest")

    def refuses() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    assert "fp32" in numerics(torch.device("cuda"), "32-true")


def test_features_are_copied_to_a_gpu_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, copies = FeatureCache(store=FeatureStore(tmp_path, 1), kinds={ALL: "all"}), []
    cache._put(image(1), features(1))
    to = Tensor.to
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor.clone())

    def recorded(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        if args != (torch.device("cuda"),):
            return to(tensor, *args, **kwargs)
        copies.append(kwargs)
        return tensor

    monkeypatch.setattr(Tensor, "to", recorded)
    assert cache._stored(image(1), torch.device("cuda")) is not None
    assert copies == [{"non_blocking": True}] * 2


def test_nothing_is_kept_beside_the_features(tmp_path: Path) -> None:
    """A view of something larger would keep all of it alive, beyond the limit."""
    cache = FeatureCache()

    def encode(images: Tensor) -> dict[str, Tensor]:
        tokens = images.flatten(2).repeat(1, 1, 100)
        return {"first": tokens[..., :4], "mean": images.mean((2, 3))[..., None].expand(-1, -1, 4)}

    images = torch.rand(3, 3, 4, 4)
    cache.features(["a", "b", "c"], images, encode)
    kept = [value for features in cache._kept.values() for value in features.values()]
    assert sum(value.untyped_storage().nbytes() for value in kept) == 3 * cache.image_bytes


def test_an_encoder_pass_copies_no_row_numbers() -> None:
    """A list as an index is a tensor that is copied to the device, and waited for."""
    indexed: list[object] = []

    class Watched(Tensor):
        def __getitem__(self, index: object) -> Tensor:
            indexed.append(index)
            return super().__getitem__(index)

    images = torch.rand(3, 3, 4, 4)
    found = FeatureCache().features(["a", "b", "a"], images.as_subclass(Watched), lambda x: {"double": 2 * x})
    assert torch.equal(found["double"].as_subclass(Tensor), 2 * images[[0, 1, 0]])
    assert indexed
    assert not any(isinstance(index, list) for index in indexed)


def test_encoders_share_a_block_whatever_else_they_return() -> None:
    kwargs = {"weights": "random", "image_size": 32}
    one = ViTEncoder("vit_tiny_patch16_224", blocks=(2,), **kwargs)  # type: ignore[arg-type]
    two = ViTEncoder("vit_tiny_patch16_224", blocks=(2, 3), **kwargs)  # type: ignore[arg-type]
    assert one.kinds()[2] == two.kinds()[2] != two.kinds()[3]
    with torch.no_grad():
        two.vit.blocks[2].mlp.fc1.weight.mul_(2)
    assert one.kinds()[2] == two.kinds()[2]
    with torch.no_grad():
        two.vit.blocks[1].mlp.fc1.weight.mul_(2)
    assert one.kinds()[2] != two.kinds()[2]


def test_reading_a_file_marks_it_as_used(tmp_path: Path) -> None:
    """Else what is read most would make room for what is written last."""
    store = FeatureStore(tmp_path, 1)
    store.put("kind", image(1), features(1))
    (path,) = tmp_path.glob("*/??/*.safetensors")
    os.utime(path, (1000, 1000))
    assert store.get("kind", image(1)) is not None
    assert path.stat().st_mtime > 1e9
    recent = path.stat().st_mtime - 60
    os.utime(path, (recent, recent))
    assert store.get("kind", image(1)) is not None
    assert path.stat().st_mtime == recent, "not for every read: a network drive would be busy with it"


def test_making_room_spares_what_is_being_written(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 3 * 1.3 / 2**20)
    store.put("kind", image(0), features(0))
    (path,) = tmp_path.glob("*/??/*.safetensors")
    fresh, old = (path.parent / f".{path.name}.{name}.part" for name in ("fresh", "old"))
    for part in (fresh, old):
        part.write_text("half")
    os.utime(old, (1000, 1000))
    for number in range(1, 9):
        store.put("kind", image(number), features(number))
    assert fresh.exists()
    assert not old.exists(), "of a killed writer"


def test_features_larger_than_the_store_are_not_written(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1.5 * 1.3 / 2**20)
    store.put("kind", image(1), features(1))
    large = features(2, size=4096)
    assert torch.equal(store.put("kind", image(2), large)["tokens"], large["tokens"])
    assert store.get("kind", image(2)) is None
    assert store.get("kind", image(1)) is not None


def test_all_that_moves_a_feature_is_in_its_kind(tmp_path: Path) -> None:
    shape = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(**shape, num_classes=0)
    paths = []
    for name, mean, std in (("a", 0.5, 0.5), ("b", 0.4, 0.5), ("c", 0.5, 0.4)):
        paths.append(tmp_path / name / "vit.safetensors")
        paths[-1].parent.mkdir()
        save_vit(paths[-1], vit, shape, (mean,) * 3, (std,) * 3)
    encoders = [ViTEncoder("from_weights", str(path), 48, (1,)) for path in paths]
    encoders.append(ViTEncoder("from_weights", str(paths[0]), 48, (1,), final_norm=False))
    encoders.append(ViTEncoder("from_weights", str(paths[0]), 48, (1,), pos_embed_resize="timm"))
    pixels = torch.rand(1, 3, 48, 48)
    found = [encoder(pixels)["block1"] for encoder in encoders]
    assert not any(torch.equal(one, other) for i, one in enumerate(found) for other in found[:i])
    assert len({encoder.kinds()[1] for encoder in encoders}) == len(encoders)


def test_what_is_dropped_makes_room() -> None:
    cache, images = FeatureCache(megabytes=2 * 12 / 2**20), torch.rand(4, 3, 1, 1)

    def features(keys: list[str]) -> None:
        cache.features(keys, images[: len(keys)], lambda x: {"same": x})

    cache.hold(["a", "b"], images[:2], lambda x: {"same": x})
    cache.drop(["a", "b"])
    features(["c", "d"])
    assert cache.keys() == ["c", "d"]
    features(["e"])
    assert cache.keys() == ["d", "e"]
