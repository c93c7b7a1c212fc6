//! One run of nvcc: a `.cu` file becomes a fatbin, with what ptxas said about it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Machine code for Ampere and Hopper, and portable code that drivers translate for everything newer. Code for sm_90a
/// may use the instructions of that one architecture, so nothing newer could run a translation of it.
const TARGETS: [&str; 2] = ["arch=compute_80,code=[sm_80,compute_80]", "arch=compute_90a,code=sm_90a"];

/// Folders of files with instructions that Hopper alone has.
const HOPPER: &str = "hopper";

/// Whether a file below `kernels/` is for Hopper alone.
pub fn is_for_hopper(name: &str) -> bool {
    name.split('/').any(|folder| folder == HOPPER)
}

/// What a file below `kernels/` is compiled for.
fn targets(name: &str) -> &'static [&'static str] {
    if is_for_hopper(name) { &TARGETS[1..] } else { &TARGETS }
}

/// The architectures of all targets, as `BuildReport` names them.
pub const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "compute_80"];

/// Variables that nvcc itself, or this module, reads.
pub const VARIABLES: [&str; 3] = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// nvcc and the flags that every file is compiled with.
pub struct Compiler {
    nvcc: PathBuf,
    /// Such as `13.0.88`.
    pub version: String,
    flags: Vec<OsString>,
    /// Where it runs, so that sources are named relative to this.
    project: PathBuf,
}

/// What came of a file.
#[derive(Debug)]
pub struct Compiled {
    /// Every file that was read, as in the depfile.
    pub read: BTreeSet<PathBuf>,
    /// Warnings that were not made errors.
    pub warnings: Vec<String>,
}

