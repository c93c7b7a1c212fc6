// mbarriers: eight bytes of shared memory, so that a kernel that overwrites one destroys it.
#include "machine.h"

namespace emu {

namespace {

constexpr uint32_t MAX_COUNT = (1 << 20) - 1;

// [magic: 2 bits][phase: 1][tx-count: 21, biased][pending arrivals: 20][count: 20]
struct Mbarrier {
    uint32_t count, pending;
    int32_t tx;
    uint32_t phase;
};

constexpr uint64_t MAGIC = 2;
constexpr int32_t TX_BIAS = 1 << 20;

uint64_t packed(const Mbarrier& m) {
    return MAGIC << 62 | static_cast<uint64_t>(m.phase & 1) << 61 |
           (static_cast<uint64_t>(m.tx + TX_BIAS) & 0x1fffff) << 40 | static_cast<uint64_t>(m.pending) << 20 | m.count;
}

uint64_t bits_at(const Block& block, uint32_t address) {
    uint64_t bits;
    memcpy(&bits, block.shared.arena + address, sizeof bits);
    return bits;
}

Mbarrier unpacked(uint64_t bits) {
    return {static_cast<uint32_t>(bits & MAX_COUNT), static_cast<uint32_t>(bits >> 20 & MAX_COUNT),
            static_cast<int32_t>(bits >> 40 & 0x1fffff) - TX_BIAS, static_cast<uint32_t>(bits >> 61 & 1)};
}

// Stores the mbarrier, and completes its phase if nothing is missing.
void store(Block& block, uint32_t address, Mbarrier m) {
    if (m.pending == 0 && m.tx == 0) {
        m.phase ^= 1;
        m.pending = m.count;
        block.machine->progress();
        MbarrierClocks& clocks = block.mbarriers[address];
        clocks.complete = std::move(clocks.gathering);
        clocks.gathering = {};
        for (Thread* thread : block.threads) {
            if (thread->wait == Wait::Mbarrier && thread->waits_mbarrier == address &&
                thread->waits_parity != m.phase) {
                wake(*thread);
            }
        }
    }
    const uint64_t bits = packed(m);
    memcpy(block.shared.arena + address, &bits, sizeof bits);
}

void check_own(Thread& self, uint32_t address, const char* operation, Site site) {
    if (is_mapped(address)) {
        self.machine->fail(Kind::Async, site, "%s at a mapped address, 0x%x: it is for the thread's own block",
                           operation, address);
    }
}

Mbarrier open(Block& block, uint32_t address, const Agent& who, const char* operation, Site site) {
    use_mbarrier(block, address, who, operation, site);
    return unpacked(bits_at(block, address));
}

// One of the arrivals that the phase waits for.
void arrive(Block& block, uint32_t address, Mbarrier m, const char* operation, Site site) {
    if (m.pending == 0) {
        block.machine->fail(Kind::Async, site, "%s on %s: more arrivals in a phase than its count of %u", operation,
                            block.shared.place(address).text, m.count);
    }
    m.pending--;
    store(block, address, m);
}

// Those who wait for the phase will learn all that the thread knows.
void tell(Thread& self, Block& block, uint32_t address) {
    Knowledge& gathering = block.mbarriers[address].gathering;
    const Knowledge known = self.agent.release().told();
    if (&block == self.block) {
        gathering.join(known);
    } else {
        Foreign told;
        told.join(known, self.agent.block);
        gathering.join(told, block.number);
    }
}

void arrive_by(Thread& self, Block& block, uint32_t address, uint32_t expected_bytes, const char* operation,
               Site site) {
    Mbarrier m = open(block, address, self.agent, operation, site);
    tell(self, block, address);
    m.tx += static_cast<int32_t>(expected_bytes);
    arrive(block, address, m, operation, site);
    perhaps_yield(self, 4);
}

// What another block's use of an mbarrier needs. One that is not ordered after the initialisation is found as a race.
void check_peer(const Block& block, uint32_t address, const Agent& who, const char* operation, Site site) {
    const auto found = block.mbarriers.find(address);
    if (found == block.mbarriers.end()) {
        block.machine->fail(Kind::Race, site, "%s at %s of %s is not ordered after an initialisation there", operation,
                            block.shared.place(address).text, name_of(block).text);
    }
    const MbarrierClocks& clocks = found->second;
    const bool is_known = who.ordered(block.number, clocks.initialiser, clocks.initialised);
    if (is_known && (clocks.fence == 0 || !who.ordered(block.number, clocks.initialiser, clocks.fence))) {
        block.machine->fail(Kind::Async, site, "%s at %s of %s, initialised without fence.mbarrier_init", operation,
                            block.shared.place(address).text, name_of(block).text);
    }
}

}  // namespace

void use_mbarrier(Block& block, uint32_t address, const Agent& who, const char* operation, Site site) {
    if (address % 8 != 0) {
        block.machine->fail(Kind::Misaligned, site, "%s at shared address 0x%x, not a multiple of 8", operation,
                            address);
    }
    if (who.block != block.number) {
        reach(block, who, operation, site);
        check_peer(block, address, who, operation, site);
    }
    access_shared(block, address, 8, {who, AccessKind::Atomic, operation, site, false});
    check_mbarrier(block, address, operation, site);
}

void check_mbarrier(Block& block, uint32_t address, const char* operation, Site site) {
    if (!block.shared.holds(address, 8) || address % 8 != 0 || bits_at(block, address) >> 62 != MAGIC) {
        block.machine->fail(Kind::Async, site, "%s on %s, which is not an initialised mbarrier", operation,
                            block.shared.place(address).text);
    }
}

void mbarrier_init(uint32_t address, uint32_t count) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    if (count == 0 || count > MAX_COUNT) {
        self.machine->fail(Kind::Async, site, "mbarrier.init with a count of %u", count);
    }
    if (address % 8 != 0) {
        self.machine->fail(Kind::Misaligned, site, "mbarrier.init at shared address 0x%x, not a multiple of 8",
                           address);
    }
    shared_pointer(self, address, 8, AccessKind::Write, "mbarrier.init", site);
    MbarrierClocks& clocks = self.block->mbarriers[address] = {};
    clocks.initialiser = self.agent.index;
    clocks.initialised = self.agent.clock;
    const uint64_t bits = packed({count, count, 0, 0});
    memcpy(self.block->shared.arena + address, &bits, sizeof bits);
}

