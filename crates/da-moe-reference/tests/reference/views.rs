//! `Problem::new` reads strided views of every type exactly, and refuses what does not fit.

use crate::common::config;
use da_moe_core::{Attention, Error, Inputs, LayerConfig, Routing, TensorRef, Weights, bf16};
use da_moe_reference::{Problem, forward};

fn small() -> LayerConfig {
    LayerConfig { hidden_size: 2, moe_intermediate_size: 1, ..config(2) }
}

fn bf(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&value| bf16::from_f32(value)).collect()
}

#[test]
fn strides_types_and_sentinels() {
    let x = bf(&[1.0, 2.0, -9.0, 3.0, 4.0]);
    let (w_in, w_out) = (bf(&[0.5; 8]), bf(&[0.25; 4]));
    let router = [0.1f32, 0.2, 0.3, 0.4];
    let (mask, cu_seqlens) = ([1u8, 0], [0i32, 1, 2]);
    let (experts, weights) = ([1i32, -1, 2, 0], [0.5f32, 9.0, 9.0, 0.25]);
    let mut inputs = Inputs::new(TensorRef::strided(&x[..], [2, 2], [3, 1]).unwrap());
    inputs.mask = Some(TensorRef::new(&mask[..], [2]).unwrap());
    inputs.cu_seqlens = Some(TensorRef::new(&cu_seqlens[..], [3]).unwrap());
    inputs.routing = Some(Routing::Padded {
        experts: TensorRef::new(&experts[..], [2, 2]).unwrap(),
        weights: TensorRef::new(&weights[..], [2, 2]).unwrap(),
    });
    let given = Weights::new(
        TensorRef::new(&router[..], [2, 2]).unwrap(),
        TensorRef::new(&w_in[..], [2, 2, 2]).unwrap(),
        TensorRef::new(&w_out[..], [2, 2, 1]).unwrap(),
    );
    let problem = Problem::new(small(), &inputs, &given, &[0.0; 4]).unwrap();
    assert_eq!(problem.x, [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(problem.router[0], f64::from(0.1f32));
    assert_eq!((&problem.mask, &problem.cu_seqlens), (&vec![true, false], &vec![0, 1, 2]));
    assert_eq!(problem.routing, Some(vec![vec![(1, 0.5), (2, 9.0)], vec![(2, 9.0), (0, 0.25)]]));
    assert_eq!(forward(&problem).k, [1, 0]);

    let offsets = [0i32, 2, 3];
    inputs.routing = Some(Routing::Csr {
        offsets: TensorRef::new(&offsets[..], [3]).unwrap(),
        experts: TensorRef::new(&[1i32, 0, 1][..], [3]).unwrap(),
        weights: TensorRef::new(&[0.5f32, 0.75, 1.0][..], [3]).unwrap(),
    });
    let problem = Problem::new(small(), &inputs, &given, &[0.0; 4]).unwrap();
    assert_eq!(problem.routing, Some(vec![vec![(1, 0.5), (0, 0.75)], vec![(1, 1.0)]]));

    inputs.routing = None;
    let missing = Problem::new(small(), &inputs, &given, &[0.0; 4]);
    assert!(matches!(missing, Err(Error::Missing { argument: "importance", .. })));
    inputs.importance = Some(TensorRef::new(&[0.5f32, 0.5][..], [2]).unwrap());
    assert!(Problem::new(small(), &inputs, &given, &[0.0; 4]).is_ok());
    let refused = |inputs: &Inputs<'_>| Problem::new(small(), inputs, &given, &[0.0; 4]).is_err();
    let wrong = Inputs { cu_seqlens: Some(TensorRef::new(&[0i32, 3][..], [2]).unwrap()), ..inputs };
    assert!(refused(&wrong));
    let wrong = Inputs { cu_seqlens: Some(TensorRef::new(&[0i32, -3, 2][..], [3]).unwrap()), ..inputs };
    assert!(refused(&wrong));
    let q = [0f32; 12];
    let attention = Attention::QueryKey {
        q: TensorRef::new(&q[..], [2, 3, 2]).unwrap(),
        k: TensorRef::new(&q[..8], [2, 2, 2]).unwrap(),
        lse: None,
    };
    assert!(refused(&inputs.with_attention(attention)));
    let nothing = TensorRef::new(&q[..0], [usize::MAX, 0]).unwrap();
    assert!(refused(&Inputs::new(nothing)));
}
