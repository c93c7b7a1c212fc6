//! The CPU backend: every stage of SPEC.md, forward and backward, in f32, bf16 and f16, with f32 arithmetic.
//!
//! Work is cut into tasks by sizes alone and sums are added in a fixed order, so the bits of every result are the same
//! for any number of threads. Matrix products are the `faer` crate's, one thread each; gathering, activation and
//! weighting are fused around them. Nothing here is `unsafe`.

#![forbid(unsafe_code)]

mod activation;
mod combine;
mod experts;
mod gate;
mod gemm;
mod importance;
mod permute;
mod pool;
mod router;
mod scratch;
mod simd;
mod views;

pub use pool::Cpu;

use da_moe_core::{
    Attention, Backend, BiasUpdate, Buffer, CombineArgs, CombineBackwardArgs, DType, Error, ExpertsArgs,
    ExpertsBackwardArgs, GateArgs, GateBackwardArgs, ImportanceArgs, Inputs, Keep, LayerConfig, Memory, PermuteArgs,
    PermuteBackwardArgs, Result, RouterArgs, RoutingArgs, RoutingBackwardArgs, Sizes, Source, TensorMut, TensorRef,
};

impl Backend for Cpu {
    type Stream = ();

    fn describe(&self) -> String {
        format!("cpu, {} threads", self.threads())
    }

    fn allocate(&self, dtype: DType, len: usize) -> Result<Memory> {
        let limit = isize::MAX as usize / dtype.size();
        if len > limit {
            return Err(Error::Overflow { what: "buffer", sizes: vec![len], limit });
        }
        // Zeroed pages are handed out lazily, so buffers with room to spare cost nothing; asking first turns an abort
        // into an error.
        let bytes = len * dtype.size();
        Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| Error::Memory { bytes })?;
        Ok(Buffer::zeros(dtype, len).into())
    }

    /// Importance packs its values, backward through the experts keeps `dh` of every row, and `g·a` unless it can have it
    /// from `h` again.
    fn stage_scratch(&self, sizes: &Sizes, keep: Keep) -> usize {
        let importance = importance::scratch_len(sizes.tokens);
        let again = keep == Keep::Recompute;
        let routed = experts::scratch_len(sizes.rows, sizes.rows_in, sizes.width, again);
        let shared = experts::scratch_len(sizes.tokens, sizes.shared_rows_in, sizes.shared_width, again);
        if keep == Keep::Nothing { importance } else { importance.max(routed).max(shared) }
    }

    fn check_contents(&self, config: &LayerConfig, inputs: &Inputs<'_>, tokens: usize) -> Result<()> {
        let op = "importance";
        importance::Sequences::new(op, &inputs.cu_seqlens, None, tokens)?;
        if let Some(routing) = &inputs.routing {
            return gate::check_routing("routing", routing, tokens, config.candidates(), config.k_max());
        }
        let source = &config.importance.source;
        if let Some(Attention::Probabilities(p)) = &inputs.attention
            && source.any(&|s| matches!(s, Source::Attention { .. }))
        {
            importance::check_side(p, &inputs.cu_seqlens, tokens)?;
        }
        if let (Some(ids), Some(table)) = (&inputs.token_ids, &inputs.token_frequency)
            && source.any(&|s| matches!(s, Source::TokenFrequency))
        {
            let mask = views::optional::<u8>(op, "mask", &inputs.mask)?;
            let seen = |t: usize| mask.is_none_or(|mask| mask[t] != 0);
            importance::check_ids(views::vector(op, "token_ids", ids)?, seen, table.shape()[0])?;
        }
        Ok(())
    }

    fn router(&self, _: &(), args: RouterArgs<'_>) -> Result<()> {
        self.install(|| router::forward(args))
    }

    fn importance(&self, _: &(), args: ImportanceArgs<'_>) -> Result<()> {
        self.install(|| importance::forward(args))
    }

    fn gate(&self, _: &(), args: GateArgs<'_>) -> Result<()> {
        self.install(|| gate::forward(args))
    }

    fn routing(&self, _: &(), args: RoutingArgs<'_>) -> Result<()> {
        gate::routing(args)
    }

    fn permute(&self, _: &(), args: PermuteArgs<'_>) -> Result<()> {
        permute::forward(args)
    }

    fn experts(&self, _: &(), args: ExpertsArgs<'_>) -> Result<()> {
        self.install(|| experts::forward(args))
    }

    fn combine(&self, _: &(), args: CombineArgs<'_>) -> Result<()> {
        self.install(|| combine::forward(args))
    }

    fn combine_backward(&self, _: &(), args: CombineBackwardArgs<'_>) -> Result<()> {
        self.install(|| combine::backward(args))
    }

    fn experts_backward(&self, _: &(), args: ExpertsBackwardArgs<'_>) -> Result<()> {
        self.install(|| experts::backward(args))
    }

    fn permute_backward(&self, _: &(), args: PermuteBackwardArgs<'_>) -> Result<()> {
        self.install(|| permute::backward(args))
    }

    fn gate_backward(&self, _: &(), args: GateBackwardArgs<'_>) -> Result<()> {
        self.install(|| gate::backward(args))
    }

    fn routing_backward(&self, _: &(), args: RoutingBackwardArgs<'_>) -> Result<()> {
        gate::routing_backward(args)
    }

    fn update_bias(&self, _: &(), update: BiasUpdate, load: TensorRef<'_, 1>, bias: TensorMut<'_, 1>) -> Result<()> {
        router::update_bias(update, load, bias)
    }
}
