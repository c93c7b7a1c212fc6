//! What integer tensors on the device hold is the caller's word, and nobody reads it on the host. Whatever a stage finds in
//! one it touches nothing but its own memory, reads nothing that nobody wrote, and no two of its threads write one place.

use da_moe::cuda::{Architecture, Copies, Device, DeviceMemory, Emulated, GradientCopies, Kernels, Most, Stream};
use da_moe::{
    AttentionSource, Backend, BiasUpdate, CombineArgs, CombineBackwardArgs, DType, Error, ExpertsArgs,
    ExpertsBackwardArgs, GateArgs, GateBackwardArgs, ImportanceArgs, Inputs, Keep, Layer, LayerConfig, Memory,
    Normalize, PermuteArgs, PermuteBackwardArgs, Plan, Result, RouterArgs, RouterBackward, Routing, RoutingArgs,
    RoutingBackwardArgs, Rows, Selection, Slice, Source, TensorMut, TensorRef,
};
use da_moe_emulator::Schedule;
use da_moe_harness::case::{Attend, Case, attention_source, case, small_config};
use da_moe_harness::data::{Data, Numbers, poison};
use da_moe_harness::kernels::{emulated, is_emulator_wanted};
use da_moe_harness::planted::{launched, mutant};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// The kernels, given anything where a stage expects integers: memory of exactly the tensor's size.
struct Strange {
    kernels: Kernels<Emulated>,
    numbers: Mutex<Numbers>,
}

struct Ints<const R: usize> {
    memory: DeviceMemory<Emulated>,
    shape: [usize; R],
}

impl<const R: usize> Ints<R> {
    fn view(&self) -> TensorRef<'_, R> {
        TensorRef::new(&self.memory, self.shape).expect("as many elements")
    }
}

/// Integers that have little to do with what there are `count` of.
fn integers(numbers: &mut Numbers, count: usize) -> Vec<i32> {
    let specials = [i32::MIN, i32::MIN + 1, -1, 0, 1, count as i32, i32::MAX - 1, i32::MAX];
    let bound = [4, count + 4, 3 * count + 4][numbers.below(3)];
    let kind = numbers.below(6);
    let mut values: Vec<i32> = (0..count)
        .map(|_| match kind {
            0 => numbers.any(),
            1 => specials[numbers.below(specials.len())],
            _ => numbers.below(bound) as i32 - 2,
        })
        .collect();
    if kind >= 4 {
        values.sort_unstable();
    }
    if kind == 5 && count > 0 {
        values[numbers.below(count)] = specials[numbers.below(specials.len())];
    }
    values
}

impl Strange {
    fn new(seed: u64) -> Self {
        Self { kernels: emulated(seed).kernels().clone(), numbers: Mutex::new(Numbers::new(seed)) }
    }

    fn ints<const R: usize>(&self, like: &TensorRef<'_, R>) -> Result<Ints<R>> {
        assert_eq!(like.dtype(), DType::I32);
        let values = integers(&mut self.numbers.lock().unwrap(), like.shape().iter().product());
        Ok(Ints { memory: self.kernels.upload(&values)?, shape: like.shape() })
    }

    fn optional<const R: usize>(&self, like: &Option<TensorRef<'_, R>>) -> Result<Option<Ints<R>>> {
        like.as_ref().map(|like| self.ints(like)).transpose()
    }

    fn selection(&self, like: &Selection<'_>) -> Result<(Ints<1>, [Ints<2>; 2])> {
        Ok((self.ints(&like.k)?, [self.ints(&like.experts)?, self.ints(&like.ranked)?]))
    }

    fn plan(&self, like: &Plan<'_>) -> Result<([Ints<1>; 4], Ints<2>)> {
        let vectors = [&like.counts, &like.offsets, &like.row_token, &like.dropped];
        let [counts, offsets, row_token, dropped] = vectors.map(|vector| self.ints(vector));
        Ok(([counts?, offsets?, row_token?, dropped?], self.ints(&like.token_row)?))
    }

    /// Calls with strange rows in place of routed ones.
    fn with_rows(&self, rows: Rows<'_>, call: impl FnOnce(Rows<'_>) -> Result<()>) -> Result<()> {
        let Rows::Routed { offsets, row_token, row_weight } = rows else { return call(rows) };
        let (offsets, row_token) = (self.ints(&offsets)?, self.ints(&row_token)?);
        call(Rows::Routed { offsets: offsets.view(), row_token: row_token.view(), row_weight })
    }

    fn with_routing(&self, routing: Routing<'_>, call: impl FnOnce(Routing<'_>) -> Result<()>) -> Result<()> {
        match routing {
            Routing::Padded { experts, weights } => {
                let experts = self.ints(&experts)?;
                call(Routing::Padded { experts: experts.view(), weights })
            }
            Routing::Csr { offsets, experts, weights } => {
                let (offsets, experts) = (self.ints(&offsets)?, self.ints(&experts)?);
                call(Routing::Csr { offsets: offsets.view(), experts: experts.view(), weights })
            }
        }
    }
}

