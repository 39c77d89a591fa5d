//! What a program needs to answer to images: `cargo run --release --example predict -- MODEL IMAGE...`
//!
//! The weights come from the folder that `luthier weights fetch` fills.

use std::path::PathBuf;

use luthier::{Predictor, PredictorConfig};
use luthier_extract::WeightsStore;

fn main() -> luthier::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let model = arguments.next().expect("the path of a model");
    let images: Vec<PathBuf> = arguments.collect();

    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let store = WeightsStore::new(home.join(".cache/luthier/weights"), None);
    let predictor = Predictor::open(&model, &store, None, &PredictorConfig::default(), &())?;
    for (image, prediction) in images.iter().zip(predictor.predict_files(&images)?) {
        match prediction {
            Ok(prediction) => println!("{}: {}", image.display(), prediction.answer),
            Err(reason) => println!("{}: cannot be read: {reason}", image.display()),
        }
    }
    Ok(())
}
