//! Stages called one by one, as engines that fuse their own do: what does not fit is refused, never a panic.

use da_moe::{
    Activation, Backend, Buffer, CombineArgs, Cpu, DType, Error, ExpertWeights, ExpertsArgs, ImportanceArgs, Normalize,
    NullExpert, Plan, RouterArgs, Routing, RoutingArgs, Rows, Selection, SelectionMut, Source, TensorMut, TensorRef,
};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::data::Data;
use da_moe_harness::kernels::emulated;

/// Two tokens of width 3, two experts of width 4, one slot.
struct Small {
    x: Buffer,
    w_in: Buffer,
    w_out: Buffer,
    ints: Buffer,
    floats: Buffer,
}

fn small() -> Small {
    small_of(DType::F32)
}

fn small_of(dtype: DType) -> Small {
    Small {
        x: Buffer::from_f32(dtype, &[1.0; 6]),
        w_in: Buffer::from_f32(dtype, &[0.5; 2 * 4 * 3]),
        w_out: Buffer::from_f32(dtype, &[0.5; 2 * 3 * 4]),
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
                row_weight: Some(TensorRef::new(&weights, [weights.len()])?),
            },
            weights: self.weights(),
            hidden: None,
            out: TensorMut::new(&mut out, [room, 3])?,
        };
        Cpu::new().experts(&(), args)?;
        Ok(out)
    }

    fn combine(&self, by: &dyn Backend<Stream = ()>, token_row: &[i32], rows: usize) -> Result<Vec<f32>, Error> {
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
            shared_row: None,
            y: TensorMut::new(&mut y, [2, 3])?,
        };
        by.combine(&(), args)?;
        Ok(y)
    }
}

fn backends() -> [Box<dyn Backend<Stream = ()>>; 2] {
    [Box::new(Cpu::new()), Box::new(emulated(1))]
}

