//! Real photographs from folders to predictions, against scikit-learn on torchvision's features. Needs
//! `LUTHIER_TEST_WEIGHTS`, `LUTHIER_TEST_DATA` and `LUTHIER_TEST_REFERENCE`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use luthier_artifact::{Digest, ExtractorInfo, FeatureTable, Split};
use luthier_classify::{ChooseC, ClassWeight, ClassifyConfig, Rule, Solver, Training};
use luthier_eval::{EvaluateConfig, Evaluation, Predictions};
use luthier_features::{ComponentCount, FeaturesConfig};
use luthier_testing::Need;
use ndarray::{Array2, Axis, concatenate};
use serde_json::Value;

use crate::{Project, browser, export};

/// Copies the photographs to the project's folders, split as the reference was; the result are the weights to use, or
/// `None`, with a line about it, where something is missing.
fn copy_photographs(project: &Project) -> Option<String> {
    let (Some(weights), Some(data), Some(reference)) =
        (Need::Weights.path(), Need::Photographs.path(), Need::Reference.path())
    else {
        return None;
    };
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
    Some(weights.display().to_string())
}

#[test]
fn music10_is_classified_as_well_as_by_the_python_pipeline() {
    let project = Project::empty().at_full_size();
    let (Some(weights), Some(reference)) = (copy_photographs(&project), Need::Reference.path()) else {
        return;
    };
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
    planted_faults_are_found(&project, &weights);
}

/// How many labels are swapped, and how many of them must be among how many of the most suspicious images.
const N_SWAPPED: usize = 30;
const N_FOUND: usize = 20;
const N_LISTED: usize = 60;

/// Labels are swapped and images copied; the features of all but the copies that are encoded again are cached.
fn planted_faults_are_found(project: &Project, weights: &str) {
    let settings = ["--weights", weights, "--batch", "8", "--variance", "0.98"];
    project.pipeline(&settings);
    let as_it_is = records(project, "duplicates.csv");
    let groups: HashSet<&String> = as_it_is.iter().map(|record| &record[0]).collect();
    println!("music10: {} groups of images that look the same", groups.len());
    assert!(groups.len() <= 10, "{as_it_is:?}");
    let page = project.path("reports/report.html");
    let size = fs::metadata(&page).unwrap().len();
    assert!(size < 8_000_000, "{size} bytes");
    browser::check(&page);

    let train = project.path("data/train");
    let classes = sorted_names(&train);
    let files = |class: &String| sorted_names(&train.join(class)).into_iter();
    // Every 48th photograph goes to the class of another.
    let all: Vec<(String, String)> = classes
        .iter()
        .flat_map(|class| files(class).map(|file| (class.clone(), file)))
        .collect();
    let mut swapped = HashSet::new();
    for (n, (class, file)) in all.iter().step_by(all.len() / N_SWAPPED).take(N_SWAPPED).enumerate() {
        let place = classes.iter().position(|other| other == class).unwrap();
        let other = &classes[(place + 1 + n % (classes.len() - 1)) % classes.len()];
        let to = format!("{other}/swapped-{n}-{file}");
        fs::rename(train.join(class).join(file), train.join(&to)).unwrap();
        swapped.insert(to);
    }
    // Ten others get a copy in the test set, every second one at another size.
    let mut copied = Vec::new();
    for (n, (class, file)) in all.iter().skip(7).step_by(all.len() / 10).take(10).enumerate() {
        let (from, name) = (train.join(class).join(file), format!("{class}/copy-{n}.jpg"));
        let to = project.path("data/test").join(&name);
        if n % 2 == 0 {
            fs::copy(&from, &to).unwrap();
        } else {
            let photo = image::load_from_memory(&fs::read(&from).unwrap()).unwrap();
            let scale = [0.6, 0.75, 1.4][n % 3];
            let side = |length: u32| (f64::from(length) * scale).round() as u32;
            let filter = image::imageops::FilterType::CatmullRom;
            let small = photo.resize_exact(side(photo.width()), side(photo.height()), filter);
            small.to_rgb8().save(&to).unwrap();
        }
        copied.push((format!("{class}/{file}"), name));
    }

    project.pipeline(&settings);
    let suspects = records(project, "mislabelled.csv");
    let is_swapped = |record: &&Vec<String>| record[0] == "train" && swapped.contains(&record[1]);
    let n_found = suspects.iter().take(N_LISTED).filter(is_swapped).count();
    println!("music10: {n_found} of {N_SWAPPED} swapped labels among the first {N_LISTED} suspects");
    assert!(n_found >= N_FOUND, "{suspects:?}");

    let duplicates = records(project, "duplicates.csv");
    let group_of = |split: &str, file: &str| {
        let record = duplicates.iter().find(|record| record[4] == split && record[6] == file);
        record.map(|record| &record[0])
    };
    for (original, copy) in &copied {
        let group = group_of("test", copy);
        assert!(
            group.is_some() && group == group_of("train", original),
            "{original} and {copy}: {duplicates:?}"
        );
    }
}

