//! Which launches read importance off attention: off a matrix of probabilities (`kernels/importance/importance_probabilities.cu`), or
//! straight off queries and keys (`kernels/importance/importance_attention.cu`, `kernels/importance/importance_attention_f32.cu`).

use crate::cuda::abi;
use crate::cuda::cost::{Contents, Unit, Work, element_size};
use crate::cuda::device::workspace::blocks;
use crate::cuda::device::{Call, Launch, Parameters, Target};
use crate::{AttentionSource, DType, Result};
use std::f64::consts::LOG2_E;

const WARPS: usize = 8;
const WARP: usize = 32;
const THREADS: u32 = (WARPS * WARP) as u32;
/// Rows that a block of `importance_query_key_*` keeps, and its threads.
const OWN: usize = 128;

/// A probability matrix on the device.
#[derive(Clone, Copy, Debug)]
pub struct Probabilities {
    /// Element type.
    pub dtype: DType,
    /// Heads H.
    pub heads: usize,
    /// Address, strides and side; the rest is filled in here.
    pub matrix: abi::ImportanceProbabilities,
}

/// Queries and keys on the device.
#[derive(Clone, Copy, Debug)]
pub struct QueryKey {
    /// Element type of both.
    pub dtype: DType,
    /// Query heads H.
    pub heads: usize,
    /// Key heads, which divide H.
    pub key_heads: usize,
    /// Addresses, strides and width, and the log-sum-exp where the caller has it; the rest is filled in here.
    pub tensors: abi::ImportanceQueryKey,
}

/// What attention sources read.
#[derive(Clone, Copy, Debug)]
pub enum Attention {
    /// The matrix.
    Probabilities(Probabilities),
    /// What it would be made of.
    QueryKey(QueryKey),
}

impl Attention {
    /// Query heads.
    pub fn heads(&self) -> usize {
        match self {
            Self::Probabilities(p) => p.heads,
            Self::QueryKey(qk) => qk.heads,
        }
    }

    /// Whether a log-sum-exp may have to be computed, into `[H, T]` of workspace.
    pub(in crate::cuda) fn lacks_lse(&self) -> bool {
        matches!(self, Self::QueryKey(qk) if qk.tensors.lse.is_null())
    }
}

/// What the measures of one call share.
#[derive(Clone, Copy, Debug)]
pub(in crate::cuda) struct Reading {
    pub target: Target,
    pub tokens: usize,
    pub sequences: usize,
    pub cu_seqlens: *const i32,
    pub mask: *const u8,
    pub causal: bool,
    /// Out: `[H, T]`.
    pub values: *mut f32,
    /// Workspace: `[H, T]` where [`Attention::lacks_lse`].
    pub lse: *mut f32,
}

impl Reading {
    /// Hands the launches of one measure to `run`: one, and one before it where a log-sum-exp is needed and not there.
    pub fn calls(
        &self,
        attention: &Attention,
        measure: AttentionSource,
        scale: Option<f64>,
        run: &mut impl FnMut(Call) -> Result<()>,
    ) -> Result<()> {
        match attention {
            Attention::Probabilities(p) => run(self.probabilities(measure, p)),
            Attention::QueryKey(qk) => self.query_key(measure, scale, qk, run),
        }
    }

    fn probabilities(&self, measure: AttentionSource, probabilities: &Probabilities) -> Call {
        let mut p = abi::ImportanceProbabilities {
            cu_seqlens: self.cu_seqlens,
            mask: self.mask,
            values: self.values,
            tokens: self.tokens as i32,
            sequences: self.sequences as i32,
            measure: number(measure),
            causal: i32::from(self.causal),
            ..probabilities.matrix
        };
        let width = vector_width(probabilities.dtype, &p);
        let tile = if measure.is_received() { WARP * width } else { WARPS };
        // Sequences are many: they share the grid's first extent, the only one that may be large. One block at least has
        // the tokens that no matrix reaches.
        p.tiles = blocks(p.side as usize, tile) as i32;
        let grid = [p.tiles as u32 * self.sequences as u32, probabilities.heads as u32, 1];
        let kernel = matrix_kernel(self.target, probabilities.dtype, measure.is_received(), width > 1);
        Call::new(Launch { kernel, grid, threads: THREADS, shared: 0, cluster: 1 }, p)
    }

