use luthier_artifact::{CandidateC, CrossValidationInfo, Digest, Key, Observer, ReadRows, Threshold};
use luthier_features::{FeaturesConfig, Interruptible, Projection, Solver};
use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};

use crate::folds::warn_of_classes_never_held_out;
use crate::{
    ChooseC, ClassDistance, ClassWeight, CrossValidation, Error, HeldOut, HeldOutPredictions, LogisticRegression,
    Model, Result, Rule, Temperature, Training, TrainingInfo, choice, confidences, thresholds_that_keep,
};

/// For which shares of held-out images a model carries thresholds.
const SHARES: [f64; 3] = [0.9, 0.95, 0.99];

/// The stage `classify`: choose C, fit the regression, calibrate it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassifyConfig {
    /// Where C, the inverse strength of regularization, comes from.
    pub c: ChooseC,
    /// How much each class counts.
    pub class_weight: ClassWeight,
    /// The number of folds of the cross-validation, at least 2.
    pub folds: usize,
    /// What the shuffle before the cross-validation starts from.
    pub seed: u64,
    /// Who fits the regression.
    pub solver: Solver,
}

/// The choice of C and what else follows from cross-validation.
struct Choice {
    c: f64,
    temperature: f32,
    info: CrossValidationInfo,
    held_out: HeldOutPredictions,
}

/// The outputs of the stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Classified {
    /// The model of all training images.
    pub model: Model,
    /// What the models of cross-validation say of training images that they have not seen: nothing if C was given.
    pub held_out: HeldOutPredictions,
}

/// What cross-validation says of a kind of features.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutFigures {
    /// The inverse strength of regularization.
    pub c: f64,
    /// The mean log loss (natural logarithm) on images that were held out.
    pub log_loss: f64,
    /// The share of these images that is predicted rightly, 0 to 1.
    pub accuracy: f64,
}

impl ClassifyConfig {
    /// Changes when the stage gives other results for the same inputs.
    pub const VERSION: u32 = 5;

    /// What the model depends on that is made from the feature table with digest `train` and the projection with digest
    /// `projection`. `look_alikes` is the digest of what the groups of
    /// [`Training::with_look_alikes`] come from, if there are groups.
    ///
    /// Folds, seed and look-alikes count only if C is chosen: a given C needs no folds.
    pub fn key(&self, train: Digest, projection: Digest, look_alikes: Option<Digest>) -> Key {
        let ClassifyConfig {
            c,
            class_weight,
            folds,
            seed,
            solver,
        } = self;
        let key = Key::stage("classify", Self::VERSION)
            .field("c", c)
            .field("class-weight", class_weight)
            .field("solver", solver);
        let key = match c {
            ChooseC::Fixed(_) => key,
            ChooseC::Auto(_) => key.field("folds", folds).field("seed", seed),
        };
        let key = key.input("train", train).input("projection", projection);
        match (c, look_alikes) {
            (ChooseC::Auto(_), Some(look_alikes)) => key.input("look-alikes", look_alikes),
            _ => key,
        }
        .finish()
    }