/// The rows of a table of the report.
fn records(project: &Project, name: &str) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(project.path("reports").join(name)).unwrap();
    (reader.records())
        .map(|record| record.unwrap().iter().map(str::to_owned).collect())
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "the names are sorted")]
fn sorted_names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// The features of all photographs in some views, side by side.
fn table(reference: &Path, views: &[&str]) -> FeatureTable {
    let features: Vec<Array2<f32>> = (views.iter())
        .map(|view| {
            let file = fs::File::open(reference.join(format!("music10-{view}-features.npy"))).unwrap();
            let npy = npyz::NpyFile::new(std::io::BufReader::new(file)).unwrap();
            let shape = (npy.shape()[0] as usize, npy.shape()[1] as usize);
            Array2::from_shape_vec(shape, npy.into_vec().unwrap()).unwrap()
        })
        .collect();
    let features: Vec<_> = features.iter().map(|view| view.view()).collect();
    let split = fs::read_to_string(reference.join("music10-split.tsv")).unwrap();
    let rows: Vec<Vec<&str>> = split.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    let mut classes: Vec<String> = rows.iter().map(|row| row[1].to_owned()).collect();
    classes.sort();
    classes.dedup();
    FeatureTable {
        labels: rows
            .iter()
            .map(|row| classes.iter().position(|class| class == row[1]).unwrap())
            .collect(),
        images: rows.iter().map(|row| Digest::of(row[0].as_bytes())).collect(),
        classes,
        extractor: ExtractorInfo {
            views: views.iter().map(|&view| view.to_owned()).collect(),
            pooling: "mean".into(),
            combine: "concat".to_owned(),
            decode: "exact".to_owned(),
            weights: "reference".to_owned(),
            weights_sha256: String::new(),
            precision: "fp32".to_owned(),
        },
        features: concatenate(Axis(1), &features).unwrap(),
    }
}

/// The features of all photographs that `luthier extract` makes, in the order of the reference, in fifths as there.
fn extracted(project: &Project, weights: &str, reference: &Path, settings: &[&str]) -> FeatureTable {
    let (train, test) = (["--train-dir", "data/train"], ["--test-dir", "data/test"]);
    project
        .run(&[&["extract", "--weights", weights], &train[..], &test, settings].concat())
        .ok();
    let json: Value = serde_json::from_str(&project.read("features/features.json")).unwrap();
    let mut rows = HashMap::new();
    for split in ["train", "test"] {
        let file = fs::File::open(project.path(&format!("features/{split}_features.npy"))).unwrap();
        let npy = npyz::NpyFile::new(std::io::BufReader::new(file)).unwrap();
        let width = npy.shape()[1] as usize;
        let values: Vec<f32> = npy.into_vec().unwrap();
        let files = json["rows"][split].as_array().unwrap().iter();
        let files = files.map(|row| row["file"].as_str().unwrap().to_owned());
        rows.extend(files.zip(values.chunks_exact(width).map(<[f32]>::to_vec)));
    }
    let table = table(reference, &["squash"]);
    let split = fs::read_to_string(reference.join("music10-split.tsv")).unwrap();
    let files: Vec<&str> = split
        .lines()
        .skip(1)
        .map(|line| line.split('\t').next().unwrap())
        .collect();
    let values: Vec<f32> = files.iter().flat_map(|file| rows[*file].iter().copied()).collect();
    let shape = (files.len(), values.len() / files.len());
    FeatureTable {
        features: Array2::from_shape_vec(shape, values).unwrap(),
        ..table
    }
}

