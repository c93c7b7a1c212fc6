// Global memory, and every access to it: bounds, initialisation, order.
#include "machine.h"

#include <new>

namespace emu {

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
        for (size_t i = 0; i < bytes && !access.unwritten_too; i++) {
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

}  // namespace emu
