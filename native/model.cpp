#include "model.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

#if defined(FOVEATE_X86)
#include <xmmintrin.h>
#endif

#include "isa.hpp"
#include "ops.hpp"

namespace foveate {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr int kMaxRepeats = 1'000'000;

std::size_t index(int i) { return static_cast<std::size_t>(i); }

std::string shape_text(const Shape& shape) {
    return "(" + std::to_string(shape.channels) + ", " + std::to_string(shape.height) + ", " +
           std::to_string(shape.width) + ")";
}

Shape shape_of(const TensorSpec& spec) { return {spec.channels, spec.height, spec.width}; }

// to[c * to_stride + r] = from[r * from_stride + c] for rows x columns.
void transpose(const float* from, std::ptrdiff_t from_stride, int rows, int columns, float* to,
               std::ptrdiff_t to_stride) {
    int r = 0;
#if defined(FOVEATE_X86)
    for (; r + 4 <= rows; r += 4) {
        const float* top = from + r * from_stride;
        int c = 0;
        for (; c + 4 <= columns; c += 4) {
            __m128 a = _mm_loadu_ps(top + c);
            __m128 b = _mm_loadu_ps(top + from_stride + c);
            __m128 d = _mm_loadu_ps(top + 2 * from_stride + c);
            __m128 e = _mm_loadu_ps(top + 3 * from_stride + c);
            _MM_TRANSPOSE4_PS(a, b, d, e);
            float* out = to + c * to_stride + r;
            _mm_storeu_ps(out, a);
            _mm_storeu_ps(out + to_stride, b);
            _mm_storeu_ps(out + 2 * to_stride, d);
            _mm_storeu_ps(out + 3 * to_stride, e);
        }
        for (; c < columns; ++c) {
            for (int k = 0; k < 4; ++k) {
                to[c * to_stride + r + k] = top[k * from_stride + c];
            }
        }
    }
#endif
    for (; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) {
            to[c * to_stride + r] = from[r * from_stride + c];
        }
    }
}

constexpr int kTile = 64;  // channels and pixels at a time: both sides stay in the cache

// How many pixels follow each other in memory from the rows `begin` to `end`: those of all rows
// where there is no border, else those of one.
struct Runs {
    Runs(const View& view, int begin, int end) {
        const bool whole = view.at(1, 0) - view.at(0, 0) == view.width;
        rows = whole ? end - begin : 1;
        pixels = rows * view.width;
    }
    int rows;
    int pixels;
};

// The rows `begin` to `end` of a picture: channel planes to pixels, and back.
void load(const float* from, const View& to, int begin, int end) {
    const std::ptrdiff_t plane = std::ptrdiff_t{to.height} * to.width;
    const Runs runs(to, begin, end);
    for (int y = begin; y < end; y += runs.rows) {
        float* row = to.f32 + to.at(y, 0) * to.channels;
        const float* planes = from + std::ptrdiff_t{y} * to.width;
        if (to.channels == 3) {  // colour pictures
            const float* red = planes;
            const float* green = planes + plane;
            const float* blue = planes + 2 * plane;
            for (int x = 0; x < runs.pixels; ++x) {
                row[3 * x] = red[x];
                row[3 * x + 1] = green[x];
                row[3 * x + 2] = blue[x];
            }
            continue;
        }
        for (int x = 0; x < runs.pixels; x += kTile) {
            for (int c = 0; c < to.channels; c += kTile) {
                transpose(planes + c * plane + x, plane, std::min(kTile, to.channels - c),
                          std::min(kTile, runs.pixels - x),
                          row + std::ptrdiff_t{x} * to.channels + c, to.channels);
            }
        }
    }
}

void unload(const View& from, float* to, int begin, int end) {
    const std::ptrdiff_t plane = std::ptrdiff_t{from.height} * from.width;
    const Runs runs(from, begin, end);
    for (int y = begin; y < end; y += runs.rows) {
        const float* row = from.f32 + from.at(y, 0) * from.channels;
        float* planes = to + std::ptrdiff_t{y} * from.width;
        for (int x = 0; x < runs.pixels; x += kTile) {
            for (int c = 0; c < from.channels; c += kTile) {
                transpose(row + std::ptrdiff_t{x} * from.channels + c, from.channels,
                          std::min(kTile, runs.pixels - x), std::min(kTile, from.channels - c),
                          planes + c * plane + x, plane);
            }
        }
    }
}

int code_at(const View& view, int y, int x, int c) {
    const std::ptrdiff_t pixel = view.at(y, x);
    if (view.bytes != nullptr) {
        return view.bytes[pixel * view.byte_stride() + c];
    }
    int code = 0;
    for (int plane = 0; plane < view.planes; ++plane) {
        const std::uint64_t word = view.bits[pixel * view.pixel_words() +
                                             std::ptrdiff_t{plane} * view.words() + (c >> 6)];
        code |= static_cast<int>((word >> (c & 63)) & 1U) << plane;
    }
    return code;
}

