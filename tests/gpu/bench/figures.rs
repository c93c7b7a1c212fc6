//! From times to the figures that goals are stated in: rates of every product, parts of the dense ceiling, of the layer, of
//! streaming.

use super::Result;
use super::shapes::{Plan, Shape};
use da_moe::cuda::abi;
use da_moe::cuda::cost::hopper::Prediction;
use std::fmt::Write;

/// What a machine can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceilings {
    /// Operations a second of dense products in 16 bits, by the maker's word; none for a GPU that is not known here.
    pub(super) dense: Option<f64>,
    /// Bytes a second that a copy read and wrote.
    pub(super) copy: f64,
}

/// Operations of a multiprocessor in a clock, and clocks in a second, of the GPUs that the kernels are made for.
pub(super) fn dense(description: &str, multiprocessors: usize) -> Option<f64> {
    let [operations, clock] = match description {
        _ if description.contains("sm_90") => [4096.0, 1.83e9],
        _ if description.contains("sm_80") => [2048.0, 1.41e9],
        _ => return None,
    };
    Some(operations * clock * multiprocessors as f64)
}

/// Times of one direction, in milliseconds: median, smallest and largest.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    /// Of its recording.
    pub(super) graph: [f64; 3],
    /// Of its call.
    pub(super) eager: [f64; 3],
    /// Of its kernels, each by itself, in their order.
    pub(super) kernels: Vec<(&'static str, f64)>,
    pub(super) predicted: Vec<Predicted>,
}

/// Clocks of a block, as `HopperGemm::clocks` has them.
pub(super) type Clocks = [f64; abi::HOPPER_CLOCKS as usize];

/// A kernel that a model predicts.
#[derive(Clone, Debug)]
pub(super) struct Predicted {
    pub(super) kernel: &'static str,
    /// Milliseconds.
    pub(super) time: f64,
    pub(super) prediction: Prediction,
    /// Milliseconds of the other ways in which it may be run.
    pub(super) ways: Vec<(&'static str, f64)>,
    pub(super) clocks: Option<Clocks>,
}

#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// R.
    pub(super) rows: usize,
    pub(super) mean_k: f64,
    pub(super) forward: Pass,
    pub(super) backward: Pass,
    /// Milliseconds of forward by the kernels that every architecture has, where these are others.
    pub(super) portable: Option<f64>,
}

/// Times of what forward's kernels are for.
#[derive(Debug, PartialEq)]
struct Forward {
    /// The products of queries and keys: how many, and their time.
    scores: (usize, f64),
    /// The router's product, the gate, and permute.
    before: f64,
    /// Into the experts and out of them.
    products: [f64; 2],
    combine: f64,
    /// Bytes of an element of the rows that are combined.
    row_size: f64,
}

impl Forward {
    fn of(kernels: &[(&str, f64)]) -> Option<Self> {
        let sum = |part: &[(&str, f64)], wanted: fn(&str) -> bool| -> f64 {
            part.iter().filter(|(name, _)| wanted(name)).map(|(_, time)| time).sum()
        };
        let experts = kernels.iter().rposition(|(name, _)| name.starts_with("permute_"))? + 1;
        let end = experts + kernels[experts..].iter().position(|(name, _)| name.starts_with("combine_"))?;
        let scores = kernels.iter().filter(|(name, _)| name.starts_with("importance_query_key_"));
        let mut products = kernels[experts..end].iter().filter(|(name, _)| name.starts_with("grouped_gemm_"));
        Some(Self {
            scores: scores.fold((0, 0.0), |(count, sum), (_, time)| (count + 1, sum + time)),
            before: sum(&kernels[..experts], |name| !name.starts_with("importance_")),
            products: [products.next()?.1, products.next()?.1],
            combine: sum(&kernels[end..], |name| name.starts_with("combine_")),
            row_size: if kernels[end].0.contains("f32rows") { 4.0 } else { 2.0 },
        })
    }
}

