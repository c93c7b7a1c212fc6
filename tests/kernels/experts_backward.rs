//! The experts' way back on the kernels: where tiles, steps and segments end, in every type, activation and alignment, with
//! every kind of skew; and what a layer does not ask for yet: sums that go on, and gradients in f32 beside 16-bit weights.

use da_moe::cuda::launch::experts::Factors;
use da_moe::cuda::{BiasGradientArgs, Device, Gathered, Staged, WeightGradientArgs};
use da_moe::{
    Activation, Buffer, DType, ExpertsPerToken, Keep, LayerConfig, Normalize, Policy, Source, TensorMut, TensorRef,
};
use da_moe_harness::assert_agrees;
use da_moe_harness::case::Case;
use da_moe_harness::data::{Numbers, poison};
use da_moe_harness::kernels::{on_each, subjects};

const STORAGE: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Runs a case on the kernels wherever they run, in every storage type.
fn agrees(case: &Case) {
    for dtype in STORAGE {
        let case = Case { dtype, ..case.clone() };
        subjects().iter().for_each(|subject| assert_agrees(&**subject, &case));
    }
}

fn config(hidden: usize, width: usize, experts: usize, k: usize, act: Activation) -> LayerConfig {
    let mut config = LayerConfig { hidden_act: act, ..LayerConfig::da_moe(hidden, width, experts, k) };
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k });
    config
}

#[test]
fn every_activation_kept_and_computed_again() {
    let all = [
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Swiglu,
        Activation::Geglu,
        Activation::Reglu,
    ];
    for (act, keep) in all.into_iter().zip([Keep::Hidden, Keep::Recompute].into_iter().cycle()) {
        agrees(&Case { lengths: vec![12], biases: true, keep, ..Case::plain(config(9, 7, 3, 2, act)) });
        agrees(&Case { lengths: vec![12], keep, ..Case::plain(config(16, 24, 3, 2, act)) });
    }
}

#[test]
fn several_tiles_in_every_direction() {
    for (hidden, width) in [(136, 72), (129, 131)] {
        let mut wide = config(hidden, width, 2, 2, Activation::Swiglu);
        wide.shared_intermediate_size = 9;
        agrees(&Case { lengths: vec![35], biases: true, keep: Keep::Recompute, padding: 8, ..Case::plain(wide) });
    }
}

/// Rows of weights and of gradients that fill a tile.
#[test]
fn whole_columns() {
    for tokens in [40, 70] {
        agrees(&Case { lengths: vec![tokens], ..Case::plain(config(256, 256, 1, 1, Activation::Gelu)) });
    }
}

/// So many that the router's gradient is divided into parts, the last of them shorter, and some tokens are padding.
#[test]
fn parts_of_the_routers_gradient() {
    agrees(&Case { lengths: vec![531], masked_every: 5, ..Case::plain(config(9, 7, 3, 1, Activation::Relu)) });
}

#[test]
fn one_expert_has_every_row_of_many() {
    let case = Case { skew: 50.0, lengths: vec![19], ..Case::plain(config(8, 8, 512, 1, Activation::Gelu)) };
    agrees(&Case { biases: true, ..case });
}

/// One factor of a gradient: rows, and which of them each row of the plan is.
struct Factor {
    rows: Buffer,
    sources: usize,
    columns: usize,
    row_token: Option<Vec<i32>>,
}

impl Factor {
    fn new(
        numbers: &mut Numbers,
        dtype: DType,
        factors: Factors,
        [sources, columns]: [usize; 2],
        row_token: Option<Vec<i32>>,
    ) -> Self {
        Self { rows: drawn(numbers, dtype, factors, sources * columns), sources, columns, row_token }
    }

    fn view(&self) -> Gathered<'_> {
        let row_token = self.row_token.as_ref().map(|tokens| TensorRef::new(&tokens[..], [tokens.len()]).unwrap());
        Gathered { rows: TensorRef::new(&self.rows, [self.sources, self.columns]).unwrap(), row_token }
    }

    /// A row of the plan, or zeros for a source that is not there.
    fn row(&self, row: usize) -> Vec<f64> {
        let source = self.row_token.as_ref().map_or(row as i32, |tokens| tokens[row]);
        match usize::try_from(source).ok().filter(|&source| source < self.sources) {
            None => vec![0.0; self.columns],
            Some(source) => {
                let values = self.rows.to_f32();
                values[source * self.columns..][..self.columns].iter().map(|&v| f64::from(v)).collect()
            }
        }
    }
}

