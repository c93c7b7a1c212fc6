//! What would be published builds from what its package holds, and from nothing beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Packages that are never published.
const PRIVATE: [&str; 3] = ["xtask", "xtask-abi", "da-moe-harness"];

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the project").into()
}

/// Runs a program in a folder and fails with what it said.
fn run(folder: &Path, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env_remove("CARGO_TARGET_DIR");
    // No kernel is compiled: that takes minutes, and the tests of the build script have what the compiler is asked for.
    let output = command.env("DA_MOE_CUDA", "0").output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{said}", output.status);
}

/// Every file below a folder, as a path from there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(next) = folders.pop() {
        for path in fs::read_dir(&next).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path.strip_prefix(folder).expect("below the folder").into()),
            }
        }
    }
    files
}

/// What the build script and the emulator look for is all in the package, as it is in the project.
fn holds_sources(project: &Path, package: &Path) {
    for part in ["kernels", "build", "runtime", "libcuda"].into_iter().filter(|part| project.join(part).is_dir()) {
        for file in files(&project.join(part)).iter().map(|file| Path::new(part).join(file)) {
            let packed = fs::read(package.join(&file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert!(packed == fs::read(project.join(&file)).expect("its source"), "{} is another", file.display());
        }
    }
}

/// The packages, unpacked side by side with a workspace around them: they find each other there, as they would in a registry, and
/// the compiler's settings are the project's, so that what others wrote is not compiled again.
#[test]
fn every_published_package_builds_from_its_own_files() {
    let project = project();
    let unpacked = project.join("target/packages");
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked).expect("a new folder");
    let private = PRIVATE.map(|package| ["--exclude", package]).concat();
    run(
        &project,
        "cargo",
        &[&["package", "--workspace", "--no-verify", "--allow-dirty", "--quiet"], &private[..]].concat(),
    );

    let manifest = fs::read_to_string(project.join("Cargo.toml")).expect("the project's manifest");
    let profiles = &manifest[manifest.find("[profile.dev]").expect("settings of the compiler")..];
    let version =
        manifest.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"')).expect("a version");
    let mut members = vec![("da-moe".to_string(), project.clone())];
    for entry in fs::read_dir(project.join("crates")).expect("the crates") {
        let path = entry.expect("a crate").path();
        members.push((path.file_name().expect("a name").to_string_lossy().into_owned(), path));
    }
    let (mut names, mut patches) = (String::new(), String::new());
    for (name, source) in &members {
        let archive = project.join(format!("target/package/{name}-{version}.crate"));
        // As new: archives have no times, and what an earlier test built would pass for these.
        run(&unpacked, "tar", &["-xmzf", archive.to_str().expect("a path in UTF-8")]);
        let folder = format!("{name}-{version}");
        names += &format!("\"{folder}\",");
        patches += &format!("{name} = {{ path = \"{folder}\" }}\n");
        holds_sources(source, &unpacked.join(&folder));
    }
    let workspace =
        format!("[workspace]\nmembers = [{names}]\nresolver = \"3\"\n\n[patch.crates-io]\n{patches}\n{profiles}");
    fs::write(unpacked.join("Cargo.toml"), workspace).expect("a manifest");
    fs::copy(project.join("Cargo.lock"), unpacked.join("Cargo.lock")).expect("the versions that the project has");
    let target = project.join("target");
    run(
        &unpacked,
        "cargo",
        &["build", "--workspace", "--quiet", "--target-dir", target.to_str().expect("a path in UTF-8")],
    );
}