/// Times of backward's four products: `dh`, `dx`, `dW_in`, `dW_out`.
fn backward_products(kernels: &[(&str, f64)]) -> Option<[f64; 4]> {
    let first = kernels.iter().position(|(name, _)| name.starts_with("grouped_gemm_") && name.contains("_dh"))?;
    let time = |what: &str, nth: usize| {
        let mut alike =
            kernels[first..].iter().filter(|(name, _)| name.starts_with("grouped_gemm_") && name.contains(what));
        alike.nth(nth).map(|(_, time)| *time)
    };
    Some([time("_dh", 0)?, time("_nn", 0)?, time("_tn", 0)?, time("_tn", 1)?])
}

impl Ceilings {
    /// Operations in so many milliseconds, as a rate and as a part of the dense ceiling.
    fn rate(&self, operations: f64, time: f64) -> String {
        let rate = operations / time * 1e3;
        let part = self.dense.map(|dense| format!(" {:.0}%", 100.0 * rate / dense)).unwrap_or_default();
        // Small ones are told apart by their decimals.
        format!("{:.*} TFLOP/s{part}", if rate < 1e13 { 2 } else { 0 }, rate / 1e12)
    }
}

/// Two matrices of an expert, for all rows: operations of a product with either.
fn product_operations(shape: &Shape, rows: usize) -> [f64; 2] {
    let [_, d, f, _] = shape.sizes;
    [shape.activation.rows_in(f), f].map(|width| 2.0 * (rows * d) as f64 * width as f64)
}

/// Products of queries with all keys of their sequences, in all heads.
fn score_operations(plan: &Plan, tokens: usize) -> f64 {
    let (whole, rest) = (tokens / plan.sequence, tokens % plan.sequence);
    let pairs = whole * plan.sequence * plan.sequence + rest * rest;
    2.0 * (plan.heads[0] * plan.heads[1]) as f64 * pairs as f64
}

/// One line of the layer, and three of what is in it.
pub(super) fn report(plan: &Plan, shape: &Shape, it: &Measured, ceilings: Ceilings, clock: &str) -> Result<String> {
    let [tokens, d, ..] = shape.sizes;
    let names = |pass: &Pass| pass.kernels.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    let forward = Forward::of(&it.forward.kernels);
    let forward = forward.ok_or_else(|| format!("forward is not made of the usual kernels: {}", names(&it.forward)))?;
    let back = backward_products(&it.backward.kernels);
    let back = back.ok_or_else(|| format!("backward is not made of the usual kernels: {}", names(&it.backward)))?;
    let [into, out_of] = product_operations(shape, it.rows);
    let operations = into + out_of;
    let [f, b] = [&it.forward, &it.backward].map(|pass| pass.graph[0]);
    let mut text = format!(
        "{:<12} k {:.2}  forward {f:.3} ms {}, eager {:.3}  backward {b:.3} ms {}, eager {:.3}  both {}  {clock}\n",
        shape.name,
        it.mean_k,
        ceilings.rate(operations, f),
        it.forward.eager[0],
        ceilings.rate(2.0 * operations, b),
        it.backward.eager[0],
        ceilings.rate(3.0 * operations, f + b),
    );
    let slots = shape.config().k_max();
    let of_rows = forward.row_size * it.rows as f64 + 2.0 * tokens as f64;
    let bytes = of_rows * d as f64 + 12.0 * (tokens * slots) as f64;
    let [[_, f_min, f_max], [_, b_min, b_max]] = [it.forward.graph, it.backward.graph];
    write!(
        text,
        "    rows {}, forward {f_min:.3} to {f_max:.3}, backward {b_min:.3} to {b_max:.3}; gate and permute {:.3} ms, {:.1}% of forward; \
         combine {:.3} ms, {:.0}% of streaming",
        it.rows,
        forward.before,
        100.0 * forward.before / f,
        forward.combine,
        100.0 * bytes / (forward.combine / 1e3) / ceilings.copy,
    )?;
    if let (count @ 1.., time) = forward.scores {
        let rate = ceilings.rate(count as f64 * score_operations(plan, tokens), time);
        write!(text, "; importance from q and k {time:.3} ms {rate}")?;
    }
    text.push_str("\n    products");
    let [first, second] = forward.products;
    let [dh, dx, dw_in, dw_out] = back;
    for (name, time, operations) in [
        ("in", first, into),
        ("out", second, out_of),
        ("dh", dh, out_of),
        ("dx", dx, into),
        ("dW_in", dw_in, into),
        ("dW_out", dw_out, out_of),
    ] {
        write!(text, "  {name} {time:.3} ms {}", ceilings.rate(operations, time))?;
    }
    for of in it.forward.predicted.iter().chain(&it.backward.predicted) {
        text += &predicted(of, ceilings);
    }
    if let Some(time) = it.portable {
        write!(text, "\n    forward by portable kernels {time:.3} ms, {:.2} of this", time / f)?;
    }
    text.push_str("\n    kernels one by one");
    for (name, time) in it.forward.kernels.iter().chain(&it.backward.kernels) {
        write!(text, "  {name} {time:.4}")?;
    }
    Ok(text)
}

