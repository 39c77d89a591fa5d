use luthier_artifact::Artifact;
use luthier_features::{
    ComponentCount, FeaturesConfig, FittedPca, FittedScaler, Pca, Projection, Solver, StandardScaler,
};
use ndarray::{Array2, Axis};
use proptest::prelude::*;
use smartcore::api::{Transformer, UnsupervisedEstimator};

use crate::synthetic;

fn matrices() -> impl Strategy<Value = Array2<f32>> {
    (3usize..12, 2usize..12).prop_flat_map(|(n, d)| {
        prop::collection::vec(-100.0f32..100.0, n * d).prop_map(move |x| Array2::from_shape_vec((n, d), x).unwrap())
    })
}

fn keeps() -> impl Strategy<Value = ComponentCount> {
    prop_oneof![
        (0.01..0.99f64).prop_map(ComponentCount::Variance),
        (1usize..3).prop_map(ComponentCount::Exact)
    ]
}

proptest! {
    #[test]
    fn a_projection_decodes_from_its_bytes(x in matrices(), n_components in keeps()) {
        let config = FeaturesConfig { n_components, whiten: false, solver: Solver::Faer };
        let projection = config.run(x.view(), &()).unwrap();
        prop_assert_eq!(Projection::decode(&projection.encode()).unwrap(), projection);
    }

    #[test]
    fn scaled_columns_have_mean_zero_and_variance_one(x in matrices()) {
        let scaled = StandardScaler::fit(x.view()).unwrap().transform(x.view()).unwrap();
        for column in scaled.axis_iter(Axis(1)) {
            prop_assert!(column.mean().unwrap().abs() < 1e-9);
            prop_assert!((column.var(0.0) - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn components_are_orthonormal_and_uncorrelated(x in matrices()) {
        let available = x.nrows().min(x.ncols());
        let x = StandardScaler::fit(x.view()).unwrap().transform(x.view()).unwrap();
        let pca = Pca::new(ComponentCount::Exact(available), Solver::Faer).fit(x.view()).unwrap();
        let gram = pca.components.dot(&pca.components.t());
        prop_assert!((gram - Array2::<f64>::eye(available)).iter().all(|entry| entry.abs() < 1e-7));

        let projected = pca.transform(x.view()).unwrap();
        let covariance = projected.t().dot(&projected) / (x.nrows() - 1) as f64;
        let expected = Array2::from_diag(&pca.explained_variance);
        prop_assert!((covariance - expected).iter().all(|entry| entry.abs() < 1e-7 * pca.explained_variance[0]));
        prop_assert!((pca.explained_variance_ratio.sum() - 1.0).abs() < 1e-9);
    }
}

#[test]
fn the_traits_of_smartcore_reach_the_same_code() {
    let x = synthetic(40, 12);
    let config = FeaturesConfig {
        n_components: ComponentCount::Variance(0.9),
        whiten: false,
        solver: Solver::Faer,
    };
    let projection = config.run(x.view(), &()).unwrap();

    let wide = x.mapv(f64::from);
    let scaler = <FittedScaler as UnsupervisedEstimator<_, _>>::fit(&wide, StandardScaler).unwrap();
    let scaled = Transformer::transform(&scaler, &wide).unwrap();
    let pca =
        <FittedPca as UnsupervisedEstimator<_, _>>::fit(&scaled, Pca::new(config.n_components, config.solver)).unwrap();
    assert_eq!(scaler, projection.scaler);
    // The one path scales rows, the other comoments: they round otherwise.
    let difference = (&pca.components - &projection.pca.components).fold(0.0f64, |largest, x| largest.max(x.abs()));
    assert!(difference < 1e-12, "{difference:e}");
    let projected = Transformer::transform(&pca, &scaled).unwrap();
    let difference =
        (projected - projection.transform(x.view()).unwrap()).fold(0.0f64, |largest, x| largest.max(x.abs()));
    assert!(difference < 1e-12, "{difference:e}");

    let narrow = Array2::zeros((2, 3));
    let error = Transformer::transform(&pca, &narrow).unwrap_err();
    assert!(
        error.to_string().contains("features have 3 columns, expected 12"),
        "{error}"
    );
}
