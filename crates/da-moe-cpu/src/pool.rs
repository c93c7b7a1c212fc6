//! Which threads work, and how fast their dense products are.

use crate::gemm::{Operand, multiply};
use da_moe_core::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;
use std::time::Instant;

/// The CPU backend. Cheap to clone; any number of threads may use it at once, and all share one pool.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Cpu {
    /// Works on rayon's global pool: inside an engine that uses rayon too, there is only one set of threads.
    pub fn new() -> Self {
        Self::default()
    }

    /// Works on a pool of `threads` threads of its own (0: one for each core).
    ///
    /// # Errors
    /// [`Error::Threads`] when the threads cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|error| Error::Threads { threads, problem: error.to_string() })?;
        Ok(Self { pool: Some(Arc::new(pool)) })
    }

    /// Threads that work at once.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
    }

    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// GFLOP/s of dense f32 products on all threads: the ceiling that layer timings are compared with. Best of several
    /// rounds of one 512 × 512 × 512 product a thread, about a tenth of a second in all.
    pub fn dense_gflops(&self) -> f64 {
        const SIDE: usize = 512;
        const PRODUCTS: usize = 8;
        let threads = self.threads();
        let fill = |seed: usize| (0..SIDE * SIDE).map(|i| ((i * 7 + seed) % 11) as f32 - 5.0).collect::<Vec<_>>();
        let (a, b) = (fill(1), fill(2));
        let mut outputs = vec![vec![0.0; SIDE * SIDE]; threads];
        let mut round = || {
            let start = Instant::now();
            self.install(|| {
                outputs.par_iter_mut().with_max_len(1).for_each(|c| {
                    for _ in 0..PRODUCTS {
                        let b = Operand::dense(&b, SIDE, SIDE).transposed();
                        multiply(c, SIDE, Operand::dense(&a, SIDE, SIDE), b, false);
                    }
                });
            });
            start.elapsed().as_secs_f64()
        };
        let best = (0..8).map(|_| round()).fold(f64::INFINITY, f64::min);
        2.0 * (SIDE * SIDE * SIDE * PRODUCTS * threads) as f64 / best / 1e9
    }
}
