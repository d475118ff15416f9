// Loops over the registers of a tile, written out by the compiler's front end: arrays of vectors that
// are only indexed by constants become registers, whatever the size of the tile.
#pragma once

namespace foveate {
namespace {

template <int value>
struct Index {
    constexpr operator int() const { return value; }
};

template <int n, class Body>
__attribute__((always_inline)) inline void unrolled(Body&& body) {
    if constexpr (n > 0) {
        unrolled<n - 1>(body);
        body(Index<n - 1>{});
    }
}

#define FOVEATE_INLINED __attribute__((always_inline))

}  // namespace
}  // namespace foveate
