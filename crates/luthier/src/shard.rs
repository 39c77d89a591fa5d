use std::fmt;
use std::str::FromStr;

use luthier_artifact::{Content, Digest, Manifest};

/// A part of the images, for one of several machines: `3/64` is the third of 64 parts.
///
/// The digest of an image decides which part has it. So the parts are about equally large, the same on every machine, and
/// the same when other images come or go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub(crate) part: u64,
    pub(crate) of: u64,
}

impl Shard {
    /// All images.
    pub const ALL: Shard = Shard { part: 1, of: 1 };

    /// Whether this part has an image.
    pub fn has(&self, image: &Digest) -> bool {
        let first = image.as_bytes().first_chunk().expect("a digest is longer");
        u64::from_le_bytes(*first) % self.of == self.part - 1
    }

    /// The images of a manifest that this part has.
    pub(crate) fn of(&self, manifest: &Manifest) -> Manifest {
        let has = |content: &Content| content.digest().is_some_and(|digest| self.has(&digest));
        let entries = manifest.entries.iter().filter(|entry| has(&entry.content));
        Manifest::new(entries.cloned().collect())
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.part, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a part of all, 1/64 to 64/64 for instance, found {text:?}");
        let (part, of) = text.split_once('/').ok_or_else(wrong)?;
        let (part, of) = (part.parse().map_err(|_| wrong())?, of.parse().map_err(|_| wrong())?);
        let shard = Shard { part, of };
        (1..=of).contains(&part).then_some(shard).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_in_one_part_and_parts_are_even() {
        let shards: Vec<Shard> = (1..=8).map(|part| format!("{part}/8").parse().unwrap()).collect();
        let mut counts = [0; 8];
        for n in 0..8_000_u32 {
            let image = Digest::of(&n.to_le_bytes());
            let having: Vec<usize> = (0..8).filter(|&part| shards[part].has(&image)).collect();
            assert_eq!(having.len(), 1);
            counts[having[0]] += 1;
        }
        assert!(counts.iter().all(|count| (900..1_100).contains(count)), "{counts:?}");
    }

    #[test]
    fn parts_are_counted_from_one() {
        assert_eq!("3/64".parse::<Shard>().unwrap().to_string(), "3/64");
        for wrong in ["0/4", "5/4", "1/0", "1", "a/b", "-1/4", ""] {
            assert!(wrong.parse::<Shard>().unwrap_err().contains("1/64 to 64/64"), "{wrong}");
        }
    }
}
