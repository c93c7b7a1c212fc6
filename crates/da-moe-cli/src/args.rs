//! The command line.

use crate::Device;
use crate::bench::shapes::ShapeArg;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use da_moe::cuda::Architecture;
use da_moe::{Activation, DType, Keep};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};
use std::path::PathBuf;

/// Dynamic mixture-of-experts: important tokens get more experts.
///
/// Without a command, the demo runs on its own text.
#[derive(Debug, Parser)]
#[command(name = "da-moe", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

const EXIT_CODES: &str = "Exit codes: 0 success, 1 a check failed, 2 bad input (one line on stderr says what).";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArgs),
    Run(RunArgs),
    Bench(BenchArgs),
    Train(TrainArgs),
    Explain(ExplainArgs),
    Evaluate(EvaluateArgs),
    Plan(PlanArgs),
    Doctor(DoctorArgs),
}

impl Default for Command {
    fn default() -> Self {
        Command::Demo(DemoArgs::default())
    }
}

/// Show the layer at work on text: importance, experts per token, check against the oracle
///
/// Splits the text into tokens, scores their importance by self-attention over training-free token vectors, gives each
/// token a number of experts, runs the layer forward and backward, and checks every figure against an independent
/// double-precision implementation.
#[derive(Args, Debug, Default)]
pub(crate) struct DemoArgs {
    /// Text to use, `-` for standard input [default: the project's own description]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) text: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: Device,
    /// Also draw the result as an SVG picture
    #[arg(long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub(crate) svg: Option<PathBuf>,
    /// Also write the result as a web page that needs no other file
    #[arg(long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub(crate) html: Option<PathBuf>,
}

/// Run one layer on tensors from a safetensors file
///
/// Scalars go to standard output as one JSON object, tensors to the output file.
///
/// Tensors read: x [T,D]; router.weight [E+Z,D]; experts.w_in [E, F or 2F, D]; experts.w_out [E,D,F];
/// optional experts.b_in, experts.b_out, router.bias [E+Z], shared.w_in, shared.w_out, null.constants [Z,D],
/// cu_seqlens [B+1], mask [T]. For attention sources q [T,H,dh] and k [T,Hk,dh] (and lse [H,T]), or
/// attn_probs [B,H,S,S]; for `external` importance [T]; for `token-frequency` token_ids [T] and token_frequency [V];
/// for the policy `given` k_given [T], or routing.experts [T,K] and routing.weights [T,K]; dy [T,D] with --backward.
///
/// Tensors written: y, importance, experts_per_token, router.logits, expert.counts, expert.offsets, row_token,
/// row_weight; with --backward the gradients d.x, d.router.weight, d.experts.w_in, d.experts.w_out and one for every
/// other weight given.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// Layer configuration (JSON)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: PathBuf,
    /// Inputs and weights (safetensors)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) input: PathBuf,
    /// Results (safetensors); written whole or not at all
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// Also compute the gradients of <y, dy> and the losses
    #[arg(long)]
    pub(crate) backward: bool,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: Device,
    /// Storage type: f32, bf16 or f16 [default: that of x]
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<DType>,
}

/// Time the layer stage by stage
///
/// Named shapes (T,D,F,E): c-small, c-mid, c-fine, switch-base, marin, olmoe, qwen3-30b, fine-256, decode.
/// Times are medians of the repeats; useful operations only are counted; the ceiling is this machine's own dense
/// matrix product, measured in the same run.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// A named shape, or tokens, model width, expert width and experts as T,D,F,E
    #[arg(long, value_name = "NAME|T,D,F,E", default_value = "c-mid")]
    pub(crate) shape: ShapeArg,
    /// The same number of experts for every token
    #[arg(long, value_name = "K", conflicts_with = "mean_k")]
    pub(crate) k: Option<usize>,
    /// A mean number of experts, varying with drawn importance [default: the shape's own]
    #[arg(long, value_name = "X")]
    pub(crate) mean_k: Option<f64>,
    /// Activation: relu, gelu, gelu-tanh, silu, swiglu, geglu or reglu [default: the shape's own]
    #[arg(long, value_name = "A", value_parser = activation)]
    pub(crate) act: Option<Activation>,
    /// Storage type: f32, bf16 or f16
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub(crate) dtype: DType,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: Device,
    /// Also time backward
    #[arg(long)]
    pub(crate) backward: bool,
    /// What forward keeps for backward: the hidden rows, or nothing, and backward computes them again
    #[arg(long, value_name = "KEEP", default_value = "hidden", requires = "backward")]
    pub(crate) keep: KeepArg,
    /// Timed calls, at least 5
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(5..))]
    pub(crate) repeats: u32,
    /// Print one JSON object and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where backward has the hidden rows from.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KeepArg {
    /// Kept by forward.
    Hidden,
    /// Computed again by backward.
    Recompute,
}

impl From<KeepArg> for Keep {
    fn from(keep: KeepArg) -> Self {
        match keep {
            KeepArg::Hidden => Keep::Hidden,
            KeepArg::Recompute => Keep::Recompute,
        }
    }
}

