//! SPEC §7 for calls: what does not fit is refused with an error that names operation, argument and numbers, and nothing
//! has been written then.

use da_moe::{
    Attention, AttentionSource, Buffer, Cpu, DType, Inputs, Keep, Layer, LayerConfig, NullExpert, Policy, Routing,
    Source, Step, TensorMut, TensorRef, Weights,
};
use da_moe_harness::bits::same_memory;
use da_moe_harness::case::{Attend, Case, attention_source, small_config};
use da_moe_harness::data::{Data, poison};
use da_moe_harness::gradients::GradientData;

/// A call whose every part can be spoiled, over tokens 0 .. 14 in three sequences.
fn full_case() -> Case {
    let mut config = LayerConfig { num_null_experts: 2, shared_intermediate_size: 7, ..small_config() };
    config.null_expert = NullExpert::Constant;
    Case { biases: true, router_bias: true, masked_every: 4, attend: Attend::WithLse, ..Case::plain(config) }
}

fn untouched(gradients: &GradientData, fresh: &GradientData) -> bool {
    let same = |a: &Option<Buffer>, b: &Option<Buffer>| match (a, b) {
        (Some(a), Some(b)) => same_memory(a, b),
        (a, b) => a.is_none() && b.is_none(),
    };
    let experts = |a: &da_moe_harness::data::ExpertData, b: &da_moe_harness::data::ExpertData| {
        same_memory(&a.w_in, &b.w_in)
            && same_memory(&a.w_out, &b.w_out)
            && same(&a.b_in, &b.b_in)
            && same(&a.b_out, &b.b_out)
    };
    same_memory(&gradients.x, &fresh.x)
        && same(&gradients.router, &fresh.router)
        && experts(&gradients.experts, &fresh.experts)
        && gradients.shared.as_ref().zip(fresh.shared.as_ref()).is_none_or(|(a, b)| experts(a, b))
        && same(&gradients.constants, &fresh.constants)
        && same(&gradients.routing, &fresh.routing)
}

/// A layer, its step after a good forward, and outputs full of poison.
struct Bench {
    data: Data,
    layer: Layer<Cpu>,
    step: Step,
    y: Buffer,
}

impl Bench {
    fn new(data: Data) -> Self {
        let layer = Layer::new(Cpu::new(), data.config.clone()).unwrap();
        let step = layer.step(data.tokens, data.dtype, Keep::Hidden).unwrap();
        let y = poison(data.dtype, data.tokens * data.config.hidden_size);
        let mut bench = Self { data, layer, step, y };
        bench.forward();
        bench
    }

    /// A good forward, so that backward is otherwise possible; its output is not kept.
    fn forward(&mut self) {
        let shape = [self.data.tokens, self.data.config.hidden_size];
        let mut y = self.y.clone();
        let (inputs, weights) = (self.data.inputs().unwrap(), self.data.weights().unwrap());
        let mut state = self.layer.state().unwrap();
        let y = TensorMut::new(&mut y, shape).unwrap();
        self.layer.forward(&(), &inputs, &weights, &mut state, &mut self.step, y).unwrap();
    }

    /// Both directions refuse the changed call with this message, after `forward: ` or `backward: ` where the message
    /// is the layer's, and write nothing.
    fn refuses<'s>(&'s mut self, message: &str, change: impl Fn(&mut Inputs<'s>, &mut Weights<'s>)) {
        let Self { data, layer, step, y } = self;
        let shape = [data.tokens, data.config.hidden_size];
        let (mut inputs, mut weights) = (data.inputs().unwrap(), data.weights().unwrap());
        let dy = data.dy().unwrap();
        change(&mut inputs, &mut weights);
        let said = |op: &str| if message.starts_with('`') { format!("{op}: {message}") } else { message.to_string() };

        let mut state = layer.state().unwrap();
        let before = state.values.to_host().unwrap();
        let view = TensorMut::new(&mut *y, shape).unwrap();
        let error = layer.forward(&(), &inputs, &weights, &mut state, step, view).expect_err(message);
        assert_eq!(error.to_string(), said("forward"));
        assert!(same_memory(y, &poison(data.dtype, shape[0] * shape[1])), "{message}: y");
        assert!(same_memory(&state.values.to_host().unwrap(), &before), "{message}: state");

        let (mut gradients, fresh) = (data.gradients(), data.gradients());
        let mut view = gradients.view_mut().unwrap();
        let error = layer.backward(&(), &inputs, &weights, dy, step, &mut view).expect_err(message);
        assert_eq!(error.to_string(), said("backward"));
        assert!(untouched(&gradients, &fresh), "{message}: gradients");

        // A refused forward leaves the one before it in place.
        let (inputs, weights) = (data.inputs().unwrap(), data.weights().unwrap());
        layer.backward(&(), &inputs, &weights, dy, step, &mut gradients.view_mut().unwrap()).unwrap();
    }
}

