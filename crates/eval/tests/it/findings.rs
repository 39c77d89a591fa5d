//! What an inspection finds in images whose faults are known.

use luthier_artifact::{Digest, ExtractorInfo, FeatureTable, ImageRows, ReadRows, Split, vector_digest};
use luthier_eval::{
    DuplicatesConfig, EvaluateConfig, Evaluation, Findings, HeldOutImages, ImageMap, ImageRef, Likeness, NearestImages,
    NeighboursConfig, Predictions, SuspectsConfig,
};
use ndarray::{Array2, ArrayView2, array};

/// The numbers of a perceptual hash.
const HASH: usize = 192;

/// An image: what its bytes are, its label, its features and its perceptual hash.
#[derive(Clone)]
struct Image {
    bytes: String,
    label: usize,
    features: Vec<f32>,
    hash: Vec<f32>,
}

/// Numbers from 0 to 1 that look random.
fn noise(seed: &str, n: usize) -> Vec<f32> {
    let digest = |block: usize| *Digest::of(format!("{seed} {block}").as_bytes()).as_bytes();
    let bytes = (0..n.div_ceil(32)).flat_map(digest);
    bytes.take(n).map(|byte| f32::from(byte) / 255.0).collect()
}

fn image(name: &str, label: usize) -> Image {
    Image {
        bytes: name.to_owned(),
        label,
        features: noise(&format!("features of {name}"), 8),
        hash: noise(&format!("hash of {name}"), HASH)
            .iter()
            .map(|value| 255.0 * value)
            .collect(),
    }
}

impl Image {
    /// The same image encoded again: other bytes, and nearly the same look.
    fn encoded_again(&self, grey_levels: f32) -> Image {
        let noise = noise(&format!("codec {}", self.bytes), HASH);
        let hash = self
            .hash
            .iter()
            .zip(noise)
            .map(|(value, noise)| value + grey_levels * (2.0 * noise - 1.0));
        Image {
            bytes: format!("{} again", self.bytes),
            hash: hash.map(|value| value.clamp(0.0, 255.0)).collect(),
            ..self.clone()
        }
    }
}

struct Data {
    train: Vec<Image>,
    test: Vec<Image>,
}

impl Data {
    fn new(train: Vec<Image>, test: Vec<Image>) -> Self {
        Data { train, test }
    }

    fn table(images: &[Image], part: impl Fn(&Image) -> &[f32]) -> FeatureTable {
        let width = part(&images[0]).len();
        let text = |text: &str| text.to_owned();
        FeatureTable {
            classes: vec![text("drum"), text("violin")],
            extractor: ExtractorInfo {
                views: vec![text("squash")],
                pooling: "mean".into(),
                combine: text("mean"),
                decode: text("scaled"),
                weights: text("untrained"),
                weights_sha256: text("00"),
                precision: text("fp32"),
            },
            labels: images.iter().map(|image| image.label).collect(),
            images: images.iter().map(|image| Digest::of(image.bytes.as_bytes())).collect(),
            features: Array2::from_shape_fn((images.len(), width), |(row, column)| part(&images[row])[column]),
        }
    }

    /// Each distinct image with its features and its perceptual hash, by digest.
    fn distinct(&self) -> (ImageRows, Array2<f32>, Array2<f32>) {
        let all = [self.train.clone(), self.test.clone()].concat();
        let (features, hashes) = (
            Data::table(&all, |image| &image.features),
            Data::table(&all, |image| &image.hash),
        );
        let of_hashes: Vec<Digest> = hashes.features.outer_iter().map(vector_digest).collect();
        let images = ImageRows::new(&[(&features.rows(), &of_hashes)], HASH);
        let of = |table: &FeatureTable| {
            let row = |image: &Digest| table.images.iter().position(|other| other == image).unwrap();
            let rows: Vec<usize> = images.images.iter().map(row).collect();
            table.features.select(ndarray::Axis(0), &rows)
        };
        let (features, hashes) = (of(&features), of(&hashes));
        (images, features, hashes)
    }

