//! From kernel sources to a loaded module.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use crate::cache::{self, Hash};
use crate::sources::{self, Replacement, Sources};
use crate::{Error, Libcuda, Module, libcuda, runtime};

/// Flags of kernel code. `-fsanitize=thread` only makes the compiler call `__tsan_*` functions, which are the
/// emulator's own. Without `-fno-tree-sra` a vector load becomes loads of its parts, which are aligned when it is not.
/// The limit on frames is less than the stack that the runtime keeps free, so no function can step over the end unseen.
/// Type punning through pointers is as common in kernels as it is undefined in C++.
const KERNEL_FLAGS: &[&str] = &[
    "-xc++",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fsanitize=thread",
    "-fsanitize=bounds-strict",
    "-fno-sanitize-recover=bounds-strict",
    "-ftrivial-auto-var-init=pattern",
    "-fno-strict-aliasing",
    "-fno-tree-sra",
    "-fno-exceptions",
    "-ffp-contract=off",
    "-Werror=frame-larger-than=16000",
];

/// Flags of the machine itself, which is never instrumented.
const RUNTIME_FLAGS: &[&str] = &["-O2", "-g", "-fPIC", "-fvisibility=hidden"];

/// `-z defs` turns a forgotten function into a link error that names it.
const LINK_FLAGS: &[&str] = &["-shared", "-Wl,-z,defs", "-Wl,-Bsymbolic"];

/// Compiles kernels for the CPU: sources in, a [`Module`] out.
///
/// Results are kept in a cache directory under names made of hashes of everything that went in. Compiling again costs
/// milliseconds, and one changed file costs one compilation and a link.
#[derive(Clone, Debug)]
pub struct Compiler {
    cache: PathBuf,
    includes: Vec<PathBuf>,
    defines: Vec<(String, String)>,
    files: Vec<PathBuf>,
    replacements: Vec<Replacement>,
    only: Vec<String>,
}