/// Refused with this message, as [`Bench::refuses`].
fn refused<'s>(
    bench: &'s mut Option<Bench>,
    data: &Data,
    message: &str,
    change: impl Fn(&mut Inputs<'s>, &mut Weights<'s>),
) {
    bench.insert(Bench::new(data.clone())).refuses(message, change);
}

/// Checks one refusal after another, each on a bench of its own.
macro_rules! each_refused {
    ($data:expr; $($message:expr => $change:expr),+ $(,)?) => {
        $(refused(&mut None, &$data, $message, $change);)+
    };
}

fn f32s(count: usize) -> &'static Buffer {
    leak(Buffer::zeros(DType::F32, count))
}

/// Tests end before their memory matters, and borrowed views need owners that outlive every bench.
fn leak(buffer: Buffer) -> &'static Buffer {
    Box::leak(Box::new(buffer))
}

fn tensor<const R: usize>(buffer: &'static Buffer, shape: [usize; R]) -> TensorRef<'static, R> {
    TensorRef::new(buffer, shape).unwrap()
}

fn of<const R: usize>(dtype: DType, shape: [usize; R]) -> TensorRef<'static, R> {
    tensor(leak(Buffer::zeros(dtype, shape.iter().product())), shape)
}

fn ints(values: &[i32]) -> TensorRef<'static, 1> {
    tensor(leak(values.to_vec().into()), [values.len()])
}

const F: DType = DType::F32;

#[test]
fn wrong_shapes() {
    let data = Data::new(&full_case());
    each_refused! { data;
        "`x` has shape [14, 11], expected [14, 12]" => |i, _| i.x = of(F, [14, 11]),
        "`mask` has shape [13], expected [14]" => |i, _| i.mask = Some(of(DType::U8, [13])),
        "`cu_seqlens` has shape [0], expected [1]" => |i, _| i.cu_seqlens = Some(of(DType::I32, [0])),
        "`importance` has shape [15], expected [14]" => |i, _| i.importance = Some(of(F, [15])),
        "`token_ids` has shape [15], expected [14]" => |i, _| i.token_ids = Some(of(DType::I32, [15])),
        "`k_given` has shape [15], expected [14]" => |i, _| i.k_given = Some(of(DType::I32, [15])),
        "`router.weight` has shape [7, 12], expected [8, 12]" => |_, w| w.router = of(F, [7, 12]),
        "`router.bias` has shape [7], expected [8]" => |_, w| w.router_bias = Some(of(F, [7])),
        "`experts.w_in` has shape [6, 10, 12], expected [6, 20, 12]" => |_, w| w.experts.w_in = of(F, [6, 10, 12]),
        "`experts.w_out` has shape [6, 10, 12], expected [6, 12, 10]" => |_, w| w.experts.w_out = of(F, [6, 10, 12]),
        "`experts.b_in` has shape [6, 10], expected [6, 20]" => |_, w| w.experts.b_in = Some(of(F, [6, 10])),
        "`experts.b_out` has shape [8, 12], expected [6, 12]" => |_, w| w.experts.b_out = Some(of(F, [8, 12])),
        "`shared.w_in` has shape [2, 14, 12], expected [1, 14, 12]" =>
            |_, w| w.shared.as_mut().unwrap().w_in = of(F, [2, 14, 12]),
        "`shared.w_out` has shape [1, 12, 14], expected [1, 12, 7]" =>
            |_, w| w.shared.as_mut().unwrap().w_out = of(F, [1, 12, 14]),
        "`null.constants` has shape [1, 12], expected [2, 12]" => |_, w| w.constants = Some(of(F, [1, 12])),
    }
    let attention = |q: [usize; 3], k: [usize; 3], lse: [usize; 2]| {
        Some(Attention::QueryKey { q: of(F, q), k: of(F, k), lse: Some(of(F, lse)) })
    };
    each_refused! { data;
        "`q` has shape [13, 2, 4], expected [14, 2, 4]" => |i, _| i.attention = attention([13, 2, 4], [14, 1, 4], [2, 14]),
        "`k` has shape [14, 1, 3], expected [14, 1, 4]" => |i, _| i.attention = attention([14, 2, 4], [14, 1, 3], [2, 14]),
        "`lse` has shape [14, 2], expected [2, 14]" => |i, _| i.attention = attention([14, 2, 4], [14, 1, 4], [14, 2]),
        "`attn_probs` has shape [2, 2, 9, 9], expected [3, 2, 9, 9]" =>
            |i, _| i.attention = Some(Attention::Probabilities(of(F, [2, 2, 9, 9]))),
        "`attn_probs` has shape [3, 2, 9, 8], expected [3, 2, 9, 9]" =>
            |i, _| i.attention = Some(Attention::Probabilities(of(F, [3, 2, 9, 8]))),
        "`attn_probs`: no heads" => |i, _| i.attention = Some(Attention::Probabilities(of(F, [3, 0, 9, 9]))),
        "`q`: 3 query heads of width 4 over 2 key heads; heads must be positive and a multiple of the key heads" =>
            |i, _| i.attention = attention([14, 3, 4], [14, 2, 4], [3, 14]),
        "`q`: 2 query heads of width 4 over 0 key heads; heads must be positive and a multiple of the key heads" =>
            |i, _| i.attention = attention([14, 2, 4], [14, 0, 4], [2, 14]),
        "importance: `attn_probs`: 8 positions a side, but the longest sequence has 9" =>
            |i, _| i.attention = Some(Attention::Probabilities(of(F, [3, 2, 8, 8]))),
    }
}

