// The inner loops, one set per instruction set, chosen at run time. All sets give the same numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace foveate {

constexpr int kGroup = 32;   // output channels that a kernel computes together
constexpr int kBlock = 48;   // most pixels of one call
constexpr int kSlack = 256;  // readable bytes behind the last byte of every buffer

struct CountArgs {
    const std::uint64_t* const* pixels;
    int n_pix;
    const std::int32_t* offsets;
    int n;
    const std::uint64_t* weights;
    const std::int32_t* const* rows;
    std::int32_t factor;
    std::int32_t* out;
};

// Every kernel computes n_pix pixels x 32 output channels. `pixels[p] + offsets[t]` is operand t of
// pixel p; weights are [n][32] (dot8: [n][32][4]); the result is out[p * 32 + channel].
struct Kernels {
    const char* name;
    // out[p] = rows[p] + factor * scalars[p] (scalars may be null): what sums start from.
    void (*start)(const std::int32_t* const* rows, const std::int32_t* scalars, std::int32_t factor,
                  int n_pix, std::int32_t* out);
    // out[p] = rows[p] + factor * sum_t popcount(a_t ^ w_t), or with `&`, modulo 2^32. Rows may lie
    // in out.
    void (*count_xor)(const CountArgs& args);
    void (*count_and)(const CountArgs& args);
    // out[p] += factor * sum_t popcount(a_t)
    void (*count_ones)(const std::uint64_t* const* pixels, int n_pix, const std::int32_t* offsets,
                       int n, std::int32_t factor, std::int32_t* out);
    // out += factor * sum_t sum_{i<4} u8 * s8, exact modulo 2^32; offsets in bytes. Channels from
    // `lanes` on need not be computed.
    void (*dot8)(const std::uint8_t* const* pixels, int n_pix, const std::int32_t* offsets, int n,
                 const std::int8_t* weights, int lanes, std::int32_t factor, std::int32_t* out);
    // out[p] = the sum of `channels` codes at each of n taps, which are in pixels of `stride` bytes.
    void (*sum_codes)(const std::uint8_t* const* pixels, int n_pix, const std::ptrdiff_t* taps,
                      int n, std::ptrdiff_t stride, int channels, std::int32_t* out);
    // out = fma chain over t from 0; offsets in floats
    void (*dotf)(const float* const* pixels, int n_pix, const std::int32_t* offsets, int n,
                 const float* weights, float* out);
    // Depthwise: out[p][c] += factor * sum_t a_t[c] * w[t][c] (float: =, without a factor); 32
    // neighbouring channels of every pixel are read.
    void (*depthwise8)(const std::uint8_t* const* pixels, int n_pix, const std::int32_t* offsets,
                       int n, const std::int16_t* weights, std::int32_t factor, std::int32_t* out);
    void (*depthwisef)(const float* const* pixels, int n_pix, const std::int32_t* offsets, int n,
                       const float* weights, float* out);
    // out[c] = the largest of n rows; not-a-number wins.
    void (*max_of)(const float* const* rows, int n, int channels, float* out);
    // The same of codes; 0 where n is 0.
    void (*max_of_codes)(const std::uint8_t* const* rows, int n, int bytes, std::uint8_t* out);
    // out[c] += row[c], n rows one after the other, `stride` floats apart.
    void (*add_rows)(const float* rows, int n, std::ptrdiff_t stride, int channels, float* out);
    // Codes of `pixels` pixels of few channels, to bytes `stride` apart; fillers become 0.
    void (*quantize_narrow)(const struct StepData& step, const float* values, int pixels,
                            int channels, std::uint8_t* out, std::ptrdiff_t stride);
    // The epilogue (steps.hpp).
    void (*run_steps)(const struct Block& block);
};

extern const Kernels kPortable;
#if defined(FOVEATE_X86)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

// The set in use: the best that this machine has, unless forced by `force_isa` or by the
// environment variable FOVEATE_ISA ("portable", "avx2", "avx512").
const Kernels& kernels();
// Throws std::runtime_error for a name that is unknown or not available here; "" is automatic.
void force_isa(const std::string& name);
std::vector<std::string> available_isas();

// How many quads of int8 (4 channels) the set in use computes in the time of one word of bits (64
// channels, one pair of planes); measured once a set.
double word_cost();

}  // namespace foveate
