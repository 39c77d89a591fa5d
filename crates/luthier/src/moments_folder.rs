//! The folder `moments/`: the moments of training features, a safetensors file for each part of the images. They add up.

use std::fs::read_dir;
use std::path::{Path, PathBuf};

use luthier_artifact::{Digest, ExtractorInfo, Tensors, TensorsBuilder, write_atomically};
use luthier_features::Moments;
use ndarray::Array1;
use serde::{Deserialize, Serialize};

use crate::export::tidy;
use crate::pipeline::describe_extractor;
use crate::shard::Shard;
use crate::words::counted;
use crate::{Error, Result};

const FORMAT: &str = "moments/2";

/// What is said of the moments of a part. The tensors beside it are `mean`, `f64 [d]`, and `comoments`,
/// `f64 [d (d + 1) / 2]`, as [`Moments::comoments`] has them.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    part: u64,
    of: u64,
    n_rows: usize,
    /// The digest of the manifest of all images: parts of other data do not add up.
    images: Digest,
    extractor: ExtractorInfo,
    /// The [`digest_of`] the moments: a file that was damaged on its way must not go into a model.
    digest: Digest,
}

/// What the moments of parts that add up have in common.
#[derive(Clone, Copy)]
pub(crate) struct TakenOf<'a> {
    /// The digest of the manifest of all images.
    pub(crate) images: Digest,
    /// How the features were made.
    pub(crate) extractor: &'a ExtractorInfo,
}

/// The name of the file of a part.
pub(crate) fn file_name(Shard { part, of }: Shard) -> String {
    format!("{part}-of-{of}.safetensors")
}

/// Writes the moments of a part; the result is the path of the file.
pub(crate) fn write(folder: &Path, shard: Shard, of: TakenOf<'_>, moments: &Moments) -> Result<PathBuf> {
    tidy(folder);
    let header = Header {
        part: shard.part,
        of: shard.of,
        n_rows: moments.n_rows(),
        images: of.images,
        extractor: of.extractor.clone(),
        digest: digest_of(moments),
    };
    let path = folder.join(file_name(shard));
    write_atomically(&path, &encode(&header, moments))?;
    Ok(path)
}

/// What stands for moments in a key.
pub(crate) fn digest_of(moments: &Moments) -> Digest {
    Digest::of(&encode(&moments.n_rows(), moments))
}

fn encode(header: &impl Serialize, moments: &Moments) -> Vec<u8> {
    TensorsBuilder::new(FORMAT, header)
        .tensor("mean", moments.mean())
        .tensor("comoments", &moments.comoments())
        .finish()
}

/// The moments of all parts, added up in the order of the parts. Their features must be made as `extractor` says.
///
/// # Errors
/// [`Error::Moments`] if parts are missing, damaged, of several divisions or of other features.
pub(crate) fn read(folder: &Path, extractor: &ExtractorInfo) -> Result<Moments> {
    let of = number_of_parts(folder)?;
    let read = |part| read_part(folder, Shard { part, of }, extractor);
    let (images, mut sum) = read(1)?;
    for part in 2..=of {
        let (of_other, moments) = read(part)?;
        if of_other != images {
            return Err(Error::Moments {
                path: folder.join(file_name(Shard { part, of })),
                expected: format!("the images of {}", file_name(Shard { part: 1, of })),
                found: "others: images, labels or the draw for the test have changed".to_owned(),
            });
        }
        sum.merge(&moments)?;
    }
    Ok(sum)
}

