// Memory of the device: taken, given back, filled, copied.
#include "driver.h"

#include <cstring>

using namespace driver;

namespace {

// The emulator gives no more at once.
constexpr size_t MOST_BYTES = UINT32_MAX;

Result take(Session& session, Address* address, size_t bytes) {
    if (bytes == 0) {
        return InvalidValue;
    }
    const uint64_t left = Settings::get().memory_bytes - session->memory_used;
    if (bytes > left || bytes > MOST_BYTES) {
        return OutOfMemory;
    }
    char name[48];
    snprintf(name, sizeof name, "cuMemAlloc of %zu bytes", bytes);
    const Address found = emulator_alloc(session->machine, name, bytes);
    if (!found) {
        return OutOfMemory;
    }
    session->memory.emplace(found, bytes);
    session->memory_used += bytes;
    session->counts.allocations++;
    *address = found;
    session.note("%#llx", static_cast<unsigned long long>(found));
    return Success;
}

Result give(Session& session, Address address) {
    const auto found = session->memory.find(address);
    if (found == session->memory.end()) {
        return InvalidValue;
    }
    session->memory_used -= found->second;
    session->memory.erase(found);
    session->counts.frees++;
    emulator_free(session->machine, address);
    return Success;
}

// What runs later finds that memory was given back in the meantime.
Result gone(Driver& driver, const char* what) {
    driver.fail(IllegalAddress, std::string(what) + " of memory that is not there any more");
    return driver.fault;
}

Work filling(Address address, unsigned char value, size_t bytes) {
    return [=](Driver& driver) {
        if (!driver.holds(address, bytes)) {
            return gone(driver, "a fill");
        }
        const std::vector<unsigned char> values(bytes, value);
        emulator_upload(driver.machine, address, values.data(), bytes);
        return Success;
    };
}

Work copying(Address to, Address from, size_t bytes) {
    return [=](Driver& driver) {
        if (!driver.holds(from, bytes) || !driver.holds(to, bytes)) {
            return gone(driver, "a copy");
        }
        std::vector<unsigned char> values(bytes);
        emulator_download(driver.machine, from, values.data(), bytes);
        emulator_upload(driver.machine, to, values.data(), bytes);
        return Success;
    };
}

Work uploading(Address to, const void* from, size_t bytes) {
    return [=](Driver& driver) {
        return driver.holds(to, bytes) ? (emulator_upload(driver.machine, to, from, bytes), Success)
                                       : gone(driver, "a copy");
    };
}

Work downloading(void* to, Address from, size_t bytes) {
    return [=](Driver& driver) {
        return driver.holds(from, bytes) ? (emulator_download(driver.machine, from, to, bytes), Success)
                                         : gone(driver, "a copy");
    };
}

// Starts a copy whose ends on the device are these; 0 is on the host.
Result start_copy(Session& session, Handle stream, Address to, Address from, size_t bytes, Work work) {
    session.note("%zu bytes", bytes);
    if ((to && !session->holds(to, bytes)) || (from && !session->holds(from, bytes))) {
        return InvalidValue;
    }
    session->counts.copies++;
    return start(session, stream, std::move(work));
}

// The same on the legacy stream, and waits.
Result copy_and_wait(Session& session, Address to, Address from, size_t bytes, Work work) {
    if (const Result wrong = refuse_while_recording(session)) {
        return wrong;
    }
    const Result result = start_copy(session, nullptr, to, from, bytes, std::move(work));
    return result == Success ? session.wait() : result;
}

}  // namespace

EXPORT Result cuMemAlloc_v2(Address* address, size_t bytes) {
    return call("cuMemAlloc", Needs::Context, [&](Session& session) {
        session.note("%zu bytes", bytes);
        const Result wrong = refuse_while_recording(session);
        return wrong ? wrong : take(session, address, bytes);
    });
}

// Waits for everything that may still use the memory.
EXPORT Result cuMemFree_v2(Address address) {
    return call("cuMemFree", Needs::Context, [&](Session& session) {
        session.note("%#llx", static_cast<unsigned long long>(address));
        if (const Result wrong = refuse_while_recording(session)) {
            return wrong;
        }
        if (address == 0) {
            return Success;
        }
        const Result failed = session->tell();
        return failed ? failed : give(session, address);
    });
}