Dumped dumped(const TensorSpec& spec, const View& view) {
    Dumped result;
    result.id = spec.id;
    result.shape = shape_of(spec);
    const auto elements = static_cast<std::size_t>(spec.elements());
    if (spec.format.is_float()) {
        result.values.reset(new float[elements]);
        unload(view, result.values.get(), 0, view.height);
        return result;
    }
    result.codes.reset(new std::uint8_t[elements]);
    std::uint8_t* to = result.codes.get();
    for (int c = 0; c < spec.channels; ++c) {
        for (int y = 0; y < spec.height; ++y) {
            for (int x = 0; x < spec.width; ++x) {
                *to++ = static_cast<std::uint8_t>(code_at(view, y, x, c));
            }
        }
    }
    return result;
}

const char* path_name(const PlannedNode& node) {
    if (node.spec.op != Op::conv) {
        return "";
    }
    return node.path == Path::bits ? "bits" : node.path == Path::int8 ? "int8" : "f32";
}

// A program on a tensor that is already there: pixels `first` .. `last`.
void run_pointwise(const PlannedNode& node, const View& in, const Format& format,
                   const View* slots, int first, int last) {
    alignas(64) float values[kBlock * kGroup];
    alignas(64) std::int32_t sums[kBlock * kGroup];
    const Kernels& k = kernels();
    Block block;
    block.steps = node.program.steps();
    block.n_steps = node.program.count();
    block.views = slots;
    block.channels = in.channels;
    block.padded = node.program.padded;
    block.width = in.width;
    block.values = values;
    const int top = format.is_float() ? 0 : format.levels();
    // Pictures of few channels: 32 lanes a pixel would mostly compute fillers.
    if (format.is_float() && in.channels < kGroup / 2 && block.n_steps == 1 &&
        block.steps->op == StepOp::quantize) {
        const View& out = slots[block.steps->slot];
        if (out.bits == nullptr && out.bytes != nullptr) {
            for (int pixel = first; pixel < last;) {
                const int y = pixel / in.width;
                const int x = pixel % in.width;
                const int count = std::min(last - pixel, in.width - x);
                k.quantize_narrow(*block.steps, in.f32 + in.at(y, x) * in.channels, count,
                                  in.channels, out.bytes + out.at(y, x) * out.byte_stride(),
                                  out.byte_stride());
                pixel += count;
            }
            return;
        }
    }
    for (block.first = first; block.first < last; block.first += kBlock) {
        block.count = std::min(kBlock, last - block.first);
        for (block.channel = 0; block.channel < in.channels; block.channel += kGroup) {
            const int width = std::min(kGroup, in.channels - block.channel);
            for (int p = 0; p < block.count; ++p) {
                const int pixel = block.first + p;
                const std::ptrdiff_t at = in.at(pixel / in.width, pixel % in.width);
                if (format.is_float()) {
                    float* to = values + p * kGroup;
                    std::fill(std::copy_n(in.f32 + at * in.channels + block.channel, width, to),
                              to + kGroup, 0.0F);
                    continue;
                }
                const std::uint8_t* codes = in.bytes + at * in.byte_stride() + block.channel;
                std::int32_t* to = sums + p * kGroup;
                for (int c = 0; c < width; ++c) {
                    to[c] = format.kind == Kind::bipolar ? 2 * codes[c] - top : codes[c];
                }
                std::fill(to + width, to + kGroup, 0);
            }
            block.sums = format.is_float() ? nullptr : sums;
            k.run_steps(block);
        }
    }
}

}  // namespace

Model::Model(const ModelFile& file, const Limits& limits) : limits_(limits) {
    Budget budget(limits.prepared_bytes);
    for (GraphSpec& graph : read_modes(file, budget)) {
        plans_.push_back(make_plan(std::move(graph), limits, budget));
        arena_bytes_ = std::max(arena_bytes_, plans_.back().arena_bytes);
    }
}

std::vector<std::string> Model::modes() const {
    std::vector<std::string> names;
    for (const Plan& plan : plans_) {
        names.push_back(plan.mode);
    }
    return names;
}

void Model::set_mode(int index) {
    if (index < 0 || index >= static_cast<int>(plans_.size())) {
        throw std::runtime_error("mode " + std::to_string(index) + " does not exist; there are " +
                                 std::to_string(plans_.size()));
    }
    mode_.store(index);
}

Shape Model::input_shape() const {
    const Plan& plan = plans_[index(mode())];
    return shape_of(plan.tensors[index(plan.input)].spec);
}

std::int64_t Model::macs() const {
    std::int64_t sum = 0;
    for (const PlannedNode& node : plans_[index(mode())].nodes) {
        sum += node.macs;
    }
    return sum;
}

