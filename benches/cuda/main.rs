//! Every kernel that a layer launches, forward and backward, on its own, by the GPU's clock:
//!
//! ```sh
//! cargo bench --bench cuda                          # all shapes
//! cargo bench --bench cuda -- grouped_gemm/marin    # the products of one
//! cargo bench --bench cuda -- importance_query_key
//! ```
//!
//! A benchmark is named `family/shape/stage/kernel`, with a number behind it where a stage launches a kernel more than once.
//! Its rate is in operations for what multiplies, else in bytes, as the cost model counts them. Before every sample the
//! launches that precede it in the call are made, and the caches are filled with something else. Without a GPU one line says
//! so. `DA_MOE_BENCH=tiny` has one small shape.

#![allow(unsafe_code, reason = "a listed launch's tensors are its caller's word")]

mod workload;

use criterion::{Criterion, Throughput};
use da_moe::cuda::cost::{self, Unit};
use da_moe::cuda::{Cuda, Device, DeviceMemory, Driver, Listed, Stream};
use da_moe::{DType, Result};
use std::collections::HashMap;
use std::env;
use std::time::Duration;
use workload::Workload;

/// Larger than any cache.
const FLUSH: usize = 256 << 20;

fn main() {
    let is_tiny = env::var_os("DA_MOE_BENCH").is_some_and(|size| size == "tiny");
    let cuda = match Cuda::open(0) {
        Ok(cuda) => cuda,
        Err(error) => return println!("no kernels are timed: {}", in_a_line(&error.to_string())),
    };
    println!("{}; {}", da_moe::Backend::describe(&cuda), cuda.device().loaded());
    let mut criterion = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200));
    criterion = criterion.measurement_time(Duration::from_secs(1)).configure_from_args();
    for shape in workload::shapes(is_tiny).into_iter().filter(|shape| is_asked_for(shape.name)) {
        let bench = |criterion: &mut Criterion| {
            let flush = cuda.zeros(DType::U8, if is_tiny { 1 << 20 } else { FLUSH })?;
            let mut workload = Workload::new(&cuda, &shape)?;
            let stream = cuda.stream(workload.workspace_bytes(&cuda)?)?;
            workload.call(&stream)?;
            stream.synchronize()?;
            let (contents, listed) = (workload.contents()?, stream.list(|| workload.call(&stream))?);
            time_each(criterion, &shape, cuda.device(), &stream, &flush, &contents, &listed)
        };
        bench(&mut criterion).unwrap_or_else(|error| panic!("{}: {error}", shape.name));
    }
    criterion.final_summary();
}

/// Shapes take memory and time to make, so those that no word on the command line can mean are left out.
fn is_asked_for(shape: &str) -> bool {
    let names: Vec<String> = workload::names().map(str::to_string).collect();
    let mut words = env::args().skip(1).filter(|word| names.iter().any(|name| word.contains(name.as_str()))).peekable();
    words.peek().is_none() || words.any(|word| word.contains(shape))
}

/// A benchmark for every launch of a layer's forward and backward.
fn time_each(
    criterion: &mut Criterion,
    shape: &da_moe::Shape,
    device: &Driver,
    stream: &Stream<Driver>,
    flush: &DeviceMemory<Driver>,
    contents: &cost::Contents,
    listed: &[Listed],
) -> Result<()> {
    let mut seen = HashMap::new();
    for (before, Listed { stage, call }) in listed.iter().enumerate() {
        let kernel = call.launch.kernel;
        let number = seen.entry((stage, kernel)).and_modify(|count| *count += 1).or_insert(1);
        let name = format!("{}/{stage}/{kernel}", shape.name);
        let name = if *number == 1 { name } else { format!("{name}-{number}") };
        let work = call.work(contents);
        let mut group = criterion.benchmark_group(family(kernel));
        group.throughput(match work.unit {
            Unit::Scalar if !multiplies(kernel) => Throughput::Bytes(work.bytes as u64),
            _ => Throughput::Elements(work.operations as u64),
        });
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|repeats| {
                // A launch reads what those before it leave, also in the workspace, where others write after it.
                let once = |_| -> Result<Duration> {
                    // SAFETY: what the layer's call reads and writes is alive, and nothing else uses it.
                    listed[..before].iter().try_for_each(|of| unsafe { of.call.run(device, stream.handle()) })?;
                    // SAFETY: it is memory of this GPU, of that size.
                    unsafe { device.fill(stream.handle(), flush.address(), 1, flush.len()) }?;
                    // SAFETY: as above.
                    stream.time(|| unsafe { call.run(device, stream.handle()) })
                };
                (0..repeats).map(once).sum::<Result<Duration>>().unwrap_or_else(|error| panic!("{kernel}: {error}"))
            });
        });
        group.finish();
    }
    Ok(())
}

/// A kernel's name without its types: the family that `kernels/` has a file or a folder for.
fn family(kernel: &str) -> &str {
    let types = ["_f32", "_bf16", "_f16", "_tf32", "_32", "_64", "_128", "_256", "_512"];
    let end = types.iter().filter_map(|of| kernel.find(of)).min();
    &kernel[..end.unwrap_or(kernel.len())]
}

/// Whether operations, not bytes, are what a kernel's time goes to.
fn multiplies(kernel: &str) -> bool {
    ["grouped_gemm", "importance_query_key"].contains(&family(kernel))
}

fn in_a_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