    /// An evaluation in which the first class has this probability for each test image, and all probabilities.
    fn evaluation(&self, first: &[f64]) -> (Evaluation, Array2<f64>) {
        let probabilities = Array2::from_shape_fn((first.len(), 2), |(row, class)| (first[row] - class as f64).abs());
        let config = EvaluateConfig {
            confidence: 0.95,
            seed: 0,
        };
        let predictions = Predictions {
            classes: &["drum", "violin"].map(str::to_owned),
            images: &self
                .test
                .iter()
                .map(|image| Digest::of(image.bytes.as_bytes()))
                .collect::<Vec<_>>(),
            truth: &self.test.iter().map(|image| image.label).collect::<Vec<_>>(),
            probabilities: probabilities.view(),
            uncalibrated: probabilities.view(),
        };
        let evaluation = config.run(Split::Test, &predictions, None, &()).unwrap();
        (evaluation, probabilities)
    }

    fn inspect(
        &self,
        (evaluation, of_test): &(Evaluation, Array2<f64>),
        held_out: &[usize],
        probabilities: ArrayView2<'_, f32>,
    ) -> Findings {
        let [train, test] = [&self.train, &self.test].map(|images| Data::table(images, |image| &image.features));
        let (images, features, hashes) = self.distinct();
        let look_alikes = DuplicatesConfig::default()
            .run(&images, &features.view(), &hashes.view(), &())
            .unwrap();
        let held_out = HeldOutImages {
            labels: &train.labels,
            rows: held_out,
            probabilities,
        };
        let neighbours = NeighboursConfig::default();
        let suspects = SuspectsConfig::default().run(&held_out, evaluation, of_test.view());
        let rows: Vec<usize> = (0..evaluation.n).collect();
        let asked = neighbours.asked(evaluation, &rows, &suspects);
        Findings::new(
            suspects,
            Some(&look_alikes),
            neighbours
                .run(
                    &train.features(),
                    &test.features(),
                    &asked,
                    NearestImages::default(),
                    &(),
                )
                .unwrap(),
            ImageMap::default(),
            [&train.rows(), &test.rows()],
        )
    }

    /// What is found if every test image is predicted rightly and nothing is held out.
    fn inspect_images(&self) -> Findings {
        let right: Vec<f64> = self.test.iter().map(|image| 0.9 - 0.8 * image.label as f64).collect();
        self.inspect(&self.evaluation(&right), &[], Array2::zeros((0, 2)).view())
    }
}

fn train(row: usize) -> ImageRef {
    ImageRef {
        split: Split::Train,
        row,
    }
}

fn test(row: usize) -> ImageRef {
    ImageRef {
        split: Split::Test,
        row,
    }
}

fn images<const N: usize>(prefix: &str, label: usize) -> [Image; N] {
    std::array::from_fn(|n| image(&format!("{prefix} {n}"), label))
}

#[test]
fn copies_and_images_encoded_again_are_found_and_no_others() {
    let mut of_train = [images::<20>("drum", 0), images::<20>("violin", 1)].concat();
    let mut of_test = [images::<5>("test drum", 0), images::<5>("test violin", 1)].concat();
    // The same bytes in both splits; encoded again in the other class; three times in one class.
    of_test[2] = of_train[7].clone();
    of_train[30] = Image {
        label: 1,
        ..of_train[3].encoded_again(6.0)
    };
    of_train[21] = of_train[20].clone();
    of_train[25] = of_train[20].encoded_again(4.0);
    let findings = Data::new(of_train.clone(), of_test.clone()).inspect_images();
    let found: Vec<Vec<ImageRef>> = findings.duplicates.iter().map(|group| group.images.clone()).collect();
    assert_eq!(
        found,
        [
            vec![train(3), train(30)],
            vec![train(7), test(2)],
            vec![train(20), train(21), train(25)]
        ]
    );
    let likeness: Vec<Likeness> = findings.duplicates.iter().map(|group| group.likeness).collect();
    let same_look = Likeness::SameLook { cosine: 1.0 };
    assert_eq!(likeness, [same_look, Likeness::SameBytes, same_look]);
}

#[test]
fn what_looks_the_same_from_afar_but_not_to_the_network_is_no_copy() {
    let mut of_train = [images::<4>("drum", 0), images::<4>("violin", 1)].concat();
    of_train[1] = Image {
        features: of_train[0].features.iter().map(|value| -value).collect(),
        ..of_train[0].encoded_again(2.0)
    };
    let findings = Data::new(of_train, images::<2>("test", 0).to_vec()).inspect_images();
    assert_eq!(findings.duplicates, []);
}

#[test]
fn a_difference_of_an_eighth_of_the_contrast_is_too_much() {
    // The contrast of noise is 255 / √12, that of the codec's noise `levels` / √3.
    for (levels, expected) in [(10.0, 1), (20.0, 0)] {
        let mut of_train = [images::<4>("drum", 0), images::<4>("violin", 1)].concat();
        of_train[1] = of_train[0].encoded_again(levels);
        let findings = Data::new(of_train, images::<2>("test", 0).to_vec()).inspect_images();
        assert_eq!(findings.duplicates.len(), expected, "{levels} grey levels");
    }
}