impl Compiler {
    /// A compiler that keeps its results below `cache`, for example
    /// `concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels")`. Processes and threads may share it.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            includes: Vec::new(),
            defines: Vec::new(),
            files: Vec::new(),
            replacements: Vec::new(),
            only: Vec::new(),
        }
    }

    /// Adds a directory to look for headers in.
    pub fn include(mut self, dir: impl Into<PathBuf>) -> Self {
        self.includes.push(dir.into());
        self
    }

    /// Defines a macro.
    pub fn define(mut self, name: &str, value: &str) -> Self {
        self.defines.push((name.into(), value.into()));
        self
    }

    /// Adds a `.cu` file. Several are compiled side by side and linked to one module.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// Adds every `.cu` file below a folder, in the order of their paths. One that cannot be read is told of when it is compiled.
    pub fn folder(mut self, path: impl Into<PathBuf>) -> Self {
        let (mut found, mut folders) = (Vec::new(), vec![path.into()]);
        while let Some(folder) = folders.pop() {
            match folder.read_dir() {
                Ok(entries) => entries.flatten().map(|entry| entry.path()).for_each(|path| match path.extension() {
                    _ if path.is_dir() => folders.push(path),
                    Some(extension) if extension == "cu" => found.push(path),
                    _ => {}
                }),
                Err(_) => found.push(folder),
            }
        }
        found.sort();
        self.files.extend(found);
        self
    }

    /// Of the kernels of `module`, which was made of the same files, these alone: to plant a bug in little time. Files without any
    /// of them are left out; the others are compiled for them alone where something is replaced, and else whole, as the cache has them.
    ///
    /// # Errors
    /// [`Error::NoKernel`].
    pub fn only<'a>(mut self, module: &Module, kernels: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let mut files = Vec::new();
        for kernel in kernels {
            files.push(sources::absolute(module.file(kernel)?)?);
            self.only.push(kernel.into());
        }
        let mut kept = Vec::new();
        for file in self.files {
            if files.contains(&sources::absolute(&file)?) {
                kept.push(file);
            }
        }
        Ok(Self { files: kept, ..self })
    }

    /// Replaces `from` by `to` in the file whose path ends in `file_name`, for this module only: to plant a bug that
    /// the checker, or a test, must find. The file is one of the `.cu` files or a header that they include, and must
    /// contain `from` exactly once. Reports keep its name.
    pub fn replace(mut self, file_name: &str, from: &str, to: &str) -> Self {
        self.replacements.push(Replacement { file: file_name.into(), from: from.into(), to: to.into() });
        self
    }

    /// Compiles and loads the module.
    pub fn compile(&self) -> Result<Arc<Module>, Error> {
        let cache = sources::absolute(&self.cache)?;
        let tool = Tool::get()?;
        let library = link(tool, &cache, &self.objects(tool, &cache)?)?;
        Module::load(&library).map(Arc::new)
    }

    /// Links the kernels to a `libcuda.so.1` that runs them.
    pub fn libcuda(&self) -> Result<Libcuda, Error> {
        let cache = sources::absolute(&self.cache)?;
        let tool = Tool::get()?;
        let mut objects = self.objects(tool, &cache)?;
        objects.push(compile_libcuda(tool, &cache)?);
        link_libcuda(tool, &cache, &objects).map(Libcuda::new)
    }

    /// The compiled kernels, and the machine.
    fn objects(&self, tool: &Tool, cache: &Path) -> Result<Vec<PathBuf>, Error> {
        let includes: Vec<_> = self.includes.iter().map(|path| sources::absolute(path)).collect::<Result<_, _>>()?;
        let mut units: Vec<_> =
            self.files.iter().map(|file| Sources::read(file, &includes)).collect::<Result<_, _>>()?;
        for replacement in &self.replacements {
            let mut found = false;
            for unit in &mut units {
                found |= unit.replace(replacement)?;
            }
            if !found {
                let Replacement { file, from, .. } = replacement.clone();
                return Err(Error::Replace { file, from, why: "no kernel source has this name".into() });
            }
        }

        let headers = write_headers(cache)?;
        std::thread::scope(|scope| {
            let machine = scope.spawn(|| compile_runtime(tool, cache, &headers));
            let kernels: Vec<_> = units
                .iter()
                .map(|unit| scope.spawn(|| self.compile_unit(tool, cache, &headers, &includes, unit)))
                .collect();
            let results = kernels.into_iter().chain(std::iter::once(machine));
            results.map(|thread| thread.join().expect("compiling does not panic")).collect()
        })
    }

    fn compile_unit(
        &self,
        tool: &Tool,
        cache: &Path,
        headers: &Path,
        includes: &[PathBuf],
        unit: &Sources,
    ) -> Result<PathBuf, Error> {
        let mut arguments: Vec<String> = KERNEL_FLAGS.iter().map(|&flag| flag.into()).collect();
        arguments.extend(self.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        if unit.is_replaced() && !self.only.is_empty() {
            arguments.push("-DEMULATOR_ONLY".into());
            arguments.extend(self.only.iter().map(|kernel| format!("-DEMULATOR_ONLY_{kernel}=1")));
        }
        let mut hash = tool.hash();
        arguments.iter().for_each(|argument| hash.add(argument));
        includes.iter().for_each(|include| hash.add(include.as_os_str().as_encoded_bytes()));
        hash.add(headers.as_os_str().as_encoded_bytes());
        unit.add_to(&mut hash);

        let name = format!("{}-{}", unit.name(), hash.name());
        cache::entry(cache, &format!("{name}.o"), |output| {
            let (file, includes) = unit.write_below(&cache.join(&name), includes)?;
            let mut command = tool.command();
            command.args(&arguments).arg("-c").arg(file).arg("-o").arg(output);
            for include in includes.iter().map(PathBuf::as_path).chain([headers]) {
                command.arg("-I").arg(include);
            }
            run(command)
        })
    }
}

/// The headers that kernels include, below a name of their own.
fn write_headers(cache: &Path) -> Result<PathBuf, Error> {
    let mut hash = Hash::new();
    for (name, text) in runtime::HEADERS {
        hash.add(name);
        hash.add(text);
    }
    let entry = cache::entry(cache, &format!("headers-{}", hash.name()), |output| {
        runtime::HEADERS.iter().try_for_each(|(name, text)| cache::write(&output.join("include").join(name), text))
    })?;
    Ok(entry.join("include"))
}

fn compile_runtime(tool: &Tool, cache: &Path, headers: &Path) -> Result<PathBuf, Error> {
    compile_sources(tool, cache, "runtime", runtime::SOURCES, Some(headers))
}

