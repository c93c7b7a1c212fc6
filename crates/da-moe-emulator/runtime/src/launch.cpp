// A launch: blocks come alive, run, and make room for others.
#include <sys/mman.h>

#include "fibre.h"
#include "machine.h"

namespace emu {

Machine::~Machine() {
    for (size_t i = 0; i < fibre_count; i++) {
        fibre(i)->~Thread();
    }
    if (fibres) {
        munmap(fibres, fibre_count * SLOT_BYTES);
    }
}

Thread* Machine::fibre(size_t number) const {
    return reinterpret_cast<Thread*>(thread_in(reinterpret_cast<uintptr_t>(fibres + number * SLOT_BYTES)));
}

void Machine::reserve_fibres(size_t count) {
    if (count <= fibre_count) {
        return;
    }
    for (size_t i = 0; i < fibre_count; i++) {
        fibre(i)->~Thread();
    }
    if (fibres) {
        munmap(fibres, fibre_count * SLOT_BYTES);
    }
    fibres = nullptr;
    fibre_count = 0;
    // One slot more than needed, of which the ends that are not aligned are given back.
    const size_t bytes = (count + 1) * SLOT_BYTES;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::bad_alloc();
    }
    auto* start = static_cast<unsigned char*>(memory);
    const size_t head = (SLOT_BYTES - reinterpret_cast<uintptr_t>(start) % SLOT_BYTES) % SLOT_BYTES;
    if (head > 0) {
        munmap(start, head);
    }
    munmap(start + head + count * SLOT_BYTES, SLOT_BYTES - head);
    fibres = start + head;
    fibre_count = count;
    // Every switch goes to another page: with large ones they all have their translations at hand. It is only advice.
    madvise(fibres, count * SLOT_BYTES, MADV_HUGEPAGE);
    for (size_t i = 0; i < count; i++) {
        new (fibre(i)) Thread{};
    }
}

namespace {

// Where every fibre starts and ends.
void fibre_main() {
    Thread& self = current();
    Machine& machine = *self.machine;
    machine.running = &self;
    machine.kernel->call(machine.parameters);

    if (has_forgotten_copies(self)) {
        machine.fail(Kind::Async, 0, "a thread ends with cp.async operations that it never waited for");
    }
    end_of_stores(self);
    Warp& warp = *self.warp;
    const uint32_t me = 1u << self.lane;
    for (unsigned i = 0; i < warp.collective_count; i++) {
        const Collective& open = warp.collectives[i];
        if (open.mask & me) {
            machine.fail(Kind::Divergence, 0, "a thread ends while lanes 0x%x of its warp wait for it in %s at %s:%d",
                         open.arrived, open.name, open.at.file, open.at.line);
        }
    }
    const Barrier& barrier = self.block->barriers[0];
    if (barrier.arrived > 0 && barrier.whole_block) {
        machine.fail(Kind::Divergence, 0, "a thread ends while %u threads of its block wait for it in %s at %s:%d",
                     barrier.arrived, "__syncthreads", barrier.at.file, barrier.at.line);
    }
    self.wait = Wait::Exited;
    warp.ready &= ~me;
    warp.exited |= me;
    Block& block = *self.block;
    block.exited++;
    if (warp.exited == warp.exist && (!warp.wgmma.groups.empty() || !warp.wgmma.open.empty())) {
        machine.fail(Kind::Async, 0, "a warp ends with wgmma operations that it never waited for");
    }
    if (warp.exited == warp.exist) {
        warp.traffic.close(machine.traffic);
    }
    leave_cluster(self);
    if (has_ended(block)) {
        check_end(block);
    }
    machine.progress();
    leave(self);
    __builtin_unreachable();
}

// Stacks at equal distances share cache sets, so each starts a little lower than the last.
void* stack_top(Thread* thread, unsigned number) {
    constexpr uintptr_t colours = 64, step = 128;
    const uintptr_t slot = reinterpret_cast<uintptr_t>(thread) & ~(SLOT_BYTES - 1);
    return reinterpret_cast<unsigned char*>(slot + SLOT_BYTES - 64 - number % colours * step);
}

unsigned linear_threads(const unsigned size[3]) {
    const uint64_t count = static_cast<uint64_t>(size[0]) * size[1] * size[2];
    return count > MAX_THREADS ? 0 : static_cast<unsigned>(count);
}

}  // namespace

