use luthier_artifact::{Digest, FeatureTable, Key};
use luthier_features::{Projection, Solver};

use crate::{
    CandidateC, ChooseC, CrossValidation, Error, LogisticRegression, Model, Result, Rule, TrainingInfo, choice,
};

/// The stage `classify`: choose C, then fit the regression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassifyConfig {
    /// Where C, the inverse strength of regularization, comes from.
    pub c: ChooseC,
    /// The number of folds of the cross-validation, at least 2; a class with fewer images lowers it.
    pub folds: usize,
    /// What the shuffle before the cross-validation starts from.
    pub seed: u64,
    /// Who fits the regression.
    pub solver: Solver,
}

impl ClassifyConfig {
    /// Changes when the stage gives other results for the same inputs.
    pub const VERSION: u32 = 2;

    /// What the model from the feature table with digest `train` and the projection with digest `projection`
    /// depends on. With a given C that is neither folds nor seed.
    pub fn key(&self, train: Digest, projection: Digest) -> Key {
        let ClassifyConfig { c, folds, seed, solver } = self;
        let key = Key::stage("classify", Self::VERSION)
            .field("c", c)
            .field("solver", solver);
        let key = match c {
            ChooseC::Fixed(_) => key,
            ChooseC::Auto => key.field("folds", folds).field("seed", seed),
        };
        key.input("train", train).input("projection", projection).finish()
    }

    /// Trains the model on the training features.
    ///
    /// # Errors
    /// [`Error::TooFewImages`] if a class has no image, or with [`ChooseC::Auto`] fewer than two;
    /// [`Error::Folds`] below two folds; those of [`LogisticRegression::fit`] and [`Projection::transform`].
    pub fn run(&self, train: &FeatureTable, projection: &Projection) -> Result<Model> {
        for (label, class) in train.classes.iter().enumerate() {
            if !train.labels.contains(&label) {
                return Err(Error::TooFewImages {
                    class: class.clone(),
                    expected: 1,
                    found: 0,
                });
            }
        }
        let (c, c_search) = match self.c {
            ChooseC::Fixed(c) => (c, Vec::new()),
            ChooseC::Auto => {
                let cross_validation = CrossValidation {
                    features: projection.config,
                    solver: self.solver,
                    folds: self.folds,
                    seed: self.seed,
                };
                let judged = cross_validation.scores(train, &choice::GRID)?;
                let search: Vec<CandidateC> = judged.iter().map(|held_out| held_out.candidate).collect();
                let best = Rule::SmallestLoss.choose(&search).expect("the grid has candidates");
                choice::warn_at_edge(&search, best);
                (search[best].c, search)
            }
        };
        let components = projection.transform(train.features())?;
        let classifier =
            LogisticRegression::new(c, self.solver)?.fit(components.view(), &train.labels, train.classes.len())?;
        let training = TrainingInfo {
            n_train: train.n_rows(),
            c,
            c_search,
            iterations: classifier.iterations,
            converged: classifier.converged,
            gradient_norm: classifier.gradient_norm,
            n_components: projection.pca.n_components(),
            explained_variance_ratio: projection.pca.explained_variance_ratio.sum(),
            solver: self.solver,
        };
        Ok(Model::assemble(
            train.classes.clone(),
            train.extractor.clone(),
            training,
            projection,
            &classifier,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: ClassifyConfig = ClassifyConfig {
        c: ChooseC::Fixed(1.0),
        folds: 5,
        seed: 0,
        solver: Solver::Faer,
    };
    const AUTO: ClassifyConfig = ClassifyConfig {
        c: ChooseC::Auto,
        ..FIXED
    };

    fn digest(config: ClassifyConfig) -> Digest {
        config.key(Digest::of(b"train"), Digest::of(b"projection")).digest()
    }

    #[test]
    fn every_field_and_input_changes_the_key() {
        assert_ne!(digest(FIXED), digest(AUTO));
        assert_ne!(
            digest(ClassifyConfig {
                c: ChooseC::Fixed(0.5),
                ..FIXED
            }),
            digest(FIXED)
        );
        for config in [FIXED, AUTO] {
            assert_ne!(
                digest(ClassifyConfig {
                    solver: Solver::Smartcore,
                    ..config
                }),
                digest(config)
            );
            assert_ne!(
                config.key(Digest::of(b"other"), Digest::of(b"projection")).digest(),
                digest(config)
            );
            assert_ne!(
                config.key(Digest::of(b"train"), Digest::of(b"other")).digest(),
                digest(config)
            );
        }
        assert_ne!(digest(ClassifyConfig { folds: 6, ..AUTO }), digest(AUTO));
        assert_ne!(digest(ClassifyConfig { seed: 1, ..AUTO }), digest(AUTO));
    }

    #[test]
    fn with_a_given_c_folds_and_seed_do_not_change_the_key() {
        assert_eq!(
            digest(ClassifyConfig {
                folds: 6,
                seed: 1,
                ..FIXED
            }),
            digest(FIXED)
        );
    }

    #[test]
    fn the_keys_are_pinned() {
        assert_eq!(
            [digest(FIXED).to_string(), digest(AUTO).to_string()],
            [
                "1a92ebea6d1876e87f04c831907861d3e4eb2477dd8c5348e8ce7a4d86b8cb9a",
                "888afafec751743d292eb15a16eda80f0f219b19a8110523dbbf44f6fb6630b6",
            ]
        );
    }
}
