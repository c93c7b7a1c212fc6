//! How many threads gate, the memory they need, and the configuration as the kernels read it (`kernels/gate/gate.cu`,
//! `kernels/gate/budget.cu`, `kernels/gate/routing.cu`).

use crate::cuda::abi;
use crate::cuda::cost::{Contents, Work};
use crate::cuda::device::workspace::{Carver, Workspace, blocks};
use crate::cuda::device::{Call, Launch, Parameters, Target};
use crate::{BiasUpdate, LayerConfig, NormalizeWeights, Policy, Scoring};

pub(in crate::cuda) const THREADS: u32 = 256;
const WARPS: usize = 8;
/// Blocks that share the tokens, where there are many: their partial sums are added by one block.
const MOST_BLOCKS: usize = 512;
/// Launches that find the price of `budget`.
const BUDGET_PASSES: i32 = 3;

/// Consecutive tokens of one warp. Depends on the number of tokens alone, as do therefore the bits of the losses.
pub(in crate::cuda) fn tokens_per_warp(tokens: usize) -> usize {
    tokens.div_ceil(WARPS * MOST_BLOCKS).max(1)
}

/// Blocks of warps that take so many of the tokens each.
pub(in crate::cuda) fn grid(tokens: i32, tokens_per_warp: i32) -> u32 {
    blocks(tokens as usize, WARPS * tokens_per_warp as usize)
}

/// The function from logits to scores, as the kernels know it.
pub(in crate::cuda) fn scoring(config: &LayerConfig) -> i32 {
    match config.router.scoring {
        Scoring::Softmax => abi::SCORING_SOFTMAX,
        Scoring::Sigmoid => abi::SCORING_SIGMOID,
        Scoring::Relu => abi::SCORING_RELU,
    }
}

/// What weights are divided by, as the kernels know it.
pub(in crate::cuda) fn divisor(config: &LayerConfig) -> i32 {
    match config.router.normalize {
        NormalizeWeights::None => abi::DIVISOR_NONE,
        NormalizeWeights::Selected => abi::DIVISOR_SELECTED,
        NormalizeWeights::Candidates => abi::DIVISOR_CANDIDATES,
    }
}

/// Everything but pointers of a gate over `tokens` tokens; logits are dense.
pub fn parameters(config: &LayerConfig, tokens: usize, training: bool) -> abi::Gate {
    let policy = &config.experts_per_token.policy;
    let (k_min, k_max, candidates) = (config.k_min(), config.k_max(), config.candidates());
    let mut p = abi::Gate {
        logits_stride: candidates as i64,
        tokens: tokens as i32,
        routed: config.num_experts as i32,
        candidates: candidates as i32,
        k_min: k_min as i32,
        k_max: k_max as i32,
        scoring: scoring(config),
        divisor: divisor(config),
        routed_scaling: config.router.routed_scaling as f32,
        groups: config.router.n_group as i32,
        chosen_groups: config.router.topk_group as i32,
        tokens_per_warp: tokens_per_warp(tokens) as i32,
        training: i32::from(training),
        ..Default::default()
    };
    p.policy = match policy {
        Policy::Fixed { k } => {
            p.fixed = *k as i32;
            abi::POLICY_FIXED
        }
        Policy::Proportional { scale } => {
            p.scale = scale.unwrap_or(config.num_experts as f64) as f32;
            abi::POLICY_PROPORTIONAL
        }
        Policy::Thresholds { thresholds } => {
            // Ascending, so those past the last level can change nothing.
            let reachable = thresholds.len().min(k_max - k_min);
            p.thresholds.iter_mut().zip(&thresholds[..reachable]).for_each(|(to, from)| *to = *from as f32);
            p.threshold_count = reachable as i32;
            abi::POLICY_THRESHOLDS
        }
        Policy::Budget { .. } => abi::POLICY_BUDGET,
        Policy::BudgetRunning { mean_k, momentum } => {
            (p.mean_k, p.momentum) = (*mean_k, *momentum);
            p.first_price = (1.0 / (2.0 * (mean_k - k_min as f64).max(0.0) + 1.0)) as f32;
            abi::POLICY_BUDGET_RUNNING
        }
        Policy::TopP { p: share } => {
            p.p = *share;
            abi::POLICY_TOP_P
        }
        Policy::ScoreThreshold { threshold } => {
            (0..candidates).for_each(|e| p.thresholds[e] = threshold.of(e) as f32);
            abi::POLICY_SCORE_THRESHOLD
        }
        Policy::Given => abi::POLICY_GIVEN,
    };
    p
}

