// A fatbin is a header and entries; an entry is machine code for one architecture, an ELF file, or PTX. What the ELF file's
// sections `.nv.info` say is not documented, but told by `cuobjdump -elf`.
#include "cubin.h"

#include <elf.h>

#include <cstring>
#include <map>

namespace driver {

namespace {

constexpr uint32_t FATBIN_MAGIC = 0xba55ed50;
constexpr size_t ENTRY_ALIGN = 8;

struct FatbinHeader {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
};

struct EntryHeader {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t compressed_bytes, unused;
    uint16_t minor, major;
    uint32_t architecture;
    uint32_t name_offset, name_bytes;
    uint64_t flags;
};

constexpr uint16_t PTX = 1, MACHINE_CODE = 2;
// Code that uses what only one architecture has, such as sm_90a.
constexpr uint64_t OF_ONE_ARCHITECTURE = 0x100000;

// Records of `.nv.info` sections. `SIZED` ones are followed by as many bytes as they say.
enum Tag : uint8_t {
    MaxThreads = 0x05,
    FrameSize = 0x11,
    KernelParameter = 0x17,
    RegisterCount = 0x2f,
    ClusterBlocks = 0x3d,
    InClusters = 0x3e,
};
constexpr uint8_t SIZED = 4;

struct Record {
    uint8_t format, tag;
    uint16_t size;
};

struct ParameterRecord {
    uint32_t index;
    uint16_t ordinal, offset;
    uint32_t packed;  // the size in its upper 14 bits
};

// Shared memory that the driver keeps for itself in each block: machine code since sm_90 counts it.
constexpr int RESERVED_SHARED = 1024;

bool starts_with(const std::string& text, const char* start) {
    return text.compare(0, strlen(start), start) == 0;
}

// Machine code as an ELF file.
class Cubin {
public:
    Cubin(const char* file, int for_architecture) : file(file), architecture(for_architecture) {
        memcpy(&header, file, sizeof header);
        for (unsigned i = 0; i < header.e_shnum; i++) {
            Elf64_Shdr section;
            memcpy(&section, file + header.e_shoff + i * sizeof section, sizeof section);
            sections.push_back(section);
        }
    }

    std::vector<Facts> kernels() {
        std::map<std::string, Facts> found;
        for (const Elf64_Shdr& section : sections) {
            const std::string name = name_of(section);
            if (starts_with(name, ".text.")) {
                found[name.substr(6)].name = name.substr(6);
            }
        }
        for (const Elf64_Shdr& section : sections) {
            const std::string name = name_of(section);
            if (name == ".nv.info") {
                read_shared_records(section, found);
            } else if (starts_with(name, ".nv.info.") && found.count(name.substr(9))) {
                read_own_records(section, found[name.substr(9)]);
            } else if (starts_with(name, ".nv.shared.") && found.count(name.substr(11))) {
                found[name.substr(11)].shared_bytes = shared_bytes(section);
            }
        }
        std::vector<Facts> kernels;
        for (auto& [name, facts] : found) {
            facts.binary_version = facts.ptx_version = architecture;
            kernels.push_back(std::move(facts));
        }
        return kernels;
    }

private:
    const char* file;
    int architecture;
    Elf64_Ehdr header;
    std::vector<Elf64_Shdr> sections;

    std::string name_of(const Elf64_Shdr& section) const {
        return file + sections[header.e_shstrndx].sh_offset + section.sh_name;
    }

    std::string symbol(uint32_t index) const {
        for (const Elf64_Shdr& section : sections) {
            if (section.sh_type == SHT_SYMTAB) {
                Elf64_Sym symbol;
                memcpy(&symbol, file + section.sh_offset + index * sizeof symbol, sizeof symbol);
                return file + sections[section.sh_link].sh_offset + symbol.st_name;
            }
        }
        return {};
    }

    int shared_bytes(const Elf64_Shdr& section) const {
        const int bytes = static_cast<int>(section.sh_size);
        return architecture >= 90 && bytes >= RESERVED_SHARED ? bytes - RESERVED_SHARED : bytes;
    }

    template <class Use>
    void for_each_record(const Elf64_Shdr& section, Use use) const {
        const char* at = file + section.sh_offset;
        const char* const end = at + section.sh_size;
        while (at < end) {
            Record record;
            memcpy(&record, at, sizeof record);
            at += sizeof record;
            use(record, at);
            at += record.format == SIZED ? record.size : 0;
        }
    }

    // Records that name the function they are about.
    void read_shared_records(const Elf64_Shdr& section, std::map<std::string, Facts>& found) const {
        for_each_record(section, [&](const Record& record, const char* value) {
            if (record.tag != RegisterCount && record.tag != FrameSize) {
                return;
            }
            uint32_t about[2];
            memcpy(about, value, sizeof about);
            const auto facts = found.find(symbol(about[0]));
            if (facts != found.end()) {
                int& fact = record.tag == RegisterCount ? facts->second.registers : facts->second.local_bytes;
                fact = static_cast<int>(about[1]);
            }
        });
    }

