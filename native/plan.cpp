#include "plan.hpp"

#include "isa.hpp"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <utility>

namespace foveate {
namespace {

constexpr std::size_t kAlignment = 64;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::size_t index(int i) { return static_cast<std::size_t>(i); }

// ---------------------------------------------------------------- forms

struct Forms {
    bool f32 = false;
    bool bits = false;
    bool bytes = false;
    void add(const Forms& other) {
        f32 = f32 || other.f32;
        bits = bits || other.bits;
        bytes = bytes || other.bytes;
    }
    bool any() const { return f32 || bits || bytes; }
};

// What a node reads of its data input, when it writes `made`.
Forms forms_read(const PlannedNode& node, const Format& in, const Forms& made) {
    Forms forms;
    if (in.is_float()) {
        forms.f32 = true;
    } else if (node.spec.op == Op::conv) {
        forms.bits = node.path == Path::bits;
        forms.bytes = node.path == Path::int8;
    } else if (node.spec.op == Op::global_avg || node.spec.op == Op::pointwise) {
        forms.bytes = true;
    } else {
        forms = made;  // moves codes about, each form on its own
    }
    return forms;
}

struct Pixel {
    std::int64_t f32, words, bytes;  // elements a pixel in each form
};

Pixel pixel_of(const TensorSpec& spec) {
    return {spec.channels, ceil_div(spec.channels, 64) * spec.format.bits,
            ceil_div(spec.channels, 4) * 4};
}

// Bytes of the interior of the forms.
std::int64_t traffic(const TensorSpec& spec, const Forms& forms) {
    const Pixel pixel = pixel_of(spec);
    return spec.pixels() * ((forms.f32 ? 4 * pixel.f32 : 0) + (forms.bits ? 8 * pixel.words : 0) +
                            (forms.bytes ? pixel.bytes : 0));
}

// ---------------------------------------------------------------- arena

// Free memory below `top`, by offset; neighbours are merged.
class Arena {
  public:
    explicit Arena(std::size_t limit) : limit_(limit) {}

    std::size_t take(std::size_t size, const std::string& who) {
        auto best = holes_.end();
        for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
            if (hole->second >= size && (best == holes_.end() || hole->second < best->second)) {
                best = hole;
            }
        }
        if (best != holes_.end()) {
            const auto [offset, room] = *best;
            holes_.erase(best);
            if (room > size) {
                holes_.emplace(offset + size, room - size);
            }
            return offset;
        }
        std::size_t offset = top_;
        if (!holes_.empty()) {
            const auto last = std::prev(holes_.end());
            if (last->first + last->second == top_) {  // grow the last hole
                offset = last->first;
            }
        }
        if (size > limit_ || offset > limit_ - size) {
            throw std::runtime_error(who + ": the activations need more memory than the limit of " +
                                     std::to_string(limit_) + " bytes");
        }
        holes_.erase(offset);
        top_ = offset + size;
        return offset;
    }

    void give(std::size_t offset, std::size_t size) {
        auto next = holes_.lower_bound(offset);
        if (next != holes_.end() && offset + size == next->first) {
            size += next->second;
            next = holes_.erase(next);
        }
        if (next != holes_.begin()) {
            const auto before = std::prev(next);
            if (before->first + before->second == offset) {
                before->second += size;
                return;
            }
        }
        holes_.emplace(offset, size);
    }

    std::size_t top() const { return top_; }

  private:
    std::map<std::size_t, std::size_t> holes_;
    std::size_t top_ = 0;
    std::size_t limit_;
};

// ---------------------------------------------------------------- the planner

class Planner {
  public:
    Planner(GraphSpec graph, const Limits& limits, Budget& budget)
        : limits_(limits), budget_(budget) {
        plan_.mode = std::move(graph.mode);
        plan_.input = graph.input;
        plan_.outputs = std::move(graph.outputs);
        for (TensorSpec& spec : graph.tensors) {
            PlannedTensor tensor;
            tensor.spec = spec;
            plan_.tensors.push_back(tensor);
        }
        for (NodeSpec& spec : graph.nodes) {
            PlannedNode node;
            node.in_format = graph.tensors[index(spec.inputs.front())].format;
            node.spec = std::move(spec);
            plan_.nodes.push_back(std::move(node));
        }
    }

