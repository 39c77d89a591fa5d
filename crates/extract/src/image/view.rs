use std::fmt;
use std::str::FromStr;

use super::framing::Framing;
use super::input_size::InputSize;

/// What the network sees of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// How the image becomes a square.
    pub framing: Framing,
    /// The side of the square.
    pub size: InputSize,
}

impl From<Framing> for View {
    /// 224 × 224 pixels.
    fn from(framing: Framing) -> Self {
        View {
            framing,
            size: InputSize::default(),
        }
    }
}

impl fmt::Display for View {
    /// The framing, and the size unless it is the default: `squash`, or `squash@288`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.framing.fmt(f)?;
        match self.size {
            size if size == InputSize::default() => Ok(()),
            size => write!(f, "@{size}"),
        }
    }
}

impl FromStr for View {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (framing, size) = match text.split_once('@') {
            Some((framing, size)) => (framing, size.parse()?),
            None => (text, InputSize::default()),
        };
        match framing.parse() {
            Ok(framing) => Ok(View { framing, size }),
            Err(_) => {
                let known: Vec<String> = Framing::ALL.iter().map(Framing::to_string).collect();
                Err(format!("expected {}, found {framing}", known.join(", ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_read_by_their_names() {
        for framing in Framing::ALL {
            for size in [224, 288] {
                let size = InputSize::new(size).unwrap();
                let view = View { framing, size };
                assert_eq!(view.to_string().parse(), Ok(view));
            }
        }
        assert_eq!("pad@224".parse(), Ok(View::from(Framing::Pad)));
        for (text, expected) in [
            (
                "flip@288",
                "expected squash, crop, pad, mirror, crop-mirror, pad-mirror, found flip",
            ),
            (
                "pad@",
                "expected a multiple of 32 from 64 to 448, such as 224 or 288, found ",
            ),
        ] {
            assert_eq!(text.parse::<View>(), Err(expected.to_owned()));
        }
    }
}