fn selected<'a>((k, [experts, ranked]): &'a (Ints<1>, [Ints<2>; 2]), weights: TensorRef<'a, 2>) -> Selection<'a> {
    Selection { k: k.view(), experts: experts.view(), weights, ranked: ranked.view() }
}

fn planned<'a>(
    ([counts, offsets, row_token, dropped], token_row): &'a ([Ints<1>; 4], Ints<2>),
    row_weight: TensorRef<'a, 1>,
) -> Plan<'a> {
    let (counts, offsets, row_token) = (counts.view(), offsets.view(), row_token.view());
    Plan { counts, offsets, row_token, row_weight, token_row: token_row.view(), dropped: dropped.view() }
}

impl Backend for Strange {
    type Stream = Stream<Emulated>;

    fn describe(&self) -> String {
        self.kernels.describe()
    }

    fn allocate(&self, dtype: DType, len: usize) -> Result<Memory> {
        self.kernels.allocate(dtype, len)
    }

    fn row_type(&self, storage: DType) -> DType {
        self.kernels.row_type(storage)
    }

    fn check_location(&self, op: &'static str, argument: &'static str, memory: Slice<'_>) -> Result<()> {
        self.kernels.check_location(op, argument, memory)
    }

    fn check_contents(&self, _: &LayerConfig, _: &Inputs<'_>, _: usize) -> Result<()> {
        Ok(())
    }

    fn router(&self, stream: &Self::Stream, args: RouterArgs<'_>) -> Result<()> {
        self.kernels.router(stream, args)
    }

    fn importance(&self, stream: &Self::Stream, args: ImportanceArgs<'_>) -> Result<()> {
        let (bounds, ids) = (self.optional(&args.cu_seqlens)?, self.optional(&args.token_ids)?);
        let (cu_seqlens, token_ids) = (bounds.as_ref().map(Ints::view), ids.as_ref().map(Ints::view));
        self.kernels.importance(stream, ImportanceArgs { cu_seqlens, token_ids, ..args })
    }

    fn gate(&self, stream: &Self::Stream, args: GateArgs<'_>) -> Result<()> {
        let k_given = self.optional(&args.k_given)?;
        self.kernels.gate(stream, GateArgs { k_given: k_given.as_ref().map(Ints::view), ..args })
    }

    fn routing(&self, stream: &Self::Stream, args: RoutingArgs<'_>) -> Result<()> {
        self.with_routing(args.routing, |routing| self.kernels.routing(stream, RoutingArgs { routing, ..args }))
    }

    fn permute(&self, stream: &Self::Stream, args: PermuteArgs<'_>) -> Result<()> {
        let chosen = self.selection(&args.selection)?;
        let selection = selected(&chosen, args.selection.weights);
        self.kernels.permute(stream, PermuteArgs { selection, ..args })
    }

    fn experts(&self, stream: &Self::Stream, args: ExpertsArgs<'_>) -> Result<()> {
        self.with_rows(args.rows, |rows| self.kernels.experts(stream, ExpertsArgs { rows, ..args }))
    }

    fn combine(&self, stream: &Self::Stream, args: CombineArgs<'_>) -> Result<()> {
        let (chosen, made) = (self.selection(&args.selection)?, self.plan(&args.plan)?);
        let (selection, plan) = (selected(&chosen, args.selection.weights), planned(&made, args.plan.row_weight));
        let shared_row = self.optional(&args.shared_row)?;
        let shared_row = shared_row.as_ref().map(Ints::view);
        self.kernels.combine(stream, CombineArgs { selection, plan, shared_row, ..args })
    }

    fn combine_backward(&self, stream: &Self::Stream, args: CombineBackwardArgs<'_>) -> Result<()> {
        let chosen = self.selection(&args.selection)?;
        let selection = selected(&chosen, args.selection.weights);
        self.kernels.combine_backward(stream, CombineBackwardArgs { selection, ..args })
    }

    fn experts_backward(&self, stream: &Self::Stream, args: ExpertsBackwardArgs<'_>) -> Result<()> {
        self.with_rows(args.rows, |rows| self.kernels.experts_backward(stream, ExpertsBackwardArgs { rows, ..args }))
    }

