//! Stages called one by one, as engines that fuse their own do: what does not fit is refused, never a panic.

use da_moe::{
    Activation, Backend, Buffer, CombineArgs, Cpu, DType, Error, ExpertWeights, ExpertsArgs, NullExpert, Plan,
    RouterArgs, Rows, Selection, TensorMut, TensorRef,
};

/// Two tokens of width 3, two experts of width 4, one slot.
struct Small {
    x: Buffer,
    w_in: Buffer,
    w_out: Buffer,
    ints: Buffer,
    floats: Buffer,
}

fn small() -> Small {
    Small {
        x: Buffer::from_f32(DType::F32, &[1.0; 6]),
        w_in: Buffer::from_f32(DType::F32, &[0.5; 2 * 4 * 3]),
        w_out: Buffer::from_f32(DType::F32, &[0.5; 2 * 3 * 4]),
        ints: vec![0i32, 1, 2, 7, -1].into(),
        floats: Buffer::from_f32(DType::F32, &[1.0; 4]),
    }
}

impl Small {
    fn x(&self) -> TensorRef<'_, 2> {
        TensorRef::new(&self.x, [2, 3]).unwrap()
    }

    fn weights(&self) -> ExpertWeights<'_> {
        ExpertWeights {
            w_in: TensorRef::new(&self.w_in, [2, 4, 3]).unwrap(),
            w_out: TensorRef::new(&self.w_out, [2, 3, 4]).unwrap(),
            b_in: None,
            b_out: None,
        }
    }

    /// Runs the experts over a plan given by its offsets and tokens.
    fn experts(&self, offsets: &[i32], row_token: &[i32], room: usize) -> Result<Vec<f32>, Error> {
        let weights = vec![1.0f32; row_token.len()];
        let mut out = vec![f32::NAN; room * 3];
        let args = ExpertsArgs {
            activation: Activation::Relu,
            x: self.x(),
            rows: Rows::Routed {
                offsets: TensorRef::new(offsets, [offsets.len()])?,
                row_token: TensorRef::new(row_token, [row_token.len()])?,
                row_weight: TensorRef::new(&weights, [weights.len()])?,
            },
            weights: self.weights(),
            hidden: None,
            out: TensorMut::new(&mut out, [room, 3])?,
        };
        Cpu::new().experts(&(), args)?;
        Ok(out)
    }

    fn combine(&self, token_row: &[i32], rows: usize) -> Result<Vec<f32>, Error> {
        let ids = [0, 1];
        let one = TensorRef::new(&ids[..], [2, 1])?;
        let weights = TensorRef::prefix(&self.floats, [2, 1])?;
        let ints = |n| TensorRef::prefix(&self.ints, [n]);
        let values = vec![1.0f32; rows * 3];
        let mut y = vec![f32::NAN; 6];
        let args = CombineArgs {
            experts: 2,
            null_expert: NullExpert::Zero,
            x: self.x(),
            constants: None,
            selection: Selection { k: ints(2)?, experts: one, weights, ranked: one },
            plan: Plan {
                counts: ints(2)?,
                offsets: ints(3)?,
                row_token: ints(2)?,
                row_weight: TensorRef::prefix(&self.floats, [2])?,
                token_row: TensorRef::new(token_row, [2, 1])?,
                dropped: ints(1)?,
            },
            rows: TensorRef::new(&values, [rows, 3])?,
            shared: None,
            y: TensorMut::new(&mut y, [2, 3])?,
        };
        Cpu::new().combine(&(), args)?;
        Ok(y)
    }
}

#[test]
fn a_plan_of_ones_own_is_computed() {
    let out = small().experts(&[0, 1, 2], &[1, 0], 2).unwrap();
    // relu(0.5 · 3) = 1.5 in each of four hidden units, times 0.5.
    assert_eq!(out, [3.0; 6]);
    assert_eq!(small().combine(&[0, 1], 2).unwrap(), [1.0; 6]);
}

#[test]
fn plans_that_would_read_out_of_bounds_are_refused() {
    let small = small();
    for (offsets, row_token, room) in [
        (&[0, 1][..], &[0, 1][..], 2),
        (&[1, 1, 2], &[0, 1], 2),
        (&[0, 2, 1], &[0, 1], 2),
        (&[0, 1, 3], &[0, 1], 4),
        (&[0, 1, 2], &[0, 1], 1),
        (&[0, 1, 2], &[0, 2], 2),
        (&[0, 1, 2], &[0, -1], 2),
    ] {
        let error = small.experts(offsets, row_token, room).unwrap_err();
        assert!(matches!(error, Error::Value { op: "experts", .. } | Error::Shape { op: "experts", .. }), "{error}");
    }
    assert!(matches!(small.combine(&[0, 2], 2).unwrap_err(), Error::Value { argument: "plan.token_row", .. }));
}

#[test]
fn views_of_wrong_shape_or_type_are_refused() {
    let small = small();
    let mut logits = [f32::NAN; 4];
    let narrow = TensorRef::prefix(&small.w_in, [2, 2]).unwrap();
    let args = RouterArgs { x: small.x(), weight: narrow, logits: TensorMut::new(&mut logits[..], [2, 2]).unwrap() };
    assert!(matches!(Cpu::new().router(&(), args).unwrap_err(), Error::Shape { argument: "router.weight", .. }));
    let bytes = [1u8; 6];
    let weight = TensorRef::new(&bytes[..], [2, 3]).unwrap();
    let args = RouterArgs { x: small.x(), weight, logits: TensorMut::new(&mut logits[..], [2, 2]).unwrap() };
    assert!(matches!(Cpu::new().router(&(), args).unwrap_err(), Error::DType { argument: "router.weight", .. }));
    assert!(logits.iter().all(|z| z.is_nan()), "nothing is written");
}
