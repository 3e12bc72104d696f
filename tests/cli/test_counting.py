"""`fssbench list methods --verbose`: the specified numbers of parameters of every preset and encoder size."""

from __future__ import annotations

import pytest

from fssbench.cli import main

Output = pytest.CaptureFixture[str]
# encoder, its parameters without the mask token, adapter, sparse prompt and PCS encoder (fsdino.md 2.1)
SIZES = [
    ("small", 22_056_576 - 384, 1_151_744, 45_964),
    ("base", 86_580_480 - 768, 1_250_048, 70_540),
    ("large", 304_368_640 - 1024, 1_315_584, 86_924),
]
SCALE, DECODER, HEAD, FOUR_D = 2, 4_058_340, 132_612, 1_238_400


@pytest.mark.parametrize(("size", "encoder", "adapter", "prompts"), SIZES)
def test_counts_of_the_presets(size: str, encoder: int, adapter: int, prompts: int, capsys: Output) -> None:
    assert main(["list", "methods", "--verbose", "--backbone", f"vit_{size}_patch14_dinov2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    counted = [line for line in lines if "methods/" in line[0] and "-" not in line]
    uncounted = {line[0] for line in lines if line[-1] == "-"}  # no setting `backbone`
    assert {"methods/sam2fss.yaml", "methods/fsdino_distill.yaml"} <= uncounted
    assert all("sam2" in name or "distill" in name for name in uncounted)
    found = {line[0]: [int(cell.replace(",", "")) for cell in line[1:]] for line in counted}
    frozen, small = encoder + adapter, prompts + SCALE
    assert found["methods/prototype.yaml"] == [encoder, 0, 0]
    assert found["methods/comp_star.yaml"] == [frozen + small + DECODER, small, small]
    assert found["methods/comp.yaml"] == [frozen + small + DECODER, small + DECODER, small + DECODER - HEAD]
    full = small + DECODER + FOUR_D
    assert found["methods/fsdino.yaml"] == [frozen + full, full, full - HEAD]
    if size == "base":
        assert [small - SCALE, small + DECODER - SCALE, full - SCALE] == [70_540, 4_128_880, 5_367_280]


def test_the_default_is_the_configs_own_encoder(capsys: Output) -> None:
    assert main(["list", "methods", "--verbose"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("methods/fsdino.yaml"))
    assert line.split()[1:] == ["93,197,042", "5,367,282", "5,234,670"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verbose"], "--verbose belongs to `fssbench list methods`"),
        (["methods", "--backbone", "vit_base_patch14_dinov2"], "--backbone to its --verbose"),
        (["methods", "--verbose", "--backbone", "vit_base_patch14_dino"], "vit_base_patch14_dinov2"),
    ],
)
def test_wrong_options_are_refused_in_one_line(arguments: list[str], message: str, capsys: Output) -> None:
    assert main(["list", *arguments]) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