fn choose(table: &FeatureTable, rows: &[usize]) -> FeatureTable {
    FeatureTable {
        labels: rows.iter().map(|&row| table.labels[row]).collect(),
        images: rows.iter().map(|&row| table.images[row]).collect(),
        features: table.features.select(Axis(0), rows),
        ..table.clone()
    }
}

/// Models of the default configuration that were trained on four fifths, judged on the last, for each fifth.
fn judge_fifths(table: &FeatureTable) -> Evaluation {
    const FOLDS: usize = 5;
    let features = FeaturesConfig {
        n_components: ComponentCount::Variance(0.98),
        whiten: false,
        solver: Solver::Faer,
    };
    let classify = ClassifyConfig {
        c: ChooseC::Auto(Rule::SmallestLoss),
        class_weight: ClassWeight::Uniform,
        folds: FOLDS,
        seed: 0,
        solver: Solver::Faer,
    };
    // The digests stand for random numbers.
    let mut order: Vec<usize> = (0..table.n_rows()).collect();
    order.sort_unstable_by_key(|&row| (table.labels[row], table.images[row]));
    let shape = (table.n_rows(), table.classes.len());
    let (mut probabilities, mut uncalibrated) = (Array2::zeros(shape), Array2::zeros(shape));
    for fold in 0..FOLDS {
        let (test, train): (Vec<usize>, Vec<usize>) = (0..order.len()).partition(|place| place % FOLDS == fold);
        let rows = |places: Vec<usize>| places.into_iter().map(|place| order[place]).collect::<Vec<_>>();
        let (test, train) = (rows(test), choose(table, &rows(train)));
        let projection = features.run(train.features(), &()).unwrap();
        let model = classify.run(&Training::from(&train), &projection, &()).unwrap().model;
        println!("C = {}, temperature {:.3}", model.training.c, model.temperature);
        let scores = model.scores(choose(table, &test).features()).unwrap();
        let [after, before] = model.probabilities(scores);
        for (place, &row) in test.iter().enumerate() {
            probabilities.row_mut(row).assign(&after.row(place));
            uncalibrated.row_mut(row).assign(&before.row(place));
        }
    }
    let evaluate = EvaluateConfig {
        confidence: 0.95,
        seed: 0,
    };
    let predictions = Predictions {
        classes: &table.classes,
        images: &table.images,
        truth: &table.labels,
        probabilities: probabilities.view(),
        uncalibrated: uncalibrated.view(),
    };
    evaluate.run(Split::Test, &predictions, None, &()).unwrap()
}

#[test]
#[ignore = "takes a minute or two"]
fn the_chosen_c_is_as_good_as_the_best_one_and_its_probabilities_can_be_believed() {
    let Some(reference) = Need::Reference.path() else {
        return;
    };
    for (views, expected) in [(&["squash"][..], 0.928), (&["squash", "crop"], 0.938)] {
        let found = judge_fifths(&table(&reference, views));
        let (accuracy, error) = (found.accuracy.value, found.reliability.calibration_error);
        println!(
            "{views:?}: accuracy {accuracy:.4}, calibration error {error:.4}, {:.4} before calibration",
            found.uncalibrated.unwrap().calibration_error
        );
        assert!(accuracy >= expected, "{views:?}: {accuracy}");
        assert!(error <= 0.03, "{views:?}: {error}");
    }
}

