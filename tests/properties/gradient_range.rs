//! Gradients are right at both ends of f16's range: `dy` of its smallest numbers, 2⁻²⁴, and of 2¹⁵, where what lies between the
//! products of the way back has left that range.

use da_moe::{Activation, Backend, Cpu, DType, ExpertsPerToken, Keep, LayerConfig, Normalize, Policy, Source};
use da_moe_harness::case::Case;
use da_moe_harness::ends::Ends;
use da_moe_harness::kernels;

/// Rows that start at multiples of 16 bytes, with whole tiles and their ends; and rows that start anywhere. Routed from outside:
/// the router's share would hide the experts' in `dx`.
fn cases() -> Vec<Case> {
    let layer = |hidden, width, act| {
        let mut config = LayerConfig { hidden_act: act, ..LayerConfig::da_moe(hidden, width, 3, 2) };
        config.importance.source = Source::External;
        config.importance.normalize = Normalize::None;
        config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 2 });
        Case { lengths: vec![45], routing: 1, ..Case::plain(config) }
    };
    vec![
        layer(264, 48, Activation::Swiglu),
        Case { keep: Keep::Recompute, ..layer(40, 264, Activation::Gelu) },
        Case { padding: 3, biases: true, ..layer(37, 21, Activation::Geglu) },
    ]
}

fn agrees<B: Backend<Stream = ()> + Clone>(backend: B) {
    for (case, octaves) in cases().iter().flat_map(|case| [-21, 0, 14].map(|octaves| (case, octaves))) {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let ends = Ends { case: Case { dtype, ..case.clone() }, octaves };
            let data = ends.tensors();
            let found = ends.run(&data, backend.clone()).unwrap();
            let right = ends.judge(&ends.expected(&data), &found);
            right.unwrap_or_else(|wrong| panic!("{}: {wrong}\n{ends:#?}", backend.describe()));
        }
    }
}

#[test]
fn gradients_of_any_size_agree_with_the_oracle() {
    agrees(Cpu::new());
    kernels::on_each(agrees, agrees);
}
