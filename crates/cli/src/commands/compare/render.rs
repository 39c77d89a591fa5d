//! A comparison as text for a terminal, and as Markdown for a pull request.

use std::fmt::Write as _;

use luthier_eval::{Change, ClassChange, Comparison, Side, Verdict};

use super::Compared;
use luthier::words::{counted, printable};

/// How many images of a kind are named on a terminal.
const NAMED_IN_TEXT: usize = 20;

/// The same in Markdown: a comment on GitHub holds 65,536 characters.
const NAMED_IN_MARKDOWN: usize = 100;

impl Compared {
    /// Lines for a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "baseline   {}\ncandidate  {}\n\n{:18}  baseline  candidate  difference\n",
            printable(&self.reports.baseline),
            printable(&self.reports.candidate),
            ""
        );
        for (name, figure) in self.figures() {
            line(
                &mut text,
                format_args!(
                    "{name:18}  {:8.4}  {:9.4}  {:>10}",
                    figure.baseline,
                    figure.candidate,
                    signed(figure)
                ),
            );
        }
        line(&mut text, format_args!("\n{}", self.verdict()));
        for note in self.notes(printable) {
            line(&mut text, format_args!("{note}"));
        }
        let classes = self.changed_classes();
        if !classes.is_empty() {
            let names: Vec<String> = classes.iter().map(|class| printable(&class.class)).collect();
            let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
            line(
                &mut text,
                format_args!(
                    "\n{:width$}  images  {:15}  {:15}  {:15}  difference",
                    "class", "precision", "recall", "F1"
                ),
            );
            for (name, class) in names.iter().zip(classes) {
                let [precision, recall, f1] = [class.precision, class.recall, class.f1].map(arrow);
                line(
                    &mut text,
                    format_args!(
                        "{name:width$}  {:6}  {precision}  {recall}  {f1}  {:>10}",
                        class.support,
                        signed(class.f1)
                    ),
                );
            }
        }
        for (heading, images) in self.facts(printable).into_iter().chain(self.images(printable)) {
            line(&mut text, format_args!("\n{heading}:"));
            for image in cut(images, NAMED_IN_TEXT) {
                line(&mut text, format_args!("  {image}"));
            }
        }
        text
    }

    /// GitHub's Markdown: tables, and long lists folded away.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "{} → {}\n\n| | baseline | candidate | difference |\n|---|--:|--:|--:|\n",
            code(&self.reports.baseline),
            code(&self.reports.candidate)
        );
        for (name, figure) in self.figures() {
            line(
                &mut text,
                format_args!(
                    "| {name} | {:.4} | {:.4} | {} |",
                    figure.baseline,
                    figure.candidate,
                    signed(figure)
                ),
            );
        }
        line(&mut text, format_args!("\n{}", self.verdict()));
        for note in self.notes(code) {
            line(&mut text, format_args!("\n{note}"));
        }
        let classes = self.changed_classes();
        if !classes.is_empty() {
            let mut table =
                String::from("| class | images | precision | recall | F1 | difference |\n|---|--:|--:|--:|--:|--:|\n");
            for class in &classes {
                let [precision, recall, f1] = [class.precision, class.recall, class.f1].map(arrow);
                line(
                    &mut table,
                    format_args!(
                        "| {} | {} | {precision} | {recall} | {f1} | {} |",
                        // A bar ends the cell even in code.
                        code(&class.class).replace('|', "\\|"),
                        class.support,
                        signed(class.f1)
                    ),
                );
            }
            folded(&mut text, "Classes that changed", &table);
        }
        for (heading, images) in self.facts(code).into_iter().chain(self.images(code)) {
            let items: String = (cut(images, NAMED_IN_MARKDOWN).iter())
                .map(|image| format!("- {image}\n"))
                .collect();
            folded(&mut text, &heading, &items);
        }
        text
    }

    /// The figures with their names: more is better for the first two, less for the others.
    fn figures(&self) -> [(&'static str, Change); 4] {
        let &Comparison {
            accuracy,
            macro_f1,
            log_loss,
            calibration_error,
            ..
        } = &self.comparison;
        [
            ("accuracy", accuracy),
            ("macro F1", macro_f1),
            ("log loss", log_loss),
            ("calibration error", calibration_error),
        ]
    }

    /// The classes with a metric that differs, those whose F1 fell most first.
    fn changed_classes(&self) -> Vec<&ClassChange> {
        let classes = self.comparison.per_class.iter();
        let mut changed: Vec<&ClassChange> = classes.filter(|class| class.is_changed()).collect();
        changed.sort_by(|a, b| a.f1.difference.total_cmp(&b.f1.difference));
        changed
    }

    /// What McNemar's test says, as a sentence.
    fn verdict(&self) -> String {
        let Comparison {
            n,
            confidence,
            verdict,
            mcnemar,
            ..
        } = &self.comparison;
        let (baseline, candidate) = (mcnemar.only_baseline_right, mcnemar.only_candidate_right);
        let images = counted(n, "image");
        if baseline + candidate == 0 {
            return format!("Of {images} both have the same ones right.");
        }
        let judged = match verdict {
            Verdict::Better => "the candidate is better",
            Verdict::Worse => "the candidate is worse",
            Verdict::Chance => "no more than chance would give",
        };
        format!(
            "Of {images} the baseline alone has {baseline} right, the candidate alone {candidate}: {judged}, p = {} \
             (McNemar's test, exact and two-sided, at confidence {confidence}).",
            p_value(mcnemar.p_value)
        )
    }

    /// What a reader must know of how the figures came about. `quote` makes a name fit to be shown.
    fn notes(&self, quote: fn(&str) -> String) -> Vec<String> {
        let Comparison {
            n,
            baseline,
            candidate,
            relabelled,
            ..
        } = &self.comparison;
        let sides = [("baseline", baseline), ("candidate", candidate)];
        let mut notes = Vec::new();
        if sides.iter().any(|(_, side)| side.n != *n) {
            let own = sides.map(|(name, side)| format!("{:.4} on all {} of the {name}", side.accuracy, side.n));
            notes.push(format!(
                "All figures are over the {} in common; accuracy is {}.",
                counted(n, "image"),
                own.join(", ")
            ));
        }
        for (name, side) in sides {
            let Side {
                n_copies,
                classes_only_here,
                ..
            } = side;
            if !classes_only_here.is_empty() {
                let classes: Vec<String> = classes_only_here.iter().map(|class| quote(class)).collect();
                notes.push(format!(
                    "Only the {name} knows {}: other classes alone are compared.",
                    classes.join(", ")
                ));
            }
            if *n_copies > 0 {
                let copies = if *n_copies == 1 { "copy" } else { "copies" };
                notes.push(format!(
                    "The {name} has {n_copies} {copies} of other images, which do not count again."
                ));
            }
        }
        if !relabelled.is_empty() {
            notes.push(format!(
                "{} labelled otherwise in the candidate: only labels in common count.",
                counted(relabelled.len(), "image")
            ));
        }
        notes
    }

    /// How the runs were made, where it differs: a heading, and a line for each fact.
    fn facts(&self, quote: fn(&str) -> String) -> Option<(String, Vec<String>)> {
        let value = |value: &Option<String>| value.as_deref().map_or_else(|| "nothing".to_owned(), quote);
        let facts: Vec<String> = (self.comparison.facts.iter())
            .map(|fact| format!("{}: {} → {}", fact.name, value(&fact.baseline), value(&fact.candidate)))
            .collect();
        (!facts.is_empty()).then(|| ("how the runs differ".to_owned(), facts))
    }

    /// The images that differ or are left out: a heading and a line for each, where there are any.
    fn images(&self, quote: fn(&str) -> String) -> Vec<(String, Vec<String>)> {
        let Comparison {
            newly_wrong,
            newly_right,
            relabelled,
            baseline,
            candidate,
            ..
        } = &self.comparison;
        let quote_all = |names: &[String]| names.iter().map(|name| quote(name)).collect::<Vec<_>>();
        let wrong = newly_wrong.iter().map(|flip| {
            let answer = &flip.candidate;
            let (file, truth, class) = (quote(&flip.file), quote(&flip.true_class), quote(&answer.class));
            format!(
                "{file}: {truth}, now taken for {class} ({:.1} %)",
                100.0 * answer.probability
            )
        });
        let right = newly_right.iter().map(|flip| {
            let answer = &flip.baseline;
            let (file, truth, class) = (quote(&flip.file), quote(&flip.true_class), quote(&answer.class));
            format!(
                "{file}: {truth}, was taken for {class} ({:.1} %)",
                100.0 * answer.probability
            )
        });
        let relabelled = relabelled.iter().map(|image| {
            let [old, new] = [&image.baseline, &image.candidate].map(|classes| quote_all(classes).join(" and "));
            format!("{}: was {old}, is {new}", quote(&image.file))
        });
        let kinds: [(&str, Vec<String>); 5] = [
            ("right in the baseline, wrong in the candidate", wrong.collect()),
            ("wrong in the baseline, right in the candidate", right.collect()),
            ("labelled otherwise", relabelled.collect()),
            ("only in the baseline", quote_all(&baseline.only_here)),
            ("only in the candidate", quote_all(&candidate.only_here)),
        ];
        (kinds.into_iter())
            .filter(|(_, images)| !images.is_empty())
            .map(|(kind, images)| (format!("{} {kind}", counted(images.len(), "image")), images))
            .collect()
    }
}