    fn permute_backward(&self, stream: &Self::Stream, args: PermuteBackwardArgs<'_>) -> Result<()> {
        let (chosen, made) = (self.selection(&args.selection)?, self.plan(&args.plan)?);
        let (selection, plan) = (selected(&chosen, args.selection.weights), planned(&made, args.plan.row_weight));
        let shared_row = self.optional(&args.shared_row)?;
        let shared_row = shared_row.as_ref().map(Ints::view);
        self.kernels.permute_backward(stream, PermuteBackwardArgs { selection, plan, shared_row, ..args })
    }

    fn gate_backward(&self, stream: &Self::Stream, args: GateBackwardArgs<'_>) -> Result<()> {
        let chosen = self.selection(&args.selection)?;
        let selection = selected(&chosen, args.selection.weights);
        let Some(router) = args.router else {
            return self.kernels.gate_backward(stream, GateBackwardArgs { selection, ..args });
        };
        let [load, unmasked] = [&router.load, &router.unmasked].map(|vector| self.ints(vector));
        let (load, unmasked) = (load?, unmasked?);
        let router = Some(RouterBackward { load: load.view(), unmasked: unmasked.view(), ..router });
        self.kernels.gate_backward(stream, GateBackwardArgs { selection, router, ..args })
    }

    fn routing_backward(&self, stream: &Self::Stream, args: RoutingBackwardArgs<'_>) -> Result<()> {
        let chosen = self.selection(&args.selection)?;
        let selection = selected(&chosen, args.selection.weights);
        self.with_routing(args.routing, |routing| {
            self.kernels.routing_backward(stream, RoutingBackwardArgs { routing, selection, ..args })
        })
    }

    fn update_bias(
        &self,
        stream: &Self::Stream,
        update: BiasUpdate,
        load: TensorRef<'_, 1>,
        bias: TensorMut<'_, 1>,
    ) -> Result<()> {
        self.kernels.update_bias(stream, update, self.ints(&load)?.view(), bias)
    }
}

/// Forward and backward of a layer whose stages find anything in their integers.
fn call(case: &Case) -> Result<()> {
    let strange = Strange::new(case.seed);
    let kernels = strange.kernels.clone();
    let data = Data::new(case);
    let copies = Copies::new(&kernels);
    let (inputs, weights) = (copies.inputs(&data.inputs()?)?, copies.weights(&data.weights()?)?);
    let stream = kernels.stream(kernels.workspace_bytes(&data.config, Most::of(&inputs, case.keep))?)?;
    let layer = Layer::new(strange, data.config.clone())?;
    let (mut state, mut step) = (layer.state()?, layer.step(data.tokens, data.dtype, case.keep)?);
    let shape = [data.tokens, data.config.hidden_size];
    let mut y = kernels.upload(&poison(data.dtype, shape[0] * shape[1]))?;
    layer.forward(&stream, &inputs, &weights, &mut state, &mut step, TensorMut::new(&mut y, shape)?)?;
    let mut host = data.gradients();
    let mut gradients = GradientCopies::like(&kernels, &host.view_mut()?)?;
    let dy = data.dy()?;
    layer.backward(&stream, &inputs, &weights, copies.tensor(&dy)?, &mut step, &mut gradients.view_mut()?)
}

proptest! {
    #![proptest_config(da_moe_harness::cases(100))]

    #[test]
    fn stages_find_anything_in_their_integers(case in case()) {
        if is_emulator_wanted() {
            call(&case).map_err(|error| TestCaseError::fail(error.to_string()))?;
        }
    }
}

/// Several tiles of tokens, of a selection and of a plan.
#[test]
fn so_do_those_of_large_calls() {
    for (routing, seed) in [0, 1, 2].into_iter().flat_map(|routing| [1, 2, 3].map(|seed| (routing, seed))) {
        let mut config = small_config();
        config.importance.source = attention_source(AttentionSource::ReceivedMean);
        config.importance.normalize = Normalize::Rank;
        config.router.capacity_factor = (seed == 2).then_some(0.5);
        let lengths = vec![200, 0, 131, 1, 268];
        if is_emulator_wanted() {
            call(&Case { routing, seed, lengths, masked_every: 4, ..Case::plain(config) }).unwrap();
        }
    }
}

/// Importance of a case's tokens, cut into sequences as `bounds` says.
fn importance<D: Device>(kernels: &Kernels<D>, case: &Case, bounds: &[i32]) -> Result<Vec<f32>> {
    let mut data = Data::new(case);
    data.cu_seqlens = Some(bounds.to_vec().into());
    let copies = Copies::new(kernels);
    let (inputs, weights) = (copies.inputs(&data.inputs()?)?, copies.weights(&data.weights()?)?);
    let stream = kernels.stream(kernels.workspace_bytes(&data.config, Most::of(&inputs, case.keep))?)?;
    let layer = Layer::new(kernels.clone(), data.config.clone())?;
    let (mut state, mut step) = (layer.state()?, layer.step(data.tokens, data.dtype, case.keep)?);
    let shape = [data.tokens, data.config.hidden_size];
    let mut y = kernels.upload(&poison(data.dtype, shape[0] * shape[1]))?;
    layer.forward(&stream, &inputs, &weights, &mut state, &mut step, TensorMut::new(&mut y, shape)?)?;
    Ok(step.importance()?.data().to_host()?.to_f32())
}

