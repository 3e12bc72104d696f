"""Identities of the published image lists: counts and hashes, no lists (protocols.md sections 1 and 1.6).

A hash is that of the canonical text (`fssbench.protocols.lists`), so it holds for every format in circulation.
"""

from __future__ import annotations

from typing import NamedTuple


class KnownList(NamedTuple):
    """One published list: number of entries (pairs or names) and SHA-256 of its canonical text."""

    entries: int
    sha256: str


LISTS: dict[tuple[str, str], tuple[KnownList, ...]] = {
    ("coco-20i", "hsnet-val"): (
        KnownList(35783, "b6687a95cbf515b9a691bbe32a1732698440623f21a2723335d5f1b254f6d010"),
        KnownList(17912, "20849a917bb1eb833044356dcaa9601dd415c670f5066c44998d36fdec6a3b5f"),
        KnownList(14563, "c8bc00c1671812ae0ffa4a7dc627e43b70452d28fda2d944e1dd51d0fd53ee58"),
        KnownList(14315, "3688093abb2d75ded0f23d6e64fa0a6964b23995ee2e25bd9ab0718f6cf0a633"),
    ),
    ("pascal-5i", "hsnet-val"): (
        KnownList(346, "e3c8aaff9a3661f0eb5598ce3c9cab89ddb55932a5b62c1a605296af9487908c"),
        KnownList(451, "1399ee0a6720b30046afae71b820e688ed9e4c28c20c915d32fdce0e37a2ff13"),
        KnownList(725, "c2889406b9b01fb5ce3860c8c0685600596cbde2145fa1309429bc95c53a1621"),
        KnownList(346, "145e238fad6eb801f4ef58c3f31b8d17ed3bdbee804f0fdc53c62a9b35289caf"),
    ),
    ("pascal-5i", "hsnet-trn"): (
        KnownList(2286, "b20f8a46245061a7037aa244074f9d0ba02f1e3d065232875c89615943cb4011"),
        KnownList(3425, "1ca66a3e350c59a12ed35cf693ef6c136087007f4c5ac0f5c98a66c772a7eb8c"),
        KnownList(5883, "04e579e62d913ba2a9d9c58410dc5390781c3423fe72e432bb81303134a138cf"),
        KnownList(2086, "d4fba4a1d1d9d516741331d877d437a9e6c26ad6aed48b9f245432bb330829ee"),
    ),
    ("coco-20i", "repri-order"): (
        KnownList(40137, "f79d216b420107f79518f78b82b0d7aee0e0f7124da6fecca0e6796bfe0e05a6"),
    ),
    ("coco-20i", "pfenet-order"): (
        KnownList(40137, "f9faac318d912c59e86b8183d3d9db78fd83fef7977f57d2448896e457afd1e7"),
    ),
    ("coco-20i", "hsnet-trn"): (KnownList(170491, "8c4144fa27a4a26b09ca965700effabc2cd1d12e4e6722efc8456333379d3dae"),),
    ("pascal-5i", "pfenet-val"): (
        KnownList(365, "7295a30a0c9ae4f291d3d6205cf11117b14ffbd879543dfd3428b463655c70c2"),
        KnownList(467, "d9266dca2c07a914dcc8bcdf8fdabda8165ae169f62668ed923dc7aaf7b8af02"),
        KnownList(734, "f8e4b39bf1b41e0392fa1c573e815e18332a7b698849216c45df3548253cadef"),
        KnownList(357, "278a34aeabde7f8dc888b5d0add470276e0d273815f44188d223a6414c627747"),
    ),
    ("pascal-5i", "pfenet-val-images"): (
        KnownList(364, "50680860a55e2f37ed89671332bb788f279c35b862429d0db2ee1a67a8dcfb1d"),
        KnownList(445, "dfaea1c044b5ffeb9e93923ab552a4de1f57ce01db8c0a3cb1f72a43ca31bdb6"),
        KnownList(592, "ec3113ecf34619858bb4f5a8a118ce7e68e6792e8d579a78e0afc0e843aa1151"),
        KnownList(336, "2a31e3a4965a2e1ce5dd0b9a941c3fbc76d9111c83730ef62a31afe9e92eaa53"),
    ),
    ("pascal-5i", "bam-trn"): (
        KnownList(5749, "9896376f641386a42ad0ee26e82acc553891882243f6d6b40a6b582db059fd4f"),
        KnownList(4706, "aca937e5857165d12b3ce13ba87a9f423b6c13d0f7fc26073c3cbb153cfa995c"),
        KnownList(3044, "c08b514ab46dae4c5188eb75292c535d8b96587b2888cf7e95339022adc88617"),
        KnownList(5832, "7b4fd71bd5be3c3457209ff78217d6c2f119e4cc3aa0417cf1d8d5a8cc99014d"),
    ),
    ("pascal-5i", "pfenet-trn"): (
        KnownList(6546, "cc3350d3395e11de42cef178cbc0bd635b292d2b89967d90caf1dff4e3a5ba20"),
        KnownList(5896, "4d3686f887d92f89ed063980f974ce58cb7834e2fb047aed9816b870c9607aa6"),
        KnownList(4628, "42fa1e11a9258c4a261f4b9c97e1ddaf7bfb6246f9102737afc895bc4b64eb85"),
        KnownList(6639, "1bb510222c400d28174d884226087fe695df10a25174125a6fa244ee04766fdf"),
    ),
    ("fss-1000", "official-test"): (
        KnownList(240, "81831fe6993ce88a98eb962e1b0b6fcb4f6304e681673b193ff2823d4b3614b5"),
    ),
    ("isaid-5i", "gfsam-val"): (
        KnownList(3108, "8e246a96ccba60d9bd89fa09bd79c570289018b62ece2210fb7aaf6a2fb70407"),
        KnownList(3657, "89c5506b48e4de0502191bbb38c294a460f2f62b95c4321f4fd5125c0f73f421"),
        KnownList(3298, "0cb770b10aa776477c17cca0c5289a849803cc6ea5ae679c51337052f6e23c02"),
    ),
    ("isaid-5i", "gfsam-trn"): (
        KnownList(9090, "dc9160d91c191c9cb1ba32db94314aae5407f403d201b3e38360718f844f252e"),
        KnownList(11035, "ec607d601c83b0a3a244b4a80cdea2c69105d1e48cc1ba5aa9c28ee2bad3fdf5"),
        KnownList(8107, "62abf988f23a5d800ffe91e2c67f24e151b4a903d5c39108c526995b030afb01"),
    ),
}
"""(data set, list) -> one entry per fold, or a single one for all folds.

`hsnet-*`: HSNet's lists, used by its whole family; `repri-order`: the image order behind them for COCO. `pfenet-*`: the
2048-pixel lists of PFENet, BAM, HDMNet, FSSAM and VRP-SAM; `bam-trn`: without images that hold any novel pixel.
"""

