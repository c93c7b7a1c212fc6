// Operations that the asynchronous engines hold between issue and completion.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "clocks.h"
#include "emulator/ptx.h"
#include "memory.h"
#include "report.h"
#include "shadow.h"
#include "tensor_map.h"

namespace emu {

struct Block;
struct Thread;

// A cp.async of one thread, until the thread waits for it.
struct CpAsync {
    uint32_t target;
    const void* source;
    uint32_t bytes, source_bytes;
    Site site;
    uint64_t number;  // among the thread's copies
};

// ---- mbarrier.cpp

// What the threads that arrived at an mbarrier knew: in the present phase, and in the last.
struct MbarrierClocks {
    Knowledge gathering, complete;
    uint32_t initialiser = 0, initialised = 0;  // the agent, of the mbarrier's block, and its clock
    uint32_t fence = 0;                         // its clock at a fence.mbarrier_init since then; 0: there was none
};

// Bytes have come that the mbarrier's phase waits for; who waits for it learns what `who` knows, an engine of the
// block.
void mbarrier_complete_tx(Block& block, uint32_t mbarrier, uint32_t bytes, const Agent& who, Site site);
// Copies have come whose arrival the phase waits for.
void mbarrier_copies_came(Block& block, uint32_t mbarrier, const Knowledge& known, Site site);
// An operation of `who` on an mbarrier of its block or of another of the cluster: ordered after the initialisation, but
// not after other operations on it. In another block the fence for that must lie between, and the block must not have
// ended.
void use_mbarrier(Block& block, uint32_t mbarrier, const Agent& who, const char* operation, Site site);
// The address must be that of an initialised mbarrier.
void check_mbarrier(Block& block, uint32_t mbarrier, const char* operation, Site site);
// For deadlock reports: how far the mbarrier is from what is waited for.
std::string describe_mbarrier(const Block& block, uint32_t mbarrier, uint32_t parity);

// ---- cp_async.cpp

// The bytes arrive, written by `who`.
void land(Block& block, const CpAsync& copy, const Agent& who);

// ---- copy_arrival.cpp

// An arrival that waits for a thread's copies up to a number: comes when the scheduler chooses.
struct CopyArrival {
    Thread* thread;
    uint64_t copies;
    uint32_t mbarrier;
    Knowledge known;  // what the thread knew
    Site site;
};

// Makes the thread's copies up to now arrive at an mbarrier of its block.
void track_copies(Thread& self, uint32_t mbarrier, Site site);
// Lands the copies of one of the block's arrivals and arrives. Called by the scheduler.
void run_copy_arrival(Block& block, size_t number);
// Whether the thread has started a copy that neither it nor an arrival waits for.
bool has_forgotten_copies(const Thread& thread);

// ---- tma.cpp

// A copy of the tensor memory accelerator: runs when the scheduler chooses.
struct TmaCopy {
    uint32_t target, mbarrier;
    EncodedMap map;  // a copy: the kernel's may lie on the stack of a thread that has ended by then
    int at[MAX_RANK];
    Agent agent;
    Site site;
};

// Completes one of the block's copies, at once. Called by the scheduler.
void run_tma(Block& block, size_t number);

// ---- tma_store.cpp

// A store of the accelerator, until it has written.
struct TmaStore {
    unsigned thread;
    uint32_t source;
    EncodedMap map;
    int at[MAX_RANK];
    bool adds;             // to the f32 elements that are there
    Agent reader, writer;  // of the same clock
    Ref<Clocks> fenced;    // as of the thread's ProxyFences when it issued this
    Site site;
    bool is_read = false;
    std::vector<Writer> writers;       // of the box, when it was read
    std::vector<unsigned char> bytes;  // what was read, by the place in the box
};

// A thread's stores, by the clocks of their readers.
struct BulkGroups {
    uint32_t issued = 0, read = 0;  // the last store; and the last that it has waited for at least until that had read
    Site last = 0;
    std::vector<uint32_t> groups;  // of every group committed so far, the last store issued by then
};

// The next step of one of the block's stores. Called by the scheduler, and by threads that wait.
void run_store(Block& block, size_t number);
// A thread may not end while shared memory is being read for it.
void end_of_stores(Thread& self);
void finish_block_stores(Block& block);

// ---- proxy.cpp

// A thread's fences between the generic and the async proxy.
struct ProxyFences {
    std::vector<uint32_t> clocks;  // the thread's own when it fenced, ascending
    Ref<Clocks> known;             // what it knew of its block at the last
};

// Whether a write of ordinary code is seen by a reader that goes through the async proxy: a fence of the writer lies
// between them, or one of the reader's, up to which it knew what is in `fenced` (null: it had none).
bool async_proxy_sees(const Block& block, const Epoch& write, const Agent& reader, const Clocks* fenced);

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
    Ref<Clocks> fenced;  // what each lane of the warp knew at its last fence.proxy.async; null: some had none
    Site site;
};

// Accumulators of wgmma in flight, row by row.
struct Accumulators {
    int pending = 0;
    int n = 0;
    Element element = Element::Bf16;
    std::vector<float> sums;
};

struct WgmmaState {
    std::vector<Wgmma> open;
    std::vector<std::vector<Wgmma>> groups;
    size_t issued = 0;
    std::map<float*, Accumulators> accumulators;  // by lane 0's
    size_t fences = 0;                            // wgmma.fence so far
    std::map<float*, size_t> completed;           // how many there were when accumulators were last waited for
    bool fences_changed = false;                  // a lane has executed fence.proxy.async since `fenced`
    Ref<Clocks> fenced;                           // as of Wgmma
};

// The descriptors of each wgmma that the first warp of a warpgroup issued: the other warps must issue the same.
using WgmmaLog = std::vector<std::pair<uint64_t, uint64_t>>;

}  // namespace emu