    Plan make() {
        choose_paths();
        find_forms();
        find_borders();
        place();
        for (std::size_t i = 0; i < plan_.nodes.size(); ++i) {
            prepare(plan_.nodes[i], i);
        }
        return std::move(plan_);
    }

  private:
    std::string title(std::size_t i) const {
        return "mode '" + plan_.mode + "': " + plan_.nodes[i].spec.title(i);
    }

    const Format& format(int tensor) const { return plan_.tensors[index(tensor)].spec.format; }

    void choose_paths() {
        for (std::size_t i = 0; i < plan_.nodes.size(); ++i) {
            PlannedNode& node = plan_.nodes[i];
            if (node.spec.op == Op::conv) {
                try {
                    node.path = choose_path(node.spec.conv, node.spec.path_wish);
                } catch (const std::invalid_argument& error) {
                    throw std::runtime_error(title(i) + ": " + error.what());
                }
                node.spec.conv.path = node.path;
            }
        }
    }

    // Backwards, because what only moves codes about passes its readers' wishes on.
    void find_forms() {
        forms_.assign(plan_.tensors.size(), Forms{});
        forms_[index(plan_.input)].f32 = true;
        for (const int output : plan_.outputs) {
            forms_[index(output)].f32 = true;
        }
        for (auto node = plan_.nodes.rbegin(); node != plan_.nodes.rend(); ++node) {
            Forms made;
            for (const int output : node->spec.outputs) {
                Forms& forms = forms_[index(output)];
                if (!forms.any()) {  // nobody reads it, but it is written
                    forms.f32 = format(output).is_float();
                    forms.bytes = !forms.f32;
                }
                made.add(forms);
                node->bytes += traffic(plan_.tensors[index(output)].spec, forms);
            }
            for (std::size_t k = 0; k < node->spec.inputs.size(); ++k) {
                const int input = node->spec.inputs[k];
                const Forms read = forms_read(*node, format(input), made);
                forms_[index(input)].add(read);
                node->bytes += traffic(plan_.tensors[index(input)].spec, read);
            }
        }
    }

    void find_borders() {
        enum class State : std::uint8_t { unknown, low, high };
        std::vector<State> states(plan_.tensors.size(), State::unknown);
        for (PlannedNode& node : plan_.nodes) {
            const ConvSpec& conv = node.spec.conv;
            const int padding = std::max(conv.pad_h, conv.pad_w);
            if (node.spec.op != Op::conv || padding == 0) {
                continue;
            }
            const int input = node.spec.inputs.front();
            PlannedTensor& tensor = plan_.tensors[index(input)];
            tensor.border = std::max(tensor.border, padding);
            const State wanted = conv.pad == Pad::high ? State::high : State::low;
            if (states[index(input)] != wanted) {
                states[index(input)] = wanted;
                node.fills.push_back({input, conv.pad == Pad::high});
            }
        }
    }

    std::size_t size_of(const PlannedTensor& tensor, std::int64_t elements,
                        std::int64_t size) const {
        const std::int64_t rows = tensor.spec.height + 2 * std::int64_t{tensor.border};
        const std::int64_t columns = tensor.spec.width + 2 * std::int64_t{tensor.border};
        // Kernels address operands relative to a pixel in 32 bits.
        if (rows * columns * elements >= std::int64_t{1} << 31) {
            throw std::runtime_error("mode '" + plan_.mode + "': tensor " +
                                     std::to_string(tensor.spec.id) +
                                     " with its padding has more than 2^31 elements");
        }
        const std::int64_t bytes = rows * columns * elements * size + kSlack;
        return static_cast<std::size_t>(ceil_div(bytes, kAlignment)) * kAlignment;
    }

    template <class Action>
    void each_form(int i, Action action) {
        PlannedTensor& tensor = plan_.tensors[index(i)];
        const Forms& forms = forms_[index(i)];
        const Pixel pixel = pixel_of(tensor.spec);
        if (forms.f32) {
            action(tensor.f32, size_of(tensor, pixel.f32, 4));
        }
        if (forms.bits) {
            action(tensor.bits, size_of(tensor, pixel.words, 8));
        }
        if (forms.bytes) {
            action(tensor.bytes, size_of(tensor, pixel.bytes, 1));
        }
    }

