use std::fmt;
use std::str::FromStr;

use image::RgbImage;

use crate::resize::{Axis, resize};

/// How an image of any shape becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// 224 × 224 whatever the shape: nothing is cut off, the aspect is not kept.
    Squash,
    /// The short side to 256, then the middle 224 × 224: the aspect is kept, the edges are cut off.
    Crop,
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resize::Squash => "squash",
            Resize::Crop => "crop",
        })
    }
}

impl FromStr for Resize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "squash" => Ok(Resize::Squash),
            "crop" => Ok(Resize::Crop),
            _ => Err(format!("expected squash or crop, found {text}")),
        }
    }
}

/// Brings images to the size that the network takes.
///
/// The pixels are those of torchvision's `Resize((224, 224))`, or `Resize(256)` and `CenterCrop(224)`, on Pillow images:
/// antialiased bilinear, bit for bit.
#[derive(Debug)]
pub struct Preprocess {
    resize: Resize,
    scratch: Vec<u8>,
}

impl Preprocess {
    /// Height and width of the result.
    pub const SIDE: usize = 224;
    /// The number of bytes of the result: `u8 [224, 224, 3]`.
    pub const BYTES: usize = Self::SIDE * Self::SIDE * 3;
    /// The length of the short side before [`Resize::Crop`] cuts.
    const SHORT_SIDE: usize = 256;

    /// Preprocessing with this kind of resize. A buffer is kept from image to image.
    pub fn new(resize: Resize) -> Self {
        Preprocess {
            resize,
            scratch: Vec::new(),
        }
    }

    /// Resizes an image to RGB `u8 [224, 224, 3]`.
    pub fn run(&mut self, image: &RgbImage) -> Vec<u8> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let axis = |length, other| match self.resize {
            Resize::Squash => Axis::whole(length, Self::SIDE),
            Resize::Crop => crop(length, other),
        };
        resize(image, &axis(width, height), &axis(height, width), &mut self.scratch)
    }
}

/// Resizes a side of `length` pixels as if the shorter one were to get 256, and keeps the middle 224.
///
/// The rounding is that of torchvision's `Resize(256)` (down) and `CenterCrop(224)` (half to even).
fn crop(length: usize, other: usize) -> Axis {
    let resized = Preprocess::SHORT_SIDE * length / length.min(other);
    let start = ((resized - Preprocess::SIDE) as f64 / 2.0).round_ties_even() as usize;
    Axis::new(length, resized, start..start + Preprocess::SIDE)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn squash_keeps_the_corners_and_crop_cuts_the_edges() {
        let stripes = RgbImage::from_fn(
            600,
            300,
            |x, _| if x < 100 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) },
        );
        let squashed = Preprocess::new(Resize::Squash).run(&stripes);
        let cropped = Preprocess::new(Resize::Crop).run(&stripes);
        assert_eq!((squashed.len(), cropped.len()), (Preprocess::BYTES, Preprocess::BYTES));
        assert_eq!(squashed[..3], [255, 0, 0]);
        assert_eq!(cropped[..3], [0, 0, 255]);
    }

    #[test]
    fn images_of_one_pixel_and_of_one_row_are_resized() {
        for (width, height) in [(1, 1), (3000, 1), (1, 3000)] {
            for resize in [Resize::Squash, Resize::Crop] {
                let image = RgbImage::from_pixel(width, height, Rgb([7, 8, 9]));
                let bytes = Preprocess::new(resize).run(&image);
                assert!(
                    bytes.chunks_exact(3).all(|pixel| pixel == [7, 8, 9]),
                    "{width} × {height}, {resize}"
                );
            }
        }
    }
}
