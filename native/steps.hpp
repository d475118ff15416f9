// What happens to an accumulator before it is written: scale, batch norm, residual, activation,
// thresholds. A program is a list of steps; it runs on a block of pixels x 32 channels that stays in
// the first-level cache. Multiplication and addition are rounded separately on every instruction
// set, so that all of them give the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "isa.hpp"
#include "tensor.hpp"

namespace foveate {

enum class StepOp : std::uint8_t {
    affine,            // y = y * a[c], then y = y + b[c] (either may be absent)
    gate,              // y = y * view(slot)[c], a vector
    add,               // y = y + view(slot)
    relu,
    clip,              // to [low, high]
    prelu,             // y < 0: y * a[c]
    sigmoid,
    silu,
    hswish,            // y * clip(y + 3, 0, 6) / 6
    store,             // view(slot).f32 = y
    store_sums,        // view(slot).f32 holds the integer accumulators' bits; for tests and tools
    quantize,          // view(slot) codes = rounded y
    thresholds_int,    // view(slot) codes = #{j: +-S >= table[j][c]}, S the integer accumulator
    thresholds_float,  // ... of y
};

enum class Rounding : std::uint8_t { half_up, half_even, floor };

struct Step {
    StepOp op = StepOp::store;
    int slot = -1;                     // index into Block::views; -1 where none is needed
    std::vector<float> a, b;           // per channel
    float low = 0, high = 0;           // clip
    Format format;                     // quantize, thresholds: what is written
    float step = 1;                    // quantize: real value of the integer 1
    Rounding rounding = Rounding::half_up;
    int levels = 0;                    // thresholds: rows of the table, 2^bits - 1
    std::vector<std::int32_t> table_int;   // levels x channels
    std::vector<float> table_float;        // levels x channels
    std::vector<std::uint8_t> flip;        // per channel: compare -v; may be empty
};

// A step as the kernels see it: plain pointers, every table padded to a multiple of 32 channels.
struct StepData {
    StepOp op = StepOp::store;
    int slot = -1;
    const float* a = nullptr;
    const float* b = nullptr;
    float low = 0, high = 0;
    Kind kind = Kind::unipolar;
    int bits = 0;
    float step = 1;   // as in Step
    float range = 1;  // step * (2^bits - 1), float32
    Rounding rounding = Rounding::half_up;
    int levels = 0;
    // -S >= T is S < 1 - T negated: flipped integer tables hold 1 - T, and the result is inverted.
    const std::int32_t* table_int = nullptr;  // [levels][padded]
    const std::uint32_t* inverted = nullptr;  // [padded / 32], a bit a channel
    const float* table_float = nullptr;
    const std::int32_t* flip = nullptr;       // floats: 0 or the sign bit
};

class Program {
public:
    Program() = default;
    // Throws std::invalid_argument when a table does not have `channels` columns, levels do not
    // fit the format, a slot is missing, or an integer threshold comes after another step.
    Program(int channels, const std::vector<Step>& list);

    int channels = 0;
    int padded = 0;
    const StepData* steps() const { return data_.data(); }
    int count() const { return static_cast<int>(data_.size()); }

private:
    std::vector<StepData> data_;
    std::vector<std::unique_ptr<std::vector<float>>> floats_;  // what data_ points to
    std::vector<std::unique_ptr<std::vector<std::int32_t>>> ints_;
    std::vector<std::unique_ptr<std::vector<std::uint32_t>>> masks_;
};

// A block of the output: pixels `first .. first + count` in row-major order, channels
// `channel .. channel + 32`.
struct Block {
    const StepData* steps = nullptr;
    int n_steps = 0;
    const View* views = nullptr;     // one per slot
    int channels = 0;                // of the output
    int padded = 0;                  // columns of the tables
    int width = 0;                   // of the output
    int first = 0;
    int count = 0;
    int channel = 0;
    const std::int32_t* sums = nullptr;  // [count][32] integers, or
    float* values = nullptr;             // [count][32] scratch; holds y at the start without sums
};

}  // namespace foveate