const TOKENS: i32 = 37;
/// Of the matrices: that of the longest sequence, and one more.
const SIDE: i32 = 21;

/// Three sequences of tokens, some of them masked.
fn sequences(source: &Source, normalize: Normalize, attend: Attend) -> Case {
    let mut config = small_config();
    (config.importance.source, config.importance.normalize) = (source.clone(), normalize);
    config.importance.allow_future = true;
    let lengths = vec![SIDE as usize - 1, 0, (TOKENS - SIDE) as usize + 1];
    Case { attend, lengths, masked_every: 4, keep: Keep::Nothing, ..Case::plain(config) }
}

/// Nothing that three sequences can be.
const BOUNDS: [[i32; 4]; 8] = [
    [0, TOKENS + 5, TOKENS, TOKENS],
    [0, -3, TOKENS, TOKENS],
    [0, SIDE + 1, TOKENS, TOKENS],
    [5, 9, 12, 31],
    [0, 30, 4, TOKENS],
    [TOKENS, 0, 20, TOKENS],
    [i32::MIN, i32::MAX, i32::MIN, i32::MAX],
    [i32::MAX, 17, i32::MAX, 3],
];

#[test]
fn sequences_that_are_none_leave_memory_alone() {
    let rules = [
        Normalize::None,
        Normalize::Max,
        Normalize::MinMax,
        Normalize::Rank,
        Normalize::Affine { a: 1.5, b: -0.25 },
        Normalize::Running { momentum: 0.9 },
    ];
    let attention = AttentionSource::ALL.map(attention_source);
    let others = [Source::External, Source::TokenFrequency, Source::RouterEntropy];
    let sources =
        [(&attention[..], Attend::QueryKey), (&attention, Attend::Probabilities), (&others, Attend::QueryKey)];
    for (index, rule) in rules.iter().enumerate().filter(|_| is_emulator_wanted()) {
        for (source, attend) in sources.iter().flat_map(|(sources, attend)| sources.iter().map(move |s| (s, *attend))) {
            let case = sequences(source, *rule, attend);
            for (other, bounds) in BOUNDS.iter().enumerate() {
                let kernels = emulated((8 * index + other) as u64).kernels().clone();
                importance(&kernels, &case, bounds).unwrap_or_else(|e| panic!("{bounds:?}, {case:?}: {e}"));
            }
        }
        let case = sequences(&attention_source(AttentionSource::ReceivedMean), *rule, Attend::QueryKey);
        importance(emulated(1).kernels(), &case, &[0]).unwrap();
    }
}

#[test]
fn memory_that_is_not_left_alone_is_seen() {
    let partition = "device/partition.cuh";
    let attention = |measure, attend| sequences(&attention_source(measure), Normalize::Max, attend);
    let bugs = [
        (partition, "min(max(offsets[part], 0), size)", "offsets[part]", Attend::Probabilities, BOUNDS[0]),
        (partition, "min(max(offsets[part], 0), size)", "max(offsets[part], 0)", Attend::QueryKey, BOUNDS[6]),
        ("importance_probabilities.cu", "min(tokens, p.side)", "tokens", Attend::Probabilities, BOUNDS[3]),
        ("importance_probabilities.cu", "tile == 0 && row < tokens", "false", Attend::Probabilities, BOUNDS[2]),
        ("importance_probabilities.cu", "sequences.of(token) == sequence", "true", Attend::Probabilities, BOUNDS[4]),
        ("importance.cu", "sequences.of(token) == sequence", "true", Attend::Probabilities, BOUNDS[4]),
        ("attention/walk.cuh", "sequences_of(p).of(token) != place.index", "false", Attend::QueryKey, BOUNDS[4]),
    ];
    for (file, from, to, attend, bounds) in bugs.into_iter().filter(|_| is_emulator_wanted()) {
        let case = attention(AttentionSource::ReceivedSum, attend);
        let (launched, _) = launched(Architecture::Hopper, |kernels| importance(&kernels, &case, &bounds));
        let module = mutant([file, from, to], launched).unwrap();
        let kernels = Kernels::new(Arc::new(Emulated::new(module, Schedule::from_seed(2))));
        let found = importance(&kernels, &case, &bounds);
        assert!(matches!(found, Err(Error::Kernel { .. })), "{file}, `{to}` for `{from}`: {found:?}");
    }
}
