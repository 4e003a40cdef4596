//! What the cost table believes, and what makes it change its mind.

use proptest::prelude::*;

use super::super::costs::CostTable;
use super::{MS, SECOND, US};

fn learned(batches: &[(usize, u64)]) -> CostTable {
    let mut costs = CostTable::new();
    for (items, ns) in batches {
        costs.learn(*items, *items as u64, *ns);
    }
    costs
}

/// A model that takes 1 ms and 10 µs for each task.
fn model_ns(items: usize) -> u64 {
    MS + 10 * US * items as u64
}

fn teach(costs: &mut CostTable, sizes: &[usize], rounds: usize, times: u64) {
    for _ in 0..rounds {
        for items in sizes {
            costs.learn(*items, *items as u64, times * model_ns(*items));
        }
    }
}

#[test]
fn nothing_is_predicted_before_anything_is_known() {
    let costs = CostTable::new();
    assert_eq!(costs.predicted_ns(1, 1), 0);
    assert_eq!(costs.predicted_ns(4_096, u64::MAX), 0);
}

#[test]
fn sizes_in_between_lie_on_a_line_and_larger_ones_grow_with_the_size() {
    let mut costs = CostTable::new();
    teach(&mut costs, &[1, 16, 256], 50, 1);
    for items in [1, 2, 8, 16, 40, 100, 200, 256] {
        let (real, expected) = (model_ns(items), costs.expected_ns(items, items as u64));
        let off = expected.abs_diff(real) as f64 / real as f64;
        assert!(off < 0.02, "{items}: {expected} instead of {real}");
        let predicted = costs.predicted_ns(items, items as u64);
        assert!(
            predicted >= real && predicted < real * 11 / 10,
            "{items}: {predicted}"
        );
    }
    let (largest, twice) = (costs.expected_ns(256, 256), costs.expected_ns(512, 512));
    assert!(
        twice.abs_diff(2 * largest) <= 2,
        "{twice} is twice {largest}"
    );
}

#[test]
fn a_slow_first_batch_is_forgotten_by_the_second() {
    let costs = learned(&[(64, 5 * SECOND), (64, 10 * MS)]);
    assert!(costs.predicted_ns(64, 64) < 20 * MS);
}

#[test]
fn a_change_is_believed_within_a_few_batches_and_for_all_sizes() {
    let mut costs = CostTable::new();
    teach(&mut costs, &[1, 8, 64, 256], 20, 1);
    for _ in 0..3 {
        costs.learn(256, 256, 3 * model_ns(256));
    }
    for items in [1, 8, 64, 256] {
        let (real, expected) = (3 * model_ns(items), costs.expected_ns(items, items as u64));
        assert!(
            expected.abs_diff(real) < real / 10,
            "{items}: {expected} instead of {real}"
        );
    }
    for _ in 0..3 {
        costs.learn(8, 8, model_ns(8));
    }
    for items in [1, 8, 64, 256] {
        let (real, expected) = (model_ns(items), costs.expected_ns(items, items as u64));
        assert!(
            expected.abs_diff(real) < real / 3,
            "{items}: {expected} instead of {real}"
        );
    }
}

#[test]
fn one_outlier_counts_as_a_few_batches_at_most() {
    let mut costs = CostTable::new();
    teach(&mut costs, &[64], 20, 1);
    costs.learn(64, 64, 60 * SECOND);
    assert!(costs.predicted_ns(64, 64) < 4 * model_ns(64));
    teach(&mut costs, &[64], 20, 1);
    assert!(costs.predicted_ns(64, 64) < model_ns(64) * 3 / 2);
}

#[test]
fn a_size_that_was_slow_once_is_tried_again() {
    let mut costs = CostTable::new();
    teach(&mut costs, &[32], 20, 1);
    costs.learn(256, 256, 5 * SECOND);
    assert!(costs.predicted_ns(256, 256) > SECOND);
    teach(&mut costs, &[32], 600, 1);
    assert!(costs.predicted_ns(256, 256) < 30 * MS);
}

#[test]
fn the_size_that_explains_the_time_is_believed() {
    let mut costs = CostTable::new();
    // 1 µs for each work unit, however many tasks.
    for round in 0..60usize {
        let (items, work) = (1 + round % 7, 100 + 900 * (round * 7 % 11) as u64);
        costs.learn(items, work, work * US);
    }
    for work in [200, 1_000, 5_000] {
        let expected = costs.expected_ns(1, work);
        assert!(
            expected.abs_diff(work * US) < work * US / 4,
            "{work}: {expected}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn predictions_grow_with_the_size_whatever_was_seen(
        batches in prop::collection::vec((1usize..=4_096, 1u64..1 << 20, 0u64..20 * SECOND), 1..60),
    ) {
        let mut costs = CostTable::new();
        for (items, work, ns) in batches {
            costs.learn(items, work, ns);
            let mut last = (0, 0);
            for items in [1, 2, 3, 5, 8, 13, 100, 128, 129, 700, 1_024, 2_500, 4_096, 9_000] {
                let work = (items as u64) * 200;
                let now = (costs.expected_ns(items, work), costs.predicted_ns(items, work));
                prop_assert!(now.0 >= last.0 && now.1 >= last.1, "{items}: {now:?} after {last:?}");
                prop_assert!(now.0 <= now.1);
                last = now;
            }
        }
    }
}