    void place() {
        const std::size_t end = plan_.nodes.size();
        std::vector<std::size_t> last(plan_.tensors.size(), 0);
        for (std::size_t i = 0; i < end; ++i) {
            for (const int output : plan_.nodes[i].spec.outputs) {
                last[index(output)] = i;
            }
            for (const int input : plan_.nodes[i].spec.inputs) {
                last[index(input)] = i;
            }
        }
        for (const int output : plan_.outputs) {
            last[index(output)] = end;
        }
        std::vector<std::vector<int>> ending(end + 1);
        Arena arena(limits_.arena_bytes);
        const auto begin = [&](int tensor, const std::string& who) {
            each_form(tensor, [&](std::size_t& offset, std::size_t size) {
                offset = arena.take(size, who);
            });
            ending[last[index(tensor)]].push_back(tensor);
        };
        begin(plan_.input, "mode '" + plan_.mode + "': the input");
        for (std::size_t i = 0; i < end; ++i) {
            for (const int output : plan_.nodes[i].spec.outputs) {
                const int residual = overwritten(plan_.nodes[i].spec, output, i, last);
                auto& ends = ending[i];
                const auto found = std::find(ends.begin(), ends.end(), residual);
                if (found != ends.end()) {
                    plan_.tensors[index(output)].f32 = plan_.tensors[index(residual)].f32;
                    ends.erase(found);
                    ending[last[index(output)]].push_back(output);
                } else {
                    begin(output, title(i));
                }
            }
            for (const int tensor : ending[i]) {
                each_form(tensor, [&](const std::size_t& offset, std::size_t size) {
                    arena.give(offset, size);
                });
            }
        }
        plan_.arena_bytes = arena.top();
    }

    // A residual that is added to a result and needed no more: the result is written over it, which
    // halves the memory that a residual block streams through. Every element is read before it is
    // written, by the same task. -1 where there is none.
    int overwritten(const NodeSpec& spec, int output, std::size_t i,
                    const std::vector<std::size_t>& last) const {
        const auto only_floats = [&](int tensor) {
            const Forms& forms = forms_[index(tensor)];
            return forms.f32 && !forms.bits && !forms.bytes &&
                   plan_.tensors[index(tensor)].border == 0;
        };
        if (!only_floats(output)) {
            return -1;
        }
        int residual = -1;
        bool stored = false;
        for (const Step& step : spec.steps) {
            if (step.slot < 0) {
                continue;
            }
            const int tensor = spec.slots[static_cast<std::size_t>(step.slot)];
            stored = stored || (step.op == StepOp::store && tensor == output);
            if (step.op == StepOp::add && !stored && tensor != spec.inputs.front() &&
                last[index(tensor)] == i && only_floats(tensor)) {
                residual = tensor;
            } else if (tensor == residual) {
                return -1;  // read again, by another step
            }
        }
        return stored ? residual : -1;
    }

    void prepare(PlannedNode& node, std::size_t i) {
        NodeSpec& spec = node.spec;
        try {
            if (spec.op == Op::conv) {
                charge_weights(spec.conv, i);
                node.bytes += static_cast<std::int64_t>(spec.weight->size);
                node.conv = make_conv(spec);
                node.macs = node.conv.macs();
            } else if (spec.op == Op::pointwise) {
                const TensorSpec& in = plan_.tensors[index(spec.inputs.front())].spec;
                node.program = Program(in.channels, spec.steps);
            }
        } catch (const std::invalid_argument& error) {
            throw std::runtime_error(title(i) + ": " + error.what());
        }
        spec.steps.clear();
        spec.steps.shrink_to_fit();
        spec.weight = nullptr;
    }

    // An upper bound of what a prepared convolution allocates: blocks of 32 output channels, and
    // one more wherever a group ends inside a block.
    void charge_weights(const ConvSpec& conv, std::size_t i) {
        const std::int64_t blocks = ceil_div(conv.out_channels, kGroup) + conv.groups;
        const std::int64_t in = conv.group_in();
        const std::int64_t lane = conv.path == Path::bits ? conv.packed_words() * 8
                                  : conv.path == Path::int8
                                      ? conv.taps() * ceil_div(in, 4) * 4
                                      : conv.taps() * in * 4;
        budget_.charge(static_cast<std::uint64_t>(blocks * kGroup),
                       static_cast<std::uint64_t>(lane), title(i));
        budget_.charge(static_cast<std::uint64_t>(conv.out_height() + conv.out_width()),
                       sizeof(std::size_t), title(i));  // which correction a row or column takes
        if (conv.in.is_float() || conv.in.kind != Kind::bipolar || conv.pad != Pad::zero) {
            return;
        }
        // Corrections of zero padding: one vector for every way in which a window can hang over.
        const std::int64_t rows = std::min(conv.out_height(), 2 * conv.pad_h + 1);
        const std::int64_t columns = std::min(conv.out_width(), 2 * conv.pad_w + 1);
        budget_.charge(static_cast<std::uint64_t>(rows * columns),
                       static_cast<std::uint64_t>(4 * (conv.out_channels + kGroup)), title(i));
    }

