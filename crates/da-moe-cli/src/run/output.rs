//! Writing tensors to a safetensors file, whole or not at all.

use crate::result_buffer::ResultBuffer;
use crate::{Error, Result};
use da_moe::{Buffer, DType, Element, TensorRef};
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A tensor of the result.
#[derive(Clone, Debug)]
pub struct Output {
    /// Name in the file.
    pub name: &'static str,
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Buffer,
}

impl Output {
    fn new(name: &'static str, shape: &[usize], data: Buffer) -> Self {
        Self { name, shape: shape.to_vec(), data }
    }

    pub(super) fn of<const R: usize>(name: &'static str, result: ResultBuffer<R>) -> Result<Self> {
        Ok(Self::new(name, &result.shape, result.memory.to_host()?))
    }

    /// The first `shape` elements behind a view of the layer's buffers.
    pub(super) fn copy<T: Element, const R: usize, const S: usize>(
        name: &'static str,
        tensor: TensorRef<'_, R>,
        shape: [usize; S],
    ) -> Result<Self>
    where
        Buffer: From<Vec<T>>,
    {
        let count = shape.iter().product::<usize>();
        let host = tensor.data().to_host()?;
        match host.as_slice::<T>().and_then(|elements| elements.get(..count)) {
            Some(elements) => Ok(Self::new(name, &shape, elements.to_vec().into())),
            None => Err(da_moe::Error::DType {
                op: "run",
                argument: name,
                expected: T::DTYPE.to_string(),
                found: tensor.dtype(),
            }
            .into()),
        }
    }
}

impl View for &Output {
    fn dtype(&self) -> Dtype {
        match self.data.dtype() {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::I32 => Dtype::I32,
            DType::U8 => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.data {
            Buffer::F32(v) => bytes(v, |e| e.to_le_bytes()),
            Buffer::Bf16(v) => bytes(v, |e| e.to_le_bytes()),
            Buffer::F16(v) => bytes(v, |e| e.to_le_bytes()),
            Buffer::I32(v) => bytes(v, |e| e.to_le_bytes()),
            Buffer::U8(v) => Cow::Borrowed(v),
        }
    }

    fn data_len(&self) -> usize {
        self.data.len() * self.data.dtype().size()
    }
}

fn bytes<T: Element, const N: usize>(elements: &[T], encode: impl Fn(T) -> [u8; N]) -> Cow<'static, [u8]> {
    let mut bytes = Vec::with_capacity(elements.len() * N);
    elements.iter().for_each(|element| bytes.extend_from_slice(&encode(*element)));
    Cow::Owned(bytes)
}

/// Writes `tensors` to `path` by way of a temporary file beside it, so that `path` is never half written.
pub(super) fn write(path: &Path, tensors: &[Output]) -> Result<()> {
    let named = tensors.iter().map(|tensor| (tensor.name, tensor));
    let bytes = safetensors::serialize(named, None).map_err(|error| Error::Format(error.to_string()))?;
    replace(path, &bytes)
}

/// Puts `bytes` in the place of `path`, whole or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    attempt(path, bytes).map_err(|source| Error::Write { path: path.to_path_buf(), source })
}

fn attempt(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let there = fs::metadata(path).ok();
    // A device or pipe is written to, not replaced.
    if there.as_ref().is_some_and(|there| !there.is_file() && !there.is_dir()) {
        return fs::write(path, bytes);
    }
    let target = followed(path)?;
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut temporary = beside(folder, there.as_ref())?;
    temporary.write_all(bytes)?;
    temporary.persist(&target).map_err(|error| error.error)?;
    Ok(())
}

/// Where a link leads, whether there is a file yet or not: it keeps pointing there.
pub(crate) fn followed(path: &Path) -> io::Result<PathBuf> {
    /// As many as Linux follows.
    const MOST: usize = 40;
    let mut place = path.to_path_buf();
    for _ in 0..=MOST {
        let Ok(next) = fs::read_link(&place) else { return Ok(place) };
        place = match place.parent() {
            Some(folder) => folder.join(next),
            None => next,
        };
    }
    Err(io::Error::other(format!("more than {MOST} links lead from one to the next")))
}

/// A temporary file with the permissions of the file that it will replace, or of an ordinary new one: those that the user's mask leaves.
/// From its first moment on nobody may read it who may not read that file.
fn beside(folder: &Path, replaced: Option<&fs::Metadata>) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".da-moe-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let permissions = |mode| fs::Permissions::from_mode(mode & 0o777);
        let Some(replaced) = replaced else { return builder.permissions(permissions(0o666)).tempfile_in(folder) };
        let mode = replaced.permissions().mode();
        let temporary = builder.permissions(permissions(mode)).tempfile_in(folder)?;
        // What the mask has left out.
        temporary.as_file().set_permissions(permissions(mode))?;
        Ok(temporary)
    }
    #[cfg(not(unix))]
    {
        let _ = replaced;
        builder.tempfile_in(folder)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> io::Result<u32> {
        Ok(fs::metadata(path)?.permissions().mode() & 0o777)
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_permissions() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        for kept in [0o600, 0o640, 0o666, 0o400] {
            fs::write(&path, "old")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(kept))?;
            replace(&path, b"new").expect("a replaced file");
            assert_eq!((mode(&path)?, fs::read(&path)?), (kept, b"new".to_vec()), "{kept:o}");
            // Before a byte is in it.
            assert_eq!(mode(beside(folder.path(), Some(&fs::metadata(&path)?))?.path())?, kept, "{kept:o}");
            fs::remove_file(&path)?;
        }
        replace(&path, b"new").expect("a new file");
        let ordinary = folder.path().join("ordinary");
        fs::write(&ordinary, "")?;
        assert_eq!(mode(&path)?, mode(&ordinary)?, "a new file has what the mask leaves");
        Ok(())
    }

    #[test]
    fn links_are_followed_whether_there_is_a_file_yet_or_not() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let place = |name: &str| folder.path().join(name);
        fs::create_dir(place("elsewhere"))?;
        symlink("elsewhere/second", place("first"))?;
        symlink(place("file"), place("elsewhere/second"))?;
        for bytes in [&b"new"[..], b"newer"] {
            replace(&place("first"), bytes).expect("a written file");
            assert_eq!(fs::read(place("file"))?, bytes);
            assert!(place("first").is_symlink() && place("elsewhere/second").is_symlink());
        }
        symlink("nowhere/file", place("dangling"))?;
        assert!(replace(&place("dangling"), b"new").is_err(), "there is no such folder");
        symlink("circle", place("circle"))?;
        assert!(replace(&place("circle"), b"new").is_err_and(|error| error.to_string().contains("links")));
        assert!(place("circle").is_symlink() && place("dangling").is_symlink());
        Ok(())
    }
}