/// Points `p` into a workspace at `base`, and says how large that must be.
pub fn bind(_: Target, p: &mut abi::Gate, base: u64) -> Workspace {
    let blocks = grid(p.tokens, p.tokens_per_warp) as usize;
    let mut carver = Carver::new(base);
    p.ticket = carver.take(1);
    let zeroed = carver.end_header();
    p.block_load = carver.take(blocks * p.candidates as usize);
    p.block_shares = carver.take(blocks * p.candidates as usize);
    p.block_z = carver.take(blocks);
    p.block_unmasked = carver.take(blocks);
    Workspace { zeroed, bytes: carver.used() }
}

/// One launch.
pub fn calls(_: Target, p: abi::Gate) -> impl Iterator<Item = Call> {
    let kernels = ["gate_32", "gate_64", "gate_128", "gate_256", "gate_512"];
    let launch = Launch::linear(of_size(kernels, p.candidates), grid(p.tokens, p.tokens_per_warp), THREADS);
    std::iter::once(Call::new(launch, p))
}

/// The kernel for as many values a token: 32, 64, 128, 256 or 512.
pub(in crate::cuda) fn of_size(kernels: [&'static str; 5], values: i32) -> &'static str {
    let index = [32, 64, 128, 256].iter().filter(|&&size| values > size).count();
    kernels[index]
}

/// The search for the price of `budget`, which precedes the gate; `None` for other policies. Pointers are to be set.
pub fn budget(config: &LayerConfig, tokens: usize) -> Option<abi::Budget> {
    let Policy::Budget { mean_k } = config.experts_per_token.policy else { return None };
    Some(abi::Budget {
        mean_k,
        tokens: tokens as i32,
        k_min: config.k_min() as i32,
        levels: (config.k_max() - config.k_min()) as i32,
        ..Default::default()
    })
}

fn budget_grid(p: &abi::Budget) -> u32 {
    blocks(p.tokens as usize, THREADS as usize)
}

/// As [`bind`], for the search.
pub fn bind_budget(_: Target, p: &mut abi::Budget, base: u64) -> Workspace {
    let mut carver = Carver::new(base);
    p.arrivals = carver.take(abi::ARRIVAL_LENGTH as usize);
    p.histogram = carver.take(abi::BUDGET_BINS as usize);
    let zeroed = carver.end_header();
    // Not in the header, which other stages expect to find zero.
    p.found = carver.take(abi::FOUND_LENGTH as usize);
    p.ties = carver.take(budget_grid(p) as usize * p.levels as usize);
    p.ties_before = carver.take(budget_grid(p) as usize);
    Workspace { zeroed, bytes: carver.used() }
}

/// Five launches: three digits of the price, ties, and the counts.
pub fn budget_calls(_: Target, p: abi::Budget) -> impl Iterator<Item = Call> {
    let call =
        move |kernel, pass| Call::new(Launch::linear(kernel, budget_grid(&p), THREADS), abi::Budget { pass, ..p });
    let digits = (0..BUDGET_PASSES).map(move |pass| call("budget_digit", pass));
    digits.chain(["budget_ties", "budget_assign"].map(move |kernel| call(kernel, 0)))
}

/// Sizes of a routing from the caller over `tokens` tokens; pointers, strides and layout are to be set.
pub fn routing(tokens: usize, candidates: usize, k_max: usize) -> abi::GivenRouting {
    abi::GivenRouting {
        tokens: tokens as i32,
        candidates: candidates as i32,
        k_max: k_max as i32,
        tokens_per_warp: tokens_per_warp(tokens) as i32,
        ..Default::default()
    }
}

/// As [`bind`], for a routing from the caller.
pub fn bind_routing(_: Target, p: &mut abi::GivenRouting, base: u64) -> Workspace {
    let blocks = grid(p.tokens, p.tokens_per_warp) as usize;
    let mut carver = Carver::new(base);
    p.ticket = carver.take(1);
    let zeroed = carver.end_header();
    p.block_load = carver.take(blocks * p.candidates as usize);
    p.block_unmasked = carver.take(blocks);
    Workspace { zeroed, bytes: carver.used() }
}

/// One launch.
pub fn routing_calls(_: Target, p: abi::GivenRouting) -> impl Iterator<Item = Call> {
    let kernels = ["routing_32", "routing_64", "routing_128", "routing_256", "routing_512"];
    let launch = Launch::linear(of_size(kernels, p.k_max), grid(p.tokens, p.tokens_per_warp), THREADS);
    std::iter::once(Call::new(launch, p))
}

/// One launch that moves the selection bias of `candidates` candidates; pointers are to be set by `set`.
pub fn bias_call(_: Target, update: BiasUpdate, p: abi::GateBias) -> Call {
    let (rate, proportional) = match update {
        BiasUpdate::Sign { rate } => (rate, 0),
        BiasUpdate::Proportional { rate } => (rate, 1),
    };
    Call::new(Launch::linear("gate_bias", 1, THREADS), abi::GateBias { rate, proportional, ..p })
}

impl Parameters for abi::Gate {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        let of_token = 4.0 * f64::from(self.candidates) + selection(self.k_max);
        Work::moved(f64::from(self.tokens) * of_token, launch.blocks())
    }
}

impl Parameters for abi::Budget {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        // Three digits, ties and the counts, each over every token; the last writes.
        let of_token = if launch.kernel == "budget_assign" { 8.0 } else { 4.0 };
        Work::moved(of_token * f64::from(self.tokens), launch.blocks())
    }
}

