// What every call does first and last, and what becomes of a kernel that fails.
#include "driver.h"

#include <cstdarg>
#include <unistd.h>

namespace driver {

namespace {

const char* name_of(Result result) {
    const char* name = nullptr;
    cuGetErrorName(result, &name);
    return name ? name : "an unknown error";
}

}  // namespace

// Never destroyed: the host's threads may outlive its main function.
Driver& Driver::get() {
    static Driver& driver = *new Driver;
    return driver;
}

Handle& current_context() {
    static thread_local Handle context = nullptr;
    return context;
}

bool Driver::hangs() const {
    const uint64_t hang = Settings::get().hang_launch;
    return hang > 0 && counts.launches >= hang;
}

void Driver::fail(Result result, const std::string& why) {
    fprintf(stderr, "libcuda of the emulator: %s: %s\n", name_of(result), why.c_str());
    if (fault == Success) {
        fault = result;
    }
}

Result Driver::tell() {
    return told = fault;
}

void Driver::run(const Work& work) {
    if (fault == Success && !hangs()) {
        work(*this);
    }
}

bool Driver::holds(Address address, size_t bytes) const {
    auto after = memory.upper_bound(address);
    if (after == memory.begin()) {
        return false;
    }
    const auto& [base, size] = *std::prev(after);
    return address - base <= size && bytes <= size - (address - base);
}

void Driver::destroy_context() {
    streams.clear();
    events.clear();
    graphs.clear();
    executables.clear();
    functions.clear();
    modules.clear();
    for (const auto& [address, bytes] : memory) {
        emulator_free(machine, address);
    }
    memory.clear();
    memory_used = 0;
}

Result Session::before(const char* name, Needs needs) {
    const Settings& settings = Settings::get();
    if (needs != Needs::Nothing && !driver.initialized) {
        return NotInitialized;
    }
    if (needs == Needs::Context) {
        if (driver.told != Success) {
            return driver.told;
        }
        if (current_context() == nullptr) {
            return InvalidContext;
        }
        if (driver.references == 0) {
            return ContextIsDestroyed;
        }
    }
    return settings.refuse_call == name ? settings.refusal : Success;
}

Result Session::after(const char* name, Result result) {
    if (driver.log) {
        const auto thread = std::hash<std::thread::id>()(std::this_thread::get_id()) & 0xffffff;
        fprintf(driver.log, "%06zx %s %s-> %d\n", thread, name, about.c_str(), static_cast<int>(result));
    }
    return result;
}

void Session::note(const char* format, ...) {
    if (!driver.log) {
        return;
    }
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    about += text;
    about += ' ';
}

Result Session::wait() {
    driver.counts.waits++;
    if (driver.hangs()) {
        after("a wait that never ends,", NotReady);
        lock.unlock();
        for (;;) {
            pause();
        }
    }
    return driver.tell();
}

}  // namespace driver

// What was asked so far. No function of NVIDIA's: whoever finds it knows which library this is.
EXPORT void emulated_cuda_counts(driver::Counts* counts) {
    driver::Driver& driver = driver::Driver::get();
    const std::lock_guard<std::mutex> guard(driver.mutex);
    *counts = driver.counts;
}
