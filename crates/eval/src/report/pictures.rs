//! The thumbnails of the page.

use std::collections::HashMap;
use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use luthier_artifact::Split;
use rayon::prelude::*;

use super::Context;
use crate::Result;

/// What all thumbnails may take together, before base64 adds a third.
const MAX_BYTES: usize = 4 << 20;
/// So many are made at once; what the last lot makes beyond [`MAX_BYTES`] is thrown away.
const LOT: usize = 64;

/// A thumbnail that the page would like to show.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) split: Split,
    pub(super) file: &'a str,
    /// At most so many pixels on the longer side.
    pub(super) side: u32,
}

/// Thumbnails as backgrounds of CSS classes: embedded once, each is shown wherever its class is named, without a script.
pub(super) struct Pictures<'a> {
    numbers: HashMap<(Split, &'a str), usize>,
    jpegs: Vec<Vec<u8>>,
}

impl<'a> Pictures<'a> {
    /// Makes what is wanted, the first first, until there are too many bytes. Of an image that is wanted in several sizes
    /// the largest is made.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted) if a thumbnail says so.
    pub(super) fn make(context: &Context<'a>, wanted: &[Wanted<'a>]) -> Result<Self> {
        let mut places: HashMap<(Split, &str), usize> = HashMap::new();
        let mut distinct: Vec<Wanted<'a>> = Vec::new();
        for one in wanted {
            let place = *places.entry((one.split, one.file)).or_insert(distinct.len());
            match distinct.get_mut(place) {
                Some(known) => known.side = known.side.max(one.side),
                None => distinct.push(*one),
            }
        }
        let mut pictures = Pictures {
            numbers: HashMap::new(),
            jpegs: Vec::new(),
        };
        let mut room = MAX_BYTES;
        for lot in distinct.chunks(LOT) {
            let made: Vec<Option<Vec<u8>>> = lot
                .par_iter()
                .map(|one| (context.thumbnail)(one.split, one.file, one.side))
                .collect::<std::result::Result<_, _>>()?;
            for (one, jpeg) in lot.iter().zip(made) {
                let Some(jpeg) = jpeg else { continue };
                let Some(left) = room.checked_sub(jpeg.len()) else {
                    return Ok(pictures);
                };
                room = left;
                pictures.numbers.insert((one.split, one.file), pictures.jpegs.len());
                pictures.jpegs.push(jpeg);
            }
        }
        Ok(pictures)
    }

    /// The number in the name of the image's CSS class, `p…`, if its thumbnail was made.
    pub(super) fn number(&self, split: Split, file: &str) -> Option<usize> {
        self.numbers.get(&(split, file)).copied()
    }

    pub(super) fn css(&self) -> String {
        let mut css = String::new();
        for (number, jpeg) in self.jpegs.iter().enumerate() {
            let data = BASE64_STANDARD.encode(jpeg);
            writeln!(css, ".p{number}{{background-image:url(data:image/jpeg;base64,{data})}}")
                .expect("a String takes every byte");
        }
        css
    }
}