    fn query_key(
        &self,
        measure: AttentionSource,
        scale: Option<f64>,
        qk: &QueryKey,
        run: &mut impl FnMut(Call) -> Result<()>,
    ) -> Result<()> {
        let width = qk.tensors.width;
        let scale = scale.unwrap_or(1.0 / f64::from(width).sqrt());
        let mut p = abi::ImportanceQueryKey {
            cu_seqlens: self.cu_seqlens,
            mask: self.mask,
            values: self.values,
            tokens: self.tokens as i32,
            sequences: self.sequences as i32,
            heads_per_key: (qk.heads / qk.key_heads) as i32,
            measure: number(measure),
            causal: i32::from(self.causal),
            scale: (scale * LOG2_E) as f32,
            wide: i32::from(is_wide(qk.dtype, &qk.tensors)),
            ..qk.tensors
        };
        // Tiles start where sequences do, so their number depends on lengths that only the device knows; so many are enough.
        let grid = [(self.tokens / OWN + self.sequences) as u32, qk.heads as u32, 1];
        let walk = Launch {
            kernel: walk_kernel(self.target, qk.dtype, width),
            grid,
            threads: OWN as u32,
            shared: 0,
            cluster: 1,
        };
        let own = measure == AttentionSource::GivenSelf;
        if p.lse.is_null() && (own || measure.is_received()) {
            let before = abi::ImportanceQueryKey { measure: abi::MEASURE_LOG_SUM_EXP, values: self.lse, ..p };
            run(Call::new(walk, before))?;
            (p.lse, p.lse_stride) = (self.lse, self.tokens as i64);
        }
        if !own {
            return run(Call::new(walk, p));
        }
        let grid = [self.tokens.div_ceil(WARPS) as u32, qk.heads as u32, 1];
        run(Call::new(
            Launch { kernel: own_kernel(self.target, qk.dtype), grid, threads: THREADS, shared: 0, cluster: 1 },
            p,
        ))
    }
}

fn number(measure: AttentionSource) -> abi::Measure {
    match measure {
        AttentionSource::ReceivedMax => abi::MEASURE_RECEIVED_MAX,
        AttentionSource::ReceivedSum => abi::MEASURE_RECEIVED_SUM,
        AttentionSource::ReceivedMean => abi::MEASURE_RECEIVED_MEAN,
        AttentionSource::GivenPeak => abi::MEASURE_GIVEN_PEAK,
        AttentionSource::GivenEntropy => abi::MEASURE_GIVEN_ENTROPY,
        AttentionSource::GivenSelf => abi::MEASURE_GIVEN_SELF,
    }
}

/// Elements that a lane reads of a matrix at once: 128 bits where every row starts at a multiple of them, else one.
fn vector_width(dtype: DType, p: &abi::ImportanceProbabilities) -> usize {
    let elements = 16 / dtype.size();
    let whole = |count: i64| count % elements as i64 == 0;
    let strides = [p.sequence_stride, p.head_stride, p.row_stride, i64::from(p.side)];
    let aligned = (p.probabilities as usize).is_multiple_of(16);
    if aligned && strides.into_iter().all(whole) { elements } else { 1 }
}

/// Whether every query and key starts at a multiple of 128 bits. Their width may be any.
fn is_wide(dtype: DType, p: &abi::ImportanceQueryKey) -> bool {
    let whole = |count: i64| count % (16 / dtype.size()) as i64 == 0;
    let aligned = [p.q, p.k].iter().all(|address| (*address as usize).is_multiple_of(16));
    aligned && [p.q_token_stride, p.q_head_stride, p.k_token_stride, p.k_head_stride].into_iter().all(whole)
}

