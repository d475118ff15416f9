// A prepared convolution (or linear layer, on a 1 x 1 picture) with its epilogue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "steps.hpp"
#include "tensor.hpp"

namespace foveate {

enum class Path : std::uint8_t { bits, int8, f32 };
enum class Pad : std::uint8_t { zero, low, high };  // real 0; code 0; largest code

struct ConvSpec {
    int in_channels = 0, out_channels = 0;
    int kernel_h = 1, kernel_w = 1;
    int stride_h = 1, stride_w = 1;
    int pad_h = 0, pad_w = 0;
    int dilation_h = 1, dilation_w = 1;
    int groups = 1;
    Pad pad = Pad::zero;
    Format in;      // bits 0: float32
    Format weight;  // bits 0: float32
    Path path = Path::f32;
    int in_height = 1, in_width = 1;

    int out_height() const {
        return (in_height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1;
    }
    int out_width() const {
        return (in_width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1;
    }
    int taps() const { return kernel_h * kernel_w; }
    int group_in() const { return in_channels / groups; }
    int group_out() const { return out_channels / groups; }
    // Weight words per output channel in the file layout (plane, ky, kx, word).
    std::int64_t packed_words() const {
        return std::int64_t{weight.bits} * taps() * ((group_in() + 63) / 64);
    }
};

// The input View must have a border of at least max(pad_h, pad_w), filled with code 0 (Pad::zero and
// Pad::low; float: 0.0) or with the largest code (Pad::high), and hold the form of the path: `bits`
// for Path::bits, `bytes` for Path::int8, `f32` for Path::f32. Buffers are readable kSlack bytes
// beyond their end.
class Conv {
public:
    Conv() = default;
    // `packed`: weight codes [out][K][kh][kw][ceil(group_in / 64)], most significant plane first;
    // `real`: float weights [out][group_in][kh][kw]. One of them, by spec.weight.
    // Throws std::invalid_argument for an impossible spec.
    Conv(const ConvSpec& spec, const std::uint64_t* packed, const float* real, Program program);

    const ConvSpec& spec() const { return spec_; }
    std::int64_t macs() const;

    // Number of independent pieces of work; pieces may run in any order and on any thread.
    int tasks(int threads) const;
    // views: the slots of the program's steps.
    void run_task(int task, int threads, const View& in, const View* views) const;

private:
    // Output channels lo .. hi of one block of 32 belong to one convolution group.
    struct Segment {
        int block = 0, group = 0, lo = 0, hi = 0;
        std::size_t weights = 0;  // first element in the array of the path
    };
    struct Scratch;
    void make_segments();
    void prepare_bits(const std::uint64_t* packed);
    void prepare_int8(const std::uint64_t* packed);
    void prepare_float(const float* real);
    void prepare_starts(const std::vector<std::int32_t>& constant,
                        const std::vector<std::int32_t>& sums);
    void find_offsets(Scratch& scratch, const View& in) const;
    void run_block(Scratch& scratch, int first, int count, int block_begin, int block_end,
                   const View& in, const View* views) const;
    void set_up_group(Scratch& scratch, int count, int group, const View& in) const;
    void sum_integers(Scratch& scratch, int count, const Segment& segment, std::int32_t* out) const;

    ConvSpec spec_;
    Program program_;
    bool depthwise_ = false;
    bool dense_ = false;    // bits path: windows are re-packed into dense bit strings
    int run_words_ = 0;     // bits path: words of a window and plane
    int blocks_ = 0;        // of 32 output channels
    std::vector<Segment> segments_;      // in order of blocks
    std::vector<int> first_segment_;     // [blocks + 1]
    std::vector<std::uint64_t> bits_;    // a segment: [K][run_words][32], least significant first
    std::vector<std::int8_t> bytes_;     // a segment: [taps * quads][32][4]
    std::vector<std::int16_t> thin_;     // depthwise: [block][taps][32]
    std::vector<float> floats_;          // a segment: [taps * group_in][32]
    std::int32_t multiply_ = 1;          // S = multiply * raw + start + per_sum * A
    std::int32_t per_sum_ = 0;           // A: sum of the window's codes
    // What the sums of a pixel start from: a constant of every channel and, for zero padding under
    // bipolar codes, the correction for the taps outside; by class of output row and column.
    std::vector<std::int32_t> start_;    // [row class][column class][blocks * 32]
    std::vector<std::size_t> row_start_, column_start_;  // offsets into start_, to be added
};

// Codes of one pixel row to planes and back; used for inputs and by the tests.
void pack_pixels(const std::uint8_t* codes, std::ptrdiff_t stride, int channels, int pixels,
                 int planes, std::uint64_t* out);

}  // namespace foveate