/// Numbers, f32 among them with the fraction of TF32 where they are to be multiplied as that.
fn drawn(numbers: &mut Numbers, dtype: DType, factors: Factors, count: usize) -> Buffer {
    let values = numbers.tensor(dtype, count, 1.0);
    if (dtype, factors) != (DType::F32, Factors::Tf32) {
        return values;
    }
    let cut = |value: f32| f32::from_bits(value.to_bits() & !0x1fff);
    values.to_f32().into_iter().map(cut).collect::<Vec<f32>>().into()
}

/// `Σ left ⊗ right` over rows, and the sum of the products' sizes.
fn outer(left: &Factor, right: &Factor, rows: std::ops::Range<usize>) -> (Vec<f64>, f64) {
    let (mut sums, mut size) = (vec![0.0; left.columns * right.columns], 0.0);
    for row in rows {
        let (p, q) = (left.row(row), right.row(row));
        for (i, p) in p.iter().enumerate() {
            for (j, q) in q.iter().enumerate() {
                sums[i * right.columns + j] += p * q;
                size += (p * q).powi(2);
            }
        }
    }
    (sums, size.sqrt())
}

fn assert_close(found: &[f32], expected: &[f64], size: f64, dtype: DType, what: &str) {
    let error = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum::<f64>().sqrt();
    let norm = expected.iter().map(|e| e * e).sum::<f64>().sqrt().max(size);
    let bound = match dtype {
        DType::Bf16 => 4e-3,
        DType::F16 => 5e-4,
        _ => 2e-6,
    };
    assert!(error <= bound * norm, "{what}: {error:e} of {norm:e}");
}

fn offsets(counts: &[usize]) -> Vec<i32> {
    let mut offsets = vec![0];
    counts.iter().for_each(|&count| offsets.push(offsets[offsets.len() - 1] + count as i32));
    offsets
}

const COUNTS: [usize; 9] = [0, 1, 31, 32, 33, 0, 0, 97, 5];

/// Gradients of experts with `COUNTS` rows: `[m, n]` each, gathered on one side or both, added to what is there or not.
fn check_gradient<D: Device>(
    staged: &Staged<D>,
    [left, right, out]: [DType; 3],
    factors: Factors,
    [m, n]: [usize; 2],
    beta: f32,
) {
    let what = format!("{left} x {right} as {factors:?} to {out}, {m} by {n}, beta {beta}");
    let mut numbers = Numbers::new(5);
    let offsets = offsets(&COUNTS);
    let rows = offsets[COUNTS.len()] as usize;
    // Some tokens are not there.
    let tokens = (0..rows).map(|_| numbers.below(42) as i32 - 1).collect();
    let p = Factor::new(&mut numbers, left, factors, [rows, m], None);
    let q = Factor::new(&mut numbers, right, factors, [40, n], Some(tokens));
    let old = numbers.tensor(out, COUNTS.len() * m * n, 3.0);
    let mut found = if beta == 0.0 { poison(out, COUNTS.len() * m * n) } else { old.clone() };
    let args = WeightGradientArgs {
        left: p.view(),
        right: q.view(),
        factors,
        offsets: Some(TensorRef::new(&offsets[..], [offsets.len()]).unwrap()),
        rows,
        out: TensorMut::new(&mut found, [COUNTS.len(), m, n]).unwrap(),
        beta,
    };
    staged.weight_gradient(args).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (found, old) = (found.to_f32(), old.to_f32());
    for (e, &count) in COUNTS.iter().enumerate() {
        let (found, old) = (&found[e * m * n..][..m * n], &old[e * m * n..][..m * n]);
        let first = offsets[e] as usize;
        let (mut expected, mut size) = outer(&p, &q, first..first + count);
        if beta != 0.0 {
            expected.iter_mut().zip(old).for_each(|(sum, old)| *sum += f64::from(*old));
            size += old.iter().map(|old| f64::from(*old).powi(2)).sum::<f64>().sqrt();
        }
        if count == 0 {
            let untouched = if beta == 0.0 { vec![0.0; m * n] } else { old.to_vec() };
            assert_eq!(found, untouched, "{what}: an expert without rows");
        }
        assert_close(found, &expected, size, out, &what);
    }
}

