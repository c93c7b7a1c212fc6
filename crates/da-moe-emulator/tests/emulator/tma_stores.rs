//! Stores of the tensor memory accelerator, and their order with what lies around them.

use std::sync::Arc;

use da_moe_emulator::{Compiler, Device, Error, Kind, Module, TensorMapShape};

use crate::common::{compile, compiler, download, input, lines_with, output, parameter, passes, reports};

const FILE: &str = "tma_stores.cu";

/// What the kernel stores to 48 rows, and what it reads of them afterwards.
fn store_tiles(device: &Device) -> Result<[Vec<i32>; 2], Error> {
    let (source, target) = (input(device, "in", &values()), output::<i32>(device, "out", 768));
    let again = output::<i32>(device, "again", 768);
    let map = device.tensor_map(target, &TensorMapShape::matrix(4, 0, 16, 48, 64, [16, 16]))?;
    let parameters = [parameter(&map), parameter(&source), parameter(&target), parameter(&again)];
    // SAFETY: a tensor map and three addresses, as the kernel takes them.
    unsafe { device.launch("store_tiles", [1, 1, 1], [64, 1, 1], 1024, &parameters)? };
    Ok([download(device, target, 768), download(device, again, 768)])
}

fn values() -> Vec<i32> {
    (0..768).collect()
}

const FENCE: &str = "emu::fence_proxy_async();  // of the writers";
const WHOLE: &str = "__syncthreads();           // the tile is whole";
const COMMIT: &str = "emu::bulk_commit();";
const READ: &str = "emu::bulk_wait(0, true);  // the tile has been read";
const WRITTEN: &str = "emu::bulk_wait(0, false);  // the tiles have been written";

fn with(replacements: &[(&str, &str)]) -> Arc<Module> {
    let replaced = |compiler: Compiler, &(from, to): &(&str, &str)| compiler.replace(FILE, from, to);
    compile(&replacements.iter().fold(compiler(FILE), replaced))
}

fn stores(replacements: &[(&str, &str)]) {
    passes(&with(replacements), |device| {
        assert_eq!(store_tiles(device)?, [values(), values()]);
        Ok(())
    });
}

fn bug(kinds: &[Kind], replacements: &[(&str, &str)], lines: &[&str]) {
    let lines: Vec<_> = lines.iter().flat_map(|line| lines_with(FILE, line)).collect();
    reports(&with(replacements), kinds, FILE, &lines, |device| store_tiles(device).map(drop));
}

#[test]
fn tiles_are_stored() {
    stores(&[]);
    // Empty groups count: the last but one has the store.
    stores(&[(COMMIT, "emu::bulk_commit(); emu::bulk_commit();"), (READ, "emu::bulk_wait(1, true);")]);
    // Waiting for what was written is waiting for what was read.
    stores(&[(READ, "emu::bulk_wait(0, false);")]);
}

const STORE: &str = "gpu::tma_store(";
const OVERWRITE: &str = "tile[i] = in[";
const READ_AGAIN: &str = "again[i] = out[i]";

#[test]
fn a_fence_on_either_side_makes_the_tile_seen() {
    let issuer = |fence: &str| format!("__syncthreads(); {fence}");
    stores(&[(FENCE, ""), (WHOLE, &issuer("if (t == 0) emu::fence_proxy_async();"))]);
    let bug = |replacements: &[(&str, &str)]| bug(&[Kind::Async], replacements, &[STORE]);
    bug(&[(FENCE, "")]);
    // One of the writers, all but one, one that fences too early, too late, and another than the issuer.
    bug(&[(FENCE, "if (t == 3) emu::fence_proxy_async();")]);
    bug(&[(FENCE, "if (t != 3) emu::fence_proxy_async();")]);
    bug(&[(FENCE, ""), ("for (int i = t; i < 256;", "emu::fence_proxy_async(); for (int i = t; i < 256;")]);
    bug(&[(FENCE, ""), (WHOLE, &issuer("if (t != 0) emu::fence_proxy_async();"))]);
    bug(&[(FENCE, ""), (WHOLE, &issuer("if (t == 1) emu::fence_proxy_async();"))]);
}

#[test]
fn a_tile_overwritten_before_it_was_read() {
    let bug = |replacements: &[(&str, &str)]| bug(&[Kind::Race], replacements, &[STORE, OVERWRITE]);
    bug(&[(READ, "")]);
    bug(&[(READ, "emu::bulk_wait(1, true);")]);
    bug(&[(COMMIT, "emu::bulk_commit(); emu::bulk_commit();"), (READ, "emu::bulk_wait(2, true);")]);
    bug(&[("__syncthreads();  // the tile may be overwritten", "")]);
}

#[test]
fn a_store_that_is_in_no_group() {
    // Nothing waits for it, so that it is overwritten, or missed where it goes.
    bug(&[Kind::Race, Kind::Uninitialised], &[(COMMIT, "")], &[STORE, OVERWRITE, READ_AGAIN]);
}

#[test]
fn tiles_read_in_global_memory_before_they_are_written() {
    let bug = |from: &str, to: &str| bug(&[Kind::Race, Kind::Uninitialised], &[(from, to)], &[STORE, READ_AGAIN]);
    bug(WRITTEN, "");
    bug(WRITTEN, "emu::bulk_wait(1, false);");
    bug(WRITTEN, "emu::bulk_wait(0, true);");
    bug("__syncthreads();  // all know it", "");
}

#[test]
fn stores_to_one_place() {
    let bug = |replacements: &[(&str, &str)]| bug(&[Kind::Race], replacements, &[STORE, "emu::bulk_wait(0, false);"]);
    bug(&[("{0, round * 16}", "{0, round * 15}")]);
    bug(&[(WRITTEN, "const_cast<int*>(out)[20] = 1; emu::bulk_wait(0, false);")]);
    // If each is waited for, the last one stays.
    let module =
        with(&[("{0, round * 16}", "{0, 0}"), (READ, "emu::bulk_wait(0, false);"), ("i < 3 * 256", "i < 256")]);
    passes(&module, |device| {
        assert_eq!(store_tiles(device)?[1][..256], values()[512..]);
        Ok(())
    });
}
