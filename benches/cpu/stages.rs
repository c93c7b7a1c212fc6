//! Each stage on its own: whole calls are made, and the stage's share of them is what is measured.

use crate::setup::{From, Setup, cpu_shapes};
use criterion::{BenchmarkId, Criterion};
use da_moe::{AttentionSource, Cpu, DType, StageTimes, Timed};
use std::time::Duration;

type Stage = (&'static str, fn(&StageTimes) -> Duration);

const FORWARD: [Stage; 4] = [
    ("gate", |times| times.gate),
    ("permute", |times| times.permute),
    ("experts", |times| times.experts),
    ("combine", |times| times.combine),
];

const BACKWARD: [Stage; 4] = [
    ("combine-backward", |times| times.combine_backward),
    ("experts-backward", |times| times.experts_backward),
    ("permute-backward", |times| times.permute_backward),
    ("gate-backward", |times| times.gate_backward),
];

pub fn stages(criterion: &mut Criterion) {
    for (stages, backward) in [(FORWARD, false), (BACKWARD, true)] {
        for (name, stage) in stages {
            let mut group = criterion.benchmark_group(name);
            group.sample_size(10);
            for shape in cpu_shapes() {
                let mut setup = Setup::new(Timed::new(Cpu::new()), shape, DType::F32, shape.mean_k, From::Caller);
                group.bench_function(shape.name, |bencher| {
                    bencher.iter_custom(|calls| {
                        setup.layer.backend().take();
                        for _ in 0..calls {
                            setup.forward();
                            if backward {
                                setup.backward();
                            }
                        }
                        stage(&setup.layer.backend().take())
                    });
                });
            }
        }
    }
}

pub fn importance(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("importance");
    group.sample_size(10);
    for shape in cpu_shapes().filter(|shape| shape.name == "c-mid") {
        for (name, measure) in [
            ("received-max", AttentionSource::ReceivedMax),
            ("given-peak", AttentionSource::GivenPeak),
            ("given-entropy", AttentionSource::GivenEntropy),
        ] {
            let from = From::Attention(measure);
            let mut setup = Setup::new(Timed::new(Cpu::new()), shape, DType::F32, shape.mean_k, from);
            group.bench_function(BenchmarkId::new(name, shape.name), |bencher| {
                bencher.iter_custom(|calls| {
                    setup.layer.backend().take();
                    (0..calls).for_each(|_| setup.forward());
                    setup.layer.backend().take().importance
                });
            });
        }
    }
}
