//! Packages by name from public registries, through each registry's ordinary client.

use super::{create, problem, read_file, write_file};
use crate::run;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to get. Debian offers one version at a time, whichever belongs to the release; the recorded hashes say whether
/// its text is the same.
pub(super) enum Package {
    Npm { name: &'static str, version: &'static str },
    Debian { name: &'static str },
    Wheel { name: &'static str, version: &'static str },
}

/// A package's files.
pub(super) struct Unpacked {
    pub(super) folder: PathBuf,
    name: String,
    version: String,
}

impl fmt::Display for Unpacked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, version {}", self.name, self.version)
    }
}

impl Package {
    /// The package in a folder of its own below `packages`; fetched unless it is there. Put together in another folder
    /// first, so that an interrupted download is not taken for a finished one.
    pub(super) fn unpack(&self, packages: &Path) -> Result<Unpacked, String> {
        let (registry, name) = match self {
            Package::Npm { name, .. } => ("npm", name),
            Package::Debian { name } => ("Debian", name),
            Package::Wheel { name, .. } => ("PyPI", name),
        };
        let (folder, partial) = (packages.join(name), packages.join(format!("{name}.partial")));
        let version_file = folder.join("version.txt");
        let there = fs::read_to_string(&version_file).ok();
        let version = match (there, self) {
            (Some(there), Package::Debian { .. }) => there,
            (Some(there), Package::Npm { version, .. } | Package::Wheel { version, .. }) if there == *version => there,
            _ => {
                for old in [&partial, &folder] {
                    if old.exists() {
                        fs::remove_dir_all(old).map_err(|error| problem(old, &error))?;
                    }
                }
                create(&partial)?;
                let version = self.fetch(&partial)?;
                write_file(&partial.join("version.txt"), &version)?;
                fs::rename(&partial, &folder).map_err(|error| problem(&folder, &error))?;
                version
            }
        };
        Ok(Unpacked { folder, name: format!("{registry} package `{name}`"), version })
    }

    /// Puts the package's files into a folder; returns the version.
    fn fetch(&self, folder: &Path) -> Result<String, String> {
        let into = folder.to_string_lossy();
        match *self {
            Package::Npm { name, version } => {
                let pinned = format!("{name}@{version}");
                let quiet = ["--loglevel=error", "--ignore-scripts", "--no-save", "--no-package-lock"];
                run("npm", &[&["install"], &quiet[..], &["--prefix", &into, &pinned]].concat(), &[])?;
                Ok(version.into())
            }
            Package::Wheel { name, version } => {
                let pinned = format!("{name}=={version}");
                let quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action", "ignore"];
                let alone = ["--no-deps", "--no-compile", "--only-binary", ":all:", "--target", &into, &pinned];
                run("python3", &[&["-m", "pip", "install"], &quiet[..], &alone].concat(), &[])?;
                Ok(version.into())
            }
            Package::Debian { name } => {
                let sandbox = "APT::Sandbox::User=root";
                let download = ["--chdir", &into, "apt-get", "-qq", "-o", sandbox, "download", name];
                if run("env", &download, &[]).is_err() {
                    // A machine that never asked knows of no packages.
                    run("apt-get", &["-qq", "update"], &[])?;
                    run("env", &download, &[])?;
                }
                let archive = the_archive(folder)?.to_string_lossy().into_owned();
                run("dpkg-deb", &["--extract", &archive, &into], &[])?;
                output("dpkg-deb", &["--field", &archive, "Version"])
            }
        }
    }
}

fn the_archive(folder: &Path) -> Result<PathBuf, String> {
    let archive = files(folder)?.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "deb"));
    archive.ok_or_else(|| format!("{}: no archive was downloaded", folder.display()))
}

/// What a program prints, without white space at the end.
fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let line = format!("{program} {}", arguments.join(" "));
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("cannot run {line}: {error}"))?;
    if !output.status.success() {
        return Err(format!("failed with {}: {line}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let text =
        String::from_utf8(output.stdout).map_err(|error| format!("{line} printed what is not UTF-8: {error}"))?;
    Ok(text.trim_end().into())
}

/// Objects of the package `name` for R, below an unpacked Debian package, as `data/lazyload.py` prints them.
pub(super) fn r_objects(debian: &Path, name: &str, objects: &[&str]) -> Result<serde_json::Value, String> {
    let script = crate::wheels::project().join("xtask/data/lazyload.py");
    let database = debian.join("usr/lib/R/site-library").join(name).join("data/Rdata");
    let paths = [script.to_string_lossy(), database.to_string_lossy()];
    let json = output("python3", &[&[&*paths[0], &*paths[1]], objects].concat())?;
    serde_json::from_str(&json).map_err(|error| format!("{}: {error}", database.display()))
}

/// The strings of a list in such an object, by the names that lead there.
pub(super) fn strings<'a>(objects: &'a serde_json::Value, names: &[&str]) -> Result<Vec<&'a str>, String> {
    let list = names.iter().try_fold(objects, |value, name| value.get(name)).and_then(|value| value.as_array());
    let strings = list.and_then(|list| list.iter().map(|value| value.as_str()).collect());
    strings.ok_or_else(|| format!("`{}` of the package is not a list of strings", names.join("$")))
}

/// The paths in a folder, by name.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.map_err(|error| problem(folder, &error))?;
    paths.sort();
    Ok(paths)
}

/// A file of a package as text.
pub(super) fn text(folder: &Path, file: &str) -> Result<String, String> {
    read_file(&folder.join(file))
}