fn check_gradients<D: Device>(staged: &Staged<D>) {
    for dtype in STORAGE {
        for (shape, beta) in [([16, 24], 0.0), ([13, 7], 1.0), ([129, 8], 0.0), ([8, 136], 1.0)] {
            check_gradient(staged, [dtype; 3], Factors::F32, shape, beta);
        }
        check_gradient(staged, [dtype, dtype, DType::F32], Factors::F32, [24, 40], 0.0);
        check_gradient(staged, [dtype, dtype, DType::F32], Factors::F32, [9, 65], 1.0);
        // The router's: what is multiplied with 16-bit rows is f32.
        check_gradient(staged, [DType::F32, dtype, DType::F32], Factors::F32, [5, 70], 0.0);
        check_gradient(staged, [DType::F32, dtype, dtype], Factors::F32, [66, 16], 1.0);
    }
}

/// TF32 beside f16, on either side: tiles of every height and width, that end at multiples of 16 bytes and elsewhere. What both
/// hold is multiplied exactly, so that sums in f32 are as right as those of f32.
fn check_tf32_gradients<D: Device>(staged: &Staged<D>) {
    for (left, right) in [(DType::F32, DType::F16), (DType::F16, DType::F32)] {
        for shape in [[16, 24], [13, 7], [72, 264], [136, 200], [129, 257]] {
            check_gradient(staged, [left, right, DType::F32], Factors::Tf32, shape, 0.0);
        }
        check_gradient(staged, [left, right, DType::F16], Factors::Tf32, [24, 40], 1.0);
        check_gradient(staged, [left, right, DType::F32], Factors::Tf32, [9, 65], 1.0);
    }
}

#[test]
fn gradients_of_tf32_beside_f16() {
    on_each(|staged| check_tf32_gradients(&staged), |staged| check_tf32_gradients(&staged));
}

#[test]
fn gradients_of_segments_of_any_length() {
    on_each(|staged| check_gradients(&staged), |staged| check_gradients(&staged));
}

fn check_biases<D: Device>(staged: &Staged<D>) {
    for (dtype, beta) in STORAGE.into_iter().flat_map(|dtype| [(dtype, 0.0), (dtype, 1.0)]) {
        for out in [dtype, DType::F32] {
            let mut numbers = Numbers::new(6);
            let (offsets, columns) = (offsets(&COUNTS), 37);
            let rows = offsets[COUNTS.len()] as usize;
            let tokens = (0..rows).map(|_| numbers.below(42) as i32 - 1).collect();
            let from = Factor::new(&mut numbers, dtype, Factors::F32, [40, columns], Some(tokens));
            let weights: Vec<f32> = (0..rows).map(|_| numbers.normal(1.0)).collect();
            let old = numbers.tensor(out, COUNTS.len() * columns, 3.0);
            let mut found = if beta == 0.0 { poison(out, COUNTS.len() * columns) } else { old.clone() };
            let args = BiasGradientArgs {
                from: from.view(),
                row_weight: Some(TensorRef::new(&weights[..], [rows]).unwrap()),
                offsets: Some(TensorRef::new(&offsets[..], [offsets.len()]).unwrap()),
                rows,
                out: TensorMut::new(&mut found, [COUNTS.len(), columns]).unwrap(),
                beta,
            };
            staged.bias_gradient(args).unwrap();
            let (found, old) = (found.to_f32(), old.to_f32());
            for e in 0..COUNTS.len() {
                let mut expected: Vec<f64> =
                    old[e * columns..][..columns].iter().map(|old| f64::from(beta * old)).collect();
                let mut size = expected.iter().map(|old| old * old).sum::<f64>();
                for (i, weight) in weights[offsets[e] as usize..offsets[e + 1] as usize].iter().enumerate() {
                    for (sum, value) in expected.iter_mut().zip(from.row(offsets[e] as usize + i)) {
                        *sum += f64::from(*weight) * value;
                        size += (f64::from(*weight) * value).powi(2);
                    }
                }
                let what = format!("{dtype} to {out}, beta {beta}, expert {e}");
                assert_close(&found[e * columns..][..columns], &expected, size.sqrt(), out, &what);
            }
        }
    }
}