#[test]
fn a_plan_of_ones_own_is_computed() {
    let out = small().experts(&[0, 1, 2], &[1, 0], 2).unwrap();
    // relu(0.5 · 3) = 1.5 in each of four hidden units, times 0.5.
    assert_eq!(out, [3.0; 6]);
    for by in backends() {
        assert_eq!(small().combine(&*by, &[0, 1], 2).unwrap(), [1.0; 6], "{}", by.describe());
    }
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
    assert!(matches!(
        small.combine(&Cpu::new(), &[0, 2], 2).unwrap_err(),
        Error::Value { argument: "plan.token_row", .. }
    ));
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

/// The type of `h` is the call's, never what a kernel could read and write.
#[test]
fn hidden_rows_of_another_type_are_refused() {
    for (storage, wrong) in [(DType::F32, DType::Bf16), (DType::Bf16, DType::F32), (DType::F16, DType::F16)] {
        let small = small_of(storage);
        for by in backends() {
            let (mut hidden, mut out) = (Buffer::from_f32(wrong, &[7.0; 8]), [f32::NAN; 6]);
            let args = ExpertsArgs {
                activation: Activation::Relu,
                x: small.x(),
                rows: Rows::Routed {
                    offsets: TensorRef::new(&[0, 1, 2][..], [3]).unwrap(),
                    row_token: TensorRef::new(&[1, 0][..], [2]).unwrap(),
                    row_weight: None,
                },
                weights: small.weights(),
                hidden: Some(TensorMut::new(&mut hidden, [2, 4]).unwrap()),
                out: TensorMut::new(&mut out[..], [2, 3]).unwrap(),
            };
            let error = by.experts(&(), args).unwrap_err();
            assert!(matches!(error, Error::DType { op: "experts", argument: "hidden", .. }), "{storage}: {error}");
            assert!(hidden.to_f32() == [7.0; 8] && out.iter().all(|out| out.is_nan()), "nothing is written");
        }
    }
}

#[test]
fn kernels_never_follow_a_row_that_is_not_there() {
    // Where the plan is on a device nobody reads it before the launch, so a wrong row counts as none.
    let small = small();
    for row in [2, 3, i32::MAX, -2, i32::MIN] {
        assert_eq!(small.combine(&emulated(2), &[0, row], 2).unwrap(), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    }
}

/// Slots of two tokens as kernels put them in order, from a compressed routing of three entries.
fn route(offsets: &[i32], experts: &[i32]) -> (Vec<i32>, Vec<i32>, Vec<i32>) {
    let weights = [0.25f32, 0.5, 0.75];
    let routing = Routing::Csr {
        offsets: TensorRef::new(offsets, [3]).unwrap(),
        experts: TensorRef::new(experts, [3]).unwrap(),
        weights: TensorRef::new(&weights[..], [3]).unwrap(),
    };
    let (mut k, mut slots, mut load) = (vec![9; 2], vec![9; 4], vec![9; 2]);
    let (mut ranked, mut unmasked, mut weights, mut losses) = ([9; 4], [9], [0.0f32; 4], [9.0f32; 2]);
    let args = RoutingArgs {
        candidates: 2,
        routing,
        mask: None,
        selection: SelectionMut {
            k: TensorMut::new(&mut k, [2]).unwrap(),
            experts: TensorMut::new(&mut slots, [2, 2]).unwrap(),
            weights: TensorMut::new(&mut weights[..], [2, 2]).unwrap(),
            ranked: TensorMut::new(&mut ranked[..], [2, 2]).unwrap(),
        },
        load: TensorMut::new(&mut load, [2]).unwrap(),
        unmasked: TensorMut::new(&mut unmasked[..], [1]).unwrap(),
        losses: TensorMut::new(&mut losses[..], [2]).unwrap(),
    };
    emulated(3).routing(&(), args).unwrap();
    (k, slots, load)
}

#[test]
fn kernels_never_follow_an_entry_that_is_not_there() {
    assert_eq!(route(&[0, 2, 3], &[1, 0, 1]), (vec![2, 1], vec![0, 1, 1, -1], vec![1, 2]));
    assert_eq!(route(&[0, 2, 3], &[-1, 7, i32::MAX]), (vec![0, 0], vec![-1; 4], vec![0, 0]), "no such experts");
    assert_eq!(route(&[-5, 1, 900], &[1, 0, 1]).0, [1, 2], "offsets are held within the entries");
    assert_eq!(route(&[3, 0, i32::MIN], &[1, 0, 1]).0, [0, 0], "offsets that fall");
    assert_eq!(route(&[0, 3, 3], &[1, 0, 1]).0, [2, 0], "more entries than slots");
}

#[test]
fn kernels_never_look_up_an_id_that_is_not_in_the_table() {
    let mut config = small_config();
    (config.importance.source, config.importance.normalize) = (Source::TokenFrequency, Normalize::None);
    let data = Data {
        token_ids: vec![0, 7, -1, i32::MAX, 1].into(),
        ..Data::new(&Case { lengths: vec![5], ..Case::plain(config) })
    };
    let inputs = data.inputs().unwrap();
    let (logits, mut state, mut scratch, mut importance) = ([0.0f32; 30], [0.0f32; 4], [0.0f32; 15], [f32::NAN; 5]);
    let args = ImportanceArgs {
        config: Some(&data.config.importance),
        cu_seqlens: inputs.cu_seqlens,
        mask: None,
        attention: None,
        external: None,
        token_ids: inputs.token_ids,
        token_frequency: inputs.token_frequency,
        logits: TensorRef::new(&logits[..], [5, 6]).unwrap(),
        experts: 6,
        state: TensorMut::new(&mut state[..], [4]).unwrap(),
        training: false,
        scratch: TensorMut::new(&mut scratch[..], [15]).unwrap(),
        importance: TensorMut::new(&mut importance[..], [5]).unwrap(),
    };
    emulated(4).importance(&(), args).unwrap();
    let table = data.token_frequency.to_f32();
    assert_eq!(importance, [table[0], 0.0, 0.0, 0.0, table[1]]);
}

#[test]
fn kernels_refuse_tensors_of_another_type() {
    let small = small();
    let (bytes, one) = ([1u8; 6], TensorRef::new(&[0, 1][..], [2, 1]).unwrap());
    let x = TensorRef::new(&bytes[..], [2, 3]).unwrap();
    let weights = TensorRef::prefix(&small.floats, [2, 1]).unwrap();
    let ints = |n| TensorRef::prefix(&small.ints, [n]).unwrap();
    let mut y = [7u8; 6];
    let args = CombineArgs {
        experts: 2,
        null_expert: NullExpert::Zero,
        x,
        constants: None,
        selection: Selection { k: ints(2), experts: one, weights, ranked: one },
        plan: Plan {
            counts: ints(2),
            offsets: ints(3),
            row_token: ints(2),
            row_weight: TensorRef::prefix(&small.floats, [2]).unwrap(),
            token_row: one,
            dropped: ints(1),
        },
        rows: small.x(),
        shared: None,
        shared_row: None,
        y: TensorMut::new(&mut y[..], [2, 3]).unwrap(),
    };
    let error = emulated(5).combine(&(), args).unwrap_err();
    assert!(matches!(error, Error::DType { op: "combine", argument: "x", .. }), "{error}");
    assert_eq!(y, [7; 6], "nothing is written");
}
