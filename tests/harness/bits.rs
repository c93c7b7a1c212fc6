//! Bit-for-bit comparison: of outcomes, and of buffers that must not have been touched.

use da_moe::{Buffer, Element, bf16, f16};
use da_moe_reference::Experts;
use da_moe_reference::check::Outcome;

/// Every result of a call by name, as bits. Rows past `R` mean nothing and are left out.
pub fn bits(outcome: &Outcome) -> Vec<(&'static str, Vec<u64>)> {
    let floats = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<u64>>();
    let integers = |values: &[i64]| values.iter().map(|v| *v as u64).collect::<Vec<u64>>();
    let rows = outcome.offsets[outcome.offsets.len() - 1] as usize;
    let mut all = vec![
        ("importance", floats(&outcome.importance)),
        ("logits", floats(&outcome.logits)),
        ("k", integers(&outcome.k)),
        ("experts", integers(&outcome.experts)),
        ("weights", floats(&outcome.weights)),
        ("ranked", integers(&outcome.ranked)),
        ("load", integers(&outcome.load)),
        ("counts", integers(&outcome.counts)),
        ("offsets", integers(&outcome.offsets)),
        ("row_token", integers(&outcome.row_token[..rows])),
        ("row_weight", floats(&outcome.row_weight[..rows])),
        ("token_row", integers(&outcome.token_row)),
        ("dropped", integers(&outcome.dropped)),
        ("losses", floats(&outcome.losses)),
        ("y", floats(&outcome.y)),
    ];
    let Some(gradients) = &outcome.gradients else { return all };
    all.push(("d.x", floats(&gradients.x)));
    let optional = [
        ("d.router", &gradients.router),
        ("d.constants", &gradients.constants),
        ("d.routing", &gradients.routing),
        ("d.b_in", &gradients.experts.b_in),
        ("d.b_out", &gradients.experts.b_out),
    ];
    all.extend(optional.into_iter().filter_map(|(name, values)| Some((name, floats(values.as_ref()?)))));
    let mut matrices = |names: [&'static str; 2], experts: &Experts| {
        all.push((names[0], floats(&experts.w_in)));
        all.push((names[1], floats(&experts.w_out)));
    };
    matrices(["d.w_in", "d.w_out"], &gradients.experts);
    if let Some(shared) = &gradients.shared {
        matrices(["d.shared.w_in", "d.shared.w_out"], shared);
    }
    all
}

/// The first result whose bits differ.
pub fn difference(a: &Outcome, b: &Outcome) -> Option<&'static str> {
    let (a, b) = (bits(a), bits(b));
    assert_eq!(a.len(), b.len(), "the same results");
    a.iter().zip(&b).find(|(a, b)| a != b).map(|(a, _)| a.0)
}

/// Fails with the first result whose bits differ.
pub fn assert_same_bits(what: &str, a: &Outcome, b: &Outcome) {
    assert_eq!(difference(a, b), None, "{what}");
}

/// Whether two buffers hold the same bits.
pub fn same_memory(a: &Buffer, b: &Buffer) -> bool {
    fn equal<T: Element, K: PartialEq>(a: &Buffer, b: &Buffer, key: impl Fn(&T) -> K) -> bool {
        let keys = |buffer: &Buffer| Some(buffer.as_slice::<T>()?.iter().map(&key).collect::<Vec<K>>());
        keys(a).is_some() && keys(a) == keys(b)
    }
    equal(a, b, |v: &f32| v.to_bits())
        || equal(a, b, |v: &bf16| v.to_bits())
        || equal(a, b, |v: &f16| v.to_bits())
        || equal(a, b, |v: &i32| *v)
        || equal(a, b, |v: &u8| *v)
}