std::int64_t Model::bytes() const {
    std::int64_t sum = 0;
    for (const PlannedNode& node : plans_[index(mode())].nodes) {
        sum += node.bytes;
    }
    return sum;
}

const Plan& Model::checked(std::int64_t count, const Shape& shape, int threads, int mode) const {
    const Plan& plan = plans_[index(mode)];
    const Shape wanted = shape_of(plan.tensors[index(plan.input)].spec);
    if (shape.channels != wanted.channels || shape.height != wanted.height ||
        shape.width != wanted.width) {
        throw std::runtime_error("pictures have the shape " + shape_text(shape) +
                                 ", the model takes " + shape_text(wanted));
    }
    if (count < 0 || count > std::numeric_limits<int>::max()) {
        throw std::runtime_error("a batch has at most 2^31 - 1 pictures, got " +
                                 std::to_string(count));
    }
    if (threads < 1 || threads > kMaxThreads) {
        throw std::runtime_error("threads must be 1 to " + std::to_string(kMaxThreads) + ", got " +
                                 std::to_string(threads));
    }
    return plan;
}

Model::Workspace Model::make_workspace() const {
    Workspace made;
    const std::size_t bytes = std::max(arena_bytes_, kAlignment);
    made.arena = {static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment})),
                  [](std::byte* start) {
                      ::operator delete(start, std::align_val_t{kAlignment});
                  }};
    // Kernels read some elements that they do not use; let those be numbers.
    std::memset(made.arena.get(), 0, bytes);
    for (const Plan& plan : plans_) {
        Workspace::Bound bound;
        for (const PlannedTensor& tensor : plan.tensors) {
            bound.tensors.push_back(tensor.view(made.arena.get()));
        }
        for (const PlannedNode& node : plan.nodes) {
            std::vector<View> slots;
            for (const int tensor : node.spec.slots) {
                slots.push_back(bound.tensors[index(tensor)]);
            }
            bound.slots.push_back(std::move(slots));
        }
        made.modes.push_back(std::move(bound));
    }
    return made;
}

Model::Workspace& Model::workspace(std::size_t index) {
    while (workspaces_.size() <= index) {
        workspaces_.push_back(std::make_unique<Workspace>(make_workspace()));
    }
    return *workspaces_[index];
}

// Calls work(begin, end) for ranges of rows that cover 0 .. height-1.
template <class Work>
void Model::by_rows(int height, int threads, const Work& work) {
    const int tasks = threads == 1 ? 1 : std::min(height, 4 * threads);
    pool_.run(threads, tasks, [&](int task, int) {
        work(static_cast<int>(std::int64_t{height} * task / tasks),
             static_cast<int>(std::int64_t{height} * (task + 1) / tasks));
    });
}

void Model::run_node(const PlannedNode& node, const Workspace::Bound& bound,
                     const std::vector<View>& slots, int threads) {
    const auto view = [&](int tensor) -> const View& { return bound.tensors[index(tensor)]; };
    const auto share = [&](int tasks, const auto& work) {
        pool_.run(threads, tasks, [&](int task, int) { work(task); });
    };
    for (const Fill& fill : node.fills) {
        fill_border(view(fill.tensor), fill.high);
    }
    const NodeSpec& spec = node.spec;
    const View& in = view(spec.inputs.front());
    const View& out = view(spec.outputs.front());
    if (spec.op == Op::conv) {
        share(node.conv.tasks(threads), [&](int task) {
            node.conv.run_task(task, threads, in, slots.data());
        });
        return;
    }
    if (spec.op == Op::pointwise) {
        const int pixels = in.height * in.width;
        const int tiles = (pixels + 7) / 8;  // no tile is cut
        const int tasks = threads == 1 ? 1 : std::min(tiles, 4 * threads);
        const auto edge = [&](int task) {
            return std::min(pixels, 8 * static_cast<int>(std::int64_t{tiles} * task / tasks));
        };
        share(tasks, [&](int task) {
            run_pointwise(node, in, node.in_format, slots.data(), edge(task), edge(task + 1));
        });
        return;
    }
    if (spec.op == Op::global_avg) {
        global_avg(in, node.in_format, spec.scale, out);
        return;
    }
    if (spec.op == Op::flatten) {
        flatten(in, out);
        return;
    }
    std::vector<const View*> inputs;
    for (const int tensor : spec.inputs) {
        inputs.push_back(&view(tensor));
    }
    by_rows(out.height, threads, [&](int begin, int end) {
        switch (spec.op) {
            case Op::pool:
                (spec.pool.max ? max_pool : avg_pool)(spec.pool, in, out, begin, end);
                break;
            case Op::concat: concat(inputs, out, begin, end); break;
            case Op::softmax: softmax(in, out, begin, end); break;
            case Op::upsample:
                (spec.bilinear ? upsample_bilinear : upsample_nearest)(in, spec.factor, out,
                                                                       begin, end);
                break;
            case Op::shuffle: shuffle(in, spec.groups, out, begin, end); break;
            default: slice(in, spec.start, out, begin, end); break;
        }
    });
}