fn matrix_kernel(_: Target, dtype: DType, received: bool, wide: bool) -> &'static str {
    match (dtype, received, wide) {
        (DType::Bf16, true, false) => "importance_received_bf16",
        (DType::Bf16, true, true) => "importance_received_bf16_wide",
        (DType::Bf16, false, false) => "importance_given_bf16",
        (DType::Bf16, false, true) => "importance_given_bf16_wide",
        (DType::F16, true, false) => "importance_received_f16",
        (DType::F16, true, true) => "importance_received_f16_wide",
        (DType::F16, false, false) => "importance_given_f16",
        (DType::F16, false, true) => "importance_given_f16_wide",
        (_, true, false) => "importance_received_f32",
        (_, true, true) => "importance_received_f32_wide",
        (_, false, false) => "importance_given_f32",
        (_, false, true) => "importance_given_f32_wide",
    }
}

fn walk_kernel(_: Target, dtype: DType, width: i32) -> &'static str {
    match (dtype, width) {
        (DType::Bf16, ..=64) => "importance_query_key_bf16_64",
        (DType::Bf16, ..=128) => "importance_query_key_bf16_128",
        (DType::Bf16, _) => "importance_query_key_bf16",
        (DType::F16, ..=64) => "importance_query_key_f16_64",
        (DType::F16, ..=128) => "importance_query_key_f16_128",
        (DType::F16, _) => "importance_query_key_f16",
        _ => "importance_query_key_f32",
    }
}

fn own_kernel(_: Target, dtype: DType) -> &'static str {
    match dtype {
        DType::Bf16 => "importance_own_key_bf16",
        DType::F16 => "importance_own_key_f16",
        _ => "importance_own_key_f32",
    }
}

impl Parameters for abi::ImportanceProbabilities {
    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        let heads = f64::from(launch.grid[1]);
        let matrix = heads * contents.pairs * seen(self.causal) * element_size(launch.kernel);
        Work::moved(matrix + 4.0 * heads * f64::from(self.tokens), launch.blocks())
    }
}

impl Parameters for abi::ImportanceQueryKey {
    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        let (heads, size) = (f64::from(launch.grid[1]), element_size(launch.kernel));
        let (tokens, width) = (f64::from(self.tokens), f64::from(self.width));
        let key_heads = heads / f64::from(self.heads_per_key.max(1));
        let values = if self.lse.is_null() { 4.0 } else { 8.0 };
        let bytes = tokens * ((heads + key_heads) * width * size + heads * values);
        // Either every query meets every key that it sees, or its own.
        let own = launch.kernel.starts_with("importance_own_key_");
        let products = if own { tokens } else { contents.pairs * seen(self.causal) };
        Work {
            operations: 2.0 * width * heads * products,
            unit: if own || size == 4.0 { Unit::Scalar } else { Unit::Tensor16 },
            ..Work::moved(bytes, (tokens / OWN as f64).ceil() as u64 * heads as u64)
        }
    }
}

