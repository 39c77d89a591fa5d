use std::fmt;
use std::str::FromStr;

/// Height and width of what the network sees, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InputSize(usize);

impl InputSize {
    /// The network halves the sides five times.
    const STEP: usize = 32;
    /// Its crop is cut from a short side of 512 pixels, which is all that a large JPEG may be decoded to.
    const MOST: usize = 448;
    const LEAST: usize = 64;

    /// A side in pixels; `None` unless it is a multiple of 32 from 64 to 448.
    pub fn new(side: usize) -> Option<Self> {
        let is_possible = (Self::LEAST..=Self::MOST).contains(&side) && side.is_multiple_of(Self::STEP);
        is_possible.then_some(InputSize(side))
    }

    /// Height and width in pixels.
    pub fn side(self) -> usize {
        self.0
    }

    /// The short side in pixels of an image whose middle is cut out at this size: 256 for 224, and in this proportion for
    /// others.
    pub fn short_side(self) -> usize {
        (self.0 * 256 + 112) / 224
    }

    /// The number of bytes of a view: `u8 [side, side, 3]`.
    pub fn bytes(self) -> usize {
        self.0 * self.0 * 3
    }
}

impl Default for InputSize {
    /// 224, the size that ResNet-50 was trained at.
    fn default() -> Self {
        InputSize(224)
    }
}

impl fmt::Display for InputSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for InputSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = text.parse().ok().and_then(InputSize::new);
        size.ok_or_else(|| {
            let InputSize(default) = InputSize::default();
            let (least, most, step) = (Self::LEAST, Self::MOST, Self::STEP);
            format!("expected a multiple of {step} from {least} to {most}, such as {default} or 288, found {text}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_of_what_the_network_halves() {
        assert_eq!("288".parse().map(InputSize::side), Ok(288));
        for text in ["0", "32", "225", "480", "-224", "large"] {
            let expected = format!("expected a multiple of 32 from 64 to 448, such as 224 or 288, found {text}");
            assert_eq!(text.parse::<InputSize>(), Err(expected));
        }
    }
}