#[test]
fn groups_are_found_whatever_the_brightness_and_contrast_and_never_shared() {
    // 200 images from dark and flat to bright and rich, each with a copy that was encoded again.
    let originals: Vec<Image> = (0..200)
        .map(|n| {
            let (offset, contrast) = ((n % 20) as f32 * 6.0, 0.02 + (n / 20) as f32 * 0.05);
            let base = image(&format!("image {n}"), n % 2);
            Image {
                hash: base.hash.iter().map(|value| offset + contrast * value).collect(),
                ..base
            }
        })
        .collect();
    let copies: Vec<Image> = originals
        .iter()
        .map(|original| {
            let spread = original.hash.iter().fold(0.0f32, |most, &value| most.max(value))
                - original.hash.iter().fold(255.0f32, |least, &value| least.min(value));
            original.encoded_again(0.03 * spread)
        })
        .collect();
    let findings = Data::new(originals, copies).inspect_images();
    let found: Vec<Vec<ImageRef>> = findings.duplicates.iter().map(|group| group.images.clone()).collect();
    let expected: Vec<Vec<ImageRef>> = (0..200).map(|row| vec![train(row), test(row)]).collect();
    assert_eq!(found, expected);
}

#[test]
fn wrong_predictions_come_with_the_three_nearest_training_images() {
    let mut of_train = images::<5000>("drum", 0).to_vec();
    of_train[4999].label = 1;
    let of_test = images::<80>("test", 0).to_vec();
    let data = Data::new(of_train, of_test);
    // All but the first two are wrong: more than one block on both sides.
    let evaluation = data.evaluation(&(0..80).map(|row| if row < 2 { 0.9 } else { 0.2 }).collect::<Vec<_>>());
    let findings = data.inspect(&evaluation, &[], Array2::zeros((0, 2)).view());
    assert_eq!(findings.neighbours.len(), 78);
    for neighbours in &findings.neighbours {
        assert_eq!(neighbours.image.split, Split::Test);
        let asked = &data.test[neighbours.image.row].features;
        let cosine = |other: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            dot(asked, other) / (dot(asked, asked) * dot(other, other)).sqrt()
        };
        let mut all: Vec<f64> = data.train.iter().map(|image| cosine(&image.features)).collect();
        for neighbour in &neighbours.nearest {
            assert!((neighbour.cosine - all[neighbour.row]).abs() < 1e-5);
        }
        all.sort_by(|a, b| b.total_cmp(a));
        let found: Vec<f64> = neighbours.nearest.iter().map(|neighbour| neighbour.cosine).collect();
        assert!(found.iter().zip(&all).all(|(found, all)| (found - all).abs() < 1e-5) && found.len() == 3);
    }
}

#[test]
fn labels_of_held_out_training_images_and_of_test_images_are_judged() {
    let of_train = [images::<3>("drum", 0), images::<3>("violin", 1)].concat();
    let data = Data::new(
        of_train,
        [images::<2>("test drum", 0), images::<2>("test violin", 1)].concat(),
    );
    let evaluation = data.evaluation(&[0.9, 0.05, 0.1, 0.2]);
    // Row 1 is never held out. Row 5 has the label of violins and looks like a drum.
    let probabilities = array![[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.97, 0.03]];
    let findings = data.inspect(&evaluation, &[0, 2, 3, 4, 5], probabilities.view());
    let found: Vec<(ImageRef, usize)> = findings
        .suspects
        .iter()
        .map(|suspect| (suspect.image, suspect.suggested))
        .collect();
    assert_eq!(found, [(train(5), 0), (test(1), 1)]);
    assert!(findings.judged_training_images);
    let compared = findings.neighbours.iter().map(|neighbours| neighbours.image);
    assert_eq!(
        compared.collect::<Vec<_>>(),
        [train(5), test(1)],
        "both are suspects, and one is a mistake"
    );

    let findings = data.inspect(&evaluation, &[], Array2::zeros((0, 2)).view());
    assert_eq!(findings.suspects.len(), 1);
    assert!(!findings.judged_training_images);
}

