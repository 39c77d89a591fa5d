use image::RgbImage;

use super::resize::{Extent, Resizer};
use super::view::View;

/// Resizes images to what the network takes: RGB of 224 × 224 pixels.
///
/// The pixels equal, bit for bit, those of torchvision on Pillow images: antialiased bilinear
/// `Resize((224, 224))`, or `Resize(256)` and `CenterCrop(224)`. Buffers are kept from image to
/// image.
#[derive(Debug, Default)]
pub struct Preprocess {
    resizer: Resizer,
}

impl Preprocess {
    /// Height and width of the result.
    pub const SIDE: usize = 224;
    /// The number of bytes of the result: `u8 [224, 224, 3]`.
    pub const BYTES: usize = Self::SIDE * Self::SIDE * 3;
    /// The length of the short side before [`View::Crop`] cuts.
    const SHORT_SIDE: usize = 256;

    /// A preprocessor with empty buffers.
    pub fn new() -> Self {
        Preprocess::default()
    }

    /// Writes a view of an image to `out`, as RGB `u8 [224, 224, 3]`.
    ///
    /// # Panics
    /// If the length of `out` is not [`Preprocess::BYTES`], or if the image has no pixels.
    pub fn run(&mut self, image: &RgbImage, view: View, out: &mut [u8]) {
        assert_eq!(out.len(), Self::BYTES, "the length of a view");
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (horizontal, vertical) = match view {
            View::Squash | View::Mirror => (Extent::whole(Self::SIDE), Extent::whole(Self::SIDE)),
            View::Crop | View::CropMirror => (crop(width, height), crop(height, width)),
        };
        self.resizer.run(image, &horizontal, &vertical, out);
        if matches!(view, View::Mirror | View::CropMirror) {
            mirror(out);
        }
    }
}

/// How a side of `length` pixels is resized so that the shorter side gets 256, and cut to the
/// middle 224.
///
/// The rounding is that of torchvision's `Resize(256)` (down) and `CenterCrop(224)` (half to even).
fn crop(length: usize, other: usize) -> Extent {
    let resized = Preprocess::SHORT_SIDE * length / length.min(other);
    let start = ((resized - Preprocess::SIDE) as f64 / 2.0).round_ties_even() as usize;
    Extent {
        length: resized,
        window: start..start + Preprocess::SIDE,
    }
}

/// Mirrors a view left to right.
fn mirror(pixels: &mut [u8]) {
    for row in pixels.chunks_exact_mut(3 * Preprocess::SIDE) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn view(image: &RgbImage, view: View) -> Vec<u8> {
        let mut out = vec![0; Preprocess::BYTES];
        Preprocess::new().run(image, view, &mut out);
        out
    }

    #[test]
    fn squash_keeps_the_corners_and_crop_cuts_the_edges() {
        let stripes = RgbImage::from_fn(
            600,
            300,
            |x, _| if x < 100 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) },
        );
        assert_eq!(view(&stripes, View::Squash)[..3], [255, 0, 0]);
        assert_eq!(view(&stripes, View::Crop)[..3], [0, 0, 255]);
    }

    #[test]
    fn mirrored_views_are_the_others_from_right_to_left() {
        let image = RgbImage::from_fn(313, 271, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]));
        for (plain, mirrored) in [(View::Squash, View::Mirror), (View::Crop, View::CropMirror)] {
            let (plain, mirrored) = (view(&image, plain), view(&image, mirrored));
            let pixel = |pixels: &[u8], x: usize, y: usize| pixels[3 * (y * 224 + x)..][..3].to_vec();
            for (x, y) in [(0, 0), (223, 0), (100, 50), (111, 223)] {
                assert_eq!(pixel(&mirrored, x, y), pixel(&plain, 223 - x, y), "{x}, {y}");
            }
            let mut twice = mirrored.clone();
            mirror(&mut twice);
            assert!(twice == plain && mirrored != plain);
        }
    }

    #[test]
    fn images_of_one_pixel_and_of_one_row_are_resized() {
        for (width, height) in [(1, 1), (3000, 1), (1, 3000)] {
            for kind in View::ALL {
                let image = RgbImage::from_pixel(width, height, Rgb([7, 8, 9]));
                assert!(
                    view(&image, kind).chunks_exact(3).all(|pixel| pixel == [7, 8, 9]),
                    "{width} × {height}, {kind}"
                );
            }
        }
    }
}
