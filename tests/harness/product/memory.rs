//! A product's operands on a device: whatever must not matter is NaN, whatever is to be written is poison before.

use da_moe::cuda::Device;
use da_moe::{DType, Error, bf16, f16};
use std::ptr::{without_provenance, without_provenance_mut};

/// What outputs hold before: no number in any type, so that what was read of it, or not written, shows.
pub(super) const POISON: u8 = 0xff;

/// As it is stored, and in memory.
pub(super) fn stored(dtype: DType, value: f32) -> (f32, [u8; 2]) {
    match dtype {
        DType::Bf16 => (bf16::from_f32(value).to_f32(), bf16::from_f32(value).to_ne_bytes()),
        _ => (f16::from_f32(value).to_f32(), f16::from_f32(value).to_ne_bytes()),
    }
}

/// Elements of two bytes of a type, or of f32.
pub(super) fn read(dtype: DType, size: usize, bytes: &[u8]) -> Vec<f32> {
    let half = |bytes: &[u8]| [bytes[0], bytes[1]];
    match (size, dtype) {
        (4, _) => bytes.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect(),
        (_, DType::Bf16) => bytes.chunks_exact(2).map(|of| bf16::from_ne_bytes(half(of)).to_f32()).collect(),
        _ => bytes.chunks_exact(2).map(|of| f16::from_ne_bytes(half(of)).to_f32()).collect(),
    }
}

/// Rows of a type with some elements between them: NaN there, and where there is no number.
pub(super) fn matrix(
    dtype: DType,
    [rows, width, padding]: [usize; 3],
    of: &dyn Fn(usize, usize) -> Option<f32>,
) -> Vec<u8> {
    let nan = stored(dtype, f32::NAN).1;
    let element = |r: usize, c: usize| match of(r, c).filter(|_| c < width) {
        Some(value) => stored(dtype, value).1,
        None => nan,
    };
    let element = &element;
    (0..rows).flat_map(|r| (0..width + padding).flat_map(move |c| element(r, c))).collect()
}

/// Memory of a device.
pub(super) struct Memory<'a, D> {
    pub device: &'a D,
    pub stream: u64,
}

/// Something that is written.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub address: u64,
    bytes: usize,
}

impl Output {
    pub fn pointer<T>(&self) -> *mut T {
        without_provenance_mut(self.address as usize)
    }
}

impl<'a, D: Device> Memory<'a, D> {
    pub fn new(device: &'a D) -> Self {
        Self { device, stream: device.own_stream() }
    }

    pub fn upload<T>(&self, name: &'static str, bytes: &[u8]) -> *const T {
        let address = self.device.alloc(name, bytes.len()).unwrap();
        // SAFETY: it was allocated with as many bytes.
        unsafe { self.device.upload(self.stream, address, bytes) }.unwrap();
        without_provenance(address as usize)
    }

    pub fn integers(&self, name: &'static str, values: &[i32]) -> *const i32 {
        self.upload(name, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>())
    }

    pub fn floats(&self, name: &'static str, values: &[f32]) -> *const f32 {
        self.upload(name, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>())
    }

    pub fn output(&self, name: &'static str, bytes: usize) -> Output {
        let address = self.device.alloc(name, bytes).unwrap();
        // SAFETY: as above.
        unsafe { self.device.fill(self.stream, address, POISON, bytes) }.unwrap();
        Output { address, bytes }
    }

    /// What is there afterwards.
    ///
    /// # Errors
    /// The device's.
    pub fn download(&self, output: Output) -> Result<Vec<u8>, Error> {
        let mut read = vec![0; output.bytes];
        // SAFETY: as above.
        unsafe { self.device.download(self.stream, output.address, &mut read) }?;
        Ok(read)
    }
}

/// The first rows of an output, if nothing was written behind any, or in rows that there are not.
pub(super) fn rows_of(
    dtype: DType,
    bytes: &[u8],
    rows: usize,
    [width, padding]: [usize; 2],
    size: usize,
) -> Result<Vec<f32>, String> {
    let mut values = Vec::new();
    for (row, bytes) in bytes.chunks_exact((width + padding) * size).enumerate() {
        let (own, beyond) = bytes.split_at(if row < rows { width * size } else { 0 });
        if beyond.iter().any(|byte| *byte != POISON) {
            return Err(format!("row {row}: something is written beyond it"));
        }
        values.extend(read(dtype, size, own));
    }
    Ok(values)
}
