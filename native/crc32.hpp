// The checksum of the model file: CRC-32 as zlib, PNG and Python's zlib.crc32 compute it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foveate {

// Reflected polynomial 0xEDB88320, initial value and final xor 0xFFFFFFFF.
std::uint32_t crc32(const void* data, std::size_t size);

}  // namespace foveate
