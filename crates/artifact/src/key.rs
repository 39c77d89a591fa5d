use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// One named part of a [`Key`]: a field of the configuration or the digest of an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPart {
    /// The name of the field or input.
    pub name: String,
    /// Its value as text.
    pub value: String,
}

/// What the result of a stage depends on. Two keys are the same if all their parts are.
///
/// The digest is blake3 over the stage's name, its version, and each part's name and value. Each
/// text is preceded by its length as 8 little-endian bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The stage's name.
    pub stage: String,
    /// Version, fields and inputs, in the order in which they were named.
    pub parts: Vec<KeyPart>,
}

impl Key {
    /// Starts the key of a stage. `version` changes when the stage's code gives other results.
    pub fn stage(name: &str, version: u32) -> KeyBuilder {
        KeyBuilder(Key {
            stage: name.to_owned(),
            parts: Vec::new(),
        })
        .field("version", version)
    }

    /// The digest by which the cache knows this key.
    pub fn digest(&self) -> Digest {
        let mut bytes = Vec::new();
        let mut push = |text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        push(&self.stage);
        for KeyPart { name, value } in &self.parts {
            push(name);
            push(value);
        }
        Digest::of(&bytes)
    }

    /// The value of a part.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parts
            .iter()
            .find(|part| part.name == name)
            .map(|part| part.value.as_str())
    }

    /// The parts whose values differ from `earlier`, as (name, earlier value, value). A missing
    /// part is `None`.
    pub fn differences<'a>(&'a self, earlier: &'a Key) -> Vec<(&'a str, Option<&'a str>, Option<&'a str>)> {
        let ours = self.parts.iter().map(|part| part.name.as_str());
        let gone = earlier
            .parts
            .iter()
            .map(|part| part.name.as_str())
            .filter(|name| self.get(name).is_none());
        ours.chain(gone)
            .map(|name| (name, earlier.get(name), self.get(name)))
            .filter(|(_, before, now)| before != now)
            .collect()
    }
}

/// Collects the parts of a [`Key`].
#[derive(Debug)]
pub struct KeyBuilder(Key);

impl KeyBuilder {
    /// Adds a field of the configuration.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Display) -> Self {
        self.0.parts.push(KeyPart {
            name: name.to_owned(),
            value: value.to_string(),
        });
        self
    }

    /// Adds an input by its digest.
    #[must_use]
    pub fn input(self, name: &str, digest: Digest) -> Self {
        self.field(name, digest)
    }

    /// The finished key.
    pub fn finish(self) -> Key {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> KeyBuilder {
        Key::stage("features", 1)
            .field("variance", 0.98)
            .input("train", Digest::of(b"rows"))
    }

    #[test]
    fn the_format_is_pinned() {
        // A change here makes every cache in the world miss: bump it knowingly.
        assert_eq!(
            example().finish().digest().to_string(),
            "8a14c7f165157fc60cceb78fae652029ddaecf38be40c8e5fa923e08d6c06528"
        );
    }

    #[test]
    fn lengths_keep_neighbouring_fields_apart() {
        let one = Key::stage("s", 1).field("ab", "c").finish();
        let other = Key::stage("s", 1).field("a", "bc").finish();
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn differences_name_what_changed_came_and_went() {
        let earlier = Key::stage("s", 1)
            .field("same", 1)
            .field("changed", 1)
            .field("gone", 1)
            .finish();
        let now = Key::stage("s", 1)
            .field("same", 1)
            .field("changed", 2)
            .field("new", 1)
            .finish();
        assert_eq!(
            now.differences(&earlier),
            [
                ("changed", Some("1"), Some("2")),
                ("new", None, Some("1")),
                ("gone", Some("1"), None)
            ]
        );
    }
}
