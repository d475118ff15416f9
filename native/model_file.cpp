#include "model_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string_view>

#include "crc32.hpp"

namespace foveate {
namespace {

static_assert(std::endian::native == std::endian::little, "the file is read in place");

constexpr std::size_t kHeaderSize = 64;
constexpr std::size_t kEntrySize = 64;
constexpr std::size_t kAlignment = 64;
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kEndianTag = 0x01020304;
constexpr off_t kMaxFileSize = off_t{8} << 30;
constexpr std::uint64_t kMaxBlobs = std::uint64_t{1} << 20;
constexpr std::uint32_t kMaxDimensions = 6;

[[noreturn]] void fail(const std::string& what) {
    throw std::runtime_error("model file: " + what);
}

template <class T>
T read(const std::byte* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// Whether [offset, offset + size) lies inside `total` bytes, without overflow.
bool inside(std::uint64_t offset, std::uint64_t size, std::uint64_t total) {
    return offset <= total && size <= total - offset;
}

std::size_t element_size(BlobType type) {
    switch (type) {
        case BlobType::u8: return 1;
        case BlobType::i32:
        case BlobType::f32: return 4;
        case BlobType::packed: return 8;
    }
    return 0;
}

Blob read_entry(const std::byte* file, std::size_t file_size, const std::byte* entry,
                std::size_t index) {
    const std::string where = "blob " + std::to_string(index);
    const auto offset = read<std::uint64_t>(entry);
    const auto size = read<std::uint64_t>(entry + 8);
    const auto type = read<std::uint32_t>(entry + 16);
    const auto dimensions = read<std::uint32_t>(entry + 20);
    if (type > static_cast<std::uint32_t>(BlobType::packed)) {
        fail(where + " has the unknown type " + std::to_string(type));
    }
    if (dimensions < 1 || dimensions > kMaxDimensions) {
        fail(where + " has " + std::to_string(dimensions) + " dimensions, expected 1 to 6");
    }
    if (offset % kAlignment != 0) {
        fail(where + " does not begin at a multiple of 64 bytes");
    }
    if (!inside(offset, size, file_size)) {
        fail(where + " reaches beyond the end of the file");
    }
    Blob blob;
    blob.type = static_cast<BlobType>(type);
    blob.data = file + offset;
    blob.size = size;
    std::uint64_t bytes = element_size(blob.type);
    for (std::uint32_t d = 0; d < kMaxDimensions; ++d) {
        const auto extent = read<std::uint32_t>(entry + 24 + std::size_t{4} * d);
        if (d >= dimensions) {
            if (extent > 1) {
                fail(where + " has an extent behind its last dimension");
            }
            continue;
        }
        // The product so far is at most `size` after every step, so it cannot overflow.
        if (extent == 0 || bytes > size / extent) {
            fail(where + " has a shape that does not match its size");
        }
        bytes *= extent;
        blob.shape.push_back(extent);
    }
    if (bytes != size) {
        fail(where + " has a shape that does not match its size");
    }
    for (std::size_t i = 52; i < kEntrySize; ++i) {
        if (entry[i] != std::byte{0}) {
            fail(where + " has reserved bytes that are not zero");
        }
    }
    return blob;
}

// Overlapping blobs would let a small file stand for an unbounded amount of data to check.
void refuse_overlap(const std::vector<Blob>& blobs) {
    std::vector<std::size_t> order(blobs.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return blobs[a].data < blobs[b].data; });
    for (std::size_t i = 1; i < order.size(); ++i) {
        const Blob& before = blobs[order[i - 1]];
        if (before.data + before.size > blobs[order[i]].data) {
            fail("blobs " + std::to_string(order[i - 1]) + " and " + std::to_string(order[i]) +
                 " overlap");
        }
    }
}

}  // namespace

ModelFile::Bytes ModelFile::memory(std::size_t size) {
    return {static_cast<std::byte*>(::operator new(size, std::align_val_t{kAlignment})),
            [](std::byte* start) { ::operator delete(start, std::align_val_t{kAlignment}); }};
}

ModelFile ModelFile::open(const std::string& path) {
    const std::string quoted = "'" + path + "'";
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        fail(quoted + " cannot be opened: " + std::strerror(errno));
    }
    const std::unique_ptr<const int, void (*)(const int*)> closer(
        &descriptor, [](const int* opened) { ::close(*opened); });
    struct stat info {};
    if (::fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
        fail(quoted + " is not a regular file");
    }
    if (info.st_size < static_cast<off_t>(kHeaderSize)) {
        fail(quoted + " is too short to be a model");
    }
    if (info.st_size > kMaxFileSize) {
        fail(quoted + " is larger than 8 GiB");
    }
    const auto size = static_cast<std::size_t>(info.st_size);
    const Bytes bytes = memory(size);
    for (std::size_t done = 0; done < size;) {
        const ssize_t got = ::read(descriptor, bytes.get() + done, size - done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            fail(quoted + " cannot be read" +
                 (got < 0 ? std::string(": ") + std::strerror(errno) : ": it ends too early"));
        }
        done += static_cast<std::size_t>(got);
    }
    return ModelFile(bytes, size);
}

