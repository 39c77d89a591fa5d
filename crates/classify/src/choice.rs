use std::fmt;
use std::str::FromStr;

use luthier_artifact::CandidateC;

use crate::{Error, Result};

/// The candidates of [`ChooseC::Auto`].
pub(crate) const GRID: [f64; 9] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4];

/// Where C, the inverse strength of regularization, comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ChooseC {
    /// It is given.
    Fixed(f64),
    /// Cross-validation on the training images chooses among 1e-4, 1e-3, … 1e4.
    Auto(Rule),
}

impl fmt::Display for ChooseC {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChooseC::Fixed(c) => c.fmt(f),
            ChooseC::Auto(Rule::SmallestLoss) => f.write_str("auto"),
            ChooseC::Auto(Rule::OneStandardError) => f.write_str("auto-1se"),
        }
    }
}

impl FromStr for ChooseC {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse::<f64>()) {
            ("auto", _) => Ok(ChooseC::Auto(Rule::SmallestLoss)),
            ("auto-1se", _) => Ok(ChooseC::Auto(Rule::OneStandardError)),
            (_, Ok(c)) if c > 0.0 && c.is_finite() => Ok(ChooseC::Fixed(c)),
            _ => Err(Error::C { found: text.to_owned() }),
        }
    }
}

/// Which candidate is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// The one of smallest log loss; of equals the first.
    #[default]
    SmallestLoss,
    /// The first whose log loss is within one standard error of the smallest: the strongest regularization that cannot
    /// be told from the best.
    ///
    /// Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984, section 3.4.3.
    OneStandardError,
}

impl Rule {
    /// The place of the chosen one among `candidates`, in ascending order of C; `None` if there are none.
    pub fn choose(self, candidates: &[CandidateC]) -> Option<usize> {
        let by_loss = |a: &(usize, &CandidateC), b: &(usize, &CandidateC)| a.1.log_loss.total_cmp(&b.1.log_loss);
        let (smallest, best) = candidates.iter().enumerate().min_by(by_loss)?;
        let bound = match self {
            Rule::SmallestLoss => return Some(smallest),
            Rule::OneStandardError => best.log_loss + best.standard_error,
        };
        candidates.iter().position(|candidate| candidate.log_loss <= bound)
    }
}

/// Warns if the best C may lie outside the grid.
pub(crate) fn warn_at_edge(candidates: &[CandidateC]) {
    let Some(best) = Rule::SmallestLoss.choose(candidates) else {
        return;
    };
    let c = candidates[best].c;
    let (edge, way_out) = if best == 0 {
        (
            "smallest",
            "more images or fewer components may help, or a smaller C, given as such",
        )
    } else if best + 1 == candidates.len() {
        (
            "largest",
            "the classes are separable, and a larger C, given as such, may do better",
        )
    } else {
        return;
    };
    tracing::warn!("C = {c} is the {edge} candidate and has the smallest log loss: {way_out}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(log_losses: &[f64]) -> Vec<CandidateC> {
        let candidate = |(index, &log_loss): (usize, &f64)| CandidateC {
            c: 10f64.powi(index as i32),
            log_loss,
            standard_error: 0.1,
        };
        log_losses.iter().enumerate().map(candidate).collect()
    }

    #[test]
    fn the_rules_choose_the_best_or_the_strongest_regularization_as_good() {
        let table = candidates(&[0.9, 0.55, 0.52, 0.5, 0.5, 0.7]);
        assert_eq!(Rule::SmallestLoss.choose(&table), Some(3));
        assert_eq!(Rule::OneStandardError.choose(&table), Some(1));
        assert_eq!(Rule::OneStandardError.choose(&[]), None);
    }

    #[test]
    fn c_reads_back_what_it_prints_and_refuses_the_rest() {
        for text in ["auto", "auto-1se", "1", "0.01"] {
            assert_eq!(text.parse::<ChooseC>().unwrap().to_string(), text);
        }
        for text in ["0", "-1", "inf", "nan", "", "Auto"] {
            let error = text.parse::<ChooseC>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("C is {text}, expected a positive number, auto or auto-1se")
            );
        }
    }
}
