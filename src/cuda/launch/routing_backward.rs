//! How many threads put gradients back into a caller's routing (`kernels/gate/routing_backward.cu`).

use crate::cuda::abi;
use crate::cuda::cost::{Contents, Work};
use crate::cuda::device::workspace::blocks;
use crate::cuda::device::{Call, Launch, Parameters, Target};

const THREADS: u32 = 256;
const WARPS: usize = 8;

/// One launch; none without tokens.
pub fn calls(_: Target, p: abi::RoutingBackward) -> impl Iterator<Item = Call> {
    let launch = Launch::linear("routing_backward", blocks(p.tokens as usize, WARPS), THREADS);
    (p.tokens > 0).then(|| Call::new(launch, p)).into_iter()
}

impl Parameters for abi::RoutingBackward {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        let given = f64::from(self.entries).max(f64::from(self.tokens) * f64::from(self.columns));
        Work::moved(8.0 * f64::from(self.tokens) * f64::from(self.slots) + 4.0 * given, launch.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_warp() {
        let blocks = |tokens| {
            calls(Target::H100, abi::RoutingBackward { tokens, ..Default::default() }).map(|c| c.launch.grid[0])
        };
        assert_eq!(blocks(17).collect::<Vec<_>>(), [3]);
        assert_eq!(blocks(0).count(), 0);
    }
}
