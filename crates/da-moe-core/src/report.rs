//! What every step reports (SPEC §3): counts, drops, mean `k`, losses, entropy of the load.

use crate::{Element, Error, Result, Step, TensorRef};

/// Figures of one forward call.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Unmasked tokens.
    pub tokens: usize,
    /// Selections before drops over unmasked tokens; 0 without any.
    pub mean_k: f64,
    /// `R`: rows that went through a routed expert.
    pub rows: usize,
    /// Selections dropped by capacity.
    pub dropped: usize,
    /// `E · Σ f_e p_e`.
    pub balance_loss: f32,
    /// `mean_t (logsumexp z_t)²`.
    pub z_loss: f32,
    /// Selections of each candidate before drops.
    pub load: Vec<i32>,
    /// Entropy of the load over candidates, in nats; `ln(E + Z)` when even.
    pub load_entropy: f64,
}

impl Step {
    /// Figures of the last forward. Waits for it where it runs on a device.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no forward has run, or the device's.
    pub fn report(&self) -> Result<Report> {
        let sizes = self.sizes()?;
        let load = elements::<i32>(self.load()?)?[..sizes.candidates].to_vec();
        let losses = elements::<f32>(self.losses()?)?;
        let plan = self.plan()?;
        let total: i64 = load.iter().map(|&count| i64::from(count)).sum();
        let tokens = elements::<i32>(self.unmasked()?)?[0] as usize;
        Ok(Report {
            tokens,
            mean_k: total as f64 / tokens.max(1) as f64,
            rows: elements::<i32>(plan.offsets)?[sizes.experts] as usize,
            dropped: elements::<i32>(plan.dropped)?[0] as usize,
            balance_loss: losses[0],
            z_loss: losses[1],
            load_entropy: entropy(&load, total),
            load,
        })
    }
}

fn elements<T: Element>(tensor: TensorRef<'_, 1>) -> Result<Vec<T>> {
    let host = tensor.data().to_host()?;
    let elements = host.as_slice().map(<[T]>::to_vec);
    elements.ok_or_else(|| Error::Workspace { op: "report", problem: "a buffer has another type".into() })
}

fn entropy(load: &[i32], total: i64) -> f64 {
    let share = |count: i32| f64::from(count) / total as f64;
    load.iter().filter(|&&count| count > 0).map(|&count| -share(count) * share(count).ln()).sum()
}
