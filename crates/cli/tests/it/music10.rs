//! Real photographs from folders to predictions, against scikit-learn on torchvision's features. Needs
//! `LUTHIER_TEST_WEIGHTS`, `LUTHIER_TEST_DATA` and `LUTHIER_TEST_REFERENCE`; says so where it is skipped.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::Project;

fn from_environment(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).map(PathBuf::from);
    if value.is_none() {
        eprintln!("SKIPPED: {name} is not set");
    }
    value
}

#[test]
fn music10_is_classified_as_well_as_by_the_python_pipeline() {
    let (Some(weights), Some(data), Some(reference)) = (
        from_environment("LUTHIER_TEST_WEIGHTS"),
        from_environment("LUTHIER_TEST_DATA"),
        from_environment("LUTHIER_TEST_REFERENCE"),
    ) else {
        return;
    };
    let project = Project::empty();
    for line in fs::read_to_string(reference.join("music10-split.tsv"))
        .unwrap()
        .lines()
        .skip(1)
    {
        let [file, _, split] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let to = project.path(&format!("data/{split}/{file}"));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(data.join("music10").join(file), to).unwrap();
    }
    let weights = weights.display().to_string();
    let outcome = project.pipeline(&["--weights", &weights, "--batch", "8", "--variance", "0.98", "--c", "1"]);

    let expected: Value =
        serde_json::from_str(&fs::read_to_string(reference.join("music10-scikit-learn.json")).unwrap()).unwrap();
    let is_ours = |row: &&Value| row["resize"] == "squash" && row["n_components"] == 0.98 && row["C"] == 1.0;
    let expected = expected["results"].as_array().unwrap().iter().find(is_ours).unwrap();
    let n = outcome["test"]["n"].as_f64().unwrap();
    let errors = |accuracy: &Value| ((1.0 - accuracy.as_f64().unwrap()) * n).round();
    let (found, wanted) = (errors(&outcome["test"]["accuracy"]), errors(&expected["test_accuracy"]));
    println!("music10: {found} of {n} test images wrong, scikit-learn {wanted}");
    assert!((found - wanted).abs() <= 2.0, "{found} errors, scikit-learn {wanted}");
    assert_eq!(
        outcome["images"]["skipped"], 0,
        "the palette PNGs named .jpg are read too"
    );
}
