// Turns code addresses into source lines, with addr2line of the binutils that g++ needs anyway.
#include "report.h"

#include <dlfcn.h>
#include <unistd.h>

#include <map>
#include <mutex>

// Set by the linker: where this shared library begins and ends in memory.
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));

namespace emu {

namespace {

std::string module_path() {
    Dl_info info;
    return dladdr(__ehdr_start, &info) ? info.dli_fname : "";
}

std::string quoted(const std::string& path) {
    std::string result = "'";
    for (char c : path) {
        result += c == '\'' ? std::string("'\\''") : std::string(1, c);
    }
    return result + "'";
}

std::string look_up(Site site) {
    char address[32];
    // The return address belongs to the next line if the call ends its own, so one before it is asked for.
    snprintf(address, sizeof address, "0x%x", site - 1);
    const std::string command = "addr2line -i -e " + quoted(module_path()) + " " + address + " 2>/dev/null";
    std::string result;
    if (FILE* pipe = popen(command.c_str(), "r")) {
        char line[4096];
        while (fgets(line, sizeof line, pipe)) {
            std::string place = line;
            place.erase(place.find_last_not_of("\n ") + 1);
            place = place.substr(0, place.find(" (discriminator"));
            const bool own_header = place.find("/include/emulator/") != std::string::npos;
            if (own_header || place.empty() || place[0] == '?') {
                continue;
            }
            result += (result.empty() ? "" : ", called from ") + place;
        }
        pclose(pipe);
    }
    return result.empty() ? std::string("code address ") + address : result;
}

}  // namespace

std::string describe_site(Site site) {
    static std::mutex mutex;
    static std::map<Site, std::string> known;
    const std::lock_guard<std::mutex> guard(mutex);
    auto found = known.find(site);
    if (found == known.end()) {
        found = known.emplace(site, look_up(site)).first;
    }
    return found->second;
}

std::string relative_paths(std::string text) {
    char directory[4096];
    if (getcwd(directory, sizeof directory)) {
        const std::string prefix = std::string(directory) + "/";
        for (size_t at = text.find(prefix); at != std::string::npos; at = text.find(prefix, at)) {
            text.erase(at, prefix.size());
        }
    }
    return text;
}

Site site_of(const void* return_address) {
    return static_cast<Site>(static_cast<const char*>(return_address) - __ehdr_start);
}

bool in_module(uintptr_t address) {
    return address >= reinterpret_cast<uintptr_t>(__ehdr_start) && address < reinterpret_cast<uintptr_t>(_end);
}

}  // namespace emu
