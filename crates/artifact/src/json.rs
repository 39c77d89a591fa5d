//! The JSON form of an artifact: the array `[format, value]`.
//!
//! Numbers read back bit for bit, because `serde_json` is built with `float_roundtrip`.

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::{Error, Result};

/// The bytes of `value` under the name of its `format`, for [`Artifact::encode`](crate::Artifact::encode).
///
/// # Panics
/// If JSON cannot hold the value: a map whose keys are not strings, or a `Serialize` that fails. Plain data always
/// serialize.
pub fn encode<T: Serialize>(format: &str, value: &T) -> Vec<u8> {
    serde_json::to_vec(&(format, value)).expect("plain data always serialize")
}

/// Reads what [`encode`] wrote, for [`Artifact::decode`](crate::Artifact::decode).
///
/// # Errors
/// [`Error::Format`] if the bytes are of another format, or are not the JSON of a `T`.
pub fn decode<T: DeserializeOwned>(format: &'static str, bytes: &[u8]) -> Result<T> {
    let found = match serde_json::from_slice::<(String, T)>(bytes) {
        Ok((found, value)) if found == format => return Ok(value),
        Ok((found, _)) => found,
        // A value of another format mostly has other fields: then the format is the better reason.
        Err(error) => match serde_json::from_slice::<(String, IgnoredAny)>(bytes) {
            Ok((found, _)) if found != format => found,
            _ => error.to_string(),
        },
    };
    Err(Error::Format {
        expected: format,
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "pairs/1";

    fn refused(bytes: &[u8]) -> String {
        decode::<Vec<(u32, f64)>>(FORMAT, bytes).unwrap_err().to_string()
    }

    #[test]
    fn decodes_what_it_encoded_to_the_last_bit() {
        let value = vec![(1u32, 0.1f64), (2, f64::MIN_POSITIVE), (3, 1.0 - f64::EPSILON)];
        let bytes = encode(FORMAT, &value);
        assert!(bytes.starts_with(br#"["pairs/1",[[1,0.1],"#));
        assert_eq!(decode::<Vec<(u32, f64)>>(FORMAT, &bytes).unwrap(), value);
    }

    #[test]
    fn another_format_is_named_whatever_its_value_looks_like() {
        for bytes in [br#"["pairs/2",[]]"#.as_slice(), br#"["pairs/2",{"left":1}]"#] {
            assert_eq!(refused(bytes), "expected pairs/1, found pairs/2");
        }
    }

    #[test]
    fn bytes_that_are_not_the_value_say_what_is_wrong() {
        assert_eq!(
            refused(b""),
            "expected pairs/1, found EOF while parsing a value at line 1 column 0"
        );
        assert_eq!(
            refused(br#"["pairs/1",[[1,true]]]"#),
            "expected pairs/1, found invalid type: boolean `true`, expected f64 at line 1 column 19"
        );
    }
}
