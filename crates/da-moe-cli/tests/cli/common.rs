//! What the tests of the program share: building safetensors files, running the program, reading its answers.

use assert_cmd::Command;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The program, with nothing of the surroundings that could change its output.
pub fn program() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("da-moe"));
    command.env_remove("CLICOLOR_FORCE").env_remove("NO_COLOR").env_remove("COLORTERM").env("TERM", "dumb");
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
    command
}

/// Tensors by name, to become a file.
#[derive(Clone, Default)]
pub struct Tensors(pub BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    pub fn raw(mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        self.0.insert(name.into(), (dtype, shape.to_vec(), bytes));
        self
    }

    pub fn f32(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        self.raw(name, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn i32(self, name: &str, shape: &[usize], values: &[i32]) -> Self {
        self.raw(name, Dtype::I32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn i64(self, name: &str, shape: &[usize], values: &[i64]) -> Self {
        self.raw(name, Dtype::I64, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Numbers between −1 and 1 that look random and are the same in every run.
    pub fn random(self, name: &str, shape: &[usize]) -> Self {
        let seed = name.bytes().fold(17u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let mut state = seed | 1;
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        self.f32(name, shape, &values)
    }

    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let views = self.0.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("a valid tensor"))
        });
        serialize(views, None).expect("a valid file")
    }
}

/// `T, D, F, E, H, dh` of the tests.
pub const T: usize = 6;
pub const D: usize = 8;
pub const F: usize = 5;
pub const E: usize = 4;

/// A configuration with these fields beside the sizes.
pub fn config(fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { ", " };
    format!(r#"{{ "hidden_size": {D}, "num_experts": {E}, "moe_intermediate_size": {F}{comma}{fields} }}"#)
}

/// Inputs, weights and the gradient of the output, for a layer without extras.
pub fn tensors() -> Tensors {
    Tensors::default()
        .random("x", &[T, D])
        .random("router.weight", &[E, D])
        .random("experts.w_in", &[E, 2 * F, D])
        .random("experts.w_out", &[E, D, F])
        .random("q", &[T, 2, 4])
        .random("k", &[T, 1, 4])
        .random("dy", &[T, D])
}

/// A folder with a configuration and an input file, and where the output goes.
pub struct Case {
    pub folder: TempDir,
}

impl Case {
    pub fn new(config: &str, input: &[u8]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::write(folder.path().join("config.json"), config).expect("a written file");
        std::fs::write(folder.path().join("input.safetensors"), input).expect("a written file");
        Self { folder }
    }

    pub fn output(&self) -> PathBuf {
        self.folder.path().join("output.safetensors")
    }

    pub fn run(&self, more: &[&str]) -> std::process::Output {
        self.run_to(&self.output(), more)
    }

    /// As [`Self::run`], with the output elsewhere.
    pub fn run_to(&self, output: &std::path::Path, more: &[&str]) -> std::process::Output {
        self.run_by(program(), output, more)
    }

    /// As [`Self::run_to`], by a program in other surroundings.
    pub fn run_by(&self, mut program: Command, output: &std::path::Path, more: &[&str]) -> std::process::Output {
        let path = |name: &str| self.folder.path().join(name);
        program
            .arg("run")
            .arg("--config")
            .arg(path("config.json"))
            .arg("--input")
            .arg(path("input.safetensors"))
            .arg("--output")
            .arg(output)
            .args(more)
            .output()
            .expect("a program that starts")
    }
}

/// Name, type and shape of each tensor in a file, and its elements where they are f32 or i32.
pub fn read(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(path).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let element = |dtype, chunk: &[u8]| match (dtype, chunk) {
        (Dtype::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
        (Dtype::I32, &[a, b, c, d]) => f64::from(i32::from_le_bytes([a, b, c, d])),
        _ => f64::NAN,
    };
    let entry = |(name, tensor): (&str, TensorView<'_>)| {
        let size = tensor.dtype().bitsize() / 8;
        let values = tensor.data().chunks(size).map(|chunk| element(tensor.dtype(), chunk)).collect();
        (name.to_string(), (tensor.dtype(), tensor.shape().to_vec(), values))
    };
    file.iter().map(entry).collect()
}

/// Exit code 2, exactly one line on stderr, and that line names the culprit.
pub fn assert_refused(output: &std::process::Output, culprit: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{culprit}: {stderr}");
    assert!(stderr.starts_with("error: "), "{culprit}: {stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{culprit}: {stderr}");
    assert!(stderr.contains(culprit), "{culprit} is not named: {stderr}");
    assert!(output.stdout.is_empty(), "{culprit}: something on stdout");
}