/// Into how many parts the images are divided.
#[expect(clippy::disallowed_methods, reason = "what is found is sorted")]
fn number_of_parts(folder: &Path) -> Result<u64> {
    let mut parts: Vec<Shard> = Vec::new();
    for entry in read_dir(folder).map_err(Error::io(folder))? {
        let name = entry.map_err(Error::io(folder))?.file_name();
        let numbers = name.to_str().and_then(|name| name.strip_suffix(".safetensors"));
        let part: Option<Shard> = numbers.and_then(|numbers| numbers.replacen("-of-", "/", 1).parse().ok());
        parts.extend(part.filter(|part| file_name(*part).as_str() == name));
    }
    parts.sort_by_key(|part| (part.of, part.part));
    let wrong = |expected: String, found: String| Error::Moments {
        path: folder.to_owned(),
        expected,
        found,
    };
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return Err(wrong(
            "what `luthier moments` writes".to_owned(),
            "nothing of it".to_owned(),
        ));
    };
    if first.of != last.of {
        return Err(wrong(
            "parts of one division, and the files of others removed".to_owned(),
            format!("{first} beside {last}"),
        ));
    }
    if let Some(missing) = (1..=first.of).find(|&part| parts.iter().all(|found| found.part != part)) {
        return Err(wrong(
            counted(first.of as usize, "part"),
            format!(
                "{}: no {}",
                parts.len(),
                file_name(Shard {
                    part: missing,
                    ..*first
                })
            ),
        ));
    }
    Ok(first.of)
}

/// The moments of a part, and the digest of the manifest of all images.
fn read_part(folder: &Path, shard: Shard, extractor: &ExtractorInfo) -> Result<(Digest, Moments)> {
    let path = folder.join(file_name(shard));
    let wrong = |expected: String, found: String| Error::Moments {
        path: path.clone(),
        expected,
        found,
    };
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let read = |bytes| -> luthier_artifact::Result<(Header, Moments)> {
        let tensors = Tensors::open(FORMAT, bytes)?;
        let header: Header = tensors.header()?;
        let (mean, comoments) = (tensors.vector("mean")?, tensors.vector("comoments")?);
        let check = |name: &str, values: &Array1<f64>| match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(tensors.wrong(format!("{value} in {name}"))),
            None => Ok(()),
        };
        check("mean", &mean)?;
        check("comoments", &comoments)?;
        let comoments = comoments.as_slice().expect("a new array is in C order");
        let length = comoments.len();
        let moments = Moments::from_parts(header.n_rows, mean, comoments)
            .ok_or_else(|| tensors.wrong(format!("{length} comoments")))?;
        Ok((header, moments))
    };
    let (header, moments) = read(&bytes).map_err(|error| match error {
        luthier_artifact::Error::Format { expected, found } => wrong(expected.to_owned(), found),
        other => other.into(),
    })?;
    let digest = digest_of(&moments);
    if digest != header.digest {
        return Err(wrong(
            format!("moments with the digest {}…", header.digest.short()),
            format!("{}…", digest.short()),
        ));
    }
    let found = Shard {
        part: header.part,
        of: header.of,
    };
    if found != shard {
        return Err(wrong(format!("part {shard}"), format!("part {found}")));
    }
    if !header.extractor.is_same(extractor) {
        return Err(wrong(
            format!("moments of {}", describe_extractor(extractor)),
            format!("moments of {}", describe_extractor(&header.extractor)),
        ));
    }
    Ok((header.images, moments))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn moments_that_were_damaged_or_are_not_finite_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let extractor = ExtractorInfo {
            views: vec!["squash".to_owned()],
            pooling: "mean".to_owned(),
            combine: "mean".to_owned(),
            decode: "scaled".to_owned(),
            weights: "untrained".to_owned(),
            weights_sha256: "0".repeat(64),
            precision: "fp32".to_owned(),
        };
        let images = Digest::of(b"images");
        let of = TakenOf {
            images,
            extractor: &extractor,
        };
        let moments = Moments::of(array![[1.0f32, 2.0], [3.0, 5.0]].view()).unwrap();
        let path = write(folder.path(), Shard::ALL, of, &moments).unwrap();
        assert_eq!(read(folder.path(), &extractor).unwrap(), moments);

        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(folder.path(), &extractor).unwrap_err().to_string()
        };
        // The last number of the file with another lowest bit, and infinite.
        let start = &whole[..whole.len() - 8];
        let mut bit = whole.clone();
        bit[start.len()] ^= 1;
        let expected = format!(
            "{}: expected moments with the digest {}…, found ",
            path.display(),
            digest_of(&moments).short()
        );
        assert!(refused(&bit).starts_with(&expected), "{}", refused(&bit));
        let infinite = [start, &f64::INFINITY.to_le_bytes()].concat();
        let expected = format!("{}: expected moments/2, found inf in ", path.display());
        assert!(refused(&infinite).starts_with(&expected), "{}", refused(&infinite));
    }
}