#[test]
fn wrong_types() {
    let data = Data::new(&full_case());
    let half = DType::Bf16;
    each_refused! { data;
        "`x` is i32, expected f32 or bf16 or f16" => |i, _| i.x = of(DType::I32, [14, 12]),
        "`mask` is f32, expected u8" => |i, _| i.mask = Some(of(F, [14])),
        "`cu_seqlens` is f32, expected i32" => |i, _| i.cu_seqlens = Some(of(F, [2])),
        "`importance` is bf16, expected f32" => |i, _| i.importance = Some(of(half, [14])),
        "`token_ids` is f32, expected i32" => |i, _| i.token_ids = Some(of(F, [14])),
        "`token_frequency` is f16, expected f32" => |i, _| i.token_frequency = Some(of(DType::F16, [7])),
        "`k_given` is u8, expected i32" => |i, _| i.k_given = Some(of(DType::U8, [14])),
        "`router.weight` is bf16, expected f32" => |_, w| w.router = of(half, [8, 12]),
        "`router.bias` is bf16, expected f32" => |_, w| w.router_bias = Some(of(half, [8])),
        "`experts.w_in` is bf16, expected f32" => |_, w| w.experts.w_in = of(half, [6, 20, 12]),
        "`experts.b_out` is f16, expected f32" => |_, w| w.experts.b_out = Some(of(DType::F16, [6, 12])),
        "`shared.w_out` is bf16, expected f32" => |_, w| w.shared.as_mut().unwrap().w_out = of(half, [1, 12, 7]),
        "`null.constants` is bf16, expected f32" => |_, w| w.constants = Some(of(half, [2, 12])),
        "`q` is i32, expected f32 or bf16 or f16" => |i, _| {
            i.attention = Some(Attention::QueryKey { q: of(DType::I32, [14, 2, 4]), k: of(F, [14, 1, 4]), lse: None });
        },
        "`k` is bf16, expected f32" => |i, _| {
            i.attention = Some(Attention::QueryKey { q: of(F, [14, 2, 4]), k: of(half, [14, 1, 4]), lse: None });
        },
        "`attn_probs` is u8, expected f32 or bf16 or f16" =>
            |i, _| i.attention = Some(Attention::Probabilities(of(DType::U8, [3, 2, 9, 9]))),
    }
}

#[test]
fn views_that_do_not_fit_their_memory() {
    let memory = f32s(20);
    let refusals = [
        (TensorRef::strided(memory, [3, 4], [9, 1]).err(), "the view reaches past its 20 elements"),
        (TensorRef::strided(memory, [3, 4], [1, 3]).err(), "the last dimension must be contiguous"),
        (TensorRef::strided(memory, [usize::MAX, 2], [usize::MAX, 1]).err(), "the view reaches past its 20 elements"),
        (TensorRef::prefix(memory, [3, 7]).err(), "the view reaches past its 20 elements"),
    ];
    for (error, problem) in refusals {
        let error = error.expect(problem).to_string();
        assert!(error.starts_with("tensor: `data` with shape [") && error.ends_with(problem), "{error}");
    }
    for shape in [[4, 4], [5, 5], [usize::MAX, 2]] {
        let error = TensorRef::new(memory, shape).unwrap_err().to_string();
        assert_eq!(error, format!("tensor: `data` has shape [20], expected {shape:?}"));
    }
}