// Recordings of allocations are not played: they are refused, as if the driver were older than they are.
EXPORT Result cuMemAllocAsync(Address* address, size_t bytes, Handle stream) {
    return call("cuMemAllocAsync", Needs::Context, [&](Session& session) {
        session.note("%zu bytes", bytes);
        Stream* found;
        if (const Result wrong = find_stream(session, stream, &found)) {
            return wrong;
        }
        if (found && found->recording) {
            found->recording->broken = true;
            return CaptureUnsupported;
        }
        return take(session, address, bytes);
    });
}

EXPORT Result cuMemFreeAsync(Address address, Handle stream) {
    return call("cuMemFreeAsync", Needs::Context, [&](Session& session) {
        session.note("%#llx", static_cast<unsigned long long>(address));
        Stream* found;
        if (const Result wrong = find_stream(session, stream, &found)) {
            return wrong;
        }
        if (found && found->recording) {
            found->recording->broken = true;
            return CaptureUnsupported;
        }
        return give(session, address);
    });
}

EXPORT Result cuMemGetInfo_v2(size_t* left, size_t* total) {
    return call("cuMemGetInfo", Needs::Context, [&](Session& session) {
        *total = Settings::get().memory_bytes;
        *left = *total - session->memory_used;
        return Success;
    });
}

EXPORT Result cuMemsetD8Async(Address address, unsigned char value, size_t bytes, Handle stream) {
    return call("cuMemsetD8Async", Needs::Context, [&](Session& session) -> Result {
        session.note("%zu bytes", bytes);
        if (!session->holds(address, bytes)) {
            return InvalidValue;
        }
        session->counts.fills++;
        return start(session, stream, filling(address, value, bytes));
    });
}

EXPORT Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Handle stream) {
    return call("cuMemcpyDtoDAsync", Needs::Context, [&](Session& session) {
        return start_copy(session, stream, to, from, bytes, copying(to, from, bytes));
    });
}

EXPORT Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Handle stream) {
    return call("cuMemcpyHtoDAsync", Needs::Context, [&](Session& session) {
        return start_copy(session, stream, to, 0, bytes, uploading(to, from, bytes));
    });
}

EXPORT Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Handle stream) {
    return call("cuMemcpyDtoHAsync", Needs::Context, [&](Session& session) {
        return start_copy(session, stream, 0, from, bytes, downloading(to, from, bytes));
    });
}

EXPORT Result cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    return call("cuMemcpyDtoD", Needs::Context, [&](Session& session) {
        return copy_and_wait(session, to, from, bytes, copying(to, from, bytes));
    });
}

EXPORT Result cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    return call("cuMemcpyHtoD", Needs::Context, [&](Session& session) {
        return copy_and_wait(session, to, 0, bytes, uploading(to, from, bytes));
    });
}

EXPORT Result cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    return call("cuMemcpyDtoH", Needs::Context, [&](Session& session) {
        return copy_and_wait(session, 0, from, bytes, downloading(to, from, bytes));
    });
}

// What is known of any address: of most, nothing.
EXPORT Result cuPointerGetAttributes(unsigned count, int* attributes, void** values, Address address) {
    return call("cuPointerGetAttributes", Needs::Context, [&](Session& session) -> Result {
        auto after = session->memory.upper_bound(address);
        const bool known = session->holds(address, 1);
        for (unsigned i = 0; i < count; i++) {
            switch (attributes[i]) {
                case 1:  // context
                    *static_cast<Handle*>(values[i]) = known ? current_context() : nullptr;
                    break;
                case 2:  // kind of memory: 2 is the device's
                    *static_cast<unsigned*>(values[i]) = known ? 2 : 0;
                    break;
                case 3:  // address on the device
                    *static_cast<Address*>(values[i]) = known ? address : 0;
                    break;
                case 9:  // ordinal of the device
                    *static_cast<int*>(values[i]) = known ? 0 : -2;
                    break;
                case 11:  // where the allocation starts
                    *static_cast<Address*>(values[i]) = known ? std::prev(after)->first : 0;
                    break;
                case 12:  // its bytes
                    *static_cast<size_t*>(values[i]) = known ? std::prev(after)->second : 0;
                    break;
                default:
                    return InvalidValue;
            }
        }
        return Success;
    });
}