KNOWN_LISTS: dict[str, str] = {known.sha256: name for (_, name), folds in LISTS.items() for known in folds}
"""SHA-256 -> name of the list."""

COCO_VAL_IMAGES = (
    19217, 748, 2754, 1073, 727, 1213, 1257, 1565, 816, 572, 411, 385, 172, 1379, 713, 1291, 1203, 925, 456, 616, 699,
    335, 655, 839, 805, 1135, 998, 154, 709, 270, 434, 272, 142, 404, 173, 159, 655, 804, 687, 1351, 516, 1733, 419,
    470, 312, 1577, 551, 298, 577, 380, 521, 397, 331, 916, 423, 790, 3648, 1375, 1198, 1272, 3722, 1116, 1416, 1070,
    200, 302, 619, 446, 389, 925, 38, 1097, 773, 1159, 803, 676, 170, 644, 37, 94,
)  # fmt: skip
"""Images of each class 1..80 of COCO-20i in HSNet's val lists; the 2048-pixel lists of PFENet and BAM have the same sets."""
COCO_TRN_IMAGES = (
    40118, 1524, 5651, 2115, 2047, 2498, 2427, 3327, 1599, 1248, 862, 805, 325, 2724, 1393, 2437, 2424, 1904, 1005,
    1288, 1491, 655, 1297, 1770, 1698, 2186, 2104, 324, 1356, 527, 949, 628, 309, 920, 459, 377, 1492, 1445, 1425,
    2813, 1120, 3642, 865, 1031, 641, 3229, 1276, 785, 1167, 826, 1031, 809, 630, 1817, 821, 1697, 7449, 2980, 2321,
    2514, 7894, 2211, 2872, 2126, 397, 597, 1184, 734, 863, 1875, 88, 2306, 1626, 2419, 1354, 1399, 369, 1337, 53,
    190,
)  # fmt: skip
"""Images of each class 1..80 of COCO-20i in HSNet's trn lists."""
