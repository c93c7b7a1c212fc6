//! Rows handed to combine and to permute's way back by engines with experts of their own, in the storage type or in f32: the same
//! numbers give the same bits, however they lie.

use crate::stages_backward::Chosen;
use da_moe::{Backend, Buffer, CombineArgs, DType, Error, NullExpert, PermuteBackwardArgs, Plan, TensorMut, TensorRef};
use da_moe_harness::data::Numbers;
use da_moe_harness::kernels::emulated;

/// Tokens of two blocks, with two rows each.
const TOKENS: usize = 9;
const ROWS: usize = 2 * TOKENS;

/// What is summed, `width` wide and `stride` apart.
struct Sums {
    chosen: Chosen,
    token_row: Vec<i32>,
    of_rows: Vec<f32>,
    /// `x` of combine, `dy` of permute's way back.
    tokens: Buffer,
    rows: Buffer,
    shared: Buffer,
    width: usize,
    stride: usize,
}

impl Sums {
    fn new(storage: DType, width: usize, stride: usize) -> Self {
        let mut numbers = Numbers::new(5);
        let mut matrix = |count: usize| {
            let mut values = vec![f32::NAN; count * stride];
            values.chunks_mut(stride).for_each(|row| row[..width].fill_with(|| numbers.normal(1.0)));
            Buffer::from_f32(storage, &values)
        };
        let (tokens, rows, shared) = (matrix(TOKENS), matrix(ROWS), matrix(TOKENS));
        Self {
            chosen: Chosen::new(&[0; ROWS]),
            token_row: (0..ROWS as i32).rev().collect(),
            of_rows: vec![0.5; ROWS],
            tokens,
            rows,
            shared,
            width,
            stride,
        }
    }

    /// The same with rows in f32.
    fn widened(self) -> Self {
        let [rows, shared] = [&self.rows, &self.shared].map(|rows| Buffer::from_f32(DType::F32, &rows.to_f32()));
        Self { rows, shared, ..self }
    }

    fn matrix<'a>(&self, rows: &'a Buffer, count: usize) -> Result<TensorRef<'a, 2>, Error> {
        TensorRef::strided(rows, [count, self.width], [self.stride, 1])
    }

    fn plan(&self) -> Result<Plan<'_>, Error> {
        let int = |count| TensorRef::prefix(&self.token_row[..], [count]);
        Ok(Plan {
            counts: int(1)?,
            offsets: int(2)?,
            row_token: int(ROWS)?,
            row_weight: TensorRef::new(&self.of_rows[..], [ROWS])?,
            token_row: TensorRef::new(&self.token_row[..], [TOKENS, 2])?,
            dropped: int(1)?,
        })
    }

    /// `y`.
    fn forward(&self) -> Result<Buffer, Error> {
        let mut y = Buffer::from_f32(self.tokens.dtype(), &vec![f32::NAN; TOKENS * self.width]);
        let args = CombineArgs {
            experts: 1,
            null_expert: NullExpert::Zero,
            x: self.matrix(&self.tokens, TOKENS)?,
            constants: None,
            selection: self.chosen.view(),
            plan: self.plan()?,
            rows: self.matrix(&self.rows, ROWS)?,
            shared: Some(self.matrix(&self.shared, TOKENS)?),
            shared_row: None,
            y: TensorMut::new(&mut y, [TOKENS, self.width])?,
        };
        emulated(1).combine(&(), args)?;
        Ok(y)
    }

    /// `dx` but for the router's part.
    fn backward(&self) -> Result<Buffer, Error> {
        let mut d_weights = vec![0.0f32; ROWS];
        let mut dx = Buffer::from_f32(DType::F32, &vec![f32::NAN; TOKENS * self.width]);
        let args = PermuteBackwardArgs {
            experts: 1,
            null_expert: NullExpert::Zero,
            selection: self.chosen.view(),
            plan: self.plan()?,
            dx_rows: self.matrix(&self.rows, ROWS)?,
            d_row_weight: TensorRef::new(&self.of_rows[..], [ROWS])?,
            shared_dx: Some(self.matrix(&self.shared, TOKENS)?),
            shared_row: None,
            dy: self.matrix(&self.tokens, TOKENS)?,
            d_weights: TensorMut::new(&mut d_weights, [TOKENS, 2])?,
            dx: TensorMut::new(&mut dx, [TOKENS, self.width])?,
        };
        emulated(2).permute_backward(&(), args)?;
        Ok(dx)
    }
}

fn bits(buffer: &Buffer) -> Vec<u32> {
    buffer.to_f32().into_iter().map(f32::to_bits).collect()
}

#[test]
fn rows_of_either_type_are_the_same_numbers() {
    for storage in [DType::Bf16, DType::F16] {
        for width in [3, 8, 136, 520] {
            let expected = {
                let sums = Sums::new(storage, width, width);
                [sums.forward().unwrap(), sums.backward().unwrap()].map(|sum| bits(&sum))
            };
            // Whole vectors, and what is none.
            for stride in [width, width + 3, width + 4, width + 8] {
                let sums = Sums::new(storage, width, stride);
                let own = [sums.forward().unwrap(), sums.backward().unwrap()].map(|sum| bits(&sum));
                let sums = sums.widened();
                let wide = [sums.forward().unwrap(), sums.backward().unwrap()].map(|sum| bits(&sum));
                assert_eq!([&own, &wide], [&expected; 2], "{storage}, {width} wide, {stride} apart");
            }
        }
    }
}

#[test]
fn rows_of_another_type_are_refused() {
    let of = |storage, rows, shared| {
        let [of_rows, of_shared] = [rows, shared].map(|dtype| Sums::new(dtype, 3, 3));
        let sums = Sums { rows: of_rows.rows, shared: of_shared.shared, ..Sums::new(storage, 3, 3) };
        [sums.forward(), sums.backward()].map(|sum| sum.unwrap_err().to_string())
    };
    assert_eq!(
        of(DType::Bf16, DType::F16, DType::F16),
        ["combine: `rows` is f16, expected bf16 or f32", "permute_backward: `dx_rows` is f16, expected bf16 or f32"]
    );
    assert_eq!(
        of(DType::Bf16, DType::F32, DType::Bf16),
        ["combine: `shared` is bf16, expected f32", "permute_backward: `shared_dx` is bf16, expected f32"]
    );
}
