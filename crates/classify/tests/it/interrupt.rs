//! The user ends the work while it goes on.

use std::sync::atomic::{AtomicU64, Ordering};

use luthier_artifact::{Observer, Task};
use luthier_classify::{ChooseC, ClassWeight, ClassifyConfig, Error, LogisticRegression, Rule, Solver, Training};
use luthier_features::{ComponentCount, FeaturesConfig};

use crate::synthetic;

const FEATURES: FeaturesConfig = FeaturesConfig {
    n_components: ComponentCount::Variance(0.95),
    whiten: false,
    solver: Solver::Faer,
};

/// Interrupts when it is asked for the time after `left`, and counts what it is told.
struct Impatient {
    left: AtomicU64,
    announced: AtomicU64,
    done: AtomicU64,
}

impl Impatient {
    fn after(left: u64) -> Self {
        Impatient {
            left: AtomicU64::new(left),
            announced: AtomicU64::new(0),
            done: AtomicU64::new(0),
        }
    }
}

struct Done<'a>(&'a AtomicU64);

impl Task for Done<'_> {
    fn advance(&self, units: u64) {
        self.0.fetch_add(units, Ordering::Relaxed);
    }
}

impl Observer for Impatient {
    fn task(&self, _: &str, total: u64) -> Box<dyn Task + '_> {
        self.announced.fetch_add(total, Ordering::Relaxed);
        Box::new(Done(&self.done))
    }

    fn is_interrupted(&self) -> bool {
        let ask = |left: u64| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, ask)
            .is_err()
    }
}

fn config(c: ChooseC) -> ClassifyConfig {
    ClassifyConfig {
        c,
        class_weight: ClassWeight::Uniform,
        folds: 4,
        seed: 7,
        solver: Solver::Faer,
    }
}

#[test]
fn training_ends_wherever_it_is_interrupted() {
    let train = synthetic(3, 30, 20);
    let projection = FEATURES.run(train.features(), &()).unwrap();
    for c in [ChooseC::Auto(Rule::SmallestLoss), ChooseC::Fixed(1.0)] {
        let patient = Impatient::after(u64::MAX);
        let classified = config(c).run(&Training::from(&train), &projection, &patient).unwrap();
        assert_eq!(
            classified,
            config(c).run(&Training::from(&train), &projection, &()).unwrap()
        );
        let n_asked = u64::MAX - patient.left.into_inner();
        // At least once an iteration of the last fit, which alone has dozens.
        assert!(
            n_asked > classified.model.training.iterations.unwrap() as u64,
            "{n_asked}"
        );
        for left in [0, 1, 10, n_asked / 2, n_asked - 1] {
            let observer = Impatient::after(left);
            let error = config(c)
                .run(&Training::from(&train), &projection, &observer)
                .unwrap_err();
            assert!(
                matches!(error, Error::Interrupted),
                "after {left} of {n_asked}: {error}"
            );
            assert_eq!(error.to_string(), "interrupted");
        }
    }
}

#[test]
fn every_fit_of_the_cross_validation_is_told() {
    let train = synthetic(3, 30, 20);
    let projection = FEATURES.run(train.features(), &()).unwrap();
    let observer = Impatient::after(u64::MAX);
    let c = ChooseC::Auto(Rule::SmallestLoss);
    config(c).run(&Training::from(&train), &projection, &observer).unwrap();
    // Nine candidates and four shares of the learning curve in each of four folds.
    assert_eq!(observer.announced.into_inner(), 4 * (9 + 4));
    assert_eq!(observer.done.into_inner(), 4 * (9 + 4));
}

#[test]
fn a_fit_is_interrupted_between_two_iterations() {
    let train = synthetic(3, 30, 20);
    let x = train.features.mapv(f64::from);
    let regression = LogisticRegression::new(100.0, Solver::Faer).unwrap();
    let fitted = regression.fit(x.view(), &train.labels, 3).unwrap();
    let n_iterations = fitted.iterations.unwrap() as u64;
    let fit = |left| regression.fit_observed(x.view(), &train.labels, 3, &Impatient::after(left));
    assert_eq!(fit(n_iterations + 1).unwrap(), fitted);
    for left in [0, 1, n_iterations] {
        assert!(matches!(fit(left), Err(Error::Interrupted)), "{left} of {n_iterations}");
    }
}
