use std::fmt;
use std::str::FromStr;

/// How an image of any shape becomes a square of 224 × 224 pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

    fn name(self) -> &'static str {
        match self {
            View::Squash => "squash",
            View::Crop => "crop",
            View::Mirror => "mirror",
            View::CropMirror => "crop-mirror",
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for View {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        View::ALL
            .into_iter()
            .find(|view| view.name() == text)
            .ok_or_else(|| format!("expected squash, crop, mirror or crop-mirror, found {text}"))
    }
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
            "flip".parse::<View>(),
            Err("expected squash, crop, mirror or crop-mirror, found flip".to_owned())
        );
    }
}
