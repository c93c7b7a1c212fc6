//! `da-moe run`: one layer on tensors from a safetensors file.

mod file;
mod gradients;
pub(crate) mod output;
mod tensors;

pub use output::Output;

use crate::args::RunArgs;
use crate::device::{Opened, Why};
use crate::gradient_buffers::GradientBuffers;
use crate::result_buffer::ResultBuffer;
use crate::target::Target;
use crate::{Device, Error, Result, ahead, memory};
use da_moe::{DType, Keep, Layer, LayerConfig, Step};
use da_moe_train::pointer;
use file::InputFile;
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;
use tensors::Tensors;

/// The choices of a run that are not in its files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Where to compute.
    pub device: Device,
    /// Storage type; absent: that of `x`, or f32 where the layer cannot compute in that.
    pub dtype: Option<DType>,
    /// Whether gradients are computed too.
    pub backward: bool,
}

/// What one run produced.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Tensors for the output file.
    pub tensors: Vec<Output>,
    /// Scalars for standard output.
    pub summary: Summary,
    /// Tensors of the input that were not read.
    pub unread: Vec<String>,
}

/// The scalars of a run; numbers that are not finite become null in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Without its coefficient.
    pub balance_loss: f32,
    /// Without its coefficient.
    pub z_loss: f32,
    /// Selections per token, before drops.
    pub mean_k: f64,
    /// Rows that went through a routed expert.
    pub rows: usize,
    /// Selections dropped by capacity.
    pub dropped: usize,
    /// What did the work and, where `auto` found no GPU, why not.
    pub device: String,
}

pub(crate) fn execute(arguments: &RunArgs) -> Result<()> {
    let options = Options { device: arguments.device, dtype: arguments.dtype, backward: arguments.backward };
    // A device that is not there is told before the files are looked at.
    options.device.open()?;
    for read in [&arguments.config, &arguments.input] {
        ahead::is_another("--output", &arguments.output, Some(read))?;
    }
    let config = text(&arguments.config)?;
    let bytes =
        pointer::read(&arguments.input).map_err(|source| Error::Read { path: arguments.input.clone(), source })?;
    let outcome = run(&config, &bytes, &options)?;
    drop(bytes);
    for name in &outcome.unread {
        let _ = writeln!(io::stderr(), "note: tensor `{}` is not read", name.escape_debug());
    }
    output::write(&arguments.output, &outcome.tensors)?;
    let json = serde_json::to_string(&outcome.summary).map_err(|error| Error::Stdout(error.into()))?;
    writeln!(io::stdout(), "{json}").map_err(Error::Stdout)
}