// The collectives are left as they are: their count says that none is open.
void Warp::start(Block& of, unsigned as_number, uint64_t with_priority) {
    block = &of;
    number = as_number;
    std::fill(std::begin(lanes), std::end(lanes), nullptr);
    exist = ready = yielded = exited = 0;
    queued = false;
    priority = with_priority;
    collective_count = 0;
    wgmma = {};
    traffic.clear();
    register_changes = 0;
}

void Machine::start_cluster(unsigned number) {
    Cluster& cluster = clusters[number];
    const unsigned threads = block_dim.x * block_dim.y * block_dim.z;
    cluster = {};
    cluster.missing = cluster_size * threads;
    for (unsigned rank = 0; rank < cluster_size; rank++) {
        const unsigned slot = number * cluster_size + rank;
        if (!slots[slot]) {
            slots[slot] = std::make_unique<Block>();
        }
        cluster.blocks.push_back(&*slots[slot]);
        slots[slot]->cluster = &cluster;
        slots[slot]->rank = rank;
        start_block(*slots[slot], slot);
    }
}

void Machine::start_block(Block& block, unsigned slot) {
    block.machine = this;
    block.number = blocks_started++;
    block.index = {block.number % grid_dim.x, block.number / grid_dim.x % grid_dim.y,
                   block.number / grid_dim.x / grid_dim.y};
    block.thread_count = block_dim.x * block_dim.y * block_dim.z;
    block.exited = 0;
    block.agents = ENGINES + block.thread_count;
    block.threads.clear();
    block.barriers_passed = 0;
    for (Barrier& barrier : block.barriers) {
        barrier = {};
    }
    block.shared.start(++generation);
    block.published.clear();
    block.tma.clear();
    block.stores.clear();
    block.storing_threads.clear();
    block.mbarriers.clear();
    block.copy_arrivals.clear();
    block.reaches.clear();
    std::fill(std::begin(block.engine_clocks), std::end(block.engine_clocks), 0);
    block.warps.resize((block.thread_count + WARP - 1) / WARP);
    block.wgmma_logs.assign(block.warps.size() / 4 + 1, {});
    for (unsigned i = 0; i < block.warps.size(); i++) {
        block.warps[i].start(block, i, random.next());
    }
    start_registers(block);

    const Ref<Clocks> nothing(new Clocks(block.agents));
    for (unsigned t = 0; t < block.thread_count; t++) {
        const unsigned fibre_number = slot * block.thread_count + t;
        Thread& thread = *fibre(fibre_number);
        thread.thread_index = {t % block_dim.x, t / block_dim.x % block_dim.y, t / block_dim.x / block_dim.y};
        thread.block_index = block.index;
        thread.block_dim = block_dim;
        thread.grid_dim = grid_dim;
        thread.magic = THREAD_MAGIC;
        thread.stack_pointer = new_stack(stack_top(&thread, fibre_number), fibre_main);
        thread.machine = this;
        thread.block = &block;
        thread.warp = &block.warps[t / WARP];
        thread.number = t;
        thread.lane = t % WARP;
        thread.slice = random_slice();
        thread.budget = thread.slice;
        thread.wait = Wait::Nothing;
        thread.proxy = {};
        thread.bulk = {};
        thread.agent = {block.number, ENGINES + t, 1, 0, {nothing, {}}};
        thread.fence_block = {};
        thread.fence_device = {};
        thread.heard_shared = {};
        thread.heard_global = {};
        thread.copies.clear();
        thread.copy_groups.clear();
        thread.copies_started = thread.copies_tracked = 0;
        thread.copies_come = {};
        thread.cluster_arrived = false;
        thread.cluster_phase = 0;
        thread.warp->lanes[thread.lane] = &thread;
        thread.warp->exist |= 1u << thread.lane;
        thread.warp->ready |= 1u << thread.lane;
        block.threads.push_back(&thread);
    }
    for (Warp& warp : block.warps) {
        enqueue(warp);
    }
}