fn with_config(change: impl Fn(&mut LayerConfig)) -> Data {
    let mut case = full_case();
    change(&mut case.config);
    Data::new(&case)
}

#[test]
fn missing_and_unexpected_tensors() {
    let external = with_config(|c| c.importance.source = Source::External);
    let frequency = with_config(|c| c.importance.source = Source::TokenFrequency);
    let given = with_config(|c| c.experts_per_token.policy = Policy::Given);
    let data = Data::new(&full_case());
    each_refused! { data;
        "`q and k, or attn_probs` is missing: the importance source is `received-max`" => |i, _| i.attention = None,
        "`shared.w_in` is missing: `shared_intermediate_size` is 7" => |_, w| w.shared = None,
        "`null.constants` is missing: the null experts are of kind `constant`" => |_, w| w.constants = None,
    }
    each_refused! { external;
        "`importance` is missing: the importance source is `external`" => |i, _| i.importance = None,
    }
    each_refused! { frequency;
        "`token_ids` is missing: the importance source is `token-frequency`" => |i, _| i.token_ids = None,
        "`token_frequency` is missing: the importance source is `token-frequency`" => |i, _| i.token_frequency = None,
    }
    each_refused! { given; "`k_given` is missing: the policy is `given`" => |i, _| i.k_given = None }
    let plain = Data::new(&Case::plain(small_config()));
    each_refused! { plain;
        "`shared.w_in` was given, but `shared_intermediate_size` is 0" => |_, w| w.shared = Some(w.experts),
        "`null.constants` was given, but there are no null experts of kind `constant`" =>
            |_, w| w.constants = Some(of(F, [2, 12])),
    }
}

#[test]
fn importance_that_nobody_asks_for_may_lack_its_inputs() {
    let data = with_config(|config| {
        config.importance.source = Source::External;
        config.experts_per_token.policy = Policy::Fixed { k: 2 };
    });
    let bench = Bench::new(data.clone());
    let Bench { layer, mut step, mut y, .. } = bench;
    let inputs = Inputs { importance: None, ..data.inputs().unwrap() };
    let view = TensorMut::new(&mut y, [14, 12]).unwrap();
    let mut state = layer.state().unwrap();
    layer.forward(&(), &inputs, &data.weights().unwrap(), &mut state, &mut step, view).unwrap();
    let importance: &[f32] = step.importance().unwrap().elements().unwrap();
    assert_eq!(importance[..14], [0.0; 14]);
    assert!(y.to_f32().iter().all(|y| y.is_finite()));
}

#[test]
fn contents_out_of_range() {
    let data = Data::new(&full_case());
    each_refused! { data;
        "importance: `cu_seqlens`: does not start at 0" => |i, _| i.cu_seqlens = Some(ints(&[1, 9, 14])),
        "importance: `cu_seqlens`: falls from 9 to 4 at position 2" => |i, _| i.cu_seqlens = Some(ints(&[0, 9, 4, 14])),
        "importance: `cu_seqlens`: ends at 13, expected 14" => |i, _| i.cu_seqlens = Some(ints(&[0, 9, 13])),
        "importance: `cu_seqlens`: ends at 15, expected 14" => |i, _| i.cu_seqlens = Some(ints(&[0, 9, 15])),
        "importance: `cu_seqlens`: ends at 0, expected 14" => |i, _| i.cu_seqlens = Some(ints(&[0])),
    }
    let ids = |bad: i32| {
        let mut ids = [3; 14];
        ids[5] = bad;
        Some(ints(&ids))
    };
    each_refused! { with_config(|c| c.importance.source = Source::TokenFrequency);
        "importance: `token_ids`: token 5 has id 7, the table has 7 entries" => |i, _| i.token_ids = ids(7),
        "importance: `token_ids`: token 5 has id -1, the table has 7 entries" => |i, _| i.token_ids = ids(-1),
    }
}

