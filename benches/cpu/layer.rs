//! The whole layer, forward and backward, over the shapes that fit a CPU; throughput counts useful operations only.

use crate::setup::{From, Setup, cpu_shapes};
use criterion::{BenchmarkId, Criterion, Throughput};
use da_moe::{Cpu, DType};

pub fn layer(criterion: &mut Criterion) {
    for dtype in [DType::F32, DType::Bf16] {
        let mut group = criterion.benchmark_group(format!("layer/{dtype}"));
        group.sample_size(10);
        for shape in cpu_shapes() {
            let mut setup = Setup::new(Cpu::new(), shape, dtype, shape.mean_k, From::Caller);
            setup.forward();
            let operations = shape.activation.row_operations(shape.hidden, shape.width) * setup.rows() as f64;
            group.throughput(Throughput::Elements(operations as u64));
            group.bench_function(BenchmarkId::new("forward", shape.name), |bencher| bencher.iter(|| setup.forward()));
            group.throughput(Throughput::Elements((3.0 * operations) as u64));
            group.bench_function(BenchmarkId::new("forward+backward", shape.name), |bencher| {
                bencher.iter(|| {
                    setup.forward();
                    setup.backward();
                });
            });
        }
    }
}

/// Time must follow the rows: mean k of 1, 2 and 4 on one shape.
pub fn proportional(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mean-k");
    group.sample_size(10);
    for shape in cpu_shapes().filter(|shape| shape.name == "c-fine") {
        for mean_k in [1, 2, 4] {
            let mut setup = Setup::new(Cpu::new(), shape, DType::F32, mean_k, From::Caller);
            group.bench_function(BenchmarkId::new("forward", mean_k), |bencher| bencher.iter(|| setup.forward()));
        }
    }
}
