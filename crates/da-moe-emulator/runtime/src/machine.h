// The machine: blocks of threads, each thread a fibre, and the state of one device.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator/collectives.h"
#include "emulator/kernel.h"

#include "async.h"
#include "clocks.h"
#include "memory.h"
#include "operand.h"
#include "report.h"
#include "shadow.h"
#include "traffic.h"

namespace emu {

constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned NAMED_BARRIERS = 16;
constexpr uint32_t FULL_MASK = ~0u;
// What a poll counts for, in memory accesses: it takes that much longer.
constexpr unsigned POLL_COST = 32;

enum class Policy : int { RoundRobin, Random, Priorities };

class Random {
public:
    explicit Random(uint64_t seed = 0) : state(seed * 0x2545f4914f6cdd1dull + 1) {}
    uint64_t next() {
        state += 0x9e3779b97f4a7c15ull;
        uint64_t z = state;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    unsigned below(unsigned limit) {
        return static_cast<unsigned>((next() >> 32) * limit >> 32);
    }
    bool one_in(unsigned n) {
        return below(n) == 0;
    }

private:
    uint64_t state;
};

enum class Wait : uint8_t { Nothing, Barrier, Collective, Mbarrier, Cluster, Registers, Exited };

struct Machine;
struct Block;
struct Warp;

// What the releases at each address have told.
using Published = std::map<uintptr_t, Ref<Foreign>>;

struct Thread : Context {
    uint64_t magic;       // tells a fibre from any other stack
    void* stack_pointer;  // while the fibre is not running
    Machine* machine;
    Block* block;
    Warp* warp;
    unsigned number;  // in the block
    unsigned lane;
    unsigned slice;   // memory accesses granted before others may run
    unsigned budget;  // and left
    Wait wait;
    const char* waits_in;
    Location waits_at;
    unsigned waits_barrier;
    uint32_t waits_mbarrier, waits_parity;
    int barrier_result;
    ProxyFences proxy;
    BulkGroups bulk;
    Agent agent;
    Moment fence_block, fence_device;         // what atomics publish
    Ref<Foreign> heard_shared, heard_global;  // what atomics told and a fence will make known
    std::vector<CpAsync> copies;              // not committed yet
    std::vector<std::vector<CpAsync>> copy_groups;
    uint64_t copies_started, copies_tracked;  // tracked: those before have an arrival that waits for them
    Ref<Clocks> copies_come;                  // of the engine that has written them
    bool cluster_arrived;                     // and has not waited since
    uint32_t cluster_phase;                   // that it has arrived for
};

// Each open collective waits for at least one lane more.
constexpr unsigned MAX_COLLECTIVES = WARP / 2;

// Lanes that have come to one warp-wide operation, and what they brought.
struct Collective {
    uint32_t mask, arrived;
    const char* name;
    Location at;
    void* records[WARP];
};

struct Warp {
    Block* block;
    unsigned number;
    Thread* lanes[WARP];
    uint32_t exist, ready, yielded, exited;  // sets of lanes
    bool queued;
    uint64_t priority;
    unsigned collective_count;
    Collective collectives[MAX_COLLECTIVES];
    WgmmaState wgmma;
    WarpTraffic traffic;
    unsigned registers, registers_wanted;  // of a thread
    unsigned register_changes;

