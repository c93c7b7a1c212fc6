// Operations that the asynchronous engines hold between issue and completion.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "clocks.h"
#include "emulator/ptx.h"
#include "report.h"

namespace emu {

struct Block;

// A cp.async of one thread, until the thread waits for it.
struct CpAsync {
    uint32_t target;
    const void* source;
    uint32_t bytes, source_bytes;
    Site site;
};

// ---- mbarrier.cpp

// What the threads that arrived at an mbarrier knew: in the present phase, and in the last.
struct MbarrierClocks {
    Knowledge gathering, complete;
};

// Bytes have come that the mbarrier's phase waits for; who waits for it learns what is known.
void mbarrier_complete_tx(Block& block, uint32_t mbarrier, uint32_t bytes, const Knowledge& known, Site site);
// The address must be that of an initialised mbarrier.
void check_mbarrier(Block& block, uint32_t mbarrier, const char* operation, Site site);
// For deadlock reports: how far the mbarrier is from what is waited for.
std::string describe_mbarrier(const Block& block, uint32_t mbarrier, uint32_t parity);

// ---- tma.cpp

// A matrix for the accelerator, as the host describes it. In the order of `TensorMap2d` in Rust.
struct TensorMapShape {
    uint64_t inner, outer, row_bytes;
    uint32_t box_inner, box_outer, element_bytes, swizzle;
};

// What the emulator keeps in the 128 bytes of a CUtensorMap.
struct EncodedMap {
    uint64_t magic;
    uint64_t address;
    TensorMapShape shape;
};
static_assert(sizeof(EncodedMap) <= sizeof(CUtensorMap), "a tensor map has 128 bytes");

// A copy of the tensor memory accelerator: runs when the scheduler chooses.
struct TmaCopy {
    uint32_t target, mbarrier;
    EncodedMap map;  // a copy: the kernel's may lie on the stack of a thread that has ended by then
    int x, y;
    Agent agent;
    Site site;
};

// Writes the map's 128 bytes. Null, or what the driver would refuse or the emulator does not know.
const char* encode_tensor_map_2d(void* map, uint64_t address, const TensorMapShape& shape);
// Completes one of the block's copies, at once. Called by the scheduler.
void run_tma(Block& block, size_t number);
// Where the swizzle puts what lies at a shared address. The pattern goes by address bits, not by offsets.
uint32_t swizzled(uint32_t address, uint32_t width);

// ---- wgmma.cpp

// A lane's words of A when the product was issued, and where they must be left alone until it is waited for.
struct WgmmaFragment {
    const uint32_t* at;
    uint32_t words[4];
};

// A wgmma of one warp: its 16 rows. Runs when it is waited for.
struct Wgmma {
    WgmmaOperands operands;
    float* accumulators[32];               // of each lane
    std::vector<WgmmaFragment> fragments;  // of each lane, if A is in registers
    Agent agent;
    Site site;
};

// Accumulators of wgmma in flight: element i of lane l at [i * 32 + l].
struct Accumulators {
    int pending = 0;
    std::vector<float> values;
};

struct WgmmaState {
    std::vector<Wgmma> open;
    std::vector<std::vector<Wgmma>> groups;
    size_t issued = 0;
    std::map<float*, Accumulators> accumulators;  // by lane 0's
};

// The operands of the wgmma that runs, as numbers, and which 16 bytes of shared memory it has read. It is the
// machine's, because a check that fails abandons the stack.
struct WgmmaScratch {
    std::vector<float> a, b;
    std::vector<bool> checked;
};

// The descriptors of each wgmma that the first warp of a warpgroup issued: the other warps must issue the same.
using WgmmaLog = std::vector<std::pair<uint64_t, uint64_t>>;

}  // namespace emu
