use image::RgbImage;

use super::framing::Framing;
use super::input_size::InputSize;
use super::resize::{Extent, Resizer};

/// Resizes images to what the network takes: RGB of 224 × 224 pixels, or of another size.
///
/// The pixels equal, bit for bit, those of torchvision on Pillow images: antialiased bilinear
/// `Resize((224, 224))`, or `Resize(256)` and `CenterCrop(224)`; and those of Pillow's
/// `ImageOps.pad`. Buffers are kept from image to image.
#[derive(Debug, Default)]
pub struct Preprocess {
    size: InputSize,
    resizer: Resizer,
    /// An image before it gets a border.
    unpadded: Vec<u8>,
}

impl Preprocess {
    /// A preprocessor with empty buffers, for views of this size.
    pub fn new(size: InputSize) -> Self {
        Preprocess {
            size,
            ..Preprocess::default()
        }
    }

    /// Writes an image in this framing to `out`, as RGB `u8 [side, side, 3]`.
    ///
    /// # Panics
    /// If the length of `out` is not [`InputSize::bytes`], or if the image has no pixels.
    pub fn run(&mut self, image: &RgbImage, framing: Framing, out: &mut [u8]) {
        assert_eq!(out.len(), self.size.bytes(), "the length of a view");
        let side = self.size.side();
        let (width, height) = (image.width() as usize, image.height() as usize);
        match framing {
            Framing::Squash | Framing::Mirror => {
                let whole = Extent::whole(side);
                self.resizer.run(image, &whole, &whole, out);
            }
            Framing::Crop | Framing::CropMirror => {
                let (horizontal, vertical) = (crop(width, height, self.size), crop(height, width, self.size));
                self.resizer.run(image, &horizontal, &vertical, out);
            }
            Framing::Pad | Framing::PadMirror => self.pad(image, out),
        }
        if matches!(framing, Framing::Mirror | Framing::CropMirror | Framing::PadMirror) {
            mirror(out, side);
        }
    }

    /// Resizes the long side, and puts the image in the middle of white.
    fn pad(&mut self, image: &RgbImage, out: &mut [u8]) {
        const WHITE: u8 = 255;
        let side = self.size.side();
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (horizontal, vertical) = (contained(width, height, side), contained(height, width, side));
        let row = 3 * horizontal.length;
        self.unpadded.resize(row * vertical.length, 0);
        let whole = Extent::whole;
        (self.resizer).run(
            image,
            &whole(horizontal.length),
            &whole(vertical.length),
            &mut self.unpadded,
        );
        out.fill(WHITE);
        let rows = out.chunks_exact_mut(3 * side).skip(vertical.start);
        for (pixels, out) in self.unpadded.chunks_exact(row).zip(rows) {
            out[3 * horizontal.start..][..row].copy_from_slice(pixels);
        }
    }
}

/// How a side of `length` pixels is resized so that the shorter side gets 256, and cut to the
/// middle 224, or in these proportions for another size.
///
/// The rounding is that of torchvision's `Resize(256)` (down) and `CenterCrop(224)` (half to even).
fn crop(length: usize, other: usize, size: InputSize) -> Extent {
    let side = size.side();
    let resized = size.short_side() * length / length.min(other);
    let start = ((resized - side) as f64 / 2.0).round_ties_even() as usize;
    Extent {
        length: resized,
        window: start..start + side,
    }
}

/// A part of a side.
struct Part {
    start: usize,
    length: usize,
}

/// What a side of `length` pixels becomes if the longer side gets all `side` pixels. The rounding is that of Pillow's
/// `ImageOps.pad`, but that at least one pixel remains.
fn contained(length: usize, other: usize, side: usize) -> Part {
    let length = if length < other {
        let exact = length as f64 / other as f64 * side as f64;
        (exact.round_ties_even() as usize).max(1)
    } else {
        side
    };
    Part {
        start: ((side - length) as f64 * 0.5).round_ties_even() as usize,
        length,
    }
}

/// Mirrors a view left to right.
fn mirror(pixels: &mut [u8], side: usize) {
    for row in pixels.chunks_exact_mut(3 * side) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn view(image: &RgbImage, framing: Framing) -> Vec<u8> {
        let size = InputSize::default();
        let mut out = vec![0; size.bytes()];
        Preprocess::new(size).run(image, framing, &mut out);
        out
    }

    #[test]
    fn squash_and_pad_keep_the_corners_and_crop_cuts_the_edges() {
        let stripes = RgbImage::from_fn(
            600,
            300,
            |x, _| if x < 100 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) },
        );
        assert_eq!(view(&stripes, Framing::Squash)[..3], [255, 0, 0]);
        assert_eq!(view(&stripes, Framing::Crop)[..3], [0, 0, 255]);
        let padded = view(&stripes, Framing::Pad);
        let of_row = |row: usize| &padded[3 * 224 * row..][..3];
        let (white, red) = ([255, 255, 255], [255, 0, 0]);
        assert_eq!([0, 55, 56, 167, 168].map(of_row), [white, white, red, red, white]);
    }

    #[test]
    fn mirrored_views_are_the_others_from_right_to_left() {
        let image = RgbImage::from_fn(313, 271, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]));
        for (plain, mirrored) in [
            (Framing::Squash, Framing::Mirror),
            (Framing::Crop, Framing::CropMirror),
            (Framing::Pad, Framing::PadMirror),
        ] {
            let (plain, mirrored) = (view(&image, plain), view(&image, mirrored));
            let pixel = |pixels: &[u8], x: usize, y: usize| pixels[3 * (y * 224 + x)..][..3].to_vec();
            for (x, y) in [(0, 0), (223, 0), (100, 50), (111, 223)] {
                assert_eq!(pixel(&mirrored, x, y), pixel(&plain, 223 - x, y), "{x}, {y}");
            }
            let mut twice = mirrored.clone();
            mirror(&mut twice, 224);
            assert!(twice == plain && mirrored != plain);
        }
    }

    #[test]
    fn images_of_one_pixel_and_of_one_row_are_resized() {
        for (width, height) in [(1, 1), (3000, 1), (1, 3000)] {
            for kind in Framing::ALL {
                let image = RgbImage::from_pixel(width, height, Rgb([7, 8, 9]));
                let is_padded = matches!(kind, Framing::Pad | Framing::PadMirror) && width != height;
                let view = view(&image, kind);
                let n_white = view.chunks_exact(3).filter(|pixel| *pixel == [255; 3]).count();
                assert_eq!(
                    n_white,
                    if is_padded { 223 * 224 } else { 0 },
                    "{width} × {height}, {kind}"
                );
                let is_image = |pixel: &&[u8]| **pixel == [7, 8, 9];
                assert_eq!(view.chunks_exact(3).filter(is_image).count(), 224 * 224 - n_white);
            }
        }
    }
}
