//! Which package may reach which, asked of `cargo tree`: the "must not know" column of the architecture.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::workspace::Workspace;

/// What one package must reach and must not reach, over normal, build and development dependencies.
struct Rule {
    package: &'static str,
    reaches: &'static [&'static str],
    /// What it must not know, subject by subject.
    avoids: &'static [&'static [&'static str]],
}

const TENSORS: &[&str] = &["tch", "torch-sys"];
const IMAGES: &[&str] = &["image", "mozjpeg"];
const STATISTICS: &[&str] = &["faer", "smartcore"];
const PLOTS: &[&str] = &["resvg"];
const STORE: &[&str] = &["object_store", "luthier-cache"];
const NETWORK: &[&str] = &["ureq"];
const TERMINAL: &[&str] = &["clap", "indicatif", "toml"];
const PROGRAM: &[&str] = &["luthier", "luthier-cli", "luthier-python", "luthier-benches", "xtask"];
const EXTRACT: &[&str] = &["luthier-extract"];
const FEATURES: &[&str] = &["luthier-features"];
const CLASSIFY: &[&str] = &["luthier-classify"];
const EVAL: &[&str] = &["luthier-eval"];
/// All crates that compute a stage.
const STAGES: &[&str] = &[
    "luthier-extract",
    "luthier-features",
    "luthier-classify",
    "luthier-eval",
];
const TESTS: &[&str] = &["luthier-testing"];

/// `reaches` is not only documentation: it proves that the check sees the edges it looks for.
const RULES: [Rule; 13] = [
    Rule {
        package: "luthier-artifact",
        reaches: &["blake3"],
        avoids: &[
            TENSORS, IMAGES, STATISTICS, PLOTS, STORE, NETWORK, TERMINAL, STAGES, PROGRAM,
        ],
    },
    Rule {
        package: "luthier-cache",
        reaches: &["object_store", "luthier-artifact"],
        avoids: &[TENSORS, IMAGES, STATISTICS, PLOTS, NETWORK, TERMINAL, STAGES, PROGRAM],
    },
    Rule {
        package: "luthier-extract",
        reaches: &["tch", "torch-sys", "image", "ureq", "luthier-artifact", "luthier-cache"],
        avoids: &[STATISTICS, PLOTS, TERMINAL, FEATURES, CLASSIFY, EVAL, PROGRAM],
    },
    Rule {
        package: "luthier-features",
        reaches: &["faer", "smartcore", "luthier-artifact"],
        avoids: &[
            TENSORS, IMAGES, PLOTS, STORE, NETWORK, TERMINAL, EXTRACT, CLASSIFY, EVAL, PROGRAM,
        ],
    },
    Rule {
        package: "luthier-classify",
        reaches: &["faer", "luthier-artifact", "luthier-features"],
        avoids: &[TENSORS, IMAGES, PLOTS, STORE, NETWORK, TERMINAL, EXTRACT, EVAL, PROGRAM],
    },
    Rule {
        package: "luthier-eval",
        reaches: &["resvg", "luthier-artifact"],
        avoids: &[
            TENSORS, IMAGES, STATISTICS, STORE, NETWORK, TERMINAL, EXTRACT, FEATURES, CLASSIFY, PROGRAM,
        ],
    },
    Rule {
        package: "luthier",
        reaches: &[
            "luthier-artifact",
            "luthier-cache",
            "luthier-extract",
            "luthier-features",
            "luthier-classify",
            "luthier-eval",
        ],
        avoids: &[TERMINAL, &["luthier-cli", "luthier-benches", "xtask"]],
    },
    Rule {
        package: "luthier-serve",
        reaches: &["axum", "tokio", "luthier"],
        avoids: &[TERMINAL, &["luthier-cli", "luthier-benches", "luthier-export", "xtask"]],
    },
    Rule {
        package: "luthier-export",
        reaches: &["prost", "tch", "luthier", "luthier-extract", "luthier-classify"],
        avoids: &[TERMINAL, &["luthier-cli", "luthier-benches", "xtask"]],
    },
    Rule {
        package: "luthier-cli",
        reaches: &["clap", "indicatif", "toml", "luthier"],
        avoids: &[&["luthier-benches", "xtask"]],
    },
    Rule {
        package: "luthier-python",
        reaches: &["pyo3", "luthier", "luthier-cli"],
        avoids: &[&["luthier-benches", "xtask"]],
    },
    // Every crate's tests may ask it what the machine has.
    Rule {
        package: "luthier-testing",
        reaches: &[],
        avoids: &[
            TENSORS,
            IMAGES,
            STATISTICS,
            PLOTS,
            STORE,
            NETWORK,
            TERMINAL,
            STAGES,
            PROGRAM,
            &["luthier-artifact"],
        ],
    },
    // It builds in seconds, and before libtorch is there.
    Rule {
        package: "xtask",
        reaches: &["anyhow", "clap"],
        avoids: &[
            TENSORS,
            IMAGES,
            STATISTICS,
            PLOTS,
            STORE,
            NETWORK,
            STAGES,
            &["luthier", "luthier-cli", "luthier-artifact", "luthier-benches"],
        ],
    },
];

