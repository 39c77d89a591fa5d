use image::RgbImage;
use luthier_artifact::{Digest, Key};

use crate::Decoding;

/// The name of the part of an extract stage's key that says which perceptual hashes are used, and
/// of the view that their tables name.
pub const PERCEPTUAL_HASH: &str = "perceptual hash";

/// The number of boxes along each side of an image.
const GRID: usize = 8;

/// How an image looks at its coarsest: the mean red, green and blue of each box of an 8 × 8 grid
/// over the image, row by row. The values are from 0 to 255.
///
/// Copies of a photograph that were encoded again, at another size as well, have nearly the same
/// hash.
#[derive(Clone, Debug, PartialEq)]
pub struct PerceptualHash(pub Vec<f32>);

impl PerceptualHash {
    /// The number of values: 192.
    pub const WIDTH: usize = GRID * GRID * 3;

    /// Changes when the same image gets another hash.
    const VERSION: u32 = 1;

    /// The descriptor of perceptual hashes of images that were decoded in this way: the digest of
    /// its key.
    pub fn descriptor(decoding: Decoding) -> Digest {
        let key = Key::stage(PERCEPTUAL_HASH, Self::VERSION);
        key.field("decode", decoding).finish().digest()
    }

    /// The perceptual hash of an image.
    pub(crate) fn of(image: &RgbImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let columns = boxes(width);
        let mut sums = [[[0u64; 3]; GRID]; GRID];
        let rows = boxes(height);
        let pixels: &[u8] = image.as_raw();
        for (sums, &(top, bottom)) in sums.iter_mut().zip(&rows) {
            for line in pixels[3 * width * top..3 * width * bottom].chunks_exact(3 * width) {
                for (sum, &(left, right)) in sums.iter_mut().zip(&columns) {
                    let mut box_sum = [0u32; 3];
                    for pixel in line[3 * left..3 * right].chunks_exact(3) {
                        for (sum, &value) in box_sum.iter_mut().zip(pixel) {
                            *sum += u32::from(value);
                        }
                    }
                    for (sum, value) in sum.iter_mut().zip(box_sum) {
                        *sum += u64::from(value);
                    }
                }
            }
        }
        let mut means = Vec::with_capacity(Self::WIDTH);
        for (sums, (top, bottom)) in sums.iter().zip(rows) {
            for (sum, (left, right)) in sums.iter().zip(&columns) {
                let n_pixels = ((bottom - top) * (right - left)) as f64;
                means.extend(sum.map(|sum| (sum as f64 / n_pixels) as f32));
            }
        }
        PerceptualHash(means)
    }
}

/// Where the boxes along a side of this length begin and end. If the side is shorter than the grid,
/// the boxes overlap.
fn boxes(length: usize) -> [(usize, usize); GRID] {
    std::array::from_fn(|place| {
        let start = place * length / GRID;
        (start, ((place + 1) * length / GRID).max(start + 1))
    })
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn every_box_has_the_mean_of_its_pixels() {
        // 16 × 24: boxes of 2 × 3 pixels.
        let image = RgbImage::from_fn(16, 24, |x, y| Rgb([x as u8, 10 * y as u8, 7]));
        let PerceptualHash(means) = PerceptualHash::of(&image);
        assert_eq!(means.len(), PerceptualHash::WIDTH);
        let at = |row: usize, column: usize| &means[3 * (GRID * row + column)..][..3];
        assert_eq!(at(0, 0), [0.5, 10.0, 7.0]);
        assert_eq!(at(7, 3), [6.5, 220.0, 7.0]);
    }

    #[test]
    fn images_smaller_than_the_grid_have_one_too() {
        for (width, height) in [(1, 1), (3, 500), (9, 2)] {
            let image = RgbImage::from_pixel(width, height, Rgb([1, 2, 3]));
            assert_eq!(
                PerceptualHash::of(&image).0,
                [1.0, 2.0, 3.0].repeat(64),
                "{width} × {height}"
            );
        }
    }
}
