//! Standard input: a list of paths, which may still be growing, or an image.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result};
use luthier_extract::Observer as _;

use crate::terminal::Progress;

/// How many paths are read ahead, and predicted together if they are there.
const AHEAD: usize = 1024;

/// How soon an interrupt is noticed while nothing comes.
const TICK: Duration = Duration::from_millis(100);

/// The first bytes of the formats that are read; `None` stands for any byte. They are as long as it takes to tell them
/// from a list of paths: one may begin with `BM`.
const MAGICS: [&[Option<u8>]; 15] = [
    &[Some(0xff), Some(0xd8), Some(0xff)],
    &[Some(0x89), Some(b'P'), Some(b'N'), Some(b'G')],
    &[Some(b'G'), Some(b'I'), Some(b'F'), Some(b'8'), Some(b'7'), Some(b'a')],
    &[Some(b'G'), Some(b'I'), Some(b'F'), Some(b'8'), Some(b'9'), Some(b'a')],
    &[
        Some(b'B'),
        Some(b'M'),
        None,
        None,
        None,
        None,
        Some(0),
        Some(0),
        Some(0),
        Some(0),
    ],
    &[
        Some(b'R'),
        Some(b'I'),
        Some(b'F'),
        Some(b'F'),
        None,
        None,
        None,
        None,
        Some(b'W'),
        Some(b'E'),
        Some(b'B'),
        Some(b'P'),
    ],
    &[Some(b'I'), Some(b'I'), Some(b'*'), Some(0)],
    &[Some(b'M'), Some(b'M'), Some(0), Some(b'*')],
    // BigTIFF.
    &[Some(b'I'), Some(b'I'), Some(b'+'), Some(0)],
    &[Some(b'M'), Some(b'M'), Some(0), Some(b'+')],
    // HEIC, AVIF and others of their family.
    &[
        Some(0),
        Some(0),
        Some(0),
        None,
        Some(b'f'),
        Some(b't'),
        Some(b'y'),
        Some(b'p'),
    ],
    // JPEG XL and JPEG 2000, each in a file of boxes and bare.
    &[
        Some(0),
        Some(0),
        Some(0),
        Some(12),
        Some(b'J'),
        Some(b'X'),
        Some(b'L'),
        Some(b' '),
    ],
    &[
        Some(0),
        Some(0),
        Some(0),
        Some(12),
        Some(b'j'),
        Some(b'P'),
        Some(b' '),
        Some(b' '),
    ],
    &[Some(0xff), Some(0x0a)],
    &[Some(0xff), Some(0x4f), Some(0xff), Some(0x51)],
];

/// What comes on standard input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// The path of an image, or of something else.
    Path(PathBuf),
    /// All of an image's bytes.
    Image(Vec<u8>),
}

/// Standard input, read by a thread of its own.
pub(super) struct Piped {
    items: Receiver<io::Result<Item>>,
}

impl Piped {
    /// Begins to read.
    pub(super) fn start() -> Self {
        let (send, items) = sync_channel(AHEAD);
        std::thread::spawn(move || {
            let sent = read_items(io::stdin().lock(), |item| send.send(Ok(item)).is_ok());
            if let Err(error) = sent {
                // Without a receiver nobody wants to know.
                send.send(Err(error)).ok();
            }
        });
        Piped { items }
    }