void Model::run_picture(const Plan& plan, const Workspace::Bound& bound, const float* x,
                        int threads, const Observer& observer) {
    using Clock = std::chrono::steady_clock;
    const View& input = bound.tensors[index(plan.input)];
    by_rows(input.height, threads, [&](int begin, int end) { load(x, input, begin, end); });
    for (std::size_t i = 0; i < plan.nodes.size(); ++i) {
        const auto before = observer ? Clock::now() : Clock::time_point{};
        run_node(plan.nodes[i], bound, bound.slots[i], threads);
        if (observer) {
            observer(i, std::chrono::duration<double>(Clock::now() - before).count());
        }
    }
}

std::vector<Pictures> Model::run(const float* x, std::int64_t count, const Shape& shape,
                                 int threads) {
    const std::lock_guard lock(running_);
    const int mode = mode_.load();
    const Plan& plan = checked(count, shape, threads, mode);
    std::vector<Pictures> results;
    for (const int output : plan.outputs) {
        Pictures one;
        one.shape = shape_of(plan.tensors[index(output)].spec);
        one.count = count;
        one.values.reset(new float[static_cast<std::size_t>(one.shape.elements() * count)]);
        results.push_back(std::move(one));
    }
    const auto picture = [&](std::int64_t i, std::size_t worker, int inner_threads) {
        const Workspace::Bound& bound = workspaces_[worker]->modes[index(mode)];
        run_picture(plan, bound, x + i * shape.elements(), inner_threads, nullptr);
        for (std::size_t k = 0; k < results.size(); ++k) {
            const View& output = bound.tensors[index(plan.outputs[k])];
            float* to = results[k].values.get() + i * results[k].shape.elements();
            by_rows(output.height, inner_threads,
                    [&](int begin, int end) { unload(output, to, begin, end); });
        }
    };
    workspace(0);
    const bool fits = arena_bytes_ <= limits_.arena_bytes / index(threads);
    if (threads > 1 && count >= threads && fits) {
        workspace(index(threads) - 1);
        pool_.run(threads, static_cast<int>(count), [&](int task, int worker) {
            picture(task, index(worker), 1);
        });
    } else {
        for (std::int64_t i = 0; i < count; ++i) {
            picture(i, 0, threads);
        }
    }
    return results;
}

std::vector<NodeProfile> Model::profile(const float* x, std::int64_t count, const Shape& shape,
                                        int threads, int repeats) {
    const std::lock_guard lock(running_);
    const int mode = mode_.load();
    const Plan& plan = checked(count, shape, threads, mode);
    if (count < 1 || repeats < 1 || repeats > kMaxRepeats) {
        throw std::runtime_error("a profile needs at least one picture and 1 to " +
                                 std::to_string(kMaxRepeats) + " repeats");
    }
    std::vector<NodeProfile> nodes;
    for (const PlannedNode& node : plan.nodes) {
        nodes.push_back({node.spec.name, op_name(node.spec.op), path_name(node),
                         std::numeric_limits<double>::infinity(), node.macs, node.bytes});
    }
    const Workspace::Bound& bound = workspace(0).modes[index(mode)];
    const Observer observer = [&](std::size_t node, double seconds) {
        nodes[node].seconds = std::min(nodes[node].seconds, seconds);
    };
    for (int repeat = 0; repeat < repeats; ++repeat) {
        for (std::int64_t i = 0; i < count; ++i) {
            run_picture(plan, bound, x + i * shape.elements(), threads, observer);
        }
    }
    return nodes;
}

std::vector<Dumped> Model::dump(const float* x, const Shape& shape) {
    const std::lock_guard lock(running_);
    const int mode = mode_.load();
    const Plan& plan = checked(1, shape, 1, mode);
    const Workspace::Bound& bound = workspace(0).modes[index(mode)];
    std::vector<Dumped> tensors;
    const auto keep = [&](int tensor) {
        tensors.push_back(dumped(plan.tensors[index(tensor)].spec, bound.tensors[index(tensor)]));
    };
    // Memory is used again: every tensor is copied as soon as it is written, the input before the
    // first node (a graph may have none).
    load(x, bound.tensors[index(plan.input)], 0, bound.tensors[index(plan.input)].height);
    keep(plan.input);
    run_picture(plan, bound, x, 1, [&](std::size_t node, double) {
        for (const int output : plan.nodes[node].spec.outputs) {
            keep(output);
        }
    });
    return tensors;
}

}  // namespace foveate