fn text(path: &Path) -> Result<String> {
    pointer::read_to_string(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}

/// One forward call, and one backward call if asked for, of the layer that `config` describes on the tensors of a
/// safetensors file.
///
/// # Errors
/// Whatever is wrong with the configuration, the file or a tensor, by name.
pub fn run(config: &str, safetensors: &[u8], options: &Options) -> Result<Outcome> {
    let config = LayerConfig::from_json(config)?;
    match options.device.open()? {
        Opened::Cpu(cpu, why) => run_on(cpu, &why, config, safetensors, options),
        Opened::Cuda(cuda) => run_on(cuda, &Why::default(), config, safetensors, options),
    }
}

fn run_on<B: Target>(
    backend: B,
    why: &Why,
    config: LayerConfig,
    safetensors: &[u8],
    options: &Options,
) -> Result<Outcome> {
    let layer = Layer::new(backend, config)?;
    let file = InputFile::parse(safetensors)?;
    let dtype = options.dtype.or_else(|| file.storage("x")).unwrap_or(DType::F32);
    let tensors = Tensors::read(&file, layer.config(), dtype, options.backward)?;

    let keep = if options.backward { Keep::Hidden } else { Keep::Nothing };
    let tokens = tensors.x.shape[0];
    memory::expect_room("the layer's buffers", layer.step_bytes(tokens, dtype, keep)?.total())?;
    let mut step = layer.step(tokens, dtype, keep)?;
    let target = layer.backend();
    let held = target.held();
    let (inputs, weights) = (B::inputs(&held, &tensors.inputs()?)?, B::weights(&held, &tensors.weights()?)?);
    let stream = target.stream_for(layer.config(), &inputs, keep)?;
    let mut y = ResultBuffer::like(target, inputs.x)?;
    layer.forward(&stream, &inputs, &weights, &mut layer.state()?, &mut step, y.view_mut()?)?;

    let mut outputs = forward_outputs(&step, y, tensors.routing.is_some())?;
    if let Some(dy) = &tensors.dy {
        let mut buffers = GradientBuffers::new(target, &inputs, &weights)?;
        let dy = B::matrix(&held, &dy.view()?)?;
        layer.backward(&stream, &inputs, &weights, dy, &mut step, &mut buffers.views()?)?;
        outputs.extend(gradients::outputs(buffers, &tensors)?);
    }
    let report = step.report()?;
    let summary = Summary {
        balance_loss: report.balance_loss,
        z_loss: report.z_loss,
        mean_k: report.mean_k,
        rows: report.rows,
        dropped: report.dropped,
        device: why.after(layer.backend().describe()),
    };
    Ok(Outcome { tensors: outputs, summary, unread: file.unread() })
}

fn forward_outputs(step: &Step, y: ResultBuffer<2>, routed_outside: bool) -> Result<Vec<Output>> {
    let sizes = step.sizes()?;
    let (plan, rows) = (step.plan()?, step.report()?.rows);
    let mut outputs = vec![
        Output::of("y", y)?,
        Output::copy::<i32, 1, 1>("experts_per_token", step.selection()?.k, [sizes.tokens])?,
        Output::copy::<i32, 1, 1>("expert.counts", plan.counts, [sizes.candidates])?,
        Output::copy::<i32, 1, 1>("expert.offsets", plan.offsets, [sizes.experts + 1])?,
        Output::copy::<i32, 1, 1>("row_token", plan.row_token, [rows])?,
        Output::copy::<f32, 1, 1>("row_weight", plan.row_weight, [rows])?,
    ];
    // A finished routing leaves importance and router out.
    if !routed_outside {
        outputs.push(Output::copy::<f32, 1, 1>("importance", step.importance()?, [sizes.tokens])?);
        let logits = [sizes.tokens, sizes.candidates];
        outputs.push(Output::copy::<f32, 2, 2>("router.logits", step.logits()?, logits)?);
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::tests::emulated;
    use da_moe::Cpu;
    use safetensors::tensor::{Dtype, TensorView};

    const CONFIG: &str =
        r#"{ "hidden_size": 8, "num_experts": 4, "moe_intermediate_size": 5, "shared_intermediate_size": 3 }"#;

    /// Tensors for [`CONFIG`] with numbers that look random.
    fn input() -> Vec<u8> {
        let shapes: [(&str, &[usize]); 9] = [
            ("x", &[6, 8]),
            ("router.weight", &[4, 8]),
            ("experts.w_in", &[4, 10, 8]),
            ("experts.w_out", &[4, 8, 5]),
            ("shared.w_in", &[6, 8]),
            ("shared.w_out", &[1, 8, 3]),
            ("q", &[6, 2, 4]),
            ("k", &[6, 1, 4]),
            ("dy", &[6, 8]),
        ];
        let mut draw = crate::draw::Draw::new(3);
        let bytes: Vec<Vec<u8>> = shapes
            .iter()
            .map(|(_, shape)| {
                let count = shape.iter().product();
                (0..count).flat_map(|_| (2.0 * draw.uniform() - 1.0).to_le_bytes()).collect()
            })
            .collect();
        let views = shapes.iter().zip(&bytes).map(|((name, shape), bytes)| {
            (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a valid tensor"))
        });
        safetensors::serialize(views, None).expect("a valid file")
    }

    /// As on a GPU: tensors are copied to the device, forward and backward run there, and results are read back.
    #[test]
    fn emulated_kernels_write_what_the_cpu_writes() {
        let (input, options) = (input(), Options { backward: true, ..Options::default() });
        let config = LayerConfig::from_json(CONFIG).expect("a valid configuration");
        let why = Why::default();
        let [on_cpu, on_kernels] = [
            run_on(Cpu::new(), &why, config.clone(), &input, &options).expect("a run"),
            run_on(emulated(), &why, config, &input, &options).expect("a run"),
        ];
        assert!(on_kernels.summary.device.starts_with("emulated kernels"), "{}", on_kernels.summary.device);
        assert_eq!(on_kernels.summary.rows, on_cpu.summary.rows);
        assert!(on_cpu.tensors.iter().filter(|tensor| tensor.name.starts_with("d.")).count() >= 6);
        assert_eq!(on_cpu.tensors.len(), on_kernels.tensors.len());
        for (cpu, kernels) in on_cpu.tensors.iter().zip(&on_kernels.tensors) {
            assert_eq!((cpu.name, &cpu.shape), (kernels.name, &kernels.shape));
            let values = |output: &Output| match output.data.as_slice::<i32>() {
                Some(integers) => integers.iter().map(|i| *i as f32).collect(),
                None => output.data.to_f32(),
            };
            let (a, b): (Vec<f32>, Vec<f32>) = (values(cpu), values(kernels));
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
            let apart = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
            // SPEC §8 for f32: both are as close to the oracle.
            assert!(apart <= 2e-6 * norm(&mut a.iter().copied()), "{}: {apart:e}", cpu.name);
        }
    }
}
