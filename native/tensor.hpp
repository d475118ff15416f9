// One image of one tensor inside the engine.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

// Files of different instruction sets include this: a function that the compiler did not inline
// would be merged by the linker, and a plain machine could run the AVX-512 copy.
#define FOVEATE_INLINE inline __attribute__((always_inline))

namespace foveate {

static_assert(std::endian::native == std::endian::little, "codes are packed in little-endian order");

// How the unsigned code u of an element is read as a signed integer s.
enum class Kind : std::uint8_t {
    bipolar,   // s = 2 u - (2^bits - 1), odd, no zero
    unipolar,  // s = u
    twos,      // s = u - 2^bits [top bit]; weights only
};

struct Format {
    Kind kind = Kind::unipolar;
    int bits = 0;  // 1 to 8; 0 means float32
    FOVEATE_INLINE bool is_float() const { return bits == 0; }
    FOVEATE_INLINE int levels() const { return (1 << bits) - 1; }  // the largest code
};

// Memory is NHWC. A tensor may be present in several physical forms at once, each with `border`
// extra pixels on all four sides; every pointer names the interior pixel (0, 0).
//
//   f32    channels floats a pixel
//   bits   planes x words of 64 bits a pixel; plane 0 is the least significant bit of the code,
//          channel c is bit c & 63 of word c >> 6; bits beyond the last channel are 0
//   bytes  one code a byte, byte_stride() bytes a pixel, the filler is 0
struct View {
    int channels = 0;
    int height = 0;
    int width = 0;
    int border = 0;
    float* f32 = nullptr;
    std::uint64_t* bits = nullptr;
    std::uint8_t* bytes = nullptr;
    int planes = 0;  // of `bits`

    FOVEATE_INLINE int words() const { return (channels + 63) / 64; }
    FOVEATE_INLINE std::ptrdiff_t pixel_words() const { return std::ptrdiff_t{planes} * words(); }
    FOVEATE_INLINE std::ptrdiff_t byte_stride() const { return (channels + 3) / 4 * 4; }
    FOVEATE_INLINE std::ptrdiff_t row_pixels() const { return width + 2 * std::ptrdiff_t{border}; }
    // Index of a pixel relative to pixel (0, 0), in pixels; negative inside the upper border.
    FOVEATE_INLINE std::ptrdiff_t at(int y, int x) const { return y * row_pixels() + x; }
};

}  // namespace foveate