    /// Waits for what comes next, and takes what is there already; `None` at the end.
    pub(super) fn next(&mut self, progress: &Progress) -> Result<Option<Vec<Item>>> {
        let first = loop {
            match self.items.recv_timeout(TICK) {
                Ok(first) => break first,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if progress.is_interrupted() => {
                    return Err(luthier_extract::Error::Interrupted.into());
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        let items = std::iter::once(first).chain(self.items.try_iter()).take(AHEAD);
        items.collect::<io::Result<_>>().map(Some).context("standard input")
    }
}

/// Reads an image, or paths that end in a newline or, if there is one at the beginning, in a NUL as `find -print0` has it.
/// Each is passed on as soon as it is there, until `pass_on` says that nobody wants more.
fn read_items(mut input: impl Read, mut pass_on: impl FnMut(Item) -> bool) -> io::Result<()> {
    let mut head = Vec::new();
    let mut chunk = [0; 1 << 16];
    // As much as tells an image from a list, and a list's separator.
    while !is_image(&head) && (could_be_image(&head) || !head.iter().any(|byte| is_separator(*byte))) {
        let n = input.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        head.extend(&chunk[..n]);
    }
    if is_image(&head) {
        input.read_to_end(&mut head)?;
        pass_on(Item::Image(head));
        return Ok(());
    }
    // The byte order mark that Windows puts before a list.
    if head.starts_with(b"\xEF\xBB\xBF") {
        head.drain(..3);
    }
    let separator = if head.contains(&0) { 0 } else { b'\n' };
    let mut list = BufReader::new(Cursor::new(head).chain(input));
    let mut path = Vec::new();
    while list.read_until(separator, &mut path)? > 0 {
        if path.last() == Some(&separator) {
            path.pop();
            if separator == b'\n' && path.last() == Some(&b'\r') {
                path.pop();
            }
        }
        if !path.is_empty() && !pass_on(Item::Path(as_path(std::mem::take(&mut path)))) {
            break;
        }
    }
    Ok(())
}

fn is_separator(byte: u8) -> bool {
    byte == b'\n' || byte == 0
}

fn is_image(head: &[u8]) -> bool {
    MAGICS
        .iter()
        .any(|magic| head.len() >= magic.len() && begins_alike(magic, head))
}

/// Whether more bytes could make it an image.
fn could_be_image(head: &[u8]) -> bool {
    MAGICS.iter().any(|magic| begins_alike(magic, head))
}

fn begins_alike(magic: &[Option<u8>], head: &[u8]) -> bool {
    let mut pairs = magic.iter().zip(head);
    pairs.all(|(expected, found)| expected.is_none_or(|expected| expected == *found))
}

#[cfg(unix)]
fn as_path(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(not(unix))]
fn as_path(bytes: Vec<u8>) -> PathBuf {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time, as a pipe may.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = buffer.len().min(1);
            self.0.read(&mut buffer[..n])
        }
    }

    fn items(input: impl Read) -> Vec<Item> {
        let mut items = Vec::new();
        read_items(input, |item| {
            items.push(item);
            true
        })
        .unwrap();
        items
    }

    #[track_caller]
    fn check(bytes: &[u8], paths: &[&str]) {
        let expected: Vec<Item> = paths.iter().map(|path| Item::Path(path.into())).collect();
        assert_eq!(items(bytes), expected);
    }

    #[test]
    fn paths_end_in_newlines_or_in_nuls() {
        check(b"a.jpg\nb c.jpg\n\nd.jpg", &["a.jpg", "b c.jpg", "d.jpg"]);
        check(b"a.jpg\r\nb.jpg\r\n", &["a.jpg", "b.jpg"]);
        check(b"a\nb.jpg\0c.jpg\0", &["a\nb.jpg", "c.jpg"]);
        check(b"x", &["x"]);
        check(b"", &[]);
        check(b"\n\n", &[]);
        check(b"\xEF\xBB\xBFa.jpg\r\nb.jpg\r\n", &["a.jpg", "b.jpg"]);
        // Beginnings of formats.
        check(b"BMW.jpg\nBM\n", &["BMW.jpg", "BM"]);
        check(b"BM\n", &["BM"]);
        check(b"RIFF/1.jpg\n", &["RIFF/1.jpg"]);
        check(b"GIF\nMM/1.tif\n", &["GIF", "MM/1.tif"]);
    }

    #[test]
    fn images_are_known_by_their_first_bytes_however_they_come() {
        for image in [
            &b"\xff\xd8\xff\xe0\0\x10JFIF"[..],
            b"\x89PNG\r\n\x1a\n\0\0",
            b"GIF89a\x01\0\n",
            b"BM\n\0\0\0\0\0\0\0\x36",
            b"RIFF\n\0\0\0WEBPVP8 ",
            b"II*\0\x08",
            b"MM\0*\0",
            b"MM\0+\0\x08",
            b"\0\0\0\x18ftypheic\0\0\0\0",
            b"\0\0\0\x0CJXL \r\n",
            b"\0\0\0\x0CjP  \r\n",
            b"\xff\x0a\x00\x10",
        ] {
            let expected = [Item::Image(image.to_vec())];
            assert_eq!(items(image), expected);
            assert_eq!(items(Trickle(image)), expected);
        }
    }

    /// Whoever reads on waits for ever.
    struct Silent;

    impl Read for Silent {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("read beyond what was asked for")
        }
    }

    #[test]
    fn a_path_is_passed_on_before_the_next_comes() {
        let mut passed = Vec::new();
        read_items((&b"a.jpg\nb.jpg\n"[..]).chain(Silent), |item| {
            passed.push(item);
            passed.len() < 2
        })
        .unwrap();
        assert_eq!(passed, ["a.jpg", "b.jpg"].map(|path| Item::Path(path.into())));
    }
}
