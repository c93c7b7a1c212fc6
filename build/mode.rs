//! What `DA_MOE_CUDA` and cargo's features come to, before anything is looked for.

/// Whether kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are not, for this reason, which the library reports.
    Off(&'static str),
    /// They are if nvcc is found.
    Automatic,
    /// They are, without warnings; a build that cannot fails.
    Required,
}

impl Mode {
    /// `asked` is `DA_MOE_CUDA`, empty where it is unset; `feature` whether cargo's feature `cuda` is on, `documentation`
    /// whether docs.rs builds, which has no compiler and needs no kernels.
    ///
    /// # Errors
    /// For another value, and when kernels are required of a library that is built without what runs them.
    pub fn of(asked: &str, feature: bool, documentation: bool) -> Result<Self, String> {
        match asked {
            "0" => Ok(Self::Off("switched off by DA_MOE_CUDA=0")),
            "" | "1" if documentation => Ok(Self::Off("a build for documentation has none")),
            "" if !feature => Ok(Self::Off("the feature `cuda` is off")),
            "" => Ok(Self::Automatic),
            "1" if !feature => Err("DA_MOE_CUDA=1, but the feature `cuda` is off".into()),
            "1" => Ok(Self::Required),
            _ => Err(format!("DA_MOE_CUDA is `{asked}`; choose 1 (required), 0 (off), or leave it unset (automatic)")),
        }
    }

    /// What comes of a compiler that was found, or of none, in the places that `looked_in` names: the compiler, or why
    /// there is to be none. Never asked when [`Mode::Off`].
    ///
    /// # Errors
    /// When there is none and kernels are required.
    pub fn accept<C>(self, found: Option<C>, looked_in: &str) -> Result<Result<C, String>, String> {
        let missing = format!("nvcc was not found in {looked_in}");
        match (found, self) {
            (Some(compiler), _) => Ok(Ok(compiler)),
            (None, Self::Required) => Err(format!("DA_MOE_CUDA=1, but {missing}")),
            (None, _) => Ok(Err(missing)),
        }
    }
}
