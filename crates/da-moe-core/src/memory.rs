//! Memory that a backend allocates: the host's, or a device's that only its backend can reach.

use crate::{Buffer, DType, Error, Result, Slice, SliceMut};
use std::any::Any;
use std::fmt::Debug;

/// Elements that are not in host memory. The backend that made them knows its own type; others refuse it, or copy.
pub trait ForeignMemory: Any + Debug + Send + Sync {
    /// Element type.
    fn dtype(&self) -> DType;

    /// Number of elements.
    fn count(&self) -> usize;

    /// Where the elements are, for people.
    fn location(&self) -> String;

    /// A copy in host memory, after everything that was started before. Waits.
    ///
    /// # Errors
    /// The device's.
    fn read(&self) -> Result<Buffer>;

    /// Overwrites every element, after everything that was started before. Waits.
    ///
    /// # Errors
    /// [`Error::DType`] or [`Error::Shape`] when `elements` are of another type or number, [`Error::Location`] when they are not
    /// in host memory, or the device's error.
    fn write(&mut self, elements: Slice<'_>) -> Result<()>;
}

/// Owned elements, wherever a backend puts them.
#[derive(Debug)]
pub enum Memory {
    /// In host memory.
    Host(Buffer),
    /// On a device.
    Foreign(Box<dyn ForeignMemory>),
}

impl Memory {
    /// Element type.
    pub fn dtype(&self) -> DType {
        Slice::from(self).dtype()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        Slice::from(self).len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy in host memory. Waits where the elements are on a device.
    ///
    /// # Errors
    /// The device's.
    pub fn to_host(&self) -> Result<Buffer> {
        match self {
            Memory::Host(buffer) => Ok(buffer.clone()),
            Memory::Foreign(memory) => memory.read(),
        }
    }

    /// Overwrites every element with those of `from`, of the same type and number. Waits where they are on a device.
    ///
    /// # Errors
    /// [`Error::DType`] or [`Error::Shape`], or the device's error.
    pub fn write(&mut self, from: &Buffer) -> Result<()> {
        same_elements(self.dtype(), self.len(), from.into())?;
        match self {
            Memory::Host(buffer) => buffer.clone_from(from),
            Memory::Foreign(memory) => memory.write(from.into())?,
        }
        Ok(())
    }
}

/// Refuses elements that cannot take the place of `count` elements of type `dtype`.
///
/// # Errors
/// [`Error::DType`] or [`Error::Shape`].
pub fn same_elements(dtype: DType, count: usize, from: Slice<'_>) -> Result<()> {
    let (op, argument) = ("write", "elements");
    if from.dtype() != dtype {
        return Err(Error::DType { op, argument, expected: dtype.to_string(), found: from.dtype() });
    }
    if from.len() != count {
        return Err(Error::Shape { op, argument, expected: vec![count], found: vec![from.len()] });
    }
    Ok(())
}

impl From<Buffer> for Memory {
    fn from(buffer: Buffer) -> Self {
        Memory::Host(buffer)
    }
}

impl<'a> From<&'a Memory> for Slice<'a> {
    fn from(memory: &'a Memory) -> Self {
        match memory {
            Memory::Host(buffer) => buffer.into(),
            Memory::Foreign(memory) => Slice::Foreign(&**memory),
        }
    }
}

impl<'a> From<&'a mut Memory> for SliceMut<'a> {
    fn from(memory: &'a mut Memory) -> Self {
        match memory {
            Memory::Host(buffer) => buffer.into(),
            Memory::Foreign(memory) => SliceMut::Foreign(&mut **memory),
        }
    }
}
