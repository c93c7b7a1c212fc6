//! Importance from queries and keys on the kernels: where tiles of 128 rows by 64 columns, chunks and pieces of the width
//! end, in every type and measure, with every kind of layout.

use da_moe::cuda::{Device, Staged};
use da_moe::{
    Attention, AttentionSource, Backend, Buffer, Cpu, DType, Heads, ImportanceArgs, ImportanceConfig, Keep,
    LayerConfig, Normalize, Slice, Source, TensorMut, TensorRef,
};
use da_moe_harness::case::{Attend, Case};
use da_moe_harness::data::{Data, Numbers};
use da_moe_harness::kernels::{on_each, subjects};
use da_moe_harness::{Through, assert_agrees};

const STORAGE: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Runs a case on the kernels wherever they run.
fn agrees(case: &Case) {
    subjects().iter().for_each(|subject| assert_agrees(&**subject, case));
}

/// A call whose experts cost nothing; heads are reduced by their maximum and their mean in turn.
fn query_key(measure: AttentionSource, dtype: DType, heads: [usize; 3], lengths: &[usize]) -> Case {
    let mut config = LayerConfig::da_moe(5, 2, 4, 3);
    let by_heads = if heads[2].is_multiple_of(2) { Heads::Max } else { Heads::Mean };
    config.importance.source = Source::Attention { measure, heads: by_heads, scale: None };
    (config.importance.normalize, config.importance.allow_future) = (Normalize::None, true);
    Case { dtype, heads, lengths: lengths.to_vec(), keep: Keep::Nothing, ..Case::plain(config) }
}

fn causal(mut case: Case) -> Case {
    case.config.importance.causal = true;
    case
}

#[test]
fn lengths_around_every_tile() {
    let lengths: [&[usize]; 6] = [&[1], &[63, 0, 64], &[65, 1], &[127, 0, 0, 2], &[128, 32], &[129, 193]];
    for (index, measure) in AttentionSource::ALL.into_iter().enumerate() {
        for (other, lengths) in lengths.iter().enumerate() {
            let case = query_key(measure, STORAGE[(index + other) % 3], [2, 1, 16], lengths);
            agrees(&case);
            agrees(&causal(Case { masked_every: other % 3, ..case }));
        }
    }
}

#[test]
fn widths_around_every_chunk() {
    for (index, width) in [1, 5, 16, 40, 64, 72, 128, 136, 260].into_iter().enumerate() {
        for (other, dtype) in STORAGE.into_iter().enumerate() {
            let heads = if index % 2 == 0 { [4, 2, width] } else { [3, 3, width] };
            let measures = [AttentionSource::ALL[(index + other) % 3], AttentionSource::ALL[3 + (index + other) % 3]];
            for (attend, measure) in [Attend::QueryKey, Attend::WithLse].into_iter().zip(measures) {
                let case = Case { attend, ..query_key(measure, dtype, heads, &[66, 3]) };
                agrees(&if other == 1 { causal(case) } else { case });
            }
        }
    }
}

#[test]
fn masks_in_every_type_and_measure() {
    for measure in AttentionSource::ALL {
        for dtype in STORAGE {
            for attend in [Attend::QueryKey, Attend::WithLse] {
                let case = query_key(measure, dtype, [4, 2, 8], &[20, 140]);
                agrees(&Case { attend, masked_every: 1, ..case.clone() });
                agrees(&causal(Case { attend, masked_every: 3, ..case }));
            }
        }
    }
}

/// A call with a bad number in a query, a key or a log-sum-exp.
fn broken(data: &Data, tensor: usize, at: usize, value: f32) -> Data {
    let mut data = data.clone();
    let buffer = [&mut data.q, &mut data.k, &mut data.lse].into_iter().nth(tensor).expect("three tensors");
    let mut values = buffer.to_f32();
    values[at] = value;
    *buffer = Buffer::from_f32(buffer.dtype(), &values);
    data
}