ModelFile ModelFile::from_bytes(const void* data, std::size_t size) {
    if (size < kHeaderSize) {
        fail("too short to be a model");
    }
    const Bytes copy = memory(size);
    std::memcpy(copy.get(), data, size);
    return ModelFile(copy, size);
}

ModelFile::ModelFile(Bytes bytes, std::size_t size) : bytes_(std::move(bytes)) {
    const std::byte* file = bytes_.get();
    if (std::memcmp(file, "FOVEATE\0", 8) != 0) {
        fail("does not begin with the magic word of a foveate model");
    }
    if (read<std::uint32_t>(file + 56) != crc32(file, 56)) {
        fail("the header is damaged: its checksum does not match");
    }
    if (read<std::uint32_t>(file + 12) != kEndianTag) {
        fail("has another byte order than this machine");
    }
    const auto version = read<std::uint32_t>(file + 8);
    if (version != kVersion) {
        fail("has version " + std::to_string(version) + ", this engine reads version " +
             std::to_string(kVersion));
    }
    const auto json_offset = read<std::uint64_t>(file + 16);
    const auto json_size = read<std::uint64_t>(file + 24);
    const auto table_offset = read<std::uint64_t>(file + 32);
    const auto count = read<std::uint64_t>(file + 40);
    const auto file_size = read<std::uint64_t>(file + 48);
    if (read<std::uint32_t>(file + 60) != 0) {
        fail("has reserved bytes in the header that are not zero");
    }
    if (file_size != size) {
        fail("has " + std::to_string(size) + " bytes where its header says " +
             std::to_string(file_size));
    }
    if (count < 1 || count > kMaxBlobs) {
        fail("has " + std::to_string(count) + " blobs, expected 1 to " +
             std::to_string(kMaxBlobs));
    }
    if (table_offset % 8 != 0 || table_offset < kHeaderSize ||
        !inside(table_offset, count * kEntrySize, size)) {
        fail("the blob table lies outside the file");
    }
    blobs_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        blobs_.push_back(read_entry(file, size, file + table_offset + i * kEntrySize, i));
    }
    refuse_overlap(blobs_);
    const Blob& json = blobs_.front();
    if (json.type != BlobType::u8 || json.shape.size() != 1 || json.size != json_size ||
        static_cast<std::uint64_t>(json.data - file) != json_offset) {
        fail("blob 0 is not the JSON document that the header names");
    }
    if (json_size > Json::kMaxSize) {
        fail("the JSON document is larger than 64 MiB");
    }
    for (std::size_t i = 0; i < count; ++i) {
        const auto expected = read<std::uint32_t>(file + table_offset + i * kEntrySize + 48);
        if (crc32(blobs_[i].data, blobs_[i].size) != expected) {
            fail("blob " + std::to_string(i) + " is damaged: its checksum does not match");
        }
    }
    document_ = Json::parse({json.as<char>(), json.size});
}

}  // namespace foveate