/// List the GPU launches of a layer call, with a model of their time, and the memory that it needs
///
/// Grids, shared memory, tiles, bytes and useful operations are those of the kernels; the times are arithmetic on them,
/// for an H100, and not measurements. Importance is received-max, from queries and keys. Memory is what the library
/// allocates besides inputs, weights, outputs and gradients: a step saves for backward and has scratch. Needs no GPU.
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// A named shape, or tokens, model width, expert width and experts as T,D,F,E [default: every named shape]
    #[arg(long, value_name = "NAME|T,D,F,E")]
    pub(crate) shape: Option<ShapeArg>,
    /// The same number of experts for every token
    #[arg(long, value_name = "K", conflicts_with = "mean_k")]
    pub(crate) k: Option<usize>,
    /// A mean number of experts, varying with importance [default: the shape's own]
    #[arg(long, value_name = "X")]
    pub(crate) mean_k: Option<f64>,
    /// Activation: relu, gelu, gelu-tanh, silu, swiglu, geglu or reglu [default: the shape's own]
    #[arg(long, value_name = "A", value_parser = activation)]
    pub(crate) act: Option<Activation>,
    /// Storage type: f32, bf16 or f16
    #[arg(long, value_name = "DTYPE", default_value = "bf16")]
    pub(crate) dtype: DType,
    /// Architecture to choose kernels for: sm_90 (Hopper's own, where they can) or sm_80 (those of everything later)
    #[arg(long, value_name = "ARCH", default_value = "sm_90", value_parser = architecture)]
    pub(crate) arch: Architecture,
    /// Also list backward, after a forward that kept the hidden rows
    #[arg(long)]
    pub(crate) backward: bool,
    /// Print one JSON object and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

/// Train a small model on a text, beside one with as many experts for every token
///
/// Two small Transformers in a minute or two: one gives each token a number of experts by its importance in attention,
/// the other gives every token two. Ends with a picture of which tokens matter. Started again, it goes on where it was
/// stopped. A folder is of one text and one set of options, and of one process at a time: others are refused.
#[derive(Args, Debug)]
pub(crate) struct TrainArgs {
    /// Text to train on, `-` for standard input [default: the project's own documentation]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) text: Option<PathBuf>,
    /// Where checkpoints and metrics go
    #[arg(long, value_name = "FOLDER", default_value = "da-moe-model", value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// Where to train: cpu, cuda or cuda:N (in a program built with the feature `candle-cuda`)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: Device,
    /// Training steps of 1024 tokens
    #[arg(long, value_name = "N", default_value_t = 1500, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    pub(crate) steps: u64,
    /// Tokens of the byte-pair vocabulary, learned from the text
    #[arg(long, value_name = "V", default_value_t = 512, value_parser = RangedU64ValueParser::<usize>::new().range(260..=1_000_000))]
    pub(crate) vocabulary: usize,
    /// Predict each token from the earlier ones, instead of masked tokens from all others
    #[arg(long)]
    pub(crate) causal: bool,
    /// Seed of first weights, order of the text and masks
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Also draw the result as an SVG picture
    #[arg(long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub(crate) svg: Option<PathBuf>,
}

/// Show which tokens of a text a trained model finds important, and which experts they get
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// A checkpoint of `da-moe train`
    #[arg(long, value_name = "FILE", default_value = "da-moe-model/dynamic/checkpoint.safetensors", value_hint = ValueHint::FilePath)]
    pub(crate) model: PathBuf,
    /// The text
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: String,
    /// Also draw it as an SVG picture
    #[arg(long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub(crate) svg: Option<PathBuf>,
    /// Also write it as a web page that needs no other file
    #[arg(long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub(crate) html: Option<PathBuf>,
}

/// Train a grid of variants and seeds, compare them, and write a report
///
/// Stopped anywhere, it goes on from there when it is started again: outcomes are kept beside the report, checkpoints of
/// runs under way in the working folder. Both are of one text and one process at a time: others are refused. Without a
/// plan, a small one of a few seconds.
#[derive(Args, Debug)]
pub(crate) struct EvaluateArgs {
    /// The grid (JSON): models, schedules, variants, seeds and the questions asked of them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) plan: Option<PathBuf>,
    /// The report (Markdown); pictures and outcomes go into a folder of its name
    #[arg(long, value_name = "FILE", default_value = "evaluation.md", value_hint = ValueHint::FilePath)]
    pub(crate) report: PathBuf,
    /// What `cargo xtask data` wrote
    #[arg(long, value_name = "FOLDER", default_value = "target/data", value_hint = ValueHint::DirPath)]
    pub(crate) data: PathBuf,
    /// Where checkpoints of runs under way are kept
    #[arg(long, value_name = "FOLDER", default_value = "target/evaluate", value_hint = ValueHint::DirPath)]
    pub(crate) work: PathBuf,
    /// Where to train: cpu, cuda or cuda:N (in a program built with the feature `candle-cuda`)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: Device,
    /// Runs at a time, each on one thread [default: one for each core]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub(crate) at_once: Option<usize>,
    /// Write the report of what has been found so far, and run nothing
    #[arg(long)]
    pub(crate) only_report: bool,
}

/// Tell what this machine can do: CPU features, GPU, kernels, compiler
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Print one JSON object and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

fn activation(name: &str) -> Result<Activation, String> {
    let names: StrDeserializer<'_, ValueError> = name.into_deserializer();
    Activation::deserialize(names).map_err(|_| {
        format!("`{name}` is not an activation; choose relu, gelu, gelu-tanh, silu, swiglu, geglu or reglu")
    })
}

fn architecture(name: &str) -> Result<Architecture, String> {
    match name {
        "sm_80" => Ok(Architecture::Portable),
        "sm_90" | "sm_90a" => Ok(Architecture::Hopper),
        _ => Err(format!("`{name}` is not an architecture that there are kernels for; choose sm_80 or sm_90")),
    }
}

/// clap's message without its usage section, in one line: what is wrong, and the tip if there is one.
pub(crate) fn one_line(refusal: &clap::Error) -> String {
    let text = refusal.to_string();
    let kept = text.split("\n\n").filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more"));
    let flowing = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    kept.map(|part| flowing(part.trim().trim_start_matches("error: "))).collect::<Vec<_>>().join("; ")
}