/// No program contains what is there for tests.
const SHIPPED: Rule = Rule {
    package: "luthier-cli",
    reaches: &["luthier"],
    avoids: &[TESTS, &["criterion", "proptest"]],
};

/// Every edge that is missing or one too many, one a line; `None` if there is none.
pub(super) fn violations(workspace: &Workspace) -> Result<Option<String>> {
    let mut found = Vec::new();
    for rule in &RULES {
        found.extend(rule.violations(&rule.tree(workspace, "normal,build,dev")?));
    }
    found.extend(SHIPPED.violations(&SHIPPED.tree(workspace, "normal,build")?));
    Ok((!found.is_empty()).then(|| found.join("\n")))
}

impl Rule {
    /// The packages that this one reaches over such `edges`, one a line.
    fn tree(&self, workspace: &Workspace, edges: &str) -> Result<String> {
        super::tree(workspace, &["--package", self.package, "--edges", edges])
    }

    /// What is wrong with `tree`, the output of `cargo tree --prefix none` for this package.
    fn violations(&self, tree: &str) -> Vec<String> {
        let reached: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let package = self.package;
        let missing = self
            .reaches
            .iter()
            .filter(|name| !reached.contains(*name))
            .map(|name| format!("{package} must reach {name} and does not"));
        let avoids = self.avoids.iter().copied().flatten();
        let surplus = avoids.filter(|name| reached.contains(*name)).map(|name| {
            format!("{package} reaches {name} and must not: `cargo tree -p {package} -i {name}` shows how")
        });
        missing.chain(surplus).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const RULE: Rule = Rule {
        package: "luthier-eval",
        reaches: &["luthier-artifact"],
        avoids: &[TENSORS, &["faer"]],
    };
    const TREE: &str = "luthier-eval v0.1.0 (/src/crates/eval)\nluthier-artifact v0.1.0 (/src/crates/artifact)\n\
                        blake3 v1.8.0\nndarray v0.17.0 (*)\n\n[dev-dependencies]\nproptest v1.9.0\n";

    /// A tree of all that a rule asks for, and of nothing else.
    fn obedient_tree(rule: &Rule) -> String {
        let packages = [&rule.package].into_iter().chain(rule.reaches);
        packages.map(|name| format!("{name} v0.1.0\n")).collect()
    }

    fn all_rules() -> impl Iterator<Item = &'static Rule> {
        RULES.iter().chain([&SHIPPED])
    }

    #[test]
    fn allowed_edges_pass() {
        assert_eq!(RULE.violations(TREE), [""; 0]);
        for rule in all_rules() {
            assert_eq!(rule.violations(&obedient_tree(rule)), [""; 0], "{}", rule.package);
        }
    }

    #[test]
    fn a_forbidden_edge_fails() {
        let tree = format!("{TREE}tch v0.24.0 (*)\n");
        let expected = "luthier-eval reaches tch and must not: `cargo tree -p luthier-eval -i tch` shows how";
        assert_eq!(RULE.violations(&tree), [expected]);
    }

    #[test]
    fn every_rule_fails_on_every_edge_that_it_forbids() {
        for rule in all_rules() {
            assert!(!rule.avoids.is_empty(), "{}", rule.package);
            for name in rule.avoids.iter().copied().flatten() {
                let tree = obedient_tree(rule) + name + " v1.0.0 (*)\n";
                let found = rule.violations(&tree);
                let start = format!("{} reaches {name} and must not", rule.package);
                assert!(found.len() == 1 && found[0].starts_with(&start), "{start}: {found:?}");
            }
        }
    }

    #[test]
    fn every_rule_fails_without_an_edge_that_it_asks_for() {
        for rule in all_rules() {
            for name in rule.reaches {
                let tree = obedient_tree(rule).replace(&format!("{name} v0.1.0\n"), "");
                let expected = format!("{} must reach {name} and does not", rule.package);
                assert_eq!(rule.violations(&tree), [expected]);
            }
        }
    }

    #[test]
    fn a_name_that_only_begins_like_a_forbidden_one_passes() {
        assert_eq!(
            RULE.violations(&format!("{TREE}tch-like v1.0.0\nfaer-traits v0.24.0\n")),
            [""; 0]
        );
    }

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    /// A misspelt or renamed package could never be reached, and its rule would pass for ever.
    #[test]
    fn every_package_named_in_a_rule_exists() {
        let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
        for rule in all_rules() {
            let avoids = rule.avoids.iter().copied().flatten();
            for name in rule.reaches.iter().chain(avoids).chain([&rule.package]) {
                assert!(
                    lock.contains(&format!("name = \"{name}\"\n")),
                    "{name} is not in Cargo.lock"
                );
            }
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the order does not matter")]
    fn every_crate_has_a_rule() {
        for folder in fs::read_dir(root().join("crates")).unwrap() {
            let manifest = folder.unwrap().path().join("Cargo.toml");
            let text = fs::read_to_string(&manifest).unwrap();
            let name = text.lines().find_map(|line| line.strip_prefix("name = "));
            let name = name.unwrap().trim_matches('"');
            assert!(RULES.iter().any(|rule| rule.package == name), "{name}");
        }
    }
}
