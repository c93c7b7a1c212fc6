//! What the tensor memory accelerator is told of a tensor, and maps that were made before.

use crate::Result;
use crate::cuda::abi::TensorMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

/// Width of a box, and of the pattern in which its 16-byte pieces are exchanged in shared memory.
pub const BOX_BYTES: u32 = 128;

/// What elements are. What is outside a tensor is zeros whatever they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elements {
    /// Of two bytes.
    Half,
    /// f32.
    Float,
}

impl Elements {
    /// Bytes of one.
    pub const fn size(self) -> u32 {
        match self {
            Self::Half => 2,
            Self::Float => 4,
        }
    }
}

/// A tensor in device memory, and the box of it that one copy moves: 128 bytes wide, with the swizzle of that width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorBoxes {
    /// Device address, a multiple of 16.
    pub address: u64,
    /// What it is made of.
    pub elements: Elements,
    /// Dimensions that count, 2 to 4.
    pub rank: usize,
    /// Elements along each dimension, the innermost first; each below 2³².
    pub extents: [u64; 4],
    /// Bytes from one to the next along each dimension but the innermost: multiples of 16, below 2⁴⁰.
    pub strides: [u64; 3],
    /// Extents of a box along each dimension but the innermost, at most 256.
    pub heights: [u32; 3],
}

impl TensorBoxes {
    /// Extents of a box, the innermost first.
    pub fn box_extents(&self) -> [u32; 4] {
        let [second, third, fourth] = self.heights;
        [BOX_BYTES / self.elements.size(), second, third, fourth]
    }

    /// Bytes of the tensor, from its first element to its last.
    pub fn bytes(&self) -> u64 {
        let outer = (1..self.rank).map(|at| (self.extents[at] - 1).saturating_mul(self.strides[at - 1]));
        outer.fold(self.extents[0] * u64::from(self.elements.size()), u64::saturating_add)
    }
}

/// Maps by what they are of. A map says nothing that its [`TensorBoxes`] do not say, so that one which was made before is as
/// good; where two want the same place the later one has it. The size is fixed: nothing grows while an engine runs.
pub(in crate::cuda) struct MapCache(Mutex<Vec<Option<(TensorBoxes, TensorMap)>>>);

impl MapCache {
    /// More than the matrices of any model's layers in a few steps' worth of addresses would be waste.
    const PLACES: usize = 1024;

    pub fn new() -> Self {
        Self(Mutex::new(vec![None; Self::PLACES]))
    }

    /// The map of `boxes`, which `encode` makes where it is not there.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn get(&self, boxes: &TensorBoxes, encode: impl FnOnce() -> Result<TensorMap>) -> Result<TensorMap> {
        let mut hasher = DefaultHasher::new();
        boxes.hash(&mut hasher);
        let place = hasher.finish() as usize % Self::PLACES;
        // A place is written as a whole, so a panicking thread leaves nothing half-done.
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &places[place] {
            Some((of, map)) if of == boxes => Ok(*map),
            _ => {
                let map = encode()?;
                places[place] = Some((*boxes, map));
                Ok(map)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn boxes(address: u64) -> TensorBoxes {
        let (extents, strides, heights) = ([64, 8, 1, 1], [128, 16, 16], [8, 1, 1]);
        TensorBoxes { address, elements: Elements::Half, rank: 2, extents, strides, heights }
    }

    #[test]
    fn what_was_made_before_is_not_made_again() {
        let cache = MapCache::new();
        let mut made = 0;
        for round in 0..3 {
            for address in [256, 512, 1024] {
                let map = cache.get(&boxes(address), || {
                    made += 1;
                    Ok(TensorMap { words: [address; 16] })
                });
                assert_eq!(map.unwrap().words[0], address, "round {round}");
            }
        }
        assert_eq!(made, 3);
        let refused = || Err(Error::Cuda { call: "encode", problem: "no".into() });
        assert!(cache.get(&boxes(256), refused).is_ok() && cache.get(&boxes(2048), refused).is_err());
    }

    /// Many more than there are places: each is what was asked for.
    #[test]
    fn places_are_shared_and_nothing_grows() {
        let cache = MapCache::new();
        for address in (1..5000).map(|number| number * 256) {
            let map = cache.get(&boxes(address), || Ok(TensorMap { words: [address; 16] }));
            assert_eq!(map.unwrap().words[15], address);
        }
        assert_eq!(cache.0.lock().unwrap().capacity(), MapCache::PLACES);
    }

    #[test]
    fn a_tensor_ends_with_its_last_element() {
        assert_eq!(boxes(256).bytes(), 7 * 128 + 128);
        assert_eq!(boxes(256).box_extents(), [64, 8, 1, 1]);
        let deep = TensorBoxes { rank: 3, extents: [32, 1, 5, 1], strides: [4096, 256, 0], ..boxes(0) };
        assert_eq!(TensorBoxes { elements: Elements::Float, ..deep }.bytes(), 4 * 256 + 128);
    }
}
