use luthier_artifact::UnknownName;

/// How an image of any shape becomes a square, here of 224 × 224 pixels; squares of other sizes in these proportions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[derive(strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "kebab-case", parse_err_ty = UnknownName, parse_err_fn = unknown_framing)]
pub enum Framing {
    /// Both sides to 224 whatever the shape: nothing is cut off, the aspect is not kept.
    Squash,
    /// The short side to 256, then the middle 224 × 224: the aspect is kept, the edges are cut off.
    Crop,
    /// The long side to 224, and white beside or above and below it: nothing is cut off, the aspect is kept.
    Pad,
    /// [`Framing::Squash`], mirrored left to right.
    Mirror,
    /// [`Framing::Crop`], mirrored left to right.
    CropMirror,
    /// [`Framing::Pad`], mirrored left to right.
    PadMirror,
}

impl Framing {
    /// All of them.
    pub const ALL: [Framing; 6] = [
        Framing::Squash,
        Framing::Crop,
        Framing::Pad,
        Framing::Mirror,
        Framing::CropMirror,
        Framing::PadMirror,
    ];
}

fn unknown_framing(found: &str) -> UnknownName {
    UnknownName::of::<Framing>("view", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framings_are_read_by_their_names() {
        for view in Framing::ALL {
            assert_eq!(view.to_string().parse(), Ok(view));
        }
        assert_eq!(
            "flip".parse::<Framing>().unwrap_err().to_string(),
            r#"view is "flip", expected squash, crop, pad, mirror, crop-mirror or pad-mirror"#
        );
    }
}