void Machine::retire_cluster(const Cluster& cluster) {
    for (Block* block : cluster.blocks) {
        finish_block_stores(*block);
    }
    const auto retires = [&](const Warp* warp) { return warp->block->cluster == &cluster; };
    ready.erase(std::remove_if(ready.begin(), ready.end(), retires), ready.end());
}

bool Machine::start(const Entry& entry, const LaunchShape& shape, void** params) {
    const auto& [grid, block, shared, cluster] = shape;
    const uint64_t blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
    const unsigned threads = linear_threads(block);
    const char* wrong = nullptr;
    if (threads == 0 || block[2] > 64) {
        wrong = "a block has 1 to 1024 threads, at most 64 of them in z";
    } else if (blocks == 0 || blocks > UINT32_MAX || grid[1] > 65535 || grid[2] > 65535) {
        wrong = "a grid has at least one block, and at most 65535 in y and in z";
    } else if (shared > 227 * 1024) {
        wrong = "a block has at most 227 KiB of shared memory";
    } else if ((cluster != 1 && cluster != 2 && cluster != 4 && cluster != 8) || grid[0] % cluster != 0) {
        wrong = "a cluster has 1, 2, 4 or 8 blocks along x, and a grid whole clusters";
    }
    kernel = &entry;
    parameters = params;
    grid_dim = dim3(grid[0], grid[1], grid[2]);
    block_dim = dim3(block[0], block[1], block[2]);
    dynamic_bytes = shared;
    cluster_size = cluster;
    shared_layout = {};
    random = Random(seed);
    failed = false;
    failure = {};
    idle = 0;
    running = nullptr;
    ready.clear();
    published.clear();
    pool.reset();
    blocks_started = 0;
    launch_generation = ++generation;
    if (wrong) {
        failed = true;
        failure.kind = Kind::Launch;
        snprintf(failure.summary, sizeof failure.summary, "%s", wrong);
        return false;
    }
    const uint64_t wanted = std::min<uint64_t>(blocks, std::max(1u, resident));
    slots_used = static_cast<unsigned>((wanted + cluster_size - 1) / cluster_size * cluster_size);
    clusters.resize(slots_used / cluster_size);
    if (slots.size() < slots_used) {
        slots.resize(slots_used);
    }
    reserve_fibres(static_cast<size_t>(slots_used) * threads);
    return true;
}

void Machine::run_blocks() {
    const uint32_t blocks = grid_dim.x * grid_dim.y * grid_dim.z;
    std::vector<bool> alive(clusters.size());
    for (unsigned number = 0; number < clusters.size(); number++) {
        start_cluster(number);
        alive[number] = true;
    }
    size_t living = clusters.size();
    while (living > 0) {
        bool changed = false;
        for (unsigned number = 0; number < clusters.size(); number++) {
            if (!alive[number] || !has_ended(clusters[number])) {
                continue;
            }
            retire_cluster(clusters[number]);
            changed = true;
            if (blocks_started < blocks) {
                start_cluster(number);
            } else {
                alive[number] = false;
                living--;
            }
        }
        if (changed || run_engine()) {
            continue;
        }
        if (ready.empty()) {
            failed = true;
            failure.kind = Kind::Deadlock;
        }
        if (failed) {
            return;
        }
        run_warp(*pick_warp());
        if (failed) {
            return;
        }
    }
}

Kind Machine::launch(const Entry& entry, const LaunchShape& shape, void** params) {
    if (start(entry, shape, params)) {
        try {
            run_blocks();
        } catch (Abandoned&) {
            // The scheduler found the error itself and has recorded it.
        }
    }
    if (!failed) {
        return Kind{};
    }
    message = relative_paths(failure.kind == Kind::Deadlock ? deadlock_text() : failure_text());
    return failure.kind;
}

}  // namespace emu