    /// Trains the model on the training features.
    ///
    /// With a given C it is scikit-learn's, as it is. With [`ChooseC::Auto`] cross-validation chooses C, and what its
    /// models say of the images that they have not seen gives the temperature, and the thresholds for unknown images.
    ///
    /// # Errors
    /// [`Error::TooFewImages`](crate::Error::TooFewImages) if a class has no image; with [`ChooseC::Auto`] those of
    /// [`CrossValidation::run`]; those of [`LogisticRegression::fit`] and [`Projection::transform`];
    /// [`Error::Interrupted`] soon after the observer says so: it is asked before each block of rows and each iteration
    /// of a fit.
    pub fn run<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        projection: &Projection,
        observer: &dyn Observer,
    ) -> Result<Classified> {
        train.check_classes()?;
        let (c, mut choice) = match self.c {
            ChooseC::Fixed(c) => (c, None),
            ChooseC::Auto(rule) => {
                let choice = self.choose(train, projection, rule, observer)?;
                (choice.c, Some(choice))
            }
        };
        let rows = &train.features;
        let z = projection.transform(Interruptible { rows, observer })?;
        if let Some(choice) = &mut choice {
            let cross_validation = self.cross_validation(projection.config);
            choice.info.learning_curve = cross_validation.learning_curve(train, z.view(), c, observer)?;
        }
        let regression = LogisticRegression {
            class_weight: self.class_weight,
            ..LogisticRegression::new(c, self.solver)?
        };
        let classifier = regression.fit_observed(z.view(), train.labels, train.n_classes(), observer)?;
        let temperature = choice.as_ref().map_or(1.0, |choice| choice.temperature);
        Error::if_interrupted(observer)?;
        let distance = match &choice {
            Some(Choice { info, .. }) if info.thresholds.iter().all(|threshold| threshold.distance.is_some()) => {
                ClassDistance::fit_if_spread(z.view(), train.labels, train.n_classes())?
            }
            _ => None,
        };
        let training = TrainingInfo {
            n_train: train.n_rows(),
            c,
            class_weight: self.class_weight,
            iterations: classifier.iterations,
            converged: classifier.converged,
            gradient_norm: classifier.gradient_norm,
            n_components: projection.pca.n_components(),
            explained_variance_ratio: projection.pca.explained_variance_ratio.sum(),
            solver: self.solver,
            cross_validation: choice.as_ref().map(|choice| choice.info.clone()),
        };
        let model = Model::assemble(
            train.classes.to_vec(),
            train.extractor.clone(),
            training,
            projection,
            &classifier,
            temperature,
            distance,
        );
        let held_out = match choice {
            Some(choice) => choice.held_out,
            None => HeldOutPredictions::none(train.digest(), train.n_classes()),
        };
        Ok(Classified { model, held_out })
    }

    /// How well models of these features do on training images that they have not seen, with the C that is given or else
    /// chosen. No model comes out: it serves to compare features.
    ///
    /// # Errors
    /// Those of [`CrossValidation::run`].
    pub fn judge<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        features: FeaturesConfig,
        observer: &dyn Observer,
    ) -> Result<HeldOutFigures> {
        let (grid, rule) = match &self.c {
            ChooseC::Fixed(c) => (std::slice::from_ref(c), Rule::default()),
            ChooseC::Auto(rule) => (choice::GRID.as_slice(), *rule),
        };
        let held_out = self.cross_validation(features).run(train, grid, observer)?;
        let candidates: Vec<CandidateC> = held_out.candidates.iter().map(|judged| judged.candidate).collect();
        let chosen = rule.choose(&candidates).expect("the grid has candidates");
        let labels = train.labels_of(&held_out.rows);
        let is_right = |(scores, label): (ArrayView1<'_, f64>, &usize)| {
            let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            best.is_some_and(|(best, _)| best == *label)
        };
        let scores = held_out.candidates[chosen].scores.outer_iter();
        let n_right = scores.zip(&labels).filter(|row| is_right(*row)).count();
        Ok(HeldOutFigures {
            c: candidates[chosen].c,
            log_loss: candidates[chosen].log_loss,
            accuracy: n_right as f64 / labels.len() as f64,
        })
    }

    fn cross_validation(&self, features: FeaturesConfig) -> CrossValidation {
        CrossValidation {
            features,
            solver: self.solver,
            class_weight: self.class_weight,
            folds: self.folds,
            seed: self.seed,
        }
    }

    /// Chooses C among the candidates by cross-validation.
    fn choose<R: ReadRows<Feature = f32>>(
        &self,
        train: &Training<'_, R>,
        projection: &Projection,
        rule: Rule,
        observer: &dyn Observer,
    ) -> Result<Choice> {
        let HeldOut {
            rows,
            n_folds,
            candidates: judged,
            distances,
        } = self
            .cross_validation(projection.config)
            .run(train, &choice::GRID, observer)?;
        warn_of_classes_never_held_out(train, &rows);
        let candidates: Vec<CandidateC> = judged.iter().map(|judged| judged.candidate).collect();
        let chosen = rule.choose(&candidates).expect("the grid has candidates");
        choice::warn_at_edge(&candidates);

        let scores = judged[chosen].scores.view();
        let labels = train.labels_of(&rows);
        let temperature = Temperature::fit(scores, &labels)?;
        let probabilities = temperature.probabilities(scores);
        let known = confidences(probabilities.view());
        let nearness = distances.map(|distances| distances.iter().map(|distance| -distance).collect::<Vec<_>>());
        let thresholds = SHARES.map(|share| {
            let measures: Vec<&[f64]> = [Some(&known), nearness.as_ref()]
                .into_iter()
                .flatten()
                .map(Vec::as_slice)
                .collect();
            let thresholds = thresholds_that_keep(&measures, share)?;
            Ok(Threshold {
                share,
                probability: thresholds[0],
                distance: thresholds.get(1).map(|nearness| -nearness),
            })
        });
        let held_out = HeldOutPredictions::new(train.digest(), rows, probabilities.view());
        Ok(Choice {
            c: candidates[chosen].c,
            temperature: temperature.value() as f32,
            info: CrossValidationInfo {
                folds: n_folds,
                n_held_out: labels.len(),
                accuracy: Some(held_out.accuracy(&labels)),
                candidates,
                thresholds: thresholds.into_iter().collect::<Result<_>>()?,
                learning_curve: Vec::new(),
            },
            held_out,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: ClassifyConfig = ClassifyConfig {
        c: ChooseC::Fixed(1.0),
        class_weight: ClassWeight::Uniform,
        folds: 5,
        seed: 0,
        solver: Solver::Faer,
    };
    const AUTO: ClassifyConfig = ClassifyConfig {
        c: ChooseC::Auto(Rule::SmallestLoss),
        ..FIXED
    };

    fn digest(config: ClassifyConfig) -> Digest {
        config
            .key(Digest::of(b"train"), Digest::of(b"projection"), None)
            .digest()
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
        let other_rule = ClassifyConfig {
            c: ChooseC::Auto(Rule::OneStandardError),
            ..AUTO
        };
        assert_ne!(digest(other_rule), digest(AUTO));
        for config in [FIXED, AUTO] {
            assert_ne!(
                digest(ClassifyConfig {
                    class_weight: ClassWeight::Balanced,
                    ..config
                }),
                digest(config)
            );
            assert_ne!(
                digest(ClassifyConfig {
                    solver: Solver::Smartcore,
                    ..config
                }),
                digest(config)
            );
            assert_ne!(
                config
                    .key(Digest::of(b"other"), Digest::of(b"projection"), None)
                    .digest(),
                digest(config)
            );
            assert_ne!(
                config.key(Digest::of(b"train"), Digest::of(b"other"), None).digest(),
                digest(config)
            );
        }
        assert_ne!(digest(ClassifyConfig { folds: 6, ..AUTO }), digest(AUTO));
        assert_ne!(digest(ClassifyConfig { seed: 1, ..AUTO }), digest(AUTO));
    }

    #[test]
    fn look_alikes_change_the_key_if_c_is_chosen() {
        let key = |config: ClassifyConfig, look_alikes: Option<&[u8]>| {
            config.key(
                Digest::of(b"train"),
                Digest::of(b"projection"),
                look_alikes.map(Digest::of),
            )
        };
        assert_eq!(key(FIXED, Some(b"some")), key(FIXED, None));
        let (none, some, other) = (key(AUTO, None), key(AUTO, Some(b"some")), key(AUTO, Some(b"other")));
        assert!(none != some && some != other && none != other);
        assert_eq!(
            some.differences(&none),
            [("look-alikes", None, Some(Digest::of(b"some").to_string().as_str()))]
        );
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
                "d781e4eff272ddef56befdd00c4acecc4d68294b690586ab6ddb0feff5c929f9",
                "a9c7ff8e74925a8468d04e7b237b1b284659e168f7a7a267b3ba5b824662f2e0",
            ]
        );
    }
}