#[test]
fn routings_out_of_range() {
    let padded = |shape: [usize; 2], bad: i32| {
        let mut experts = vec![0; shape[0] * shape[1]];
        experts[3] = bad;
        Some(Routing::Padded { experts: tensor(leak(experts.into()), shape), weights: of(F, shape) })
    };
    let csr = |offsets: &[i32], experts: &[i32]| {
        let weights = of(F, [experts.len()]);
        Some(Routing::Csr { offsets: ints(offsets), experts: ints(experts), weights })
    };
    // Fourteen tokens, one expert each, but for the end.
    let ending = |end: &[i32]| (0..15 - end.len() as i32).chain(end.iter().copied()).collect::<Vec<i32>>();
    let data = Data::new(&Case { routing: 1, ..Case::plain(small_config()) });
    each_refused! { data;
        "`routing.experts` has shape [13, 2], expected [14, 2]" => |i, _| i.routing = padded([13, 2], 0),
        "`routing.experts`: 5 slots per token, but the layer's k_max is 4" => |i, _| i.routing = padded([14, 5], 0),
        "routing: `routing.experts`: token 1 names expert 7 of 6" => |i, _| i.routing = padded([14, 2], 7),
        "`routing.offsets` has shape [14], expected [15]" => |i, _| i.routing = csr(&[0; 14], &[]),
        "`routing.weights` has shape [14], expected [13]" => |i, _| {
            let (offsets, experts) = (ints(&ending(&[14])), ints(&[0; 13]));
            i.routing = Some(Routing::Csr { offsets, experts, weights: of(F, [14]) });
        },
        "routing: `routing.offsets`: does not start at 0" => |i, _| i.routing = csr(&[1; 15], &[0]),
        "routing: `routing.offsets`: falls from 12 to 3 at position 13" =>
            |i, _| i.routing = csr(&ending(&[3, 14]), &[0; 14]),
        "routing: `routing.offsets`: ends at 15, expected 14" => |i, _| i.routing = csr(&ending(&[15]), &[0; 14]),
        "routing: `routing.offsets`: token 13 has 5 experts, k_max is 4" => |i, _| i.routing = csr(&ending(&[18]), &[0; 18]),
        "routing: `routing.experts`: token 13 names expert 6 of 6" =>
            |i, _| i.routing = csr(&ending(&[14]), &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6]),
        "routing: `routing.experts`: token 0 names expert -1 of 6" =>
            |i, _| i.routing = csr(&ending(&[14]), &[-1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    }
}

/// Every measure, the mask and the causal order: a log-sum-exp below a score of its own row is no log-sum-exp, and nothing is
/// written; one within rounding of it is.
#[test]
fn a_log_sum_exp_that_cannot_be_one_is_refused() {
    for measure in AttentionSource::ALL {
        for causal in [false, true] {
            let mut config = LayerConfig { shared_intermediate_size: 7, ..small_config() };
            config.importance.source = attention_source(measure);
            (config.importance.causal, config.importance.allow_future) = (causal, true);
            let case = Case { attend: Attend::WithLse, masked_every: 4, ..Case::plain(config) };
            let data = Data::new(&case);
            let mask = data.mask.as_ref().unwrap().as_slice::<u8>().unwrap().to_vec();
            let token = (0..data.tokens).rev().find(|&t| mask[t] != 0).unwrap();
            // Of the second head. Its largest score is at most the log-sum-exp, and that at most ln 14 more.
            let at = data.tokens + token;
            let layer = Layer::new(Cpu::new(), data.config.clone()).unwrap();
            let forward = |lse: Vec<f32>| {
                let data = Data { lse: lse.into(), ..data.clone() };
                let mut step = layer.step(data.tokens, data.dtype, Keep::Nothing).unwrap();
                let mut y = poison(data.dtype, data.tokens * data.config.hidden_size);
                let (shape, mut state) = ([data.tokens, data.config.hidden_size], layer.state().unwrap());
                let out = TensorMut::new(&mut y, shape).unwrap();
                let (inputs, weights) = (data.inputs().unwrap(), data.weights().unwrap());
                let error = layer.forward(&(), &inputs, &weights, &mut state, &mut step, out).err();
                (error.map(|error| error.to_string()), y.to_f32())
            };
            let mut lse = data.lse.to_f32();
            lse[at] -= 30.0;
            let (error, y) = forward(lse.clone());
            let what = format!("{measure:?}, causal {causal}");
            let error = error.unwrap_or_else(|| panic!("{what}: accepted"));
            assert!(error.contains(&format!("`lse`: of head 1 and token {token} is")), "{what}: {error}");
            assert!(y.iter().all(|y| y.is_nan()), "{what}: nothing is written");
            // Rounding; and what padding holds.
            lse[at] += 30.0 - 1e-4;
            lse.iter_mut().enumerate().filter(|(i, _)| mask[i % data.tokens] == 0).for_each(|(_, lse)| *lse = -1e9);
            assert_eq!(forward(lse).0, None, "{what}");
        }
    }
}
