// From a checked graph to something that runs: which physical forms every tensor needs, where they
// lie in one arena, how every convolution is computed, which borders must be filled and when.
//
// * Path. Float convolutions have one. Codes take the bit path while the planes are few
//   (`choose_path`), else int8; the file may force either. Both give the same integers.
// * Forms. Convolutions read codes as bits or as bytes, whatever their path wants; a tensor is
//   written in every form that somebody reads, and in no other.
// * Border. A convolution reads its padding from memory: a tensor has as many pixels around it as
//   its most demanding consumer, filled when a consumer wants another value than is there.
// * Arena. A tensor's memory is free again after its last reader; best fit, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "conv.hpp"
#include "graph.hpp"
#include "steps.hpp"
#include "tensor.hpp"

namespace foveate {

struct PlannedTensor {
    static constexpr std::size_t kAbsent = static_cast<std::size_t>(-1);

    TensorSpec spec;
    int border = 0;
    std::size_t f32 = kAbsent;  // offsets into the arena of the forms that are present
    std::size_t bits = kAbsent;
    std::size_t bytes = kAbsent;

    bool present() const { return f32 != kAbsent || bits != kAbsent || bytes != kAbsent; }
    View view(std::byte* arena) const;
};

struct Fill {
    int tensor = 0;
    bool high = false;  // the largest code, else 0
};

struct PlannedNode {
    NodeSpec spec;            // without steps and weights: those are prepared below
    Format in_format;         // of the first input
    Path path = Path::f32;    // conv
    Conv conv;                // conv
    Program program;          // pointwise
    std::vector<Fill> fills;  // before the node runs
    std::int64_t macs = 0;
    std::int64_t bytes = 0;   // read and written: tensors in the forms used, and weights
};

struct Plan {
    std::string mode;
    int input = 0;
    std::vector<int> outputs;
    std::vector<PlannedTensor> tensors;
    std::vector<PlannedNode> nodes;
    std::size_t arena_bytes = 0;
};

// Bits while the work of all pairs of planes stays below that of int8.
Path choose_path(const ConvSpec& conv, PathWish wish);

// Throws std::runtime_error naming the mode and node, before anything large is allocated: weights
// are charged to the budget, activations held against limits.arena_bytes.
Plan make_plan(GraphSpec graph, const Limits& limits, Budget& budget);

}  // namespace foveate
