// Every access to global and shared memory: bounds, initialisation, order.
#include "machine.h"

#include <cstdlib>
#include <new>

namespace emu {

// ---- global memory

namespace {

// Bases are aligned as cudaMalloc promises and no better; the space around keeps neighbours apart.
constexpr size_t GLOBAL_ALIGN = 256;
constexpr size_t GLOBAL_GUARD = 512;

size_t page_slot(uintptr_t address) {
    return address >> 12 & 63;
}

bool by_base(uintptr_t address, const std::unique_ptr<Allocation>& allocation) {
    return address < allocation->base;
}

}  // namespace

uintptr_t GlobalMemory::allocate(const char* name, size_t bytes, unsigned char poison) {
    if (bytes > UINT32_MAX) {
        return 0;  // shadow offsets are 32 bits wide
    }
    auto allocation = std::make_unique<Allocation>();
    allocation->name = name;
    allocation->bytes = bytes;
    allocation->storage.reset(new (std::nothrow) unsigned char[bytes + 2 * GLOBAL_GUARD + 2 * GLOBAL_ALIGN]);
    if (!allocation->storage) {
        return 0;
    }
    const auto start = reinterpret_cast<uintptr_t>(allocation->storage.get()) + GLOBAL_GUARD;
    allocation->base = (start + 2 * GLOBAL_ALIGN - 1) / (2 * GLOBAL_ALIGN) * (2 * GLOBAL_ALIGN) - GLOBAL_ALIGN;
    memset(reinterpret_cast<void*>(allocation->base), poison, bytes);
    allocation->states.assign(bytes, ByteState::Unwritten);
    const uintptr_t base = allocation->base;
    allocations.insert(std::upper_bound(allocations.begin(), allocations.end(), base, by_base), std::move(allocation));
    return base;
}

bool GlobalMemory::release(uintptr_t base) {
    for (auto it = allocations.begin(); it != allocations.end(); ++it) {
        if ((*it)->base == base) {
            keep((*it)->shadow);
            allocations.erase(it);
            std::fill(std::begin(recent), std::end(recent), nullptr);
            return true;
        }
    }
    return false;
}

void GlobalMemory::shadow(Allocation& allocation) {
    if (!allocation.shadow.empty()) {
        return;
    }
    const auto fits = [&](const Shadow& shadow) { return shadow.has_room(allocation.bytes); };
    const auto found = std::find_if(spare.begin(), spare.end(), fits);
    if (found != spare.end()) {
        std::swap(allocation.shadow, *found);
        std::swap(*found, spare.back());
        spare.pop_back();
    }
    allocation.shadow.resize(allocation.bytes);
}

void GlobalMemory::keep(Shadow& shadow) {
    constexpr size_t most = 64, most_bytes = 1 << 20;
    if (!shadow.empty() && spare.size() < most && !shadow.has_room(most_bytes)) {
        spare.push_back(std::move(shadow));
    }
}

void GlobalMemory::clear() {
    for (const auto& allocation : allocations) {
        keep(allocation->shadow);
    }
    allocations.clear();
    std::fill(std::begin(recent), std::end(recent), nullptr);
}

Allocation* GlobalMemory::find(uintptr_t address) const {
    Allocation*& last = recent[page_slot(address)];
    if (last && address - last->base < last->bytes) {
        return last;
    }
    const auto after = std::upper_bound(allocations.begin(), allocations.end(), address, by_base);
    if (after == allocations.begin()) {
        return nullptr;
    }
    Allocation* found = std::prev(after)->get();
    if (address - found->base >= found->bytes && address != found->base) {
        return nullptr;
    }
    last = found;
    return found;
}

const Allocation* GlobalMemory::before(uintptr_t address) const {
    const auto after = std::upper_bound(allocations.begin(), allocations.end(), address, by_base);
    return after == allocations.begin() ? nullptr : std::prev(after)->get();
}

namespace {

[[noreturn]] void outside_global(Machine& machine, uintptr_t address, size_t bytes, const Access& access) {
    constexpr size_t near = 1 << 20;
    const Allocation* allocation = machine.global.before(address);
    if (allocation && address - allocation->base - allocation->bytes < near) {
        machine.fail(Kind::OutOfBounds, access.site,
                     "%s of %zu bytes at `%s`+%zu, which is %zu bytes past the end of its %zu bytes", access.name,
                     bytes, allocation->name.c_str(), static_cast<size_t>(address - allocation->base),
                     static_cast<size_t>(address - allocation->base - allocation->bytes), allocation->bytes);
    }
    const Allocation* next = machine.global.before(address + near);
    if (next && next->base > address) {
        machine.fail(Kind::OutOfBounds, access.site, "%s of %zu bytes, %zu bytes before the start of `%s`", access.name,
                     bytes, static_cast<size_t>(next->base - address), next->name.c_str());
    }
    machine.fail(Kind::OutOfBounds, access.site, "%s of %zu bytes at address 0x%zx, which is no memory of the device%s",
                 access.name, bytes, static_cast<size_t>(address), address < 4096 ? " (a null pointer?)" : "");
}

}  // namespace

void access_global(Machine& machine, uintptr_t address, size_t bytes, const Access& access) {
    Allocation* allocation = machine.global.find(address);
    if (!allocation) {
        outside_global(machine, address, bytes, access);
    }
    const size_t offset = address - allocation->base;
    if (offset + bytes > allocation->bytes) {
        machine.fail(Kind::OutOfBounds, access.site, "%s of %zu bytes at `%s`+%zu leaves its %zu bytes", access.name,
                     bytes, allocation->name.c_str(), offset, allocation->bytes);
    }
    if (access.kind != AccessKind::Read && allocation->read_only) {
        machine.fail(Kind::ReadOnly, access.site, "%s of %zu bytes at `%s`+%zu, which is read-only", access.name, bytes,
                     allocation->name.c_str(), offset);
    }
    ByteState* states = allocation->states.data() + offset;
    if (access.kind != AccessKind::Write) {
        for (size_t i = 0; i < bytes; i++) {
            if (__builtin_expect(states[i] == ByteState::Unwritten, 0)) {
                machine.fail(Kind::Uninitialised, access.site, "%s of `%s`+%zu, which nothing has written", access.name,
                             allocation->name.c_str(), offset + i);
            }
        }
    } else {
        memset(states, static_cast<int>(ByteState::Written), bytes);
    }
    if (allocation->read_only) {
        return;  // nobody writes it, so nothing can race
    }
    machine.global.shadow(*allocation);
    Conflict conflict;
    if (!allocation->shadow.access(machine.pool, machine.launch_generation, static_cast<uint32_t>(offset),
                                   static_cast<uint32_t>(bytes), access.who, access.kind, access.site, conflict)) {
        const Text<96> place("`%.60s`+%u", allocation->name.c_str(), conflict.offset);
        machine.fail_race(access.who, access.name, access.site, conflict, place);
    }
}

// ---- shared memory

SharedMemory::SharedMemory() {
    arena = static_cast<unsigned char*>(aligned_alloc(SHARED_ARENA, SHARED_ARENA));
    if (!arena) {
        throw std::bad_alloc();
    }
}

SharedMemory::~SharedMemory() {
    free(arena);
}

void SharedMemory::start(uint32_t block_generation) {
    std::fill(states.begin(), states.end(), ByteState::Outside);
    generation = block_generation;
    top = SHARED_START;
    static_bytes = 0;
    dynamic_placed = false;
    arrays.clear();
}

bool SharedMemory::holds(uint32_t offset, size_t bytes) const {
    if (offset + bytes > states.size()) {
        return false;
    }
    for (size_t i = offset; i < offset + bytes; i++) {
        if (states[i] == ByteState::Outside) {
            return false;
        }
    }
    return true;
}

Text<96> SharedMemory::place(uint32_t offset) const {
    const SharedArray* best = nullptr;
    for (const auto& array : arrays) {
        if (array.offset <= offset && (!best || array.offset > best->offset)) {
            best = &array;
        }
    }
    if (!best) {
        return Text<96>("shared memory address 0x%x", offset);
    }
    return Text<96>("shared `%.60s`+%u", best->name, offset - best->offset);
}

namespace {

// Places an array of the running block. Its bytes are poison, and count as unwritten.
SharedArray& place_array(Thread& self, const void* tag, const char* name, uint32_t offset, uint32_t bytes) {
    SharedMemory& shared = self.block->shared;
    if (shared.states.size() < offset + bytes) {
        shared.states.resize(offset + bytes, ByteState::Outside);
        shared.shadow.resize(offset + bytes);
    }
    memset(shared.arena + offset, self.machine->poison, bytes);
    std::fill_n(shared.states.begin() + offset, bytes, ByteState::Unwritten);
    shared.top = offset + bytes + SHARED_GAP;
    shared.arrays.push_back({tag, name, offset, bytes});
    return shared.arrays.back();
}

uint32_t aligned(uint32_t offset, uint32_t align) {
    return (offset + align - 1) / align * align;
}

// All of CUDA's limits on a block's shared memory.
void check_shared_size(Thread& self, const char* name, size_t static_bytes, size_t dynamic_bytes, Site site) {
    if (static_bytes > 48 * 1024) {
        self.machine->fail(Kind::Launch, site,
                           "`%s` brings the block to %zu bytes of static shared memory, over 48 KiB", name,
                           static_bytes);
    }
    if (static_bytes + dynamic_bytes > 227 * 1024) {
        self.machine->fail(Kind::Launch, site, "`%s` brings the block to %zu bytes of shared memory, over 227 KiB",
                           name, static_bytes + dynamic_bytes);
    }
}

}  // namespace

void* shared_array(const void* tag, const char* name, size_t bytes, size_t align) {
    Thread& self = current();
    SharedMemory& shared = self.block->shared;
    for (const auto& array : shared.arrays) {
        if (array.tag == tag) {
            return shared.arena + array.offset;
        }
    }
    check_shared_size(self, name, shared.static_bytes + bytes, self.machine->dynamic_bytes,
                      site_of(__builtin_return_address(0)));
    shared.static_bytes += static_cast<uint32_t>(bytes);
    const uint32_t offset = aligned(shared.top, std::max<uint32_t>(16, static_cast<uint32_t>(align)));
    return shared.arena + place_array(self, tag, name, offset, static_cast<uint32_t>(bytes)).offset;
}

void* dynamic_shared(const char* name, size_t align) {
    Thread& self = current();
    SharedMemory& shared = self.block->shared;
    const auto unit = static_cast<uint32_t>(align);
    if (!shared.dynamic_placed) {
        check_shared_size(self, name, shared.static_bytes, self.machine->dynamic_bytes,
                          site_of(__builtin_return_address(0)));
        uint32_t offset = aligned(shared.top, unit);
        if (offset / unit % 2 == 0) {
            offset += unit;  // an odd multiple is aligned to no more
        }
        shared.dynamic = place_array(self, &shared.dynamic, name, offset, self.machine->dynamic_bytes);
        shared.dynamic_placed = true;
    }
    if (shared.dynamic.offset % unit != 0) {
        self.machine->fail(Kind::Misaligned, site_of(__builtin_return_address(0)),
                           "`%s` wants dynamic shared memory aligned to %u, `%s` had declared less", name, unit,
                           shared.dynamic.name);
    }
    return shared.arena + shared.dynamic.offset;
}

namespace {

// What keeps a byte from being read, besides races. Returns if nothing does.
void check_readable(Block& block, uint32_t offset, const Access& access) {
    Machine& machine = *block.machine;
    const ByteState state = block.shared.states[offset];
    if (state == ByteState::Unwritten) {
        machine.fail(Kind::Uninitialised, access.site, "%s of %s, which nothing has written", access.name,
                     block.shared.place(offset).text);
    }
    if (state == ByteState::Pending) {
        machine.fail(Kind::Async, access.site, "%s of %s, the target of a cp.async that has not been waited for",
                     access.name, block.shared.place(offset).text);
    }
    if (state == ByteState::Written && access.async) {
        const Epoch write = block.shared.shadow.last_write(machine.pool, block.shared.generation, offset);
        if (write.clock != 0 && block.threads[write.agent - ENGINES]->proxy_fence < write.clock) {
            machine.fail(Kind::Async, access.site, "%s of %s, written by thread %u without fence.proxy.async",
                         access.name, block.shared.place(offset).text, write.agent - ENGINES);
        }
    }
}

}  // namespace

namespace {

// Whether all of these bytes were written by plain stores: what is so nearly always is found a word at a time.
bool all_written(const ByteState* states, uint32_t bytes) {
    constexpr uint32_t written = 0x01010101u * static_cast<uint32_t>(ByteState::Written);
    for (; bytes >= 4; bytes -= 4, states += 4) {
        uint32_t word;
        memcpy(&word, states, 4);
        if (word != written) {
            return false;
        }
    }
    return std::all_of(states, states + bytes, [](ByteState state) { return state == ByteState::Written; });
}

}  // namespace

void access_shared(Block& block, uint32_t offset, uint32_t bytes, const Access& access) {
    Machine& machine = *block.machine;
    SharedMemory& shared = block.shared;
    const bool inside = offset + bytes <= shared.states.size();
    const bool plain = inside && !access.async && all_written(shared.states.data() + offset, bytes);
    if (!plain && !shared.holds(offset, bytes)) {
        machine.fail(Kind::OutOfBounds, access.site, "%s of %u bytes at %s, outside the array", access.name, bytes,
                     shared.place(offset).text);
    }
    Conflict conflict;
    if (!shared.shadow.access(machine.pool, shared.generation, offset, bytes, access.who, access.kind, access.site,
                              conflict)) {
        machine.fail_race(access.who, access.name, access.site, conflict, shared.place(conflict.offset));
    }
    if (plain) {
        return;
    }
    if (access.kind != AccessKind::Write) {
        for (uint32_t i = offset; i < offset + bytes; i++) {
            if (shared.states[i] != ByteState::Written || access.async) {
                check_readable(block, i, access);
            }
        }
    }
    if (access.kind != AccessKind::Read) {
        const auto written = access.async ? ByteState::WrittenAsync : ByteState::Written;
        std::fill_n(shared.states.begin() + offset, bytes, written);
    }
}

unsigned char* shared_pointer(Thread& self, uint32_t offset, uint32_t bytes, AccessKind kind, const char* name,
                              Site site) {
    access_shared(*self.block, offset, bytes, {self.agent, kind, name, site, false});
    return self.block->shared.arena + offset;
}

}  // namespace emu