/// A p-value in as many digits as it deserves.
pub(super) fn p_value(p: f64) -> String {
    if p < 1e-4 {
        format!("{p:.1e}")
    } else {
        format!("{p:.4}")
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes all that is written");
}

fn folded(text: &mut String, heading: &str, content: &str) {
    // Without the empty line GitHub takes what follows for HTML.
    line(
        text,
        format_args!("\n<details><summary>{heading}</summary>\n\n{content}\n</details>"),
    );
}

fn arrow(change: Change) -> String {
    format!("{:.4} → {:.4}", change.baseline, change.candidate)
}

/// The difference with its sign, which zero has not.
fn signed(change: Change) -> String {
    match format!("{:+.4}", change.difference).as_str() {
        "+0.0000" | "-0.0000" => "0.0000".to_owned(),
        signed => signed.to_owned(),
    }
}

/// The first `most` lines, and how many more there are.
fn cut(mut lines: Vec<String>, most: usize) -> Vec<String> {
    let n_more = lines.len().saturating_sub(most);
    lines.truncate(most);
    lines.extend((n_more > 0).then(|| format!("and {n_more} more, which --format json names")));
    lines
}

/// A name as a code span of Markdown, in which nothing has a meaning but as many backticks as it begins with.
fn code(name: &str) -> String {
    let name = printable(name);
    let longest = name.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    // Backticks at an end would lengthen the fence. Of spaces at both ends one is taken off.
    let needs_space = |c: char| c == '`' || c == ' ';
    let space = if name.is_empty() || name.starts_with(needs_space) || name.ends_with(needs_space) {
        " "
    } else {
        ""
    };
    format!("{fence}{space}{name}{space}{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_text() {
        for (name, expected) in [
            ("drum/1.jpg", "`drum/1.jpg`"),
            (" 1.jpg", "`  1.jpg `"),
            ("`", "`` ` ``"),
            ("a``b`", "``` a``b` ```"),
            ("</details>\n# x", "`</details>\\n# x`"),
            ("\u{1b}[31m\u{202e}gpj", "`\\u{1b}[31m\\u{202e}gpj`"),
        ] {
            assert_eq!(code(name), expected);
        }
    }

    #[test]
    fn small_p_values_keep_their_digits() {
        let found = [1.0, 0.03125, 0.00012, 1.9e-6].map(p_value);
        assert_eq!(found, ["1.0000", "0.0312", "0.0001", "1.9e-6"]);
    }

    #[test]
    fn no_difference_has_no_sign() {
        let change = |difference| Change {
            baseline: 0.5,
            candidate: 0.5 + difference,
            difference,
        };
        let found = [0.0, -0.0, -1e-9, 0.25, -0.25].map(|difference| signed(change(difference)));
        assert_eq!(found, ["0.0000", "0.0000", "0.0000", "+0.2500", "-0.2500"]);
    }
}