/// The part of a matrix of scores that a causal mask leaves.
fn seen(causal: i32) -> f64 {
    if causal == 0 { 1.0 } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::{null, null_mut, without_provenance, without_provenance_mut};

    fn query_key(dtype: DType, width: i32) -> QueryKey {
        let stride = i64::from(width);
        let tensors = abi::ImportanceQueryKey {
            q_token_stride: 6 * stride,
            q_head_stride: stride,
            k_token_stride: 2 * stride,
            k_head_stride: stride,
            width,
            ..Default::default()
        };
        QueryKey { dtype, heads: 6, key_heads: 2, tensors }
    }

    /// Kernel, grid, measure and the address of the log-sum-exp of every launch.
    fn launches(qk: QueryKey, measure: AttentionSource) -> Vec<(&'static str, [u32; 3], i32, usize)> {
        let reading = Reading {
            target: Target::H100,
            tokens: 1000,
            sequences: 3,
            cu_seqlens: null(),
            mask: null(),
            causal: true,
            values: null_mut(),
            lse: without_provenance_mut(512),
        };
        let mut found = Vec::new();
        let mut run = |call: Call| {
            let p = call.parameters::<abi::ImportanceQueryKey>().unwrap();
            assert_eq!((p.heads_per_key, p.causal, p.tokens, p.sequences), (3, 1, 1000, 3));
            assert!(p.lse.is_null() || p.lse_stride == 1000);
            found.push((call.launch.kernel, call.launch.grid, p.measure, p.lse as usize));
            Ok(())
        };
        reading.calls(&Attention::QueryKey(qk), measure, None, &mut run).unwrap();
        found
    }

    #[test]
    fn the_log_sum_exp_is_computed_only_where_it_is_needed_and_not_given() {
        let (walk, own) = ("importance_query_key_bf16_64", "importance_own_key_bf16");
        let (tiles, tokens) = ([10, 6, 1], [125, 6, 1]);
        let mut qk = query_key(DType::Bf16, 64);
        let before = (walk, tiles, abi::MEASURE_LOG_SUM_EXP, 0);
        let received = launches(qk, AttentionSource::ReceivedMean);
        assert_eq!(received, [before, (walk, tiles, abi::MEASURE_RECEIVED_MEAN, 512)]);
        let of_self = launches(qk, AttentionSource::GivenSelf);
        assert_eq!(of_self, [before, (own, tokens, abi::MEASURE_GIVEN_SELF, 512)]);
        assert_eq!(launches(qk, AttentionSource::GivenPeak), [(walk, tiles, abi::MEASURE_GIVEN_PEAK, 0)]);
        (qk.tensors.lse, qk.tensors.lse_stride) = (without_provenance(64), 1000);
        assert_eq!(launches(qk, AttentionSource::ReceivedMax), [(walk, tiles, abi::MEASURE_RECEIVED_MAX, 64)]);
        assert_eq!(launches(qk, AttentionSource::GivenSelf), [(own, tokens, abi::MEASURE_GIVEN_SELF, 64)]);
    }

    /// More than a grid's second and third extent may be.
    #[test]
    fn sequences_share_the_grids_first_extent() {
        let reading = Reading {
            target: Target::H100,
            tokens: 100_000,
            sequences: 70_000,
            cu_seqlens: null(),
            mask: null(),
            causal: false,
            values: null_mut(),
            lse: null_mut(),
        };
        let matrix = abi::ImportanceProbabilities { side: 9, ..Default::default() };
        let probabilities = Probabilities { dtype: DType::F32, heads: 6, matrix };
        let launch = |measure| reading.probabilities(measure, &probabilities).launch.grid;
        assert_eq!(launch(AttentionSource::ReceivedSum), [70_000, 6, 1]);
        assert_eq!(launch(AttentionSource::GivenPeak), [140_000, 6, 1]);
    }

    #[test]
    fn the_width_decides_where_own_rows_are_kept() {
        let kernel = |dtype, width| launches(query_key(dtype, width), AttentionSource::GivenPeak)[0].0;
        assert_eq!(kernel(DType::Bf16, 1), "importance_query_key_bf16_64");
        assert_eq!(kernel(DType::Bf16, 65), "importance_query_key_bf16_128");
        assert_eq!(kernel(DType::F16, 128), "importance_query_key_f16_128");
        assert_eq!(kernel(DType::F16, 129), "importance_query_key_f16");
        assert_eq!(kernel(DType::F32, 64), "importance_query_key_f32");
    }

    #[test]
    fn rows_are_wide_where_all_of_them_are_aligned() {
        let wide = |dtype, width| is_wide(dtype, &query_key(dtype, width).tensors);
        assert!(wide(DType::F32, 4) && wide(DType::Bf16, 8));
        assert!(!wide(DType::F32, 5) && !wide(DType::F16, 4));
        let moved = |q| abi::ImportanceQueryKey { q: without_provenance(q), ..query_key(DType::F16, 64).tensors };
        assert!(is_wide(DType::F16, &moved(32)) && !is_wide(DType::F16, &moved(8)));
    }
}
