"""Where each of the 26 invariants of FS-DINO's specification (fsdino.md 8) is tested, and those with no other place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from datamodules.folds import novel_classes
from fssbench.metrics.iou import FewShotIoU, episode_counts
from fssbench.protocols.lists import read_list
from methods.fsdino.model import FSDINONet
from tests.methods.test_fsdino_model import FULL, episode, make_net
from tests.shared import SHARED, needs_shared

TESTS = Path(__file__).resolve().parents[1]
INVARIANTS: dict[int, list[str]] = {
    1: [
        "encoders/test_vit.py::test_grids_and_sizes_that_do_not_fit",
        "encoders/test_vit.py::test_blocks_above_the_highest_needed_are_not_run",
        "encoders/test_vit.py::test_equal_to_timm",
    ],
    2: [
        "methods/test_fsdino_adapter.py::test_parameter_counts_of_the_three_sizes",
        "methods/test_fsdino_adapter.py::test_grid_is_kept",
    ],
    3: [
        "methods/test_fsdino_distillation.py::test_only_the_adapter_is_trained",
        "encoders/test_sam.py::test_it_is_frozen_and_stays_as_it_is",
    ],
    4: ["encoders/test_sam.py::test_normalisation_is_that_of_sams_own_code"],
    5: [
        "methods/test_fsdino_alignment.py::test_a_constant_map_stays_constant",
        "methods/test_fsdino_alignment.py::test_an_equal_grid_is_the_identity_and_equal_maps_cost_nothing",
    ],
    6: [
        "methods/test_fsdino_distillation.py::test_each_stage_begins_fresh_from_the_best_of_the_one_before",
        "methods/test_fsdino_distillation.py::test_the_best_weights_of_a_stage_are_handed_on_and_not_its_last",
        "methods/test_fsdino_distillation.py::test_each_stage_trains_all_its_epochs_at_its_own_resolution",
    ],
    7: [
        "methods/test_fsdino_teacher.py::test_kept_features_equal_computed_ones",
        "methods/test_fsdino_distillation.py::test_four_images_can_be_learned_by_heart",
    ],
    8: [
        "methods/test_fsdino_prompts.py::test_prototype_of_all_and_of_one",
        "methods/test_fsdino_prompts.py::test_prototype_ignores_order_and_scale",
        "methods/test_fsdino_prompts.py::test_small_object_is_max_pooled",
    ],
    9: ["methods/test_fsdino_prompts.py::test_cosine_map"],
    10: [
        "methods/test_fsdino_prompts.py::test_sparse_prompt_has_one_token_per_prototype",
        "methods/test_fsdino_prompts.py::test_dense_prompt_shape_count_and_start",
        "methods/test_fsdino_model.py::test_trained_parameters_of_the_frozen_decoder",
    ],
    11: [
        "methods/test_fsdino_correlation.py::test_correlation_is_the_clipped_cosine",
        "methods/test_fsdino_correlation.py::test_correlation_with_itself_and_exchanged",
    ],
    12: [
        "methods/test_fsdino_correlation.py::test_signs_without_and_with_contrast",
        "methods/test_fsdino_correlation.py::test_contrast_is_negated_by_the_opposite_mask_and_keeps_the_range",
    ],
    13: ["methods/test_fsdino_correlation.py::test_masking_features_before_equals_masking_correlations_after"],
    14: [
        "methods/test_fsdino_centre_pivot.py::test_equals_a_brute_force_4d_convolution",
        "methods/test_fsdino_centre_pivot.py::test_centre_entry_is_the_sum_of_both_branches",
        "methods/test_fsdino_correlation.py::test_reader_equals_plain_operations",
    ],
    15: ["methods/test_fsdino_centre_pivot.py::test_sides_of_the_support_and_of_the_query"],
    16: ["methods/test_fsdino_model.py::test_full_model_starts_exactly_at_the_compact_one"],
    17: [
        "methods/test_fsdino_decoder.py::test_parameter_counts",
        "methods/test_fsdino_decoder.py::test_other_checkpoints_are_refused",
        "encoders/test_sam.py::test_the_official_layouts_load",
    ],
    18: [
        "methods/test_fsdino_decoder.py::test_batch_equals_the_loop_over_images",
        "methods/test_fsdino_decoder.py::test_images_do_not_see_each_other",
    ],
    19: ["methods/test_fsdino_decoder.py::test_equals_the_reference_with_sams_prompts"],
    20: ["methods/test_fsdino_decoder.py::test_position_of_the_centre"],
    21: [
        "methods/test_fsdino_model.py::test_identical_supports_equal_one",
        "methods/test_fsdino_model.py::test_order_of_supports_does_not_matter",
        "methods/test_fsdino_invariants.py::test_one_shot_equals_the_general_path",
    ],
    22: [
        "test_losses.py::test_finite_on_empty_and_full_masks_with_gradient",
        "test_losses.py::test_near_zero_for_confident_correct_logits",
        "test_losses.py::test_the_order_of_the_batch_does_not_matter",
    ],
    23: [
        "methods/test_fsdino_training.py::test_groups_of_the_optimiser",
        "cli/test_counting.py::test_counts_of_the_presets",
        "methods/test_fsdino_model.py::test_trained_parameters_of_the_trained_decoder",
        "methods/test_fsdino_model.py::test_parameters_of_the_full_model",
    ],
    24: [
        "datamodules/test_coco20i.py::test_folds_of_both_partitions",
        "datamodules/test_pascal5i.py::test_folds",
        "datamodules/test_episodic.py::test_training_never_shows_a_novel_class_or_the_query_as_support",
        "methods/test_fsdino_invariants.py::test_the_folds_of_the_published_lists_hold_as_many_images_as_listed",
        "protocols/test_compat.py::test_first_episodes_and_counts_of_the_specification",
        "protocols/test_manifest.py::test_the_same_bytes_in_another_process",
    ],
    25: [
        "methods/test_fsdino_invariants.py::test_perfect_and_opposite_predictions",
        "metrics/test_iou.py::test_forgotten_ignore_gives_other_numbers",
        "metrics/test_iou.py::test_wrong_but_common_means_give_other_numbers",
    ],
    26: [
        "metrics/test_davis.py::test_merge_takes_the_most_likely_label",
        "metrics/test_davis.py::test_merging_one_object_is_thresholding_it",
    ],
}


def test_every_invariant_has_its_tests() -> None:
    assert list(INVARIANTS) == list(range(1, 27))
    for tests in INVARIANTS.values():
        for test in tests:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), test


@pytest.mark.parametrize("merge", ["logit", "vote"])
def test_one_shot_equals_the_general_path(merge: str) -> None:
    """Every merge of one shot is that shot: `logit` and `vote` skip their loop, and must not differ from it."""
    outputs = []
    for kind in ("feature", merge):
        net: FSDINONet = make_net(kshot_merge=kind, **FULL)
        outputs.append(net(*episode(shots=1)))
    assert torch.equal(*outputs)


@needs_shared
def test_the_folds_of_the_published_lists_hold_as_many_images_as_listed() -> None:
    """Sections 3.2 and 4 of the specification: base images to train on, images to test on, of each fold."""
    lists = SHARED / "splits" / "gf-sam"
    train = read_list(lists / "coco" / "trn" / "all_classes.txt.gz").pairs
    base, tested = [], []
    for fold in range(4):
        novel = novel_classes(range(1, 81), fold, 4, "interleaved")
        assert novel == tuple(fold + 4 * v + 1 for v in range(20))
        base.append(len({name for class_id, name in train if class_id not in novel}))
        val = read_list(lists / "coco" / "val" / f"fold{fold}.txt.gz").pairs
        assert {class_id for class_id, _ in val} == set(novel)
        tested.append(len({name for _, name in val}))
    assert base == [62_040, 74_381, 73_035, 73_808]
    assert tested == [26_052, 15_305, 13_138, 12_640]

    train = [pair for fold in range(4) for pair in read_list(lists / "pascal" / "trn" / f"fold{fold}.txt").pairs]
    base, tested = [], []
    for fold in range(4):
        novel = novel_classes(range(1, 21), fold, 4, "contiguous")
        assert novel == tuple(range(5 * fold + 1, 5 * fold + 6))
        base.append(sum(class_id not in novel for class_id, _ in train))
        val = read_list(lists / "pascal" / "val" / f"fold{fold}.txt").pairs
        assert {class_id for class_id, _ in val} == set(novel)
        tested.append(len(val))
    assert base == [11_394, 10_255, 7_797, 11_594]
    assert tested == [346, 451, 725, 346]


def test_perfect_and_opposite_predictions() -> None:
    truth = torch.randint(0, 2, (20, 30), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    truth[:3] = 255
    for predicted, score in ((truth == 1, 1.0), (truth == 0, 0.0)):
        metric = FewShotIoU((7,))
        metric.update(episode_counts(predicted, truth)[None], torch.tensor([7]))
        assert (metric.compute()["miou"], metric.compute()["fb_iou"]) == (score, score)