#[test]
fn gradients_of_biases() {
    on_each(|staged| check_biases(&staged), |staged| check_biases(&staged));
}

fn check_rows<D: Device>(
    staged: &Staged<D>,
    [rows_type, weights]: [DType; 2],
    factors: Factors,
    [rows, depth, columns]: [usize; 3],
) {
    let mut numbers = Numbers::new(7);
    let a = drawn(&mut numbers, rows_type, factors, rows * depth);
    let b = drawn(&mut numbers, weights, factors, depth * columns);
    let mut found = poison(DType::F32, rows * columns);
    let (of_a, of_b) = (TensorRef::new(&a, [rows, depth]).unwrap(), TensorRef::new(&b, [depth, columns]).unwrap());
    let out = TensorMut::new(&mut found, [rows, columns]).unwrap();
    staged.rows_by_weights(of_a, of_b, factors, out).unwrap();
    let (a, b) = (a.to_f32(), b.to_f32());
    let term = |i: usize, k: usize, j: usize| f64::from(a[i * depth + k]) * f64::from(b[k * columns + j]);
    let cells = || (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
    let expected: Vec<f64> = cells().map(|(i, j)| (0..depth).map(|k| term(i, k, j)).sum()).collect();
    let what = format!("{rows_type} by {weights} as {factors:?}, {rows} by {depth} by {columns}");
    assert_close(&found.to_f32(), &expected, 0.0, DType::F32, &what);
}

fn check_all_rows<D: Device>(staged: &Staged<D>) {
    for (weights, sizes) in STORAGE.into_iter().zip([[70, 5, 66], [3, 130, 8], [129, 17, 64]]) {
        for rows_type in [weights, DType::F32] {
            check_rows(staged, [rows_type, weights], Factors::F32, sizes);
        }
    }
    // Whole tiles and their ends, steps and their ends, at multiples of 16 bytes and elsewhere.
    for sizes in [[70, 8, 64], [129, 16, 256], [40, 36, 264], [150, 100, 512], [3, 130, 7], [129, 17, 300]] {
        check_rows(staged, [DType::F32, DType::F16], Factors::Tf32, sizes);
    }
}

#[test]
fn products_across_weights_of_any_type() {
    on_each(|staged| check_all_rows(&staged), |staged| check_all_rows(&staged));
}

/// Contents of the device are never trusted with memory.
fn check_broken_offsets<D: Device>(staged: &Staged<D>) {
    let mut numbers = Numbers::new(8);
    let rows = 20;
    let p = Factor::new(&mut numbers, DType::Bf16, Factors::F32, [rows, 8], None);
    let q = Factor::new(&mut numbers, DType::Bf16, Factors::F32, [rows, 8], Some((0..rows as i32).rev().collect()));
    for offsets in [[0, 7, 5, 1 << 20], [-4, 3, 40, 20], [i32::MAX, i32::MIN, 0, 20]] {
        let mut out = poison(DType::Bf16, 3 * 64);
        let offsets = TensorRef::new(&offsets[..], [4]).unwrap();
        let args = WeightGradientArgs {
            left: p.view(),
            right: q.view(),
            factors: Factors::F32,
            offsets: Some(offsets),
            rows,
            out: TensorMut::new(&mut out, [3, 8, 8]).unwrap(),
            beta: 0.0,
        };
        staged.weight_gradient(args).unwrap();
        let mut out = poison(DType::Bf16, 3 * 8);
        let out = TensorMut::new(&mut out, [3, 8]).unwrap();
        let args = BiasGradientArgs { from: p.view(), row_weight: None, offsets: Some(offsets), rows, out, beta: 0.0 };
        staged.bias_gradient(args).unwrap();
    }
}

#[test]
fn broken_offsets_reach_no_memory() {
    on_each(|staged| check_broken_offsets(&staged), |staged| check_broken_offsets(&staged));
}
