//! That what one build made serves the others, asked of `cargo tree`.
//!
//! Cargo builds a package again for another set of features, and with it all that stand on it. What a
//! test depends on may ask a package of Luthier's for more features, and then a build of Luthier does
//! not serve its tests.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::workspace::Workspace;

/// The builds that the tests' build must serve, by their arguments to `cargo build`.
const BUILDS: [&[&str]; 3] = [&[], &["--workspace"], &["--package", "xtask"]];

/// Each package that is built with features with which no test is; `None` if there is none.
pub(super) fn violations(workspace: &Workspace) -> Result<Option<String>> {
    let tree = |selected: &[&str], edges| {
        let format = ["--no-dedupe", "--format", "{p}\t{f}", "--edges", edges];
        super::tree(workspace, &[selected, &format].concat())
    };
    let tested = tree(&["--workspace"], "normal,build,dev")?;
    let mut found = BTreeSet::new();
    for build in BUILDS {
        found.extend(differences(&tree(build, "normal,build")?, &tested));
    }
    Ok((!found.is_empty()).then(|| Vec::from_iter(found).join("\n")))
}

/// The packages of the tree `built` whose features are not among those that they have in `tested`.
fn differences(built: &str, tested: &str) -> Vec<String> {
    let (built, tested) = (features(built), features(tested));
    let missing = |(package, of_builds): (&str, BTreeSet<&str>)| {
        let of_tests = tested.get(package).cloned().unwrap_or_default();
        let show = |sets: &BTreeSet<&str>| sets.iter().map(|set| format!("[{set}]")).collect::<String>();
        (!of_builds.is_subset(&of_tests)).then(|| {
            format!(
                "{package} is built with {} and tested with {}",
                show(&of_builds),
                show(&of_tests)
            )
        })
    };
    built.into_iter().filter_map(missing).collect()
}

/// The sets of features of each package: build scripts may have another than the program.
fn features(tree: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut features = BTreeMap::<_, BTreeSet<_>>::new();
    for (package, of_one) in tree.lines().filter_map(|line| line.split_once('\t')) {
        features.entry(package).or_default().insert(of_one);
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTED: &str = "luthier v0.1.0\t\nrand v0.10.4\tstd,sys_rng\nserde v1.0.0\tderive\nserde v1.0.0\t\n";

    #[test]
    fn fewer_packages_with_the_same_features_are_one_build() {
        assert_eq!(differences(TESTED, TESTED), [""; 0]);
        assert_eq!(differences("serde v1.0.0\t\nluthier v0.1.0\t\n", TESTED), [""; 0]);
    }

    #[test]
    fn a_package_with_fewer_features_is_named() {
        assert_eq!(
            differences("luthier v0.1.0\t\nrand v0.10.4\t\n", TESTED),
            ["rand v0.10.4 is built with [] and tested with [std,sys_rng]"]
        );
    }

    #[test]
    fn another_version_is_another_build() {
        assert_eq!(
            differences("rand v0.9.0\tstd,sys_rng\n", TESTED),
            ["rand v0.9.0 is built with [std,sys_rng] and tested with "]
        );
    }
}
