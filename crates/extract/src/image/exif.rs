//! Which way up an image is, by the rules of Pillow's `ImageOps.exif_transpose`: the first folder of tags of its EXIF
//! says so, and if that has no such tag, its XMP.

use image::metadata::Orientation;

/// What a file says of its image, beside the pixels.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// A TIFF header with tags, with or without `Exif\0\0` before it.
    pub(super) exif: Option<Vec<u8>>,
    /// XML.
    pub(super) xmp: Option<Vec<u8>>,
}

impl Metadata {
    /// What must be done to the pixels. Nothing, if the file does not say it in a way that can be understood.
    pub(super) fn orientation(&self) -> Orientation {
        let exif = self.exif.as_deref().map(|mut exif| {
            while let Some(rest) = exif.strip_prefix(b"Exif\0\0") {
                exif = rest;
            }
            exif
        });
        orientation(exif.and_then(Ifd::first).as_ref(), self.xmp.as_deref())
    }
}

/// The same, where the tags have been read.
pub(super) fn orientation(tags: Option<&Ifd<'_>>, xmp: Option<&[u8]>) -> Orientation {
    const ORIENTATION: u16 = 0x0112;
    let number = match tags.and_then(|tags| tags.get(ORIENTATION)) {
        Some(field) => field.number(),
        None => xmp.and_then(of_xmp),
    };
    let known = number.filter(|number| number.fract() == 0.0 && (1.0..=8.0).contains(number));
    known
        .and_then(|number| Orientation::from_exif(number as u8))
        .unwrap_or(Orientation::NoTransforms)
}

/// `tiff:Orientation="6"` or `tiff:Orientation>6`.
fn of_xmp(xmp: &[u8]) -> Option<f64> {
    const NAME: &[u8] = b"tiff:Orientation";
    let after = |place: usize| {
        let rest = &xmp[place + NAME.len()..];
        rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">"))?.first().copied()
    };
    let places = (0..xmp.len()).filter(|&place| xmp[place..].starts_with(NAME));
    let digit = places.filter_map(after).find(u8::is_ascii_digit)?;
    Some(f64::from(digit - b'0'))
}

/// The tags of a TIFF or of EXIF data: an *image file directory* (TIFF 6.0, section 2; BigTIFF).
#[derive(Debug)]
pub(super) struct Ifd<'a> {
    fields: Vec<(u16, Field<'a>)>,
}

/// The values of a tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    /// The type of the values, by TIFF's number.
    kind: u16,
    order: Order,
    /// Where in the file the values begin.
    place: usize,
    bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    /// A whole number of up to eight bytes.
    fn whole(self, bytes: &[u8]) -> u64 {
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        match self {
            Order::Little => bytes.iter().rev().fold(0, join),
            Order::Big => bytes.iter().fold(0, join),
        }
    }
}

impl<'a> Ifd<'a> {
    /// The first directory, without what lies outside of the file; `None` if the bytes have no TIFF header.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        let order = match bytes.get(..2)? {
            b"II" => Order::Little,
            b"MM" => Order::Big,
            _ => return None,
        };
        let is_big = match order.whole(bytes.get(2..4)?) {
            42 => false,
            43 => true,
            _ => return None,
        };
        // The sizes of an offset, of the number of entries, and of an entry.
        let (wide, counted, size) = if is_big { (8, 8, 20) } else { (4, 2, 12) };
        let whole = |start: usize, length: usize| Some(order.whole(bytes.get(start..start.checked_add(length)?)?));
        let start = usize::try_from(whole(if is_big { 8 } else { 4 }, wide)?).ok()?;
        let n = whole(start, counted)?;
        let mut fields = Vec::new();
        for entry in 0..n {
            let at = usize::try_from(entry).ok().and_then(|entry| {
                let at = entry.checked_mul(size)?.checked_add(start)?.checked_add(counted)?;
                // Of an entry that is cut short, nothing is known.
                bytes.get(at..at.checked_add(size)?).map(|_| at)
            });
            let Some(at) = at else { break };
            let (Some(tag), Some(kind), Some(count)) = (whole(at, 2), whole(at + 2, 2), whole(at + 4, wide)) else {
                break;
            };
            let Some(length) = size_of_kind(kind).and_then(|size| count.checked_mul(size)) else {
                continue;
            };
            let value = at + 4 + wide;
            let from = if length <= wide as u64 {
                Some(value as u64)
            } else {
                whole(value, wide)
            };
            let Some(place) = from.and_then(|from| usize::try_from(from).ok()) else {
                continue;
            };
            let end = usize::try_from(length)
                .ok()
                .and_then(|length| place.checked_add(length));
            if let Some(bytes) = end
                .and_then(|end| bytes.get(place..end))
                .filter(|bytes| !bytes.is_empty())
            {
                let kind = kind as u16;
                fields.push((
                    tag as u16,
                    Field {
                        kind,
                        order,
                        place,
                        bytes,
                    },
                ));
            }
        }
        Some(Ifd { fields })
    }

    /// The values of a tag; the last, if it is there twice.
    pub(super) fn get(&self, tag: u16) -> Option<Field<'a>> {
        self.fields
            .iter()
            .rev()
            .find(|(known, _)| *known == tag)
            .map(|(_, field)| *field)
    }
}

