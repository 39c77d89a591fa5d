//! Numbers and names as a reader sees them.

use std::fmt::Display;

use luthier_artifact::file_names;

/// A share as a percentage with one decimal and a narrow space: 0.926 is `92.6 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}\u{202f}%", 100.0 * share)
}

/// A confidence level as a percentage with the digits it needs: 0.95 is `95 %`, 0.999 is `99.9 %`.
pub(super) fn level(confidence: f64) -> String {
    // Nine digits hide that 100 × 0.58 is 57.99999999999999.
    format!("{}\u{202f}%", (confidence * 1e9).round() / 1e7)
}

/// A difference of shares in percentage points with one decimal: 0.019 is `1.9`, -0.019 is `−1.9`.
pub(super) fn points(difference: f64) -> String {
    let rounded = (1_000.0 * difference).round() / 10.0;
    let sign = if rounded < 0.0 { "−" } else { "" };
    format!("{sign}{:.1}", rounded.abs())
}

/// A whole number with a comma before every three digits: 1806 is `1,806`.
pub(super) fn count(n: impl Display) -> String {
    let digits = n.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count and what is counted: `1 image`, `1,806 images`.
pub(super) fn counted(n: usize, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A name that can be shown on one line: what XML forbids, what does not print and what is not UTF-8
/// becomes U+FFFD.
pub(super) fn printable(name: &str) -> String {
    file_names::shown(name)
        .chars()
        .map(|c| {
            if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_by_three_digits() {
        let found = [0, 12, 999, 1_000, 123_456, 1_234_567].map(count);
        assert_eq!(found, ["0", "12", "999", "1,000", "123,456", "1,234,567"]);
        assert_eq!([1, 1_806].map(|n| counted(n, "image")), ["1 image", "1,806 images"]);
    }

    #[test]
    fn points_have_a_true_minus_and_no_negative_zero() {
        assert_eq!([0.019, -0.019, -0.0001].map(points), ["1.9", "−1.9", "0.0"]);
    }

    #[test]
    fn percentages_have_the_digits_they_need() {
        assert_eq!(
            [0.0, 0.92649, 1.0].map(percent),
            ["0.0\u{202f}%", "92.6\u{202f}%", "100.0\u{202f}%"]
        );
        assert_eq!(
            [0.95, 0.58, 0.999].map(level),
            ["95\u{202f}%", "58\u{202f}%", "99.9\u{202f}%"]
        );
    }

    #[test]
    fn names_lose_what_cannot_be_shown_and_nothing_else() {
        assert_eq!(printable("a\nb\u{0}c\u{85}"), "a\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!(printable("Geige <&> 二胡"), "Geige <&> 二胡");
    }
}