#[test]
fn a_search_for_duplicates_depends_on_images_alone_and_a_judgement_of_labels_on_model_and_rows() {
    let [images, model, held_out, table] =
        ["images", "model", "held-out", "test"].map(|name| Digest::of(name.as_bytes()));
    let duplicates = DuplicatesConfig::default();
    let mut keys = vec![
        duplicates.key(images),
        duplicates.key(model),
        DuplicatesConfig {
            largest_difference: 0.2,
            ..duplicates
        }
        .key(images),
        DuplicatesConfig {
            smallest_cosine: 0.2,
            ..duplicates
        }
        .key(images),
    ];
    let suspects = SuspectsConfig::default();
    keys.extend([
        suspects.key(model, held_out, table, None),
        suspects.key(table, held_out, table, None),
        suspects.key(model, table, table, None),
        suspects.key(model, held_out, model, None),
        suspects.key(model, held_out, table, Some(table)),
        suspects.key(model, held_out, table, Some(model)),
        SuspectsConfig { confident: 0.8 }.key(model, held_out, table, None),
    ]);
    let (neighbours, rows) = (NeighboursConfig::default(), NeighboursConfig::digest_of(&[test(2)]));
    keys.extend([
        neighbours.key(model, table, rows),
        neighbours.key(table, table, rows),
        neighbours.key(model, model, rows),
        neighbours.key(model, table, NeighboursConfig::digest_of(&[test(3)])),
        neighbours.key(model, table, NeighboursConfig::digest_of(&[train(2)])),
        NeighboursConfig {
            n_neighbors: 4,
            ..neighbours
        }
        .key(model, table, rows),
    ]);
    let n = keys.len();
    keys.sort_by_key(|key| key.digest());
    keys.dedup();
    assert_eq!(keys.len(), n);
}

#[test]
fn a_training_image_is_no_neighbour_of_itself() {
    let features = array![[1.0_f32, 0.0], [0.8, 0.6], [0.0, 1.0]];
    let nearest = |image| {
        let config = NeighboursConfig {
            n_neighbors: 1,
            ..NeighboursConfig::default()
        };
        let found = config
            .run(
                &features.view(),
                &features.view(),
                &[image],
                NearestImages::default(),
                &(),
            )
            .unwrap();
        found.0[0].nearest[0].row
    };
    assert_eq!(nearest(train(0)), 1);
    assert_eq!(nearest(train(2)), 1);
    assert_eq!(nearest(test(0)), 0, "another image with the same features");
}

#[test]
fn neighbours_that_are_known_are_not_looked_for_and_come_out_the_same() {
    // Of more than the products of matrices take at once.
    const WIDTH: usize = 600;
    let noise = |seed: usize| ((seed * 2_654_435_761) % 1_000_003) as f32 / 1_000_003.0;
    let features =
        |n: usize, first: usize| Array2::from_shape_fn((n, WIDTH), |(row, column)| noise(first + WIDTH * row + column));
    let (training, tested) = (features(3_000, 0), features(300, 7));
    let asked: Vec<ImageRef> = (0..150).map(train).chain((0..300).map(test)).collect();
    let config = NeighboursConfig::default();
    let run = |rows: &dyn ReadRows<Feature = f32>, asked: &[ImageRef], known| {
        config.run(rows, &tested.view(), asked, known, &()).unwrap()
    };
    let all = run(&training.view(), &asked, NearestImages::default());
    let some: Vec<ImageRef> = asked.iter().copied().step_by(3).collect();
    let known = run(&training.view(), &some, NearestImages::default());
    assert_eq!(run(&training.view(), &asked, known), all);
    // Without a look at the training images.
    let others = Array2::<f32>::zeros((3_000, WIDTH));
    assert_eq!(run(&others.view(), &asked, all.clone()), all);
}

#[test]
fn without_test_images_the_evaluation_is_of_images_that_were_held_out() {
    let data = Data::new(vec![image("a", 0), image("b", 1)], vec![image("c", 0), image("d", 1)]);
    let mut evaluation = data.evaluation(&[0.9, 0.95]);
    let held_out = array![[0.9_f32, 0.1], [0.95, 0.05]];
    let of_both = data.inspect(&evaluation, &[0, 1], held_out.view());
    assert_eq!(of_both.suspects.len(), 2, "a training image and a test image");
    evaluation.0.split = Split::Train;
    evaluation.1 = Array2::zeros((0, 2));
    let of_one = data.inspect(&evaluation, &[0, 1], held_out.view());
    assert_eq!(of_one.suspects.len(), 1);
    assert_eq!(of_one.suspects[0].image, train(1));
}
