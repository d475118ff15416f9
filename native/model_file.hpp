// The container of a packed model, file `.fvt`: a header, one JSON document and aligned blobs.
//
//   header        64 bytes: magic "FOVEATE\0", u32 version, u32 0x01020304, u64 offset and u64 size
//                 of the JSON, u64 offset and u64 count of the blob table, u64 size of the file,
//                 u32 CRC-32 of the 56 bytes before it, u32 0
//   blob table    64 bytes a blob: u64 offset, u64 size, u32 type, u32 dimensions, u32 shape[6],
//                 u32 CRC-32, then zeros; entry 0 is the JSON itself
//   blobs         each begins at a multiple of 64 bytes
//
// All numbers are little-endian. Nothing is used before it has been checked: sizes, offsets,
// alignment, overlap, shapes against sizes, checksums. What the JSON means is graph.hpp's matter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "json.hpp"

namespace foveate {

enum class BlobType : std::uint32_t { u8 = 0, i32 = 1, f32 = 2, packed = 3 };  // packed: u64 words

struct Blob {
    const std::byte* data = nullptr;  // 64-byte aligned, `size` bytes
    std::size_t size = 0;
    BlobType type = BlobType::u8;
    std::vector<std::int64_t> shape;  // every extent at least 1

    // The elements; the caller has looked at `type`.
    template <class T>
    const T* as() const {
        return reinterpret_cast<const T*>(data);
    }
};

class ModelFile {
  public:
    // Reads the whole file: a mapping would die with SIGBUS when somebody cuts the file short, and
    // could change after it was checked. Both throw std::runtime_error with one sentence.
    static ModelFile open(const std::string& path);
    // Copies the bytes, since blobs need their alignment.
    static ModelFile from_bytes(const void* data, std::size_t size);

    const Json& document() const { return document_; }
    // All entries of the table; entry 0 is the JSON.
    const std::vector<Blob>& blobs() const { return blobs_; }

  private:
    using Bytes = std::shared_ptr<std::byte>;
    static Bytes memory(std::size_t size);  // aligned as blobs are
    ModelFile(Bytes bytes, std::size_t size);

    Bytes bytes_;
    Json document_;
    std::vector<Blob> blobs_;
};

}  // namespace foveate
