//! Names that people choose, and the files that are named after them.

use crate::error::{Result, TrainError};
use crate::identity::digest;

/// Bytes of a name, at most: file systems have room for 255.
const LONGEST: usize = 100;

/// Refuses names that could not be told apart, be shown, or name a file.
///
/// # Errors
/// [`TrainError::Config`] with the field.
pub(crate) fn check(field: &str, name: &str) -> Result<()> {
    let problem = if !name.chars().any(char::is_alphanumeric) {
        "has no letter or digit"
    } else if name.trim() != name {
        "begins or ends with a space"
    } else if name.chars().any(char::is_control) {
        "has a control character"
    } else if name.contains(['/', '\\']) {
        "has a `/` or `\\`: it is a name, not a path"
    } else if name.len() > LONGEST {
        "is longer than 100 bytes"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(LONGEST).collect();
    Err(TrainError::config(field, format!("`{}` {problem}", shown.escape_debug())))
}

/// A file's or folder's name for a name: another one for each, on file systems too that do not tell `a` from `A`, and one that
/// leads nowhere else. Plain names stay as they are.
pub fn file_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if !name.is_empty() && name.len() <= LONGEST && name.chars().all(plain) {
        return name.into();
    }
    let readable: String = name.chars().take(40).map(|c| if plain(c) { c } else { '_' }).collect();
    // No plain name has a `~`.
    format!("{readable}~{}", &digest([name.as_bytes()])[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn names_of_files_are_distinct_without_regard_to_case() {
        let long = ["x".repeat(300), "x".repeat(301)];
        let mut names =
            vec!["a b", "a_b", "a-b", "a.b", "A b", "a B", "fixed", "Fixed", "é", "è", "", ".", "..", "~", "con"];
        names.extend(long.iter().map(String::as_str));
        let files: std::collections::BTreeSet<String> =
            names.iter().map(|name| file_name(name).to_lowercase()).collect();
        assert_eq!(files.len(), names.len(), "{files:?}");
        assert_eq!(file_name("fixed-1_b"), "fixed-1_b");
    }

    proptest! {
        #[test]
        fn a_files_name_leads_nowhere_else(name in any::<String>()) {
            let file = file_name(&name);
            let parts: Vec<_> = Path::new(&file).components().collect();
            prop_assert!(matches!(parts[..], [Component::Normal(_)]) && file.len() < 120, "{}", file);
        }
    }

    #[test]
    fn names_that_mislead_are_refused() {
        for name in ["", " ", ".", "..", "---", "a/b", "../a", "/a", "a\\b", "a\0", "a\nb", " a", &"x".repeat(101)] {
            assert!(check("name", name).is_err(), "{name:?}");
        }
        for name in ["a", "a b", "fixed-1", "ceil(I · E)", "é", &"x".repeat(100)] {
            check("name", name).unwrap();
        }
    }
}
