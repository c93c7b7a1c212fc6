//! The C++ sources of the emulator: headers that kernels include, and the machine that is linked to every module.

/// Headers below `include`, with the kernels' include path in front of them.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("emulator/atomics.h", include_str!("../runtime/include/emulator/atomics.h")),
    ("emulator/collectives.h", include_str!("../runtime/include/emulator/collectives.h")),
    ("emulator/cuda.h", include_str!("../runtime/include/emulator/cuda.h")),
    ("emulator/half.h", include_str!("../runtime/include/emulator/half.h")),
    ("emulator/intrinsics.h", include_str!("../runtime/include/emulator/intrinsics.h")),
    ("emulator/kernel.h", include_str!("../runtime/include/emulator/kernel.h")),
    ("emulator/ptx.h", include_str!("../runtime/include/emulator/ptx.h")),
    ("emulator/types.h", include_str!("../runtime/include/emulator/types.h")),
];

/// The machine. Sources are compiled as one file, so that the checker can be inlined into the hooks.
pub(crate) const SOURCES: &[(&str, &str)] = &[
    ("async.h", include_str!("../runtime/src/async.h")),
    ("clocks.h", include_str!("../runtime/src/clocks.h")),
    ("collective.h", include_str!("../runtime/src/collective.h")),
    ("fragment.h", include_str!("../runtime/src/fragment.h")),
    ("fibre.h", include_str!("../runtime/src/fibre.h")),
    ("machine.h", include_str!("../runtime/src/machine.h")),
    ("memory.h", include_str!("../runtime/src/memory.h")),
    ("operand.h", include_str!("../runtime/src/operand.h")),
    ("product.h", include_str!("../runtime/src/product.h")),
    ("report.h", include_str!("../runtime/src/report.h")),
    ("shadow.h", include_str!("../runtime/src/shadow.h")),
    ("tensor_map.h", include_str!("../runtime/src/tensor_map.h")),
    ("traffic.h", include_str!("../runtime/src/traffic.h")),
    ("api.cpp", include_str!("../runtime/src/api.cpp")),
    ("atomic.cpp", include_str!("../runtime/src/atomic.cpp")),
    ("barrier.cpp", include_str!("../runtime/src/barrier.cpp")),
    ("clocks.cpp", include_str!("../runtime/src/clocks.cpp")),
    ("cluster.cpp", include_str!("../runtime/src/cluster.cpp")),
    ("collective.cpp", include_str!("../runtime/src/collective.cpp")),
    ("copy_arrival.cpp", include_str!("../runtime/src/copy_arrival.cpp")),
    ("cp_async.cpp", include_str!("../runtime/src/cp_async.cpp")),
    ("election.cpp", include_str!("../runtime/src/election.cpp")),
    ("failure.cpp", include_str!("../runtime/src/failure.cpp")),
    ("fibre.cpp", include_str!("../runtime/src/fibre.cpp")),
    ("hooks.cpp", include_str!("../runtime/src/hooks.cpp")),
    ("launch.cpp", include_str!("../runtime/src/launch.cpp")),
    ("matrix.cpp", include_str!("../runtime/src/matrix.cpp")),
    ("mbarrier.cpp", include_str!("../runtime/src/mbarrier.cpp")),
    ("memory.cpp", include_str!("../runtime/src/memory.cpp")),
    ("operand.cpp", include_str!("../runtime/src/operand.cpp")),
    ("product.cpp", include_str!("../runtime/src/product.cpp")),
    ("proxy.cpp", include_str!("../runtime/src/proxy.cpp")),
    ("registers.cpp", include_str!("../runtime/src/registers.cpp")),
    ("report.cpp", include_str!("../runtime/src/report.cpp")),
    ("scheduler.cpp", include_str!("../runtime/src/scheduler.cpp")),
    ("shadow.cpp", include_str!("../runtime/src/shadow.cpp")),
    ("shared_memory.cpp", include_str!("../runtime/src/shared_memory.cpp")),
    ("tensor_map.cpp", include_str!("../runtime/src/tensor_map.cpp")),
    ("tma.cpp", include_str!("../runtime/src/tma.cpp")),
    ("tma_store.cpp", include_str!("../runtime/src/tma_store.cpp")),
    ("traffic.cpp", include_str!("../runtime/src/traffic.cpp")),
    ("wgmma.cpp", include_str!("../runtime/src/wgmma.cpp")),
];

/// One source that includes all others.
pub(crate) fn unity(sources: &[(&str, &str)]) -> String {
    let files = sources.iter().filter(|(name, _)| name.ends_with(".cpp"));
    files.map(|(name, _)| format!("#include \"{name}\"\n")).collect()
}