/// The last part of a kernel file's name: they differ, so that their images lie beside each other.
pub fn stem(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

impl Compiler {
    /// With `line_info` profilers can show source lines; it costs most of the size, and names this machine's folders.
    ///
    /// # Errors
    /// When it does not run or does not tell its version.
    pub fn new(nvcc: PathBuf, project: &Path, warnings_are_errors: bool, line_info: bool) -> Result<Self, String> {
        let output = output_of(Command::new(&nvcc).arg("--version"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version =
            text.split_whitespace().find_map(|word| word.strip_prefix('V')).filter(|_| output.status.success());
        let Some(version) = version.map(String::from) else {
            return Err(format!("{} --version failed:\n{text}{}", nvcc.display(), said(&output)));
        };
        let mut flags = vec!["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v", "-I", "kernels"];
        if line_info {
            flags.push("-lineinfo");
        }
        if warnings_are_errors {
            flags.extend(["-Werror", "all-warnings"]);
        }
        // Otherwise nvcc takes plain gcc, or what NVCC_CCBIN says.
        if cfg!(unix) && std::env::var_os("NVCC_CCBIN").is_none() {
            flags.extend(["-ccbin", "g++"]);
        }
        let flags = flags.into_iter().map(OsString::from).collect();
        Ok(Self { nvcc, version, flags, project: project.into() })
    }

    /// Compiles `kernels/NAME.cu` to a fatbin and what ptxas says of it in `out`, both called as the file, unless they are there and
    /// nothing they were made from has changed.
    ///
    /// # Errors
    /// With the compiler's own words, when it fails, and when ptxas gives one of its performance advisories C75xx: they
    /// say that it serialised what the kernel pipelines, which no test of results would notice.
    pub fn compile(&self, name: &str, out: &Path) -> Result<Compiled, String> {
        let path = |extension: &str| out.join(format!("{}.{extension}", stem(name)));
        let (fatbin, report, stamp) = (path("fatbin"), path("ptxas.txt"), path("stamp"));
        let depfile = path("d");
        let source = PathBuf::from(format!("kernels/{name}.cu"));
        if let (Ok(before), Some(read)) = (fs::read_to_string(&stamp), self.read_files(&depfile))
            && fatbin.is_file()
            && before == self.stamp(name, &read)
        {
            let warnings = warnings(&fs::read_to_string(&report).unwrap_or_default());
            return Ok(Compiled { read, warnings });
        }
        // An interrupted build must not leave a stamp beside another build's fatbin.
        let _ = fs::remove_file(&stamp);
        let mut command = Command::new(&self.nvcc);
        command.current_dir(&self.project).args(&self.flags).arg("-MD").arg("-MF").arg(&depfile);
        command.args(targets(name).iter().flat_map(|target| ["-gencode", target]));
        let output = output_of(command.arg("-o").arg(&fatbin).arg(&source))?;
        let text = said(&output);
        if !output.status.success() {
            return Err(format!("nvcc failed on {} ({}):\n{text}", source.display(), output.status));
        }
        let advice: Vec<&str> = text.lines().filter(|line| is_advisory(line)).collect();
        if !advice.is_empty() {
            return Err(format!("ptxas gives advice on {}:\n{}", source.display(), advice.join("\n")));
        }
        let read = self.read_files(&depfile).ok_or_else(|| format!("nvcc wrote no {}", depfile.display()))?;
        write(&report, &without_times(&text))?;
        write(&stamp, &self.stamp(name, &read))?;
        Ok(Compiled { read, warnings: warnings(&text) })
    }

    /// Files named by a depfile, and every header of the project: the depfile is made by one pass of the compiler, which
    /// does not see an `#include` for another architecture.
    fn read_files(&self, depfile: &Path) -> Option<BTreeSet<PathBuf>> {
        let text = fs::read_to_string(depfile).ok()?;
        let mut files: BTreeSet<PathBuf> = dependencies(&text).into_iter().map(PathBuf::from).collect();
        let mut folders = vec![PathBuf::from("kernels")];
        while let Some(folder) = folders.pop() {
            for entry in self.project.join(&folder).read_dir().ok()?.flatten() {
                let path = folder.join(entry.file_name());
                match path.extension() {
                    _ if entry.path().is_dir() => folders.push(path),
                    Some(extension) if extension == "h" || extension == "cuh" => drop(files.insert(path)),
                    _ => {}
                }
            }
        }
        Some(files)
    }

    /// Changes when the compiler, a flag, or the contents of a file change.
    fn stamp(&self, name: &str, files: &BTreeSet<PathBuf>) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.nvcc, &self.version, &self.flags, targets(name)).hash(&mut hasher);
        VARIABLES.map(std::env::var_os).hash(&mut hasher);
        for file in files {
            (file, fs::read(self.project.join(file)).ok()).hash(&mut hasher);
        }
        format!("{:016x}", hasher.finish())
    }
}

/// The files on the right-hand side of a make rule.
pub fn dependencies(rule: &str) -> Vec<String> {
    let files = rule.split_once(": ").map_or("", |(_, files)| files);
    // A space within a name is written `\ `, the end of a line `\` and a newline.
    let files = files.replace("\\\n", " ").replace("\\ ", "\0");
    files.split_whitespace().map(|file| file.replace('\0', " ")).collect()
}

/// Whether a line is one of ptxas's performance advisories, `(C7510) Potential Performance Loss: …`.
pub fn is_advisory(line: &str) -> bool {
    let codes = line.match_indices("(C75").map(|(at, start)| &line.as_bytes()[at + start.len()..]);
    codes.into_iter().any(|rest| matches!(rest, [a, b, b')', ..] if a.is_ascii_digit() && b.is_ascii_digit()))
}

fn warnings(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.to_lowercase().contains("warning")).map(String::from).collect()
}

/// The same text for the same code: what ptxas says, without how long it took.
fn without_times(text: &str) -> String {
    text.lines().filter(|line| !line.contains("Compile time =")).flat_map(|line| [line, "\n"]).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn output_of(command: &mut Command) -> Result<Output, String> {
    command.output().map_err(|error| format!("cannot run {}: {error}", command.get_program().display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