#[test]
fn bad_numbers_mean_what_they_mean_to_the_cpu() {
    for (index, measure) in AttentionSource::ALL.into_iter().enumerate() {
        for (attend, tensors) in [(Attend::QueryKey, 2), (Attend::WithLse, 3)] {
            let case = Case { attend, masked_every: 3, ..query_key(measure, STORAGE[index % 3], [2, 1, 8], &[21, 3]) };
            let case = if index % 2 == 0 { causal(case) } else { case };
            let data = Data::new(&case);
            // A token that takes part, and one that does not.
            let mask = data.mask.as_ref().expect("a mask").as_slice::<u8>().expect("bytes");
            let tokens = [1, 0].map(|part| mask.iter().position(|&token| token == part).expect("both kinds"));
            for (tensor, token) in (0..tensors).flat_map(|tensor| tokens.map(|token| (tensor, token))) {
                for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let data = broken(&data, tensor, token * [16, 8, 1][tensor], value);
                    let expected = Through(Cpu::new()).run_with(&data, &case, None).unwrap().importance;
                    for subject in subjects() {
                        let found = subject.run(&data, &case).unwrap().importance;
                        let near = |(a, b): (&f64, &f64)| a == b || (a - b).abs() <= 1e-5 * b.abs().max(0.01);
                        let what = format!("{measure:?}, {attend:?}, {value} in tensor {tensor} of token {token}");
                        assert!(found.iter().zip(&expected).all(near), "{what}:\n{found:?} for\n{expected:?}");
                    }
                }
            }
        }
    }
}

const TOKENS: usize = 20;
/// Query heads, key heads, width.
const HEADS: [usize; 3] = [4, 2, 24];

/// Queries and keys cut out of one tensor, as a fused projection leaves them: tokens are `stride` elements apart.
struct Fused {
    values: Buffer,
    stride: usize,
}

impl Fused {
    fn new(dtype: DType, stride: usize) -> Self {
        Self { values: Numbers::new(5).tensor(dtype, TOKENS * stride, 1.0), stride }
    }

    /// Heads from head `first` on.
    fn view(&self, first: usize, heads: usize) -> TensorRef<'_, 3> {
        let at = first * HEADS[2];
        let data = match Slice::from(&self.values) {
            Slice::F32(values) => Slice::F32(&values[at..]),
            Slice::Bf16(values) => Slice::Bf16(&values[at..]),
            Slice::F16(values) => Slice::F16(&values[at..]),
            other => other,
        };
        TensorRef::strided(data, [TOKENS, heads, HEADS[2]], [self.stride, HEADS[2], 1]).unwrap()
    }

    fn importance<B>(&self, backend: &B, measure: AttentionSource, lse: Option<&[f32]>) -> Vec<f32>
    where
        B: Backend<Stream = ()>,
    {
        let [heads, key_heads, _] = HEADS;
        let config = ImportanceConfig { allow_future: true, ..ImportanceConfig::attention(measure) };
        let (logits, mut state, mut scratch) = ([0.0f32; TOKENS], [0.0f32; 4], [0.0f32; 3 * TOKENS]);
        let mut importance = vec![f32::NAN; TOKENS];
        let args = ImportanceArgs {
            config: Some(&config),
            cu_seqlens: None,
            mask: None,
            attention: Some(Attention::QueryKey {
                q: self.view(0, heads),
                k: self.view(heads, key_heads),
                lse: lse.map(|lse| TensorRef::strided(lse, [heads, TOKENS], [TOKENS + 3, 1]).unwrap()),
            }),
            external: None,
            token_ids: None,
            token_frequency: None,
            logits: TensorRef::new(&logits[..], [TOKENS, 1]).unwrap(),
            experts: 1,
            state: TensorMut::new(&mut state[..], [4]).unwrap(),
            training: false,
            scratch: TensorMut::new(&mut scratch[..], [3 * TOKENS]).unwrap(),
            importance: TensorMut::new(&mut importance[..], [TOKENS]).unwrap(),
        };
        backend.importance(&(), args).unwrap();
        importance
    }
}

fn check_fused<D: Device>(kernels: Staged<D>) {
    let lse: Vec<f32> = (0..HEADS[0] * (TOKENS + 3)).map(|i| 6.5 + 0.01 * i as f32).collect();
    for dtype in STORAGE {
        // Rows that start at multiples of 16 bytes, and others.
        for stride in [192, 195] {
            let fused = Fused::new(dtype, stride);
            for (measure, lse) in AttentionSource::ALL.into_iter().flat_map(|m| [(m, None), (m, Some(&lse[..]))]) {
                let expected = fused.importance(&Cpu::new(), measure, lse);
                let found = fused.importance(&kernels, measure, lse);
                let near =
                    |(found, expected): (&f32, &f32)| (found - expected).abs() <= 1e-5 * expected.abs().max(0.01);
                let all_near = found.iter().zip(&expected).all(near);
                assert!(all_near, "{measure:?}, {dtype}, stride {stride}:\n{found:?} for\n{expected:?}");
            }
        }
    }
}

#[test]
fn queries_and_keys_cut_out_of_one_tensor() {
    on_each(check_fused, check_fused);
}
