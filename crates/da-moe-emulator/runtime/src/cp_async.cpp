// cp.async: copies that belong to one thread, and are complete when it has waited for them.
#include "machine.h"

namespace emu {

void land(Block& block, const CpAsync& copy, const Agent& who) {
    access_shared(block, copy.target, copy.bytes, {who, AccessKind::Write, "cp.async write", copy.site, false});
    unsigned char* target = block.shared.arena + copy.target;
    memcpy(target, copy.source, copy.source_bytes);
    memset(target + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

uint32_t shared_address(const void* pointer) {
    Thread& self = current();
    const uint32_t offset = self.block->shared.offset_of(reinterpret_cast<uintptr_t>(pointer));
    if (offset >= SHARED_ARENA) {
        self.machine->fail(Kind::OutOfBounds, site_of(__builtin_return_address(0)),
                           "a pointer that is converted to a shared address is not in this block's shared memory");
    }
    return offset;
}

void cp_async(uint32_t target, const void* source, uint32_t bytes, uint32_t source_bytes) {
    Thread& self = current();
    Machine& machine = *self.machine;
    const Site site = site_of(__builtin_return_address(0));
    const auto from = reinterpret_cast<uintptr_t>(source);
    if ((bytes != 4 && bytes != 8 && bytes != 16) || source_bytes > bytes) {
        machine.fail(Kind::Async, site, "cp.async of %u bytes, %u of them from the source", bytes, source_bytes);
    }
    if (target % bytes != 0 || from % bytes != 0) {
        machine.fail(Kind::Misaligned, site, "cp.async of %u bytes from 0x%zx to shared address 0x%x", bytes,
                     static_cast<size_t>(from), target);
    }
    // The target belongs to the copy from now on, and holds nothing until it is waited for.
    unsigned char* place = shared_pointer(self, target, bytes, AccessKind::Write, "cp.async write", site);
    memset(place, machine.poison, bytes);
    machine.work.copied_bytes += bytes;
    count_shared(self, site, target, bytes);
    count_background(machine, source_bytes);
    std::fill_n(self.block->shared.states.begin() + target, bytes, ByteState::Pending);
    if (source_bytes > 0) {
        access_global(machine, from, source_bytes, {self.agent, AccessKind::Read, "cp.async read", site, false});
    }
    self.copies.push_back({target, source, bytes, source_bytes, site, self.copies_started++});
}

void cp_async_commit() {
    Thread& self = current();
    self.copy_groups.emplace_back();
    self.copy_groups.back().swap(self.copies);
}

void cp_async_wait(unsigned groups) {
    Thread& self = current();
    while (self.copy_groups.size() > groups) {
        // To the checker the bytes are written now, by the thread that waited: others are ordered after that only by
        // what the thread does next.
        for (const CpAsync& copy : self.copy_groups.front()) {
            land(*self.block, copy, self.agent);
        }
        self.copy_groups.erase(self.copy_groups.begin());
    }
}

}  // namespace emu
