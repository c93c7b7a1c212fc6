//! Reading a file whole, unless it is only what git-lfs leaves in its place.
//!
//! A repository that was cloned without git-lfs has small texts where its large files should be. What such a text says about
//! the format of a checkpoint or about JSON helps nobody.

use std::fs;
use std::io;
use std::path::Path;

/// How a pointer begins: git-lfs's specification, and the name that it had before.
const FIRST_LINES: [&[u8]; 2] =
    [b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"];

/// Pointers are shorter than this, by git-lfs's specification.
const LONGEST: usize = 1024;

/// The bytes of a file.
///
/// # Errors
/// A file that cannot be read, or a git-lfs pointer, which is named as what it is.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    refuse(&bytes)?;
    Ok(bytes)
}

/// The text of a file.
///
/// # Errors
/// As [`read`], and a file that is not UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    refuse(text.as_bytes())?;
    Ok(text)
}

/// Refuses a git-lfs pointer, for what was read by other means.
///
/// # Errors
/// The bytes are such a pointer.
pub fn refuse(bytes: &[u8]) -> io::Result<()> {
    if bytes.len() < LONGEST && FIRST_LINES.iter().any(|first| bytes.starts_with(first)) {
        let problem = "it is a git-lfs pointer, not the file itself: run `git lfs pull`";
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_git_lfs_pointer_is_named_as_what_it_is() -> io::Result<()> {
        let rest = "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
        let pointers = [
            format!("version https://git-lfs.github.com/spec/v1\n{rest}"),
            format!("version https://git-lfs.github.com/spec/v1\r\n{}", rest.replace('\n', "\r\n")),
            format!("version https://hawser.github.com/spec/v1\n{rest}"),
            format!("version https://git-lfs.github.com/spec/v1\next-0-foo sha256:00\n{rest}"),
        ];
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        for pointer in &pointers {
            fs::write(&path, pointer)?;
            for refused in [read(&path).map(drop), read_to_string(&path).map(drop)] {
                assert!(refused.is_err_and(|error| error.to_string().contains("git lfs pull")), "{pointer}");
            }
        }
        // A text about pointers is none.
        for text in [&pointers[0].repeat(10), " version https://git-lfs.github.com/spec/v1", "version 2", ""] {
            fs::write(&path, text)?;
            assert_eq!(read(&path)?, text.as_bytes());
            assert_eq!(read_to_string(&path)?, text);
        }
        Ok(())
    }
}