#[test]
#[ignore = "takes ten minutes or so"]
fn padding_and_generalised_means_are_worth_a_point_and_the_choice_finds_them() {
    let project = Project::empty().at_full_size();
    let (Some(weights), Some(reference)) = (copy_photographs(&project), Need::Reference.path()) else {
        return;
    };
    let accuracy = |settings: &[&str]| {
        let found = judge_fifths(&extracted(&project, &weights, &reference, settings));
        println!("{settings:?}: accuracy {:.4}", found.accuracy.value);
        found.accuracy.value
    };
    let outcome = project.pipeline(&["--weights", &weights, "--views", "auto"]);
    let views = &outcome["views"];
    println!("{views:#}");
    let best = &views["candidates"][views["best"].as_u64().unwrap() as usize];
    let name = |view: &Value| {
        let name = |part: &str| view[part].as_str().unwrap().to_owned();
        (name("view"), name("pooling"))
    };
    let single: Vec<((String, String), f64)> = (views["candidates"].as_array().unwrap().iter())
        .map(|candidate| {
            let (view, pooling) = name(candidate);
            let accuracy = accuracy(&["--views", &view, "--pooling", &pooling]);
            ((view, pooling), accuracy)
        })
        .collect();
    let of = |wanted: &(String, String)| single.iter().find(|(name, _)| name == wanted).unwrap().1;
    assert!(of(&("pad".to_owned(), "gem".to_owned())) >= 0.940);
    let most = single.iter().map(|(_, accuracy)| *accuracy).fold(0.0, f64::max);
    assert!(of(&name(best)) >= most - 0.002, "{best} of {single:?}");
    let with_second = ["--views", "pad,squash@288", "--pooling", "gem", "--combine", "concat"];
    assert!(accuracy(&with_second) >= 0.945);
}

#[test]
#[ignore = "takes a minute or two"]
fn exported_files_answer_as_predict_does_on_300_photographs() {
    let project = Project::empty().at_full_size();
    let (Some(weights), Some(python)) = (copy_photographs(&project), Need::Python.path()) else {
        return;
    };
    let weights = ["--weights", &weights];
    let pipeline = ["pipeline", "data/test", "--decode", "exact"];
    project.run(&[&pipeline[..], &weights].concat()).ok();
    let folder = project.path("data/test");
    let images: Vec<String> = (sorted_names(&folder).iter())
        .flat_map(|class| {
            let names = sorted_names(&folder.join(class)).into_iter();
            names.map(move |name| format!("data/test/{class}/{name}"))
        })
        .take(300)
        .collect();
    assert_eq!(images.len(), 300);
    let expected = export::predicted(&project, &weights, &images);
    let has_torchvision = Command::new(&python).args(["-c", "import torchvision"]).output();
    let has_torchvision = has_torchvision.unwrap().status.success();
    for format in ["onnx", "onnx-pixels", "torchvision"] {
        let file = format!("{format}.file");
        let ran = project.run(&[&["export", "--format", format, "--output", &file], &weights[..]].concat());
        println!("{}", ran.ok().stdout);
        if format == "torchvision" && !has_torchvision {
            println!("torchvision is not at hand: only read back by Luthier itself");
            continue;
        }
        let found = export::answers(&export::python(&project, &python, format, &file, &images).ok().stdout);
        let differences = export::differences(&found, &expected);
        let n_same = differences.iter().filter(|(_, is_same)| *is_same).count();
        let mut sizes: Vec<f64> = differences.iter().map(|(difference, _)| *difference).collect();
        sizes.sort_by(f64::total_cmp);
        let (median, largest) = (sizes[150], sizes[299]);
        println!("{format}: {n_same} of 300 the same, difference {median:.1e} (median), {largest:.1e} (largest)");
        if format == "onnx" {
            assert!(n_same >= 299 && median <= 1e-3);
        } else {
            assert!(largest <= 1e-4);
        }
    }
}

