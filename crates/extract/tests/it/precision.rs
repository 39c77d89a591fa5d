//! Number formats that the processor lacks.

use std::process::Command;

use luthier_extract::{Error, Extractor, ExtractorConfig, InputSize, Precision, WeightsStore};

use crate::config;

const ISA: &str = "ONEDNN_MAX_CPU_ISA";

/// oneDNN reads the variable once for each process, so that this test runs itself again, on a
/// processor that oneDNN takes for one without AVX-512.
#[test]
fn formats_without_their_instructions_are_refused_at_load_in_one_line() {
    if std::env::var_os(ISA).is_none() {
        let name = "precision::formats_without_their_instructions_are_refused_at_load_in_one_line";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(ISA, "AVX2")
            .output()
            .unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && stdout.contains("1 passed"),
            "{stdout}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let config = ExtractorConfig {
        precision: Precision::Bf16,
        ..config()
    };
    let load = |config: &ExtractorConfig| {
        let store = WeightsStore::new("unused".into(), None);
        Extractor::load(config, InputSize::default(), &store, 1, Some(1), &())
    };
    let error = load(&config).unwrap_err();
    assert!(matches!(error, Error::Precision { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "device cpu: this processor has no bf16 instructions, which --precision bf16 needs"
    );
    assert!(error.hint().unwrap().starts_with("use --precision fp32 "));
    let config = ExtractorConfig {
        precision: Precision::Int8,
        ..config
    };
    let error = load(&config).unwrap_err();
    assert_eq!(
        error.to_string(),
        "device cpu: no VNNI instructions here, which --precision int8 needs"
    );
    // `auto` does not choose what is refused.
    assert_eq!(Precision::best(config.device), Precision::Fp32);
}