    void read_own_records(const Elf64_Shdr& section, Facts& facts) const {
        for_each_record(section, [&](const Record& record, const char* value) {
            if (record.tag == MaxThreads) {
                uint32_t along[3];
                memcpy(along, value, sizeof along);
                facts.most_threads = static_cast<int>(along[0] * along[1] * along[2]);
            } else if (record.tag == KernelParameter) {
                ParameterRecord parameter;
                memcpy(&parameter, value, sizeof parameter);
                if (facts.parameters.size() <= parameter.ordinal) {
                    facts.parameters.resize(parameter.ordinal + 1u);
                }
                facts.parameters[parameter.ordinal] = {parameter.offset, parameter.packed >> 18};
            } else if (record.tag == ClusterBlocks) {
                memcpy(facts.cluster, value, sizeof facts.cluster);
            } else if (record.tag == InClusters) {
                facts.in_clusters = true;
            }
        });
    }
};

bool is_elf(const char* bytes) {
    return memcmp(bytes, ELFMAG, SELFMAG) == 0;
}

struct Entry {
    EntryHeader header;
    const char* payload;
};

// The entry whose machine code the GPU runs: of its own generation, and no newer than itself.
bool runs(const Entry& entry, int major, int minor) {
    const int own = major * 10 + minor, code = static_cast<int>(entry.header.architecture);
    const bool exact = entry.header.flags & OF_ONE_ARCHITECTURE;
    return entry.header.kind == MACHINE_CODE && (exact ? code == own : code / 10 == major && code <= own);
}

std::vector<Entry> entries(const char* image) {
    FatbinHeader header;
    memcpy(&header, image, sizeof header);
    std::vector<Entry> found;
    const char* at = image + header.header_bytes;
    const char* const end = at + header.bytes;
    while (at < end) {
        Entry entry;
        memcpy(&entry.header, at, sizeof entry.header);
        entry.payload = at + entry.header.header_bytes;
        found.push_back(entry);
        const size_t bytes = entry.header.header_bytes + entry.header.bytes;
        at += (bytes + ENTRY_ALIGN - 1) / ENTRY_ALIGN * ENTRY_ALIGN;
    }
    return found;
}

Image refused(Result result, std::string problem) {
    Image image;
    image.result = result;
    image.problem = std::move(problem);
    return image;
}

Image machine_code(const char* payload, int architecture) {
    if (!is_elf(payload)) {
        return refused(InvalidImage, "its machine code is compressed, which is not read here");
    }
    Image image;
    image.kernels = Cubin(payload, architecture).kernels();
    return image;
}

Image read_fatbin(const char* bytes, int major, int minor) {
    const std::vector<Entry> all = entries(bytes);
    const Entry* best = nullptr;
    const Entry* any = nullptr;
    const Entry* portable = nullptr;
    for (const Entry& entry : all) {
        const auto newer = [&](const Entry* than) {
            return !than || entry.header.architecture > than->header.architecture;
        };
        if (runs(entry, major, minor) && newer(best)) {
            best = &entry;
        }
        if (entry.header.kind == MACHINE_CODE && !any) {
            any = &entry;
        }
        if (entry.header.kind == PTX && static_cast<int>(entry.header.architecture) <= major * 10 + minor) {
            portable = newer(portable) ? &entry : portable;
        }
    }
    if (best) {
        return machine_code(best->payload, static_cast<int>(best->header.architecture));
    }
    const std::string gpu = "sm_" + std::to_string(major * 10 + minor);
    if (!portable || !any) {
        return refused(NoBinaryForGpu, "it has no code for " + gpu);
    }
    // A driver would translate the PTX. What comes of that nobody knows here: the nearest to it is what nvcc made.
    Image image = machine_code(any->payload, static_cast<int>(any->header.architecture));
    for (Facts& facts : image.kernels) {
        facts.binary_version = major * 10 + minor;
        facts.ptx_version = static_cast<int>(portable->header.architecture);
    }
    image.problem = "it has no machine code for " + gpu + ": a driver would translate PTX for compute_" +
                    std::to_string(portable->header.architecture);
    return image;
}

}  // namespace

Image read_image(const void* image, int major, int minor) {
    const auto* bytes = static_cast<const char*>(image);
    if (reinterpret_cast<uintptr_t>(image) % alignof(uint64_t) != 0) {
        return refused(InvalidImage, "it is not aligned to 8 bytes");
    }
    if (is_elf(bytes)) {
        Elf64_Ehdr header;
        memcpy(&header, bytes, sizeof header);
        return machine_code(bytes, static_cast<int>(header.e_flags >> 8 & 0xff));
    }
    uint32_t magic;
    memcpy(&magic, bytes, sizeof magic);
    return magic == FATBIN_MAGIC ? read_fatbin(bytes, major, minor)
                                 : refused(InvalidImage, "it is neither a fatbin nor machine code");
}

}  // namespace driver
