use strum::VariantNames;

/// A name that none of the variants of an enum has.
///
/// An enum whose variants have names derives them from `strum`, and names what it is a choice of once:
///
/// ```
/// use luthier_artifact::UnknownName;
///
/// #[derive(Debug, PartialEq, strum::Display, strum::EnumString, strum::VariantNames)]
/// #[strum(serialize_all = "kebab-case", parse_err_ty = UnknownName, parse_err_fn = unknown_view)]
/// enum View {
///     Squash,
///     CropMirror,
/// }
///
/// fn unknown_view(found: &str) -> UnknownName {
///     UnknownName::of::<View>("view", found)
/// }
///
/// assert_eq!(View::CropMirror.to_string(), "crop-mirror");
/// assert_eq!("squash".parse(), Ok(View::Squash));
/// assert_eq!(
///     "zoom".parse::<View>().unwrap_err().to_string(),
///     "view is \"zoom\", expected squash or crop-mirror"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {found:?}, expected {}", alternatives(expected))]
pub struct UnknownName {
    /// What the name was to choose, for example `solver`.
    pub what: &'static str,
    /// The unknown name.
    pub found: String,
    /// The names of all variants.
    pub expected: &'static [&'static str],
}

impl UnknownName {
    /// The error for a name that no variant of `T` has, for strum's `parse_err_fn`.
    pub fn of<T: VariantNames>(what: &'static str, found: &str) -> Self {
        UnknownName {
            what,
            found: found.to_owned(),
            expected: T::VARIANTS,
        }
    }
}

/// The names as a list: `a`, `a or b`, `a, b or c`.
fn alternatives(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_read_as_a_list() {
        let lists = [&["a"][..], &["a", "b"], &["a", "b", "c"]].map(alternatives);
        assert_eq!(lists, ["a", "a or b", "a, b or c"]);
    }
}