    static Conv make_conv(const NodeSpec& spec) {
        const ConvSpec& conv = spec.conv;
        Program program(conv.out_channels, spec.steps);
        if (conv.weight.is_float()) {
            return Conv(conv, nullptr, spec.weight->as<float>(), std::move(program));
        }
        const auto* words = spec.weight->as<std::uint64_t>();
        const std::int64_t planes = spec.weight->shape[1];
        if (planes == conv.weight.bits) {
            return Conv(conv, words, nullptr, std::move(program));
        }
        // A nested quantiser at fewer bits: the first planes of every output channel.
        const std::int64_t kept = conv.packed_words();
        const std::int64_t stored = kept / conv.weight.bits * planes;
        std::vector<std::uint64_t> prefix;
        prefix.reserve(static_cast<std::size_t>(kept * conv.out_channels));
        for (int out = 0; out < conv.out_channels; ++out) {
            prefix.insert(prefix.end(), words + out * stored, words + out * stored + kept);
        }
        return Conv(conv, prefix.data(), nullptr, std::move(program));
    }

    const Limits& limits_;
    Budget& budget_;
    Plan plan_;
    std::vector<Forms> forms_;
};

}  // namespace

View PlannedTensor::view(std::byte* arena) const {
    View view;
    view.channels = spec.channels;
    view.height = spec.height;
    view.width = spec.width;
    view.border = border;
    view.planes = spec.format.bits;
    const std::ptrdiff_t origin = view.at(border, border);
    if (f32 != kAbsent) {
        view.f32 = reinterpret_cast<float*>(arena + f32) + origin * view.channels;
    }
    if (bits != kAbsent) {
        view.bits = reinterpret_cast<std::uint64_t*>(arena + bits) + origin * view.pixel_words();
    }
    if (bytes != kAbsent) {
        view.bytes = reinterpret_cast<std::uint8_t*>(arena + bytes) + origin * view.byte_stride();
    }
    return view;
}

Path choose_path(const ConvSpec& conv, PathWish wish) {
    if (conv.in.is_float()) {
        return Path::f32;
    }
    const bool depthwise = conv.groups > 1 && conv.group_in() == 1 && conv.group_out() == 1;
    if (depthwise && wish == PathWish::bits) {
        throw std::invalid_argument("a depthwise convolution has no bit path; use int8 or auto");
    }
    if (wish != PathWish::automatic) {
        return wish == PathWish::bits ? Path::bits : Path::int8;
    }
    // In units of one int8 step of four channels. Every pair of planes is counted, with about three
    // words' worth of work around it; windows that fill their words badly are re-packed, once for
    // all filters.
    const int pairs = conv.in.bits * conv.weight.bits;
    const std::int64_t depth = std::int64_t{conv.taps()} * conv.group_in();
    const bool narrow = conv.group_in() % 64 != 0;
    const std::int64_t words =
        narrow ? ceil_div(depth, 64) : std::int64_t{conv.taps()} * (conv.group_in() / 64);
    const std::int64_t quads = std::int64_t{conv.taps()} * ceil_div(conv.group_in(), 4);
    const double packing = narrow ? 2.0 * conv.taps() * conv.in.bits /
                                        static_cast<double>(ceil_div(conv.group_out(), kGroup))
                                  : 0.0;
    const bool bits = !depthwise && word_cost() * static_cast<double>(pairs * (words + 3)) +
                                            packing <=
                                        static_cast<double>(quads);
    return bits ? Path::bits : Path::int8;
}

Plan make_plan(GraphSpec graph, const Limits& limits, Budget& budget) {
    return Planner(std::move(graph), limits, budget).make();
}

}  // namespace foveate
