//! Names of files and folders as text, also those that are not UTF-8, without loss.
//!
//! Everywhere inside Luthier a name is a `String`. Each byte of a name that is not part of UTF-8, such as the `\xE9` of a
//! `caf\xE9.jpg` from an old camera or archive, is one of the 128 private characters U+EF80 to U+EFFF there (as in
//! MirBSD's OPTU-8). A name that has such a character of its own keeps its three bytes in the same way.
//!
//! At the borders a name is what it was: [`bytes_of`] and [`path_of`] have its bytes, for CSV files and the file system.
//! In JSON, which has text alone, the byte is written as Python's `os.fsdecode` has it: [`to_json`] writes `\udce9`, so
//! that `json.load` gives a name that `open` finds. [`shown`] is for people, and [`printable`] for a terminal.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// The character of the byte 0.
const FIRST: u32 = 0xEF00;

/// What UTF-16 has for the byte 0 in Python's names.
const FIRST_SURROGATE: u32 = 0xDC00;

/// The byte that a character stands for, if it stands for one: 0x80 to 0xFF.
fn byte(c: char) -> Option<u8> {
    u8::try_from(u32::from(c).checked_sub(FIRST)?)
        .ok()
        .filter(|byte| !byte.is_ascii())
}

fn push_bytes(bytes: &[u8], name: &mut String) {
    let char = |byte: &u8| char::from_u32(FIRST + u32::from(*byte)).expect("a private character");
    name.extend(bytes.iter().map(char));
}

/// A name, given by its bytes.
pub fn name_of_bytes(bytes: &[u8]) -> String {
    let mut name = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        match chunk.valid().contains(|c| byte(c).is_some()) {
            false => name.push_str(chunk.valid()),
            true => chunk.valid().chars().for_each(|c| match byte(c) {
                Some(_) => push_bytes(c.encode_utf8(&mut [0; 4]).as_bytes(), &mut name),
                None => name.push(c),
            }),
        }
        push_bytes(chunk.invalid(), &mut name);
    }
    name
}

/// The bytes of a name.
pub fn bytes_of(name: &str) -> Cow<'_, [u8]> {
    if !name.contains(|c| byte(c).is_some()) {
        return Cow::Borrowed(name.as_bytes());
    }
    let mut bytes = Vec::with_capacity(name.len());
    for c in name.chars() {
        match byte(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// The name of a path. On systems whose names are not bytes, what is not Unicode becomes U+FFFD.
pub fn name_of(path: &Path) -> String {
    #[cfg(unix)]
    return name_of_bytes(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
    #[cfg(not(unix))]
    return path.to_string_lossy().into_owned();
}

/// The path of a name.
pub fn path_of(name: &str) -> PathBuf {
    #[cfg(unix)]
    return PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(
        bytes_of(name).into_owned(),
    ));
    #[cfg(not(unix))]
    return PathBuf::from(name);
}

/// A name, or any text with names in it, for people: U+FFFD for what is not UTF-8.
pub fn shown(text: &str) -> Cow<'_, str> {
    match text.contains(|c| byte(c).is_some()) {
        true => Cow::Owned(String::from_utf8_lossy(&bytes_of(text)).into_owned()),
        false => Cow::Borrowed(text),
    }
}

/// A name without what would move the cursor or turn the writing around: such characters are escaped. Bytes that are
/// not UTF-8 are U+FFFD.
pub fn printable(name: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut printable = String::with_capacity(name.len());
    for c in shown(name).chars() {
        if c.is_control() || turns(c) {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

/// JSON for other programs, with Python's surrogates for the bytes that are not UTF-8.
pub fn to_json(json: String) -> String {
    if !json.contains(|c| byte(c).is_some()) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match byte(c) {
            Some(byte) => escaped += &format!("\\u{:04x}", FIRST_SURROGATE + u32::from(byte)),
            None => escaped.push(c),
        }
    }
    escaped
}

/// What [`to_json`] was given, or any other JSON as it is.
pub fn from_json(json: &str) -> Cow<'_, str> {
    if !json.contains('\\') {
        return Cow::Borrowed(json);
    }
    let mut plain = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(start) = rest.find('\\') {
        plain += &rest[..start];
        let (escape, after) = rest[start..].split_at(escape_length(&rest[start..]));
        let of_byte = (code(escape).filter(|_| escape.len() == 6))
            .and_then(|code| char::from_u32(FIRST + code.checked_sub(FIRST_SURROGATE)?))
            .filter(|c| byte(*c).is_some());
        match of_byte {
            Some(c) => plain.push(c),
            None => plain += escape,
        }
        rest = after;
    }
    Cow::Owned(plain + rest)
}

/// The number in an escape such as `\u00e9`.
fn code(escape: &str) -> Option<u32> {
    let digits = escape.strip_prefix("\\u")?.get(..4)?;
    u32::from_str_radix(digits, 16).ok()
}

/// How many bytes the escape has that a text begins with. An emoji is a pair of surrogates, of which the second stands for no
/// byte.
fn escape_length(text: &str) -> usize {
    match code(text) {
        Some(0xD800..0xDC00) if code(&text[6..]).is_some() => 12,
        Some(_) => 6,
        None => text.char_indices().nth(2).map_or(text.len(), |(end, _)| end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back() {
        for name in [
            &b"harp.jpg"[..],
            "café 二胡 🎻.jpg".as_bytes(),
            b"caf\xE9.jpg",
            b"\xFF\xFE\x80",
            // The character that stands for \xE9, as a name of its own, and half of it.
            "\u{EFE9}".as_bytes(),
            b"\xEE\xBF",
            b"",
        ] {
            let text = name_of_bytes(name);
            assert_eq!(*bytes_of(&text), *name, "{}", name.escape_ascii());
            assert_eq!(name_of(&path_of(&text)), text);
            let json = to_json(serde_json::to_string(&text).unwrap());
            assert_eq!(serde_json::from_str::<String>(&from_json(&json)).unwrap(), text);
        }
    }

    #[test]
    fn a_byte_that_is_no_utf8_is_a_surrogate_in_json_and_a_question_to_people() {
        let name = name_of_bytes(b"caf\xE9.jpg");
        assert_eq!(to_json(serde_json::to_string(&name).unwrap()), r#""caf\udce9.jpg""#);
        assert_eq!(shown(&name), "caf\u{FFFD}.jpg");
        assert_eq!(shown("café.jpg"), "café.jpg");
    }

    #[test]
    fn names_stay_on_their_line() {
        assert_eq!(
            printable("é \n\u{1b}[2J\u{202e}gpj.\u{7f}"),
            "é \\n\\u{1b}[2J\\u{202e}gpj.\\u{7f}"
        );
    }

    #[test]
    fn other_escapes_are_left_alone() {
        for json in [
            r#""\\udce9""#,
            r#""\ud83c\udfbb""#,
            r#""\ud83c\udc80""#,
            r#""\u00e9\n\"""#,
            r#""\udc"#,
            r#""\"#,
            r#""\u12é4""#,
        ] {
            assert_eq!(from_json(json), json);
        }
        assert_eq!(from_json(r#"{"a": "\\\uDCE9"}"#), "{\"a\": \"\\\\\u{EFE9}\"}");
    }
}