impl Parameters for abi::GivenRouting {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        let given = f64::from(self.entries).max(f64::from(self.tokens) * f64::from(self.columns));
        Work::moved(8.0 * given + f64::from(self.tokens) * selection(self.k_max), launch.blocks())
    }
}

impl Parameters for abi::GateBias {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        Work::moved(12.0 * f64::from(self.candidates), launch.blocks())
    }
}

/// Bytes of a token's selection: experts, weights and their order, and k.
fn selection(k_max: i32) -> f64 {
    4.0 * (3.0 * f64::from(k_max) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExpertsPerToken;

    #[test]
    fn tokens_spread_over_warps_until_there_are_many() {
        assert_eq!([0, 1, 64, 4096, 4097, 32768].map(tokens_per_warp), [1, 1, 1, 1, 2, 8]);
        assert_eq!([(0, 1), (64, 1), (4096, 1), (32768, 8)].map(|(t, each)| grid(t, each)), [1, 8, 512, 512]);
    }

    #[test]
    fn the_kernel_has_room_for_every_candidate() {
        let kernel = |experts| {
            let p = parameters(&LayerConfig::da_moe(8, 8, experts, 1), 5, false);
            calls(Target::H100, p).next().unwrap().launch.kernel
        };
        assert_eq!(
            [1, 32, 33, 128, 129, 512].map(kernel),
            ["gate_32", "gate_32", "gate_64", "gate_128", "gate_256", "gate_512"]
        );
    }

    #[test]
    fn only_thresholds_that_can_matter_are_sent() {
        let mut config = LayerConfig::da_moe(8, 8, 4, 4);
        let thresholds = (0..1000).map(|i| f64::from(i) * 1e-3).collect();
        config.experts_per_token = ExpertsPerToken::between(Policy::Thresholds { thresholds }, 1, 3);
        let p = parameters(&config, 5, false);
        assert_eq!((p.threshold_count, p.thresholds[1]), (2, 1e-3));
    }

    #[test]
    fn a_budget_is_found_in_five_launches() {
        let mut config = LayerConfig::da_moe(8, 8, 4, 4);
        assert!(budget(&config, 300).is_none());
        config.experts_per_token = ExpertsPerToken::between(Policy::Budget { mean_k: 2.0 }, 1, 4);
        let calls: Vec<_> = budget_calls(Target::H100, budget(&config, 300).unwrap()).collect();
        assert_eq!(calls.len(), 5);
        assert!(calls.iter().all(|call| call.launch.grid == [2, 1, 1]));
    }
}
