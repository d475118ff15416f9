#include "crc32.hpp"

#include <array>

namespace foveate {
namespace {

using Table = std::array<std::array<std::uint32_t, 256>, 8>;

// table[0] is the classic byte table; table[k][b] is the effect of byte b followed by k zero
// bytes, so that eight bytes are folded in with eight independent look-ups.
constexpr Table make_table() {
    Table table{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) {
            value = (value >> 1) ^ ((value & 1U) != 0 ? 0xEDB88320U : 0U);
        }
        table[0][byte] = value;
    }
    for (std::size_t k = 1; k < 8; ++k) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t before = table[k - 1][byte];
            table[k][byte] = (before >> 8) ^ table[0][before & 0xFFU];
        }
    }
    return table;
}

constexpr Table kTable = make_table();

}  // namespace

std::uint32_t crc32(const void* data, std::size_t size) {
    const auto* p = static_cast<const unsigned char*>(data);
    std::uint32_t crc = 0xFFFFFFFFU;
    for (; size >= 8; p += 8, size -= 8) {
        crc = kTable[7][p[0] ^ (crc & 0xFFU)] ^ kTable[6][p[1] ^ ((crc >> 8) & 0xFFU)] ^
              kTable[5][p[2] ^ ((crc >> 16) & 0xFFU)] ^ kTable[4][p[3] ^ (crc >> 24)] ^
              kTable[3][p[4]] ^ kTable[2][p[5]] ^ kTable[1][p[6]] ^ kTable[0][p[7]];
    }
    for (; size > 0; ++p, --size) {
        crc = (crc >> 8) ^ kTable[0][(crc ^ *p) & 0xFFU];
    }
    return crc ^ 0xFFFFFFFFU;
}

}  // namespace foveate
