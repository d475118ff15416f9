// What the JSON of a model file means: modes, each a graph of tensors and nodes, checked in full.
//
// After `read_modes` every index is valid, nodes are in an order in which every tensor is written
// before it is read and written once, shapes and formats fit together, ranges are bounded, and no
// integer accumulator can leave 32 bits. Nothing behind this file checks any of that again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "conv.hpp"
#include "model_file.hpp"
#include "steps.hpp"
#include "tensor.hpp"

namespace foveate {

constexpr int kMaxChannels = 65536;
constexpr int kMaxExtent = 16384;                               // height, width
constexpr std::int64_t kMaxElements = std::int64_t{1} << 28;    // of one tensor
constexpr int kMaxNodes = 16384;    // of one graph
constexpr int kMaxTensors = 65536;
constexpr int kMaxModes = 4096;
constexpr int kMaxSteps = 64;
constexpr int kMaxWindow = 64;     // kernel, stride, dilation
constexpr int kMaxPadding = 4096;
constexpr int kMaxPool = 255;      // kernel, stride, padding of a pool

// A small file may ask for much memory: tables and weights can be referred to again and again.
struct Limits {
    std::size_t arena_bytes = std::size_t{8} << 30;     // activations of one mode
    std::size_t prepared_bytes = std::size_t{8} << 30;  // weights and tables of all modes
};

// Adds up what loading allocates and throws before the limit is passed.
class Budget {
  public:
    explicit Budget(std::size_t limit) : left_(limit), limit_(limit) {}
    // Bytes of count x size; `what` begins the sentence of the error.
    void charge(std::uint64_t count, std::uint64_t size, const std::string& what);

  private:
    std::size_t left_;
    std::size_t limit_;
};

struct TensorSpec {
    std::int64_t id = 0;
    int channels = 0;
    int height = 0;
    int width = 0;
    Format format;  // float32, bipolar or unipolar

    std::int64_t pixels() const { return std::int64_t{height} * width; }
    std::int64_t elements() const { return pixels() * channels; }
};

enum class Op : std::uint8_t {
    conv,
    pointwise,
    pool,
    global_avg,
    concat,
    flatten,
    softmax,
    upsample,
    shuffle,
    slice,
};
const char* op_name(Op op);

struct PoolSpec {
    bool max = true;  // else average
    int kernel_h = 1, kernel_w = 1;
    int stride_h = 1, stride_w = 1;
    int pad_h = 0, pad_w = 0;
    bool count_include_pad = true;
};

enum class PathWish : std::uint8_t { automatic, bits, int8 };

struct NodeSpec {
    Op op = Op::pointwise;
    std::string name;
    // Indices into GraphSpec::tensors; inputs are the data and then what the steps read.
    std::vector<int> inputs, outputs;
    // By op:
    ConvSpec conv;  // everything but the path
    PathWish path_wish = PathWish::automatic;
    const Blob* weight = nullptr;  // f32 or packed; packed may hold more planes than conv.weight
    PoolSpec pool;
    float scale = 1;        // global_avg of codes
    int factor = 1;         // upsample
    bool bilinear = false;  // upsample
    int groups = 1;         // shuffle
    int start = 0;          // slice: first channel
    // Of conv and pointwise; Step::slot indexes `slots`, which indexes GraphSpec::tensors.
    std::vector<Step> steps;
    std::vector<int> slots;

    // "node 3 'layer1.conv' (conv)", for errors.
    std::string title(std::size_t index) const;
};

struct GraphSpec {
    std::string mode;
    int input = 0;             // indices into tensors; float32
    std::vector<int> outputs;  // float32
    std::vector<TensorSpec> tensors;
    std::vector<NodeSpec> nodes;
};

// Throws std::runtime_error with one sentence that names the mode and the node. The result points
// into the file's blobs.
std::vector<GraphSpec> read_modes(const ModelFile& file, Budget& budget);

}  // namespace foveate
