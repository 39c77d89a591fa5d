use luthier_artifact::UnknownName;

/// How the last map of each channel, 7 × 7 numbers at 224 × 224 pixels, becomes one feature.
///
/// No number of the map is negative: the last layer is a ReLU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[derive(strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "lowercase", parse_err_ty = UnknownName, parse_err_fn = unknown_pooling)]
pub enum Pooling {
    /// The mean: global average pooling, which ResNet-50 was trained with.
    #[default]
    Mean,
    /// The generalised mean ∛(mean of x³), to which what stands out counts more: GeM of Radenović, Tolias and Chum,
    /// "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018, arXiv:1711.02512, with its first p, 3.
    Gem,
}

impl Pooling {
    /// All poolings.
    pub const ALL: [Pooling; 2] = [Pooling::Mean, Pooling::Gem];
}

fn unknown_pooling(found: &str) -> UnknownName {
    UnknownName::of::<Pooling>("pooling", found)
}
