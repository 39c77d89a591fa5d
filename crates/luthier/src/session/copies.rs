//! Files of which perhaps one is enough: of the same bytes, or of images that look the same.

use std::collections::{HashMap, HashSet};

use luthier_artifact::Digest;
use luthier_eval::LookAlikeGroup;

use super::{CopyOf, SessionFile, SessionImage};

/// How many files are compared at once: of more, what stays is compared with the next start.
const MOST: usize = 12;

/// Files that look the same.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    /// Two or more, by image.
    pub(super) files: Vec<CopyOf>,
    /// What they are spread over.
    pub(super) span: Span,
    pub(super) is_skipped: bool,
}

/// What copies are spread over, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// Several classes, of which one at most is right.
    Classes,
    /// Both splits, which makes figures too good.
    Splits,
    /// Neither.
    Neither,
}

impl Copies {
    fn new(files: Vec<CopyOf>, images: &[SessionImage]) -> Self {
        let of = |copy: &CopyOf| {
            let image = &images[copy.image];
            let SessionFile { split, class, .. } = &image.files[copy.file];
            (image.checked.as_ref().or(class.as_ref()), *split)
        };
        let (class, split) = of(&files[0]);
        let span = match () {
            () if files.iter().any(|copy| of(copy).0 != class) => Span::Classes,
            () if files.iter().any(|copy| of(copy).1 != split) => Span::Splits,
            () => Span::Neither,
        };
        Copies {
            files,
            span,
            is_skipped: false,
        }
    }
}

/// Whether files are of these images, in any order.
pub(super) fn are_of(files: &[CopyOf], images: &[usize]) -> bool {
    let own: HashSet<usize> = files.iter().map(|copy| copy.image).collect();
    own.len() == images.len() && images.iter().all(|image| own.contains(image))
}

/// All copies: those of the images that look the same, and those of the other images with several files.
pub(super) fn found(
    images: &[SessionImage],
    places: &HashMap<Digest, usize>,
    look_alikes: &[LookAlikeGroup],
) -> Vec<Copies> {
    let mut is_grouped = vec![false; images.len()];
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for LookAlikeGroup { images, .. } in look_alikes {
        let mut group: Vec<usize> = images.iter().filter_map(|image| places.get(image).copied()).collect();
        group.sort_unstable();
        group.iter().for_each(|&image| is_grouped[image] = true);
        groups.push(group);
    }
    groups.extend(
        (0..images.len())
            .filter(|&image| !is_grouped[image])
            .map(|image| vec![image]),
    );
    groups.sort();
    let files_of = |&image: &usize| (0..images[image].files.len()).map(move |file| CopyOf { image, file });
    let all = groups
        .iter()
        .map(|group| group.iter().flat_map(files_of).collect::<Vec<CopyOf>>());
    let some = all.flat_map(|files| files.chunks(MOST).map(<[CopyOf]>::to_vec).collect::<Vec<_>>());
    some.filter(|files| files.len() > 1)
        .map(|files| Copies::new(files, images))
        .collect()
}
