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

    if (!self.copies.empty() || !self.copy_groups.empty()) {
        machine.fail(Kind::Async, 0, "a thread ends with cp.async operations that it never waited for");
    }
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
    self.block->exited++;
    if (warp.exited == warp.exist && (!warp.wgmma.groups.empty() || !warp.wgmma.open.empty())) {
        machine.fail(Kind::Async, 0, "a warp ends with wgmma operations that it never waited for");
    }
    if (warp.exited == warp.exist) {
        warp.traffic.close(machine.traffic);
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
}

void Machine::start_block(unsigned slot) {
    if (!slots[slot]) {
        slots[slot] = std::make_unique<Block>();
    }
    Block& block = *slots[slot];
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
    block.mbarriers.clear();
    std::fill(std::begin(block.engine_clocks), std::end(block.engine_clocks), 0);
    block.warps.resize((block.thread_count + WARP - 1) / WARP);
    block.wgmma_logs.assign(block.warps.size() / 4 + 1, {});
    for (unsigned i = 0; i < block.warps.size(); i++) {
        block.warps[i].start(block, i, random.next());
    }

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
        thread.proxy_fence = 0;
        thread.agent = {block.number, ENGINES + t, 1, 0, {nothing, {}}};
        thread.fence_block = {};
        thread.fence_device = {};
        thread.heard_shared = {};
        thread.heard_global = {};
        thread.copies.clear();
        thread.copy_groups.clear();
        thread.warp->lanes[thread.lane] = &thread;
        thread.warp->exist |= 1u << thread.lane;
        thread.warp->ready |= 1u << thread.lane;
        block.threads.push_back(&thread);
    }
    for (Warp& warp : block.warps) {
        enqueue(warp);
    }
}

void Machine::retire_block(Block& block) {
    if (!block.tma.empty()) {
        fail(Kind::Async, block.tma[0].site, "a block ends while a TMA copy to its shared memory is in flight");
    }
    ready.erase(std::remove_if(ready.begin(), ready.end(), [&](Warp* warp) { return warp->block == &block; }),
                ready.end());
}

bool Machine::start(const Entry& entry, const unsigned grid[3], const unsigned block[3], unsigned shared,
                    void** params) {
    const uint64_t blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
    const unsigned threads = linear_threads(block);
    const char* wrong = nullptr;
    if (threads == 0 || block[2] > 64) {
        wrong = "a block has 1 to 1024 threads, at most 64 of them in z";
    } else if (blocks == 0 || blocks > UINT32_MAX || grid[1] > 65535 || grid[2] > 65535) {
        wrong = "a grid has at least one block, and at most 65535 in y and in z";
    } else if (shared > 227 * 1024) {
        wrong = "a block has at most 227 KiB of shared memory";
    }
    kernel = &entry;
    parameters = params;
    grid_dim = dim3(grid[0], grid[1], grid[2]);
    block_dim = dim3(block[0], block[1], block[2]);
    dynamic_bytes = shared;
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
    slots_used = static_cast<unsigned>(std::min<uint64_t>(blocks, std::max(1u, resident)));
    if (slots.size() < slots_used) {
        slots.resize(slots_used);
    }
    reserve_fibres(static_cast<size_t>(slots_used) * threads);
    return true;
}

void Machine::run_blocks() {
    const uint32_t blocks = grid_dim.x * grid_dim.y * grid_dim.z;
    std::vector<bool> alive(slots_used);
    for (unsigned slot = 0; slot < slots_used; slot++) {
        start_block(slot);
        alive[slot] = true;
    }
    size_t living = slots_used;
    while (living > 0) {
        bool changed = false;
        for (unsigned slot = 0; slot < slots_used; slot++) {
            if (!alive[slot] || slots[slot]->exited < slots[slot]->thread_count) {
                continue;
            }
            retire_block(*slots[slot]);
            changed = true;
            if (blocks_started < blocks) {
                start_block(slot);
            } else {
                alive[slot] = false;
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

Kind Machine::launch(const Entry& entry, const unsigned grid[3], const unsigned block[3], unsigned shared,
                     void** params) {
    if (start(entry, grid, block, shared, params)) {
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