/// Whole numbers below a bound, from a seed (a linear congruential generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        let Numbers(state) = self;
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize % bound
    }
}

/// Of 90 labels of 1,806 photographs that are swapped at random, how many are right again when somebody has answered the
/// first suspects, ten at a time, with the model trained again each time.
#[test]
#[ignore = "takes some minutes"]
fn answering_suspects_removes_swapped_labels() {
    let (Some(weights), Some(data)) = (Need::Weights.path(), Need::Photographs.path()) else {
        return;
    };
    let photographs = data.join("music10").display().to_string();
    let classes = sorted_names(&data.join("music10"));
    let project = Project::empty().at_full_size();
    let files: Vec<(String, &String)> = (classes.iter())
        .filter(|class| data.join("music10").join(class).is_dir())
        .flat_map(|class| {
            let files = sorted_names(&data.join("music10").join(class)).into_iter();
            files.map(move |file| (format!("{class}/{file}"), class))
        })
        .collect();
    let truths: HashMap<&str, &str> = files
        .iter()
        .map(|(file, class)| (file.as_str(), class.as_str()))
        .collect();
    for seed in 1..=3 {
        let mut numbers = Numbers(seed);
        let mut swapped: HashMap<&str, &str> = HashMap::new();
        while swapped.len() < files.len() / 20 {
            let (file, class) = &files[numbers.below(files.len())];
            let other = &classes[numbers.below(classes.len())];
            if other != *class {
                swapped.entry(file).or_insert(other);
            }
        }
        let mut table = "file,label\n".to_owned();
        for (file, class) in &files {
            table += &format!("{file},{}\n", swapped.get(file.as_str()).copied().unwrap_or(class));
        }
        project.write("labels.csv", table.as_bytes());
        project.write("decisions.jsonl", b"");
        let (mut asked, mut n_mended) = (HashSet::new(), 0);
        while asked.len() < 100 {
            let run = [
                "pipeline",
                "--labels",
                "labels.csv",
                "--data-dir",
                &photographs,
                "--test-fraction",
                "0",
            ];
            project
                .run(&[&run[..], &["--weights", &weights.display().to_string(), "--batch", "8"]].concat())
                .ok();
            let rows: Value = serde_json::from_str(&project.read("features/features.json")).unwrap();
            let rows = rows["rows"]["train"].as_array().unwrap().iter();
            let digests: HashMap<&str, &str> = rows
                .map(|row| (row["file"].as_str().unwrap(), row["digest"].as_str().unwrap()))
                .collect();
            let mut decisions = project.read("decisions.jsonl");
            let suspects = records(&project, "mislabelled.csv");
            assert!(!suspects.is_empty(), "after {} answers", asked.len());
            for suspect in suspects.into_iter().take(10) {
                let (file, label) = (suspect[1].clone(), &suspect[2]);
                let truth = truths[file.as_str()];
                let verdict = if label == truth { "right" } else { "change" };
                n_mended += usize::from(label != truth);
                let image = digests[file.as_str()];
                let line = serde_json::json!({
                    "image": image, "file": file, "verdict": verdict, "class": truth, "time": "2026-11-27T09:30:00Z",
                });
                decisions += &format!("{line}\n");
                assert!(asked.insert(file.clone()), "{file} is suspected again");
            }
            project.write("decisions.jsonl", decisions.as_bytes());
        }
        println!(
            "seed {seed}: {n_mended} of {} after {} answers",
            swapped.len(),
            asked.len()
        );
        assert!(
            n_mended >= 73,
            "{n_mended} of {}: one ranking, without training again, finds 73",
            swapped.len()
        );
    }
}