/// What was measured, beside what was predicted and where the clocks went.
fn predicted(of: &Predicted, ceilings: Ceilings) -> String {
    let [low, high] = of.prediction.rates().map(|rate| rate / 1e12);
    let rate = ceilings.rate(of.prediction.operations, of.time);
    let mut text = format!("\n    {} {:.3} ms {rate}, predicted for an H100 {low:.0} to {high:.0}", of.kernel, of.time);
    for (way, time) in &of.ways {
        text += &format!("; {way} {time:.3} ms");
    }
    if let Some([bring, no_room, multiply, no_step, leave]) = of.clocks {
        let part = |part: f64, of: f64| 100.0 * part / of.max(1.0);
        text += &format!(
            "; clocks: bringing {bring:.0}, {:.0}% without room; multiplying {multiply:.0}, {:.0}% without a step, {:.0}% leaving",
            part(no_room, bring),
            part(no_step, multiply),
            part(leave, multiply),
        );
    }
    text
}

/// Forward of one shape at several means, rows and milliseconds of each: how far each is from what its rows should take, given
/// what they take at the last, or from what reading the weights takes.
pub(super) fn sweep(shape: &Shape, times: &[(f64, usize, f64)], ceilings: Ceilings) -> String {
    let [_, d, f, experts] = shape.sizes;
    let weights = 2.0 * (experts * d * (shape.activation.rows_in(f) + f)) as f64 / ceilings.copy * 1e3;
    let of_row = times.last().map_or(0.0, |(_, rows, time)| time / *rows as f64);
    let mut text = format!("{:<12} by mean k:", shape.name);
    for (k, rows, time) in times {
        let expected = (*rows as f64 * of_row).max(weights);
        let rate = ceilings.rate(product_operations(shape, *rows).iter().sum(), *time);
        text += &format!("  {k:.2} {time:.3} ms {rate} {:+.0}%", 100.0 * (time / expected - 1.0));
    }
    text + "  (off from proportional)"
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Ceilings = Ceilings { dense: Some(1e15), copy: 3e12 };

    fn measured() -> Measured {
        let forward = vec![
            ("importance_query_key_bf16_128", 0.5),
            ("importance_query_key_bf16_128", 1.5),
            ("importance_normalize", 9.0),
            ("grouped_gemm_bf16_plain", 0.25),
            ("gate_32", 0.25),
            ("permute_count", 0.25),
            ("permute_scatter", 0.25),
            ("grouped_gemm_bf16_gated", 2.0),
            ("grouped_gemm_bf16_plain", 4.0),
            ("combine_bf16_f32rows_wide", 0.5),
        ];
        let backward = vec![
            ("combine_backward_bf16", 1.0),
            ("grouped_gemm_bf16_dh", 2.0),
            ("row_weight_gradient_bf16", 1.0),
            ("grouped_gemm_bf16_nn", 3.0),
            ("grouped_gemm_bf16_tn", 4.0),
            ("grouped_gemm_bf16_tn", 5.0),
            ("permute_backward_bf16", 1.0),
            ("grouped_gemm_f32_nn_bf16_weights", 1.0),
            ("grouped_gemm_f32_tn_bf16_rows", 1.0),
        ];
        let pass =
            |kernels| Pass { graph: [10.0, 9.0, 11.0], eager: [12.0, 10.0, 13.0], kernels, predicted: Vec::new() };
        let mut forward = pass(forward);
        forward.predicted.push(Predicted {
            kernel: "grouped_gemm_bf16_gated",
            time: 2.0,
            prediction: Prediction { least: 5e-4, most: 1e-3, operations: 412e9 },
            ways: vec![("alone", 2.25), ("skewed", 1.75)],
            clocks: Some([1000.0, 100.0, 2000.0, 500.0, 400.0]),
        });
        Measured { rows: 16384, mean_k: 2.0, forward, backward: pass(backward), portable: Some(15.0) }
    }

    #[test]
    fn kernels_are_known_by_their_order() {
        let it = measured();
        let forward = Forward::of(&it.forward.kernels).unwrap();
        let expected = Forward { scores: (2, 2.0), before: 1.0, products: [2.0, 4.0], combine: 0.5, row_size: 4.0 };
        assert_eq!((forward, backward_products(&it.backward.kernels)), (expected, Some([2.0, 3.0, 4.0, 5.0])));
        assert_eq!((Forward::of(&it.backward.kernels), backward_products(&it.forward.kernels)), (None, None));
    }

    #[test]
    fn figures_are_what_the_times_come_to() {
        let plan = Plan::asked(None).unwrap();
        let marin = &plan.shapes[0];
        // 2·16384·2048·6144 and half of that.
        assert_eq!(product_operations(marin, 16384), [412_316_860_416.0, 206_158_430_208.0]);
        assert_eq!(score_operations(plan, 8192), 2.0 * 2048.0 * 2.0 * 4096.0 * 4096.0);
        let text = report(plan, marin, &measured(), H100, "1980 MHz 700 W").unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("marin        k 2.00  forward 10.000 ms 62 TFLOP/s 6%, eager 12.000  backward"),
            "{text}"
        );
        assert!(lines[0].ends_with("both 93 TFLOP/s 9%  1980 MHz 700 W"), "{text}");
        assert!(
            lines[1].contains("gate and permute 1.000 ms, 10.0% of forward; combine 0.500 ms, 11% of streaming"),
            "{text}"
        );
        assert!(lines[1].ends_with("importance from q and k 2.000 ms 137 TFLOP/s 14%"), "{text}");
        assert!(
            lines[2].contains("  in 2.000 ms 206 TFLOP/s 21%  out 4.000 ms 52 TFLOP/s 5%  dh 2.000 ms 103"),
            "{text}"
        );
        let own = "grouped_gemm_bf16_gated 2.000 ms 206 TFLOP/s 21%, predicted for an H100 412 to 824; alone 2.250 ms; skewed 1.750 ms; \
                   clocks: bringing 1000, 10% without room; multiplying 2000, 25% without a step, 20% leaving";
        assert!(lines[3].ends_with(own), "{text}");
        assert!(lines[4].ends_with("forward by portable kernels 15.000 ms, 1.50 of this"), "{text}");
        assert!(lines[5].contains("  permute_scatter 0.2500  ") && lines.len() == 6, "{text}");
        assert!(
            report(plan, marin, &measured(), Ceilings { dense: None, ..H100 }, "")
                .unwrap()
                .contains("62 TFLOP/s, eager")
        );
    }

    #[test]
    fn rows_have_their_time_or_the_weights_have() {
        let shape = Plan::asked(None).unwrap().sweep.0;
        // The weights, 6.4 GB, take 2.1475 ms.
        let text = sweep(&shape, &[(1.0, 16384, 2.2), (4.0, 65536, 6.6), (8.0, 131_072, 12.0)], H100);
        assert!(text.contains("  1.00 2.200 ms 187 TFLOP/s 19% +2%  4.00 6.600 ms"), "{text}");
        assert!(text.contains(" +10%  8.00 12.000 ms") && text.contains(" +0%  (off"), "{text}");
    }

    #[test]
    fn ceilings_are_those_of_the_maker() {
        assert_eq!(dense("NVIDIA H100 80GB HBM3, sm_90, driver", 132).map(|rate| (rate / 1e12).round()), Some(989.0));
        assert_eq!(dense("NVIDIA A100, sm_80, driver", 108).map(|rate| (rate / 1e12).round()), Some(312.0));
        assert_eq!(dense("a GPU, sm_120, driver", 188), None);
    }
}
