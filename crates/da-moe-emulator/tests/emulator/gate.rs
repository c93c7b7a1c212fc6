//! A whole kernel, right and with planted bugs: softmax and top-k.

use da_moe_emulator::{Device, Error, Kind};
use half::bf16;

use crate::common::{compile, compiler, download, input, lines_with, mutant, output, parameter, passes, reports};

const FILE: &str = "topk_gate.cu";
const TOKENS: usize = 4;
const CHOSEN: usize = 6;
const THRESHOLD: f32 = 0.02;

struct Gate {
    experts: usize,
}

impl Gate {
    fn logits(&self) -> Vec<bf16> {
        // Every token likes expert 3, so that blocks meet in its count.
        let liked = |i: usize| if i % self.experts == 3 { 4.0 } else { 0.0 };
        let value = |i: usize| bf16::from_f32(((i * 7919 + 13) % 2003) as f32 / 250.0 - 4.0 + liked(i));
        (0..TOKENS * self.experts).map(value).collect()
    }

    /// For each token its experts in order of probability, equals in order of number.
    fn expected(&self) -> Vec<Vec<(usize, f32)>> {
        let softmax = |row: &[bf16]| {
            let exponentials: Vec<f64> = row.iter().map(|logit| f64::from(logit.to_f32()).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            let mut order: Vec<_> = exponentials.iter().map(|e| (e / sum) as f32).enumerate().collect();
            order.sort_by(|x, y| y.1.total_cmp(&x.1).then(x.0.cmp(&y.0)));
            order
        };
        self.logits().chunks(self.experts).map(softmax).collect()
    }

    /// Runs the gate, checks its results, and gives the number of bytes of the outputs that nothing has written.
    fn run(&self, device: &Device) -> Result<usize, Error> {
        let logits = input(device, "logits", &self.logits());
        device.read_only(logits)?;
        let weights = output::<f32>(device, "weights", TOKENS * CHOSEN);
        let experts = output::<i32>(device, "experts", TOKENS * CHOSEN);
        let counts = input(device, "counts", &vec![0i32; self.experts]);
        let over = output::<i32>(device, "over", TOKENS * self.experts);
        let over_count = input(device, "over_count", &[0i32]);
        let (e, k) = (self.experts as i32, CHOSEN as i32);
        let addresses = [&logits, &weights, &experts, &counts, &over, &over_count].map(parameter);
        let sizes = [parameter(&e), parameter(&k), parameter(&THRESHOLD)];
        // SAFETY: six addresses, two ints and a float, as the kernel takes them.
        unsafe { device.launch("topk_gate", [4, 1, 1], [128, 1, 1], 0, &[&addresses[..], &sizes[..]].concat())? };

        let unwritten = device.unwritten(weights)? + device.unwritten(experts)?;
        if unwritten > 0 {
            return Ok(unwritten);
        }
        let expected = self.expected();
        let got_weights: Vec<f32> = download(device, weights, TOKENS * CHOSEN);
        let got_experts: Vec<i32> = download(device, experts, TOKENS * CHOSEN);
        let mut want_counts = vec![0; self.experts];
        for (i, (expert, weight)) in expected.iter().flat_map(|row| row.iter().take(CHOSEN)).enumerate() {
            assert_eq!(got_experts[i] as usize, *expert, "choice {i}");
            assert!((got_weights[i] - weight).abs() < 1e-6, "choice {i}: {} is not {weight}", got_weights[i]);
            want_counts[*expert] += 1;
        }
        assert_eq!(download::<i32>(device, counts, self.experts), want_counts);

        let listed = expected.iter().enumerate().flat_map(|(token, row)| {
            row.iter().filter(|(_, p)| *p > THRESHOLD).map(move |(expert, _)| (token * self.experts + expert) as i32)
        });
        let mut listed: Vec<i32> = listed.collect();
        listed.sort_unstable();
        let mut got: Vec<i32> = download(device, over, listed.len());
        got.sort_unstable();
        assert_eq!(got, listed);
        assert_eq!(device.unwritten(over)?, 4 * (TOKENS * self.experts - listed.len()));
        Ok(0)
    }
}

const GATE: Gate = Gate { experts: 200 };

fn bug(kinds: &[Kind], from: &str, to: &str, line: &str) {
    reports(&mutant(FILE, from, to), kinds, FILE, &lines_with(FILE, line), |device| GATE.run(device).map(drop));
}

#[test]
fn the_gate_is_right() {
    let module = compile(&compiler(FILE));
    for experts in [256, 200, 100, 7] {
        passes(&module, |device| Gate { experts }.run(device).map(|unwritten| assert_eq!(unwritten, 0)));
    }
}

#[test]
fn a_read_past_the_last_row() {
    bug(&[Kind::OutOfBounds], "v[i] = e < E ? __bf", "v[i] = e <= E ? __bf", "v[i] = e < E");
}

#[test]
fn a_missing_barrier() {
    bug(&[Kind::Race], "__syncthreads();  // red is reused", "", "red[");
}

#[test]
fn a_tail_that_is_not_filled() {
    bug(
        &[Kind::Uninitialised],
        "prob[e] = e < E ? v[i] / s : -1.0f;",
        "if (e < E) prob[e] = v[i] / s;",
        "if (prob[e] >",
    );
}

#[test]
fn a_shuffle_in_half_a_warp() {
    bug(
        &[Kind::Divergence],
        "    m = warp_max(m);",
        "    if (t < 48) m = warp_max(m);",
        "__shfl_xor_sync(~0u, v, offset)",
    );
}

#[test]
fn threads_that_leave_early() {
    let from = "    const __nv_bfloat16* row";
    let to = "    if (t >= E) return;  const __nv_bfloat16* row";
    let module = mutant(FILE, from, to);
    // Lanes of the last warp are missing in its first shuffle; or whole warps are, at a barrier.
    let lines = [lines_with(FILE, "__shfl_xor_sync(~0u, v, offset)"), lines_with(FILE, "__syncthreads();")].concat();
    reports(&module, &[Kind::Divergence], FILE, &lines, |device| Gate { experts: 100 }.run(device).map(drop));
}

#[test]
fn a_count_without_an_atomic() {
    bug(&[Kind::Race], "atomicAdd(&counts[index], 1);", "counts[index] += 1;", "atomicAdd(&counts");
}

#[test]
fn an_output_that_is_not_written() {
    let module = mutant(
        FILE,
        "            weights[token * K + k] = best;",
        "            if (k + 1 < K) weights[token * K + k] = best;",
    );
    // One weight of each token.
    passes(&module, |device| GATE.run(device).map(|unwritten| assert_eq!(unwritten, 4 * TOKENS)));
}