    void start(Block& of, unsigned as_number, uint64_t with_priority);
};

struct Barrier {
    unsigned expected, arrived;
    bool whole_block;  // every thread waits: __syncthreads
    Location at;
    unsigned true_votes;
    // Of a barrier that is not for the whole block: which threads arrived, and what they knew.
    uint32_t arrived_lanes[MAX_THREADS / WARP];
    Knowledge gathered;
};

// Blocks that are alive together. Without clusters each is one of its own.
struct Cluster {
    std::vector<Block*> blocks;  // by rank
    // barrier.cluster: the phase, and how many threads have arrived for it and have not
    uint32_t phase;
    unsigned arrived, missing;
    Ref<Foreign> gathering, complete;  // what those knew that arrived, as with an mbarrier
};

// The last time that an agent has used a block's shared memory without being one of the block's threads.
struct Reach {
    uint32_t block, agent, clock;
    const char* operation;
    Site site;
};

// What the first warp of a warpgroup has asked for with setmaxnreg: the others must ask for the same.
struct RegisterChange {
    unsigned count;
    bool increase;
    Site site;
};

struct Block {
    Machine* machine;
    Cluster* cluster;
    uint32_t rank;  // in the cluster
    uint3 index;
    uint32_t number;  // in the grid
    unsigned thread_count, exited;
    uint32_t agents;  // engines and threads
    std::vector<Thread*> threads;
    std::vector<Warp> warps;
    Barrier barriers[NAMED_BARRIERS];
    uint32_t barriers_passed;  // by the whole block
    SharedMemory shared;
    Published published;  // by atomics on shared memory
    std::vector<TmaCopy> tma;
    std::vector<TmaStore> stores;
    std::vector<unsigned> storing_threads;  // in the order of their first stores
    std::map<uint32_t, MbarrierClocks> mbarriers;
    uint32_t engine_clocks[ENGINES];
    std::vector<WgmmaLog> wgmma_logs;  // one a warpgroup
    std::vector<CopyArrival> copy_arrivals;
    std::vector<Reach> reaches;
    unsigned free_registers;
    std::vector<std::vector<RegisterChange>> register_logs;  // one a warpgroup
};

struct Note {
    char text[200];
    Site site;
};

// How much kernels have asked for. In the order of `Work` in Rust.
struct Work {
    uint64_t multiply_adds;
    uint64_t copied_bytes;
    uint64_t shared_read_bytes;
};

// What a launch asks for.
struct LaunchShape {
    unsigned grid[3], block[3];
    unsigned shared;   // bytes, dynamic
    unsigned cluster;  // blocks along x
};

struct Failure {
    Kind kind;
    char summary[600];
    Note notes[2];
    unsigned note_count;
};

// Thrown where the scheduler itself finds an error; a fibre that does is abandoned instead.
struct Abandoned {};

struct Machine {
    // The device
    GlobalMemory global;
    uint64_t seed = 0;
    Policy policy = Policy::RoundRobin;
    unsigned resident = 1;
    std::string message;  // of the last error
    Work work = {};       // of all launches
    long long clock = 0;  // how often it was read
    Traffic traffic;

    // The launch
    const Entry* kernel = nullptr;
    void** parameters = nullptr;
    dim3 grid_dim, block_dim;
    unsigned dynamic_bytes = 0;
    unsigned cluster_size = 1;
    SharedLayout shared_layout;
    Random random;
    unsigned char poison = 0xff;
    uint32_t generation = 0;  // counts launches and blocks: stamps shadow cells
    uint32_t launch_generation = 0;
    ShadowPool pool;
    std::vector<std::unique_ptr<Block>> slots;  // blocks alive, and the memory of former ones
    unsigned slots_used = 0;
    std::vector<Cluster> clusters;  // of the slots
    uint32_t blocks_started = 0;
    std::vector<Warp*> ready;
    Thread* running = nullptr;  // null: the scheduler
    void* scheduler_stack = nullptr;
    uint64_t idle = 0;  // memory accesses since something last changed
    bool failed = false;
    Failure failure;
    Published published;  // by atomics on global memory
    OperandCache operands;
    unsigned char* fibres = nullptr;
    size_t fibre_count = 0;

    Machine() = default;
    ~Machine();
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    // Runs a kernel. On failure `kind` is set and `message` says what happened.
    Kind launch(const Entry& entry, const LaunchShape& shape, void** params);