impl<'a> Field<'a> {
    /// The first value, if it is a number. Bytes and text are none.
    pub(super) fn number(&self) -> Option<f64> {
        let Field { kind, order, bytes, .. } = *self;
        let size = size_of_kind(u64::from(kind))? as usize;
        let first = bytes.get(..size)?;
        let signed = |bytes: &[u8]| {
            let unused = 64 - 8 * bytes.len() as u32;
            ((order.whole(bytes) << unused) as i64 >> unused) as f64
        };
        let unsigned = |bytes: &[u8]| order.whole(bytes) as f64;
        Some(match kind {
            3 | 4 | 13 | 16 => unsigned(first),
            6 | 8 | 9 | 17 => signed(first),
            5 => unsigned(&first[..4]) / unsigned(&first[4..]),
            10 => signed(&first[..4]) / signed(&first[4..]),
            11 => f64::from(f32::from_bits(order.whole(first) as u32)),
            12 => f64::from_bits(order.whole(first)),
            _ => return None,
        })
    }

    /// Where in the file the values begin.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// The bytes of all values, as the file has them.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// All values, if they are whole numbers without a sign.
    pub(super) fn whole_numbers(&self) -> Option<Vec<u64>> {
        matches!(self.kind, 1 | 3 | 4 | 13 | 16).then(|| {
            let size = size_of_kind(u64::from(self.kind)).unwrap_or(1) as usize;
            self.bytes
                .chunks_exact(size)
                .map(|value| self.order.whole(value))
                .collect()
        })
    }
}

/// The size of a value in bytes, by TIFF's number of its type.
fn size_of_kind(kind: u64) -> Option<u64> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 | 17 | 18 => 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EXIF data with one tag.
    fn exif(order: Order, tag: u16, kind: u16, count: u32, value: [u8; 4]) -> Vec<u8> {
        let put = |bytes: &mut Vec<u8>, number: u32, length: usize| match order {
            Order::Little => bytes.extend(&number.to_le_bytes()[..length]),
            Order::Big => bytes.extend(&number.to_be_bytes()[4 - length..]),
        };
        let mut bytes = if order == Order::Little {
            b"II".to_vec()
        } else {
            b"MM".to_vec()
        };
        put(&mut bytes, 42, 2);
        put(&mut bytes, 8, 4);
        put(&mut bytes, 1, 2);
        put(&mut bytes, u32::from(tag), 2);
        put(&mut bytes, u32::from(kind), 2);
        put(&mut bytes, count, 4);
        bytes.extend(value);
        bytes.extend([0; 4]);
        bytes
    }

    fn turned(exif: Vec<u8>, xmp: Option<&str>) -> u8 {
        let metadata = Metadata {
            exif: Some(exif),
            xmp: xmp.map(|xmp| xmp.as_bytes().to_vec()),
        };
        metadata.orientation().to_exif()
    }

    #[test]
    fn numbers_of_any_type_turn_an_image_and_bytes_and_text_do_not() {
        // What Pillow 13.0.0 does with the same bytes.
        for (order, kind, count, value, expected) in [
            (Order::Big, 3, 1, [0, 6, 0, 0], 6),
            (Order::Little, 3, 1, [8, 0, 0, 0], 8),
            (Order::Big, 4, 1, [0, 0, 0, 6], 6),
            (Order::Little, 4, 1, [5, 0, 0, 0], 5),
            (Order::Little, 8, 1, [3, 0, 0, 0], 3),
            (Order::Little, 3, 2, [6, 0, 8, 0], 6),
            (Order::Little, 11, 1, 6f32.to_le_bytes(), 6),
            (Order::Little, 1, 1, [6, 0, 0, 0], 1),
            (Order::Little, 2, 2, [b'6', 0, 0, 0], 1),
            (Order::Little, 3, 1, [9, 0, 0, 0], 1),
            (Order::Little, 3, 1, [0, 0, 0, 0], 1),
            (Order::Little, 3, 0, [6, 0, 0, 0], 1),
            (Order::Little, 99, 1, [6, 0, 0, 0], 1),
        ] {
            let found = turned(exif(order, 0x0112, kind, count, value), None);
            assert_eq!(found, expected, "{order:?} {kind} {count} {value:?}");
        }
    }

    #[test]
    fn xmp_is_asked_if_exif_does_not_say_it() {
        let silent = exif(Order::Big, 0x0110, 3, 1, [0, 6, 0, 0]);
        let says_1 = exif(Order::Big, 0x0112, 3, 1, [0, 1, 0, 0]);
        assert_eq!(turned(silent.clone(), Some(r#"<x tiff:Orientation="8"/>"#)), 8);
        assert_eq!(
            turned(silent.clone(), Some("<tiff:Orientation>3</tiff:Orientation>")),
            3
        );
        assert_eq!(turned(silent, Some("<tiff:Orientation/>")), 1);
        assert_eq!(turned(says_1, Some(r#"<x tiff:Orientation="8"/>"#)), 1);
    }

    #[test]
    fn exif_may_begin_with_its_name_and_may_be_cut_short_anywhere() {
        let whole = [b"Exif\0\0".to_vec(), exif(Order::Little, 0x0112, 3, 1, [6, 0, 0, 0])].concat();
        assert_eq!(turned(whole.clone(), None), 6);
        for length in 0..whole.len() {
            let expected = if length >= whole.len() - 4 { 6 } else { 1 };
            assert_eq!(turned(whole[..length].to_vec(), None), expected, "{length} bytes");
        }
    }
}