void mbarrier_arrive(uint32_t address, uint32_t expected_bytes) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    check_own(self, address, "mbarrier.arrive", site);
    arrive_by(self, *self.block, address, expected_bytes, "mbarrier.arrive", site);
}

void fence_mbarrier_init() {
    Thread& self = current();
    const uint32_t clock = self.agent.clock++;
    for (auto& mbarrier : self.block->mbarriers) {
        if (mbarrier.second.initialiser == self.agent.index && mbarrier.second.fence == 0) {
            mbarrier.second.fence = clock;
        }
    }
}

void mbarrier_arrive_remote(uint32_t address) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    const auto [block, offset] = cluster_place(self, address, "mbarrier.arrive", site);
    arrive_by(self, block, offset, 0, "mbarrier.arrive", site);
}

void cp_async_mbarrier_arrive_noinc(uint32_t address) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    const char* name = "cp.async.mbarrier.arrive";
    check_own(self, address, name, site);
    use_mbarrier(*self.block, address, self.agent, name, site);
    track_copies(self, address, site);
}

void mbarrier_copies_came(Block& block, uint32_t address, const Knowledge& known, Site site) {
    const char* name = "cp.async.mbarrier.arrive";
    check_mbarrier(block, address, name, site);
    block.mbarriers[address].gathering.join(known);
    arrive(block, address, unpacked(bits_at(block, address)), name, site);
}

bool mbarrier_try_wait(uint32_t address, uint32_t parity, Location here) {
    Thread& self = current();
    Machine& machine = *self.machine;
    const Site site = site_of(__builtin_return_address(0));
    check_own(self, address, "mbarrier.try_wait", site);
    const Mbarrier m = open(*self.block, address, self.agent, "mbarrier.try_wait", site);
    if (parity > 1) {
        machine.fail(Kind::Async, site, "mbarrier.try_wait.parity with a parity of %u", parity);
    }
    if (m.phase == parity) {
        if (machine.policy != Policy::RoundRobin && machine.random.one_in(4)) {
            poll(self, POLL_COST, site);
            return false;
        }
        self.waits_mbarrier = address;
        self.waits_parity = parity;
        block_thread(self, Wait::Mbarrier, "mbarrier.try_wait", here);
    }
    self.agent.known.join(self.block->mbarriers[address].complete);
    return true;
}

void mbarrier_complete_tx(Block& block, uint32_t address, uint32_t bytes, const Agent& who, Site site) {
    const char* name = "completion of a TMA copy";
    reach(block, who, name, site);
    check_mbarrier(block, address, name, site);
    block.mbarriers[address].gathering.join(who.known);
    Mbarrier m = unpacked(bits_at(block, address));
    m.tx -= static_cast<int32_t>(bytes);
    store(block, address, m);
}

std::string describe_mbarrier(const Block& block, uint32_t address, uint32_t parity) {
    const Mbarrier m = unpacked(bits_at(block, address));
    return Text<300>(" for parity %u of %s: phase %u, %u of %u arrivals and %d bytes missing", parity,
                     block.shared.place(address).text, m.phase, m.pending, m.count, m.tx)
        .text;
}

}  // namespace emu
