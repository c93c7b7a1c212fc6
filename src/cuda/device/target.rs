//! What kernels are chosen for.

/// The instructions that kernels may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Those of sm_80 and everything later: `mma.sync`, `cp.async`.
    Portable,
    /// Those of sm_90a besides: `wgmma`, the tensor memory accelerator, clusters. No other architecture has them all.
    Hopper,
}

impl Architecture {
    /// As errors and reports say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "sm_80 and later",
            Self::Hopper => "Hopper (sm_90a)",
        }
    }

    /// Of a GPU by its compute capability, major and minor.
    pub fn of_compute_capability(capability: (i32, i32)) -> Self {
        if capability == (9, 0) { Self::Hopper } else { Self::Portable }
    }

    /// Whether a device of this architecture runs kernels for `other`.
    pub fn runs(self, other: Self) -> bool {
        other == Self::Portable || self == other
    }
}

/// What decides between kernels, the workspace that they need and what they cost, besides sizes, types and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Kernels of this architecture run.
    pub architecture: Architecture,
    /// How many multiprocessors there are, for kernels whose blocks stay and take tile after tile. No bits depend on it.
    pub multiprocessors: usize,
}

impl Target {
    /// An H100 with all its own.
    pub const H100: Self = Self { architecture: Architecture::Hopper, multiprocessors: 132 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopper_is_one_architecture_alone() {
        let of = Architecture::of_compute_capability;
        assert_eq!(of((9, 0)), Architecture::Hopper);
        for other in [(8, 0), (8, 9), (10, 0), (12, 0)] {
            assert_eq!(of(other), Architecture::Portable, "{other:?}");
        }
        assert!(Architecture::Hopper.runs(Architecture::Portable) && Architecture::Hopper.runs(Architecture::Hopper));
        assert!(!Architecture::Portable.runs(Architecture::Hopper));
    }
}