fn compile_libcuda(tool: &Tool, cache: &Path) -> Result<PathBuf, Error> {
    compile_sources(tool, cache, "libcuda", libcuda::SOURCES, None)
}

/// Compiles the emulator's own sources as one file, so that what is small can be inlined.
fn compile_sources(
    tool: &Tool,
    cache: &Path,
    what: &str,
    sources: &[(&str, &str)],
    headers: Option<&Path>,
) -> Result<PathBuf, Error> {
    let mut hash = tool.hash();
    headers.iter().for_each(|headers| hash.add(headers.as_os_str().as_encoded_bytes()));
    RUNTIME_FLAGS.iter().for_each(|flag| hash.add(flag));
    for (name, text) in sources {
        hash.add(name);
        hash.add(text);
    }
    let name = format!("{what}-{}", hash.name());
    cache::entry(cache, &format!("{name}.o"), |output| {
        let directory = cache.join(&name);
        for (name, text) in sources {
            cache::write(&directory.join(name), text)?;
        }
        let file = directory.join("unity.cpp");
        cache::write(&file, &runtime::unity(sources))?;
        let mut command = tool.command();
        if let Some(headers) = headers {
            command.arg("-I").arg(headers);
        }
        command.args(RUNTIME_FLAGS).arg("-c").arg(file).arg("-o").arg(output);
        run(command)
    })
}

fn link(tool: &Tool, cache: &Path, objects: &[PathBuf]) -> Result<PathBuf, Error> {
    cache::entry(cache, &format!("module-{}.so", linked(tool, objects)), |output| {
        let mut command = tool.command();
        command.args(LINK_FLAGS).args(objects).arg("-o").arg(output);
        run(command)
    })
}

/// The folder with the library, which must have its own name there: the loader looks for nothing else.
fn link_libcuda(tool: &Tool, cache: &Path, objects: &[PathBuf]) -> Result<PathBuf, Error> {
    cache::entry(cache, &format!("libcuda-{}", linked(tool, objects)), |folder| {
        cache::create_directory(folder)?;
        let mut command = tool.command();
        command.args(LINK_FLAGS).arg(format!("-Wl,-soname,{}", libcuda::NAME)).args(objects);
        command.arg("-o").arg(folder.join(libcuda::NAME));
        run(command)
    })
}

/// The hash of everything that goes into a library.
fn linked(tool: &Tool, objects: &[PathBuf]) -> String {
    let mut hash = tool.hash();
    LINK_FLAGS.iter().for_each(|flag| hash.add(flag));
    objects.iter().for_each(|object| hash.add(object.as_os_str().as_encoded_bytes()));
    hash.name()
}

/// The host's C++ compiler.
struct Tool {
    tool: cc::Tool,
    version: String,
}

impl Tool {
    /// The compiler, looked for once: asking costs as much as a hundred launches.
    fn get() -> Result<&'static Self, Error> {
        static FOUND: OnceLock<Result<Tool, String>> = OnceLock::new();
        FOUND.get_or_init(Self::find).as_ref().map_err(|why| Error::NoCompiler(why.clone()))
    }

    fn find() -> Result<Self, String> {
        let tool = cc_build().try_get_compiler().map_err(|error| error.to_string())?;
        let path = tool.path().display();
        if !tool.is_like_gnu() || tool.is_like_clang() {
            return Err(format!("{path} is another compiler; set CXX"));
        }
        let output = Command::new(tool.path()).arg("--version").output();
        let output = output.map_err(|error| format!("{path}: {error}"))?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Self { tool, version })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.tool.path());
        command.args(self.tool.args()).envs(self.tool.get_envs());
        command
    }

    /// A hash that starts with what every result depends on.
    fn hash(&self) -> Hash {
        let mut hash = Hash::new();
        hash.add(format!("{:?}", self.command()));
        hash.add(&self.version);
        hash
    }
}

fn cc_build() -> cc::Build {
    // Outside a build script nobody says what the target is: it is this machine.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").target(&target).host(&target).opt_level(1).warnings(true).extra_warnings(false);
    build.cargo_metadata(false).debug(false);
    build
}

fn run(mut command: Command) -> Result<(), Error> {
    // A failing compiler leaves nothing behind that the cache could take for a result.
    let output = command.output().map_err(|error| Error::NoCompiler(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Compile { command: format!("{command:?}"), stderr })
}
