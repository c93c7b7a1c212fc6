//! The launches before a fault: a GPU tells of it when it is next waited for, without the kernel's name.

use crate::cuda::Launch;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// How many are kept.
const KEPT: usize = 8;

/// The last launches of a GPU, on whatever stream.
#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<Launch>>);

impl Recent {
    pub(super) fn note(&self, launch: &Launch) {
        let mut launches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if launches.len() == KEPT {
            launches.pop_front();
        }
        launches.push_back(*launch);
    }
}

/// The last one comes first.
impl fmt::Display for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let launches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if launches.is_empty() {
            return write!(f, "nothing was launched before");
        }
        write!(f, "launched before, the last first: ")?;
        for (i, launch) in launches.iter().rev().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, Words(launch))?;
        }
        Ok(())
    }
}

/// A launch in words.
pub(super) struct Words<'a>(pub &'a Launch);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { kernel, grid, threads, shared, .. } = self.0;
        write!(f, "`{kernel}` with grid {grid:?}, {threads} threads, {shared} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_launches_are_told() {
        let recent = Recent::default();
        assert_eq!(recent.to_string(), "nothing was launched before");
        const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        NAMES.into_iter().for_each(|kernel| recent.note(&Launch::linear(kernel, 3, 256)));
        let words = recent.to_string();
        assert!(words.contains("the last first: `j` with grid [3, 1, 1], 256 threads, 0 bytes, `i`"), "{words}");
        assert!(words.contains("`c`") && !words.contains("`b`"), "eight are kept: {words}");
    }
}