    // Records the failure, and ends the fibre that calls it. The first failure wins.
    __attribute__((format(printf, 4, 5))) [[noreturn]] void fail(Kind kind, Site site, const char* format, ...);
    // The same, of what another agent has done.
    __attribute__((format(printf, 6, 7))) [[noreturn]] void fail_by(uint32_t block, uint32_t agent, Kind kind,
                                                                    Site site, const char* format, ...);
    [[noreturn]] void fail_race(const Agent& who, const char* access, Site site, const Conflict& conflict,
                                const char* place);
    void progress() {
        idle = 0;
    }
    unsigned random_slice();

private:
    bool start(const Entry& entry, const LaunchShape& shape, void** params);
    void run_blocks();
    bool run_engine();
    Warp* pick_warp();
    void run_warp(Warp& warp);
    void start_cluster(unsigned number);
    void start_block(Block& block, unsigned slot);
    void retire_cluster(const Cluster& cluster);
    void reserve_fibres(size_t count);
    Thread* fibre(size_t number) const;
    void add_note(const char* text, Site site);
    void record(Kind kind, const char* by, Site site, const char* format, va_list arguments);
    [[noreturn]] void abandon();
    std::string failure_text() const;
    std::string deadlock_text() const;
};

// The running thread. Only for code that kernels call.
inline Thread& current() {
    const auto frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return *reinterpret_cast<Thread*>(thread_in(frame & ~(SLOT_BYTES - 1)));
}

constexpr uint64_t THREAD_MAGIC = 0x656d756c61746f72;

// ---- traffic, if it is counted

inline void count_shared(Thread& self, Site site, uint32_t offset, size_t bytes) {
    if (__builtin_expect(self.machine->traffic.counting, 0)) {
        self.warp->traffic.add(Space::Shared, site, self.lane, offset, bytes);
    }
}
inline void count_global(Thread& self, Site site, uintptr_t address, size_t bytes, AccessKind kind) {
    Traffic& traffic = self.machine->traffic;
    if (__builtin_expect(traffic.counting, 0)) {
        traffic.totals.global_read_bytes += kind != AccessKind::Write ? bytes : 0;
        traffic.totals.global_written_bytes += kind != AccessKind::Read ? bytes : 0;
        self.warp->traffic.add(Space::Global, site, self.lane, address, bytes);
    }
}
inline void count_background(Machine& machine, size_t bytes) {
    machine.traffic.totals.background_bytes += machine.traffic.counting ? bytes : 0;
}

// ---- the scheduler's side of a thread, in scheduler.cpp

// The running thread cannot go on: others run until it is woken.
void block_thread(Thread& self, Wait wait, const char* name, Location at);
void wake(Thread& thread);
// Others may run first.
void yield(Thread& self);
// The same, for a thread that may be waiting for something that it looks at again and again: if that goes on for too
// many accesses without anything changing, it is a livelock.
void poll(Thread& self, unsigned accesses, Site site);
// Lets others run now and then, to vary the schedule.
void perhaps_yield(Thread& self, unsigned one_in);
// Runs the warps' lanes or the scheduler. Returns when the thread is chosen again.
void leave(Thread& self);
void enqueue(Warp& warp);

// ---- clusters, in cluster.cpp

// The block of that rank in the cluster of `of`.
Block& cluster_block(Block& of, uint32_t rank);
// What a shared address means that may be mapped. Fails where it means no block of the cluster.
struct ClusterPlace {
    Block& block;
    uint32_t offset;
};
inline bool has_ended(const Block& block) {
    return block.exited == block.thread_count;
}
inline bool has_ended(const Cluster& cluster) {
    return std::all_of(cluster.blocks.begin(), cluster.blocks.end(),
                       [](const Block* block) { return has_ended(*block); });
}
ClusterPlace cluster_place(Thread& self, uint32_t address, const char* operation, Site site);
// A mapped address has the rank above its offset, counted from 1.
constexpr unsigned MAP_SHIFT = 24;
inline bool is_mapped(uint32_t address) {
    return address >> MAP_SHIFT != 0;
}
// Somebody who is no thread of the block uses its shared memory: fails if the block has ended. The block may not end
// before one of its threads is ordered after that, which is checked then.
void reach(Block& block, const Agent& who, const char* operation, Site site);
// A thread has ended: it counts as arrived at the cluster's barrier.
void leave_cluster(Thread& self);
// What a block must have done before the last of its threads ends, which calls this.
void check_end(Block& block);

// ---- registers, in registers.cpp

void start_registers(Block& block);
void check_registers(Block& block);

// ---- naming

// The same literal nearly always, so that its characters are rarely looked at.
inline bool same_text(const char* a, const char* b) {
    return a == b || strcmp(a, b) == 0;
}

using Name = Text<96>;
Name name_of(const Machine& machine, uint32_t block, uint32_t agent);
Name name_of(const Block& block);

}  // namespace emu
