//! The driver's library of the emulator, rule by rule, as a program that loads it finds it.

mod contexts;
mod faults;
mod image;
mod images;
mod launches;
mod library;
mod memory;
mod recordings;
mod tensor_maps;

use std::process::Command;
use std::{env, fs};

#[test]
fn a_shell_is_told_where_the_library_is() {
    let temporary = env!("CARGO_TARGET_TMPDIR");
    let folder = format!("{temporary}/it's a folder {}", std::process::id());
    library::compiled().copy_to(&folder).expect("a copy");
    let mut shell = Command::new("sh");
    let script = format!(". \"{folder}/env.sh\" && ls \"$LD_LIBRARY_PATH\"");
    let output = shell.args(["-euc", &script]).env_remove("LD_LIBRARY_PATH").output().expect("a shell");
    let output = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    fs::remove_dir_all(&folder).expect("a folder");
    assert_eq!(output, "env.sh\nlibcuda.so.1\n");
    let (name, value) = library::compiled().environment();
    assert_eq!(name, "LD_LIBRARY_PATH");
    assert!(env::split_paths(&value).next().is_some_and(|first| first.join("libcuda.so.1").is_file()));
}
