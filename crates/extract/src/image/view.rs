use luthier_artifact::UnknownName;

/// How an image of any shape becomes a square of 224 × 224 pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[derive(strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "kebab-case", parse_err_ty = UnknownName, parse_err_fn = unknown_view)]
pub enum View {
    /// Both sides to 224 whatever the shape: nothing is cut off, the aspect is not kept.
    Squash,
    /// The short side to 256, then the middle 224 × 224: the aspect is kept, the edges are cut off.
    Crop,
    /// [`View::Squash`], mirrored left to right.
    Mirror,
    /// [`View::Crop`], mirrored left to right.
    CropMirror,
}

impl View {
    /// All views.
    pub const ALL: [View; 4] = [View::Squash, View::Crop, View::Mirror, View::CropMirror];
}

fn unknown_view(found: &str) -> UnknownName {
    UnknownName::of::<View>("view", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_read_by_their_names() {
        for view in View::ALL {
            assert_eq!(view.to_string().parse(), Ok(view));
        }
        assert_eq!(
            "flip".parse::<View>().unwrap_err().to_string(),
            r#"view is "flip", expected squash, crop, mirror or crop-mirror"#
        );
    }
}
