// What instrumented kernel code calls: -fsanitize=thread at every load and store, -fsanitize=bounds at a bad index.
#include "machine.h"

namespace emu {

namespace {

// What must be left of a stack when a function has been entered: room for one frame more, which the compiler limits to
// 16000 bytes, and for the runtime's own functions.
constexpr uintptr_t STACK_RESERVE = 24 << 10;

// Whose memory it is, if it belongs to somebody else on the chip.
const char* other_owner(const Machine& machine, uintptr_t address) {
    if (address - reinterpret_cast<uintptr_t>(machine.fibres) < machine.fibre_count * SLOT_BYTES) {
        return "the local memory of another thread";
    }
    for (unsigned i = 0; i < machine.slots_used; i++) {
        if (machine.slots[i]->shared.offset_of(address) < SHARED_ARENA) {
            return "the shared memory of another block";
        }
    }
    return nullptr;
}

// An access that is neither to the thread's locals nor to its block's shared memory.
void access_elsewhere(Thread& self, uintptr_t address, size_t bytes, AccessKind kind, const char* name, Site site) {
    Machine& machine = *self.machine;
    if (!machine.global.find(address)) {
        if (in_module(address)) {
            if (kind == AccessKind::Read) {
                return;  // a constant
            }
            machine.fail(Kind::Memory, site, "%s of %zu bytes in a global variable: kernels here have none", name,
                         bytes);
        }
        if (const char* owner = other_owner(machine, address)) {
            machine.fail(Kind::Memory, site, "%s of %zu bytes in %s", name, bytes, owner);
        }
    }
    access_global(machine, address, bytes, {self.agent, kind, name, site, false});
    count_global(self, site, address, bytes, kind);
}

inline __attribute__((always_inline)) void hook(void* pointer, size_t bytes, size_t align, AccessKind kind,
                                                const void* return_address) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    const auto slot = reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) & ~(SLOT_BYTES - 1);
    if (address - slot < SLOT_BYTES) {
        return;  // the thread's own locals, threadIdx and the like
    }
    Thread& self = *reinterpret_cast<Thread*>(thread_in(slot));
    if (__builtin_expect(self.magic != THREAD_MAGIC, 0)) {
        return;  // the initialiser of a global, run by the host
    }
    const Site site = site_of(return_address);
    const char* name = kind == AccessKind::Read ? "read" : "write";
    if (__builtin_expect(address % align != 0, 0)) {
        self.machine->fail(Kind::Misaligned, site, "%s of %zu bytes at an address that is %zu bytes past alignment",
                           name, bytes, address % align);
    }
    if (kind == AccessKind::Write) {
        self.machine->progress();
    }
    const uint32_t offset = self.block->shared.offset_of(address);
    if (offset < SHARED_ARENA) {
        self.machine->work.shared_read_bytes += kind == AccessKind::Read ? bytes : 0;
        access_shared(*self.block, offset, static_cast<uint32_t>(bytes), {self.agent, kind, name, site, false});
        count_shared(self, site, offset, bytes);
    } else {
        access_elsewhere(self, address, bytes, kind, name, site);
    }
    if (__builtin_expect(--self.budget == 0, 0)) {
        poll(self, self.slice, site);
    }
}

// Layouts of GCC's undefined-behaviour sanitizer.
struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
struct TypeDescriptor {
    uint16_t kind, info;
    char name[1];
};
struct OutOfBoundsData {
    SourceLocation location;
    const TypeDescriptor* array;
    const TypeDescriptor* index;
};

}  // namespace

}  // namespace emu

using emu::AccessKind;

#define EMULATOR_HOOKS(n) \
    extern "C" void __tsan_read##n(void* p) { \
        emu::hook(p, n, n, AccessKind::Read, __builtin_return_address(0)); \
    } \
    extern "C" void __tsan_write##n(void* p) { \
        emu::hook(p, n, n, AccessKind::Write, __builtin_return_address(0)); \
    } \
    extern "C" void __tsan_unaligned_read##n(void* p) { \
        emu::hook(p, n, 1, AccessKind::Read, __builtin_return_address(0)); \
    } \
    extern "C" void __tsan_unaligned_write##n(void* p) { \
        emu::hook(p, n, 1, AccessKind::Write, __builtin_return_address(0)); \
    }
EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)
#undef EMULATOR_HOOKS

extern "C" void __tsan_read_range(void* p, size_t bytes) {
    emu::hook(p, bytes, 1, AccessKind::Read, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, size_t bytes) {
    emu::hook(p, bytes, 1, AccessKind::Write, __builtin_return_address(0));
}
extern "C" void __tsan_func_entry(void*) {
    emu::Thread& self = emu::current();
    const auto left = reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) - reinterpret_cast<uintptr_t>(&self);
    if (left < sizeof(emu::Thread) + emu::STACK_RESERVE && self.magic == emu::THREAD_MAGIC) {
        self.machine->fail(emu::Kind::StackOverflow, emu::site_of(__builtin_return_address(0)),
                           "a thread has used up its stack of %zu KiB", static_cast<size_t>(emu::SLOT_BYTES >> 10));
    }
}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_read(void*) {}
extern "C" void __tsan_vptr_update(void*, void*) {}

long long clock64() {
    return ++emu::current().machine->clock;
}

// What assert() calls. The C library's would end the test with the kernel.
extern "C" void __assert_fail(const char* condition, const char* file, unsigned line, const char*) noexcept {
    emu::current().machine->fail(emu::Kind::Launch, emu::site_of(__builtin_return_address(0)),
                                 "assertion `%s` failed at %s:%u", condition, file, line);
}

extern "C" void __ubsan_handle_out_of_bounds_abort(emu::OutOfBoundsData* data, uintptr_t index) {
    emu::current().machine->fail(emu::Kind::OutOfBounds, emu::site_of(__builtin_return_address(0)),
                                 "index %lld is out of bounds for an array of type %s", static_cast<long long>(index),
                                 data->array->name);
}
