//! Writing tensors to a safetensors file, whole or not at all.

use crate::{Error, Result};
use da_moe::{Buffer, DType, Element, TensorRef};
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

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
    pub(super) fn new(name: &'static str, shape: &[usize], data: Buffer) -> Self {
        Self { name, shape: shape.to_vec(), data }
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
    let attempt = || -> io::Result<()> {
        // A link keeps pointing where it did; a device or pipe is written to, not replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        if fs::metadata(&target).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
            return fs::write(&target, bytes);
        }
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut temporary = beside(folder)?;
        temporary.write_all(bytes)?;
        temporary.persist(&target).map_err(|error| error.error)?;
        Ok(())
    };
    attempt().map_err(|source| Error::Write { path: path.to_path_buf(), source })
}

/// A temporary file with the permissions of an ordinary one: those that the user's mask leaves.
fn beside(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.prefix(".da-moe-").tempfile_in(folder)
}
