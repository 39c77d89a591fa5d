//! Counts and names in words.

use std::fmt::Display;

pub use luthier_artifact::file_names::printable;

/// A count and what is counted: `1 image`, `12 images`.
pub fn counted(n: impl Display, noun: &str) -> String {
    let n = n.to_string();
    let plural = if n == "1" { "" } else { "s" };
    format!("{n} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        let found = [0, 1, 2, 11].map(|n| counted(n, "run"));
        assert_eq!(found, ["0 runs", "1 run", "2 runs", "11 runs"]);
    }
}
