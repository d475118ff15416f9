#include "graph.hpp"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <set>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>

namespace foveate {
namespace {

constexpr std::size_t kMaxName = 256;  // bytes

struct OpName {
    Op op;
    const char* name;
};
constexpr OpName kOpNames[] = {
    {Op::conv, "conv"},           {Op::pointwise, "pointwise"}, {Op::pool, "pool"},
    {Op::global_avg, "global_avg"}, {Op::concat, "concat"},     {Op::flatten, "flatten"},
    {Op::softmax, "softmax"},     {Op::upsample, "upsample"},   {Op::shuffle, "shuffle"},
    {Op::slice, "slice"},
};

struct StepName {
    StepOp op;
    const char* name;
};
constexpr StepName kStepNames[] = {
    {StepOp::affine, "affine"},   {StepOp::gate, "gate"},         {StepOp::add, "add"},
    {StepOp::relu, "relu"},       {StepOp::clip, "clip"},         {StepOp::prelu, "prelu"},
    {StepOp::sigmoid, "sigmoid"}, {StepOp::silu, "silu"},         {StepOp::hswish, "hswish"},
    {StepOp::store, "store"},     {StepOp::quantize, "quantize"},
    {StepOp::thresholds_float, "thresholds"},  // integer ones differ by their table
};

// One JSON object with the words that name it in an error.
class Fields {
  public:
    Fields(const Json& json, std::string title) : title_(std::move(title)) {
        if (json.object() == nullptr) {
            fail("expected an object");
        }
        json_ = &json;
    }

    [[noreturn]] void fail(const std::string& what) const {
        throw std::runtime_error(title_ + ": " + what);
    }

    const std::string& title() const { return title_; }

    // Refuses members that nothing here would read: what is ignored might have mattered.
    void only(std::initializer_list<std::string_view> known) const {
        for (const Json::Member& member : *json_->object()) {
            if (std::find(known.begin(), known.end(), member.first) == known.end()) {
                fail("does not know '" + member.first.substr(0, kMaxName) + "'");
            }
        }
    }

    // Present and not null.
    bool has(std::string_view key) const {
        const Json* value = json_->find(key);
        return value != nullptr && !value->is_null();
    }

    const Json& at(std::string_view key) const {
        const Json* value = json_->find(key);
        if (value == nullptr) {
            fail("lacks '" + std::string(key) + "'");
        }
        return *value;
    }

    const std::string& text(std::string_view key) const {
        const std::string* value = at(key).string();
        if (value == nullptr || value->size() > kMaxName) {
            fail("'" + std::string(key) + "' is not a string of at most 256 bytes");
        }
        return *value;
    }

    // Which of the words it is.
    int choice(std::string_view key, std::initializer_list<std::string_view> words) const {
        const std::string* value = at(key).string();
        std::string list;
        int index = 0;
        for (const std::string_view word : words) {
            if (value != nullptr && *value == word) {
                return index;
            }
            ++index;
            list += (list.empty() ? "" : ", ") + std::string(word);
        }
        fail("'" + std::string(key) + "' is none of " + list);
    }

    bool flag(std::string_view key) const {
        const bool* value = at(key).boolean();
        if (value == nullptr) {
            fail("'" + std::string(key) + "' is not true or false");
        }
        return *value;
    }

    int integer(std::string_view key, int low, int high) const {
        return integer_of(at(key), key, low, high);
    }

    std::int64_t id(std::string_view key) const { return id_of(at(key), key); }

    float real(std::string_view key) const {
        const Json& value = at(key);
        double wide = 0;
        if (const std::int64_t* whole = value.integer()) {
            wide = static_cast<double>(*whole);
        } else if (const double* fraction = value.real()) {
            wide = *fraction;
        } else {
            fail("'" + std::string(key) + "' is not a number");
        }
        if (std::abs(wide) > static_cast<double>(std::numeric_limits<float>::max())) {
            fail("'" + std::string(key) + "' is out of the range of float32");
        }
        return static_cast<float>(wide);
    }

    const Json::Array& array(std::string_view key, std::size_t most) const {
        const Json::Array* value = at(key).array();
        if (value == nullptr) {
            fail("'" + std::string(key) + "' is not a list");
        }
        if (value->size() > most) {
            fail("'" + std::string(key) + "' has more than " + std::to_string(most) + " entries");
        }
        return *value;
    }

    std::pair<int, int> pair(std::string_view key, int low, int high) const {
        const Json::Array& both = array(key, 2);
        if (both.size() != 2) {
            fail("'" + std::string(key) + "' is not a list of two integers");
        }
        return {integer_of(both[0], key, low, high), integer_of(both[1], key, low, high)};
    }

    std::vector<std::int64_t> ids(std::string_view key, std::size_t most) const {
        std::vector<std::int64_t> found;
        for (const Json& value : array(key, most)) {
            found.push_back(id_of(value, key));
        }
        return found;
    }

  private:
    int integer_of(const Json& value, std::string_view key, int low, int high) const {
        const std::int64_t* whole = value.integer();
        if (whole == nullptr || *whole < low || *whole > high) {
            fail("'" + std::string(key) + "' is not an integer from " + std::to_string(low) +
                 " to " + std::to_string(high));
        }
        return static_cast<int>(*whole);
    }

    std::int64_t id_of(const Json& value, std::string_view key) const {
        const std::int64_t* whole = value.integer();
        if (whole == nullptr || *whole < 0 || *whole > std::numeric_limits<int>::max()) {
            fail("'" + std::string(key) + "' is not a tensor id");
        }
        return *whole;
    }

    const Json* json_ = nullptr;
    std::string title_;
};

Format read_format(const Fields& fields, std::string_view key) {
    const Json& value = fields.at(key);
    if (value.string() != nullptr) {
        if (*value.string() != "f32") {
            fields.fail("'" + std::string(key) + "' is neither \"f32\" nor a code format");
        }
        return Format{};
    }
    const Fields code(value, fields.title() + ", " + std::string(key));
    code.only({"kind", "bits"});
    Format format;
    constexpr Kind kinds[] = {Kind::bipolar, Kind::unipolar, Kind::twos};
    format.kind = kinds[code.choice("kind", {"bipolar", "unipolar", "twos"})];
    format.bits = code.integer("bits", 1, 8);
    return format;
}

std::string format_text(const Format& format) {
    if (format.is_float()) {
        return "f32";
    }
    const char* kind = format.kind == Kind::bipolar    ? "bipolar"
                       : format.kind == Kind::unipolar ? "unipolar"
                                                       : "twos";
    return std::to_string(format.bits) + "-bit " + kind;
}

bool same_format(const Format& a, const Format& b) {
    return a.bits == b.bits && (a.is_float() || a.kind == b.kind);
}

std::string shape_text(int channels, int height, int width) {
    return "(" + std::to_string(channels) + ", " + std::to_string(height) + ", " +
           std::to_string(width) + ")";
}

std::uint64_t ceil_div(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------- one graph

class GraphReader {
  public:
    GraphReader(const ModelFile& file, Budget& budget, std::string mode)
        : file_(file), budget_(budget) {
        graph_.mode = std::move(mode);
    }

    GraphSpec read(const Fields& fields) {
        fields.only({"version", "inputs", "outputs", "tensors", "nodes", "meta"});
        if (fields.integer("version", 0, std::numeric_limits<int>::max()) != 1) {
            fields.fail("the graph has a version that this engine does not know");
        }
        read_tensors(fields);
        const std::vector<std::int64_t> inputs = fields.ids("inputs", kMaxTensors);
        if (inputs.size() != 1) {
            fields.fail("has " + std::to_string(inputs.size()) + " inputs, expected one");
        }
        graph_.input = index_of(fields, inputs.front());
        if (!tensor(graph_.input).format.is_float()) {
            fields.fail("the input is not f32");
        }
        written_[static_cast<std::size_t>(graph_.input)] = true;

        const Json::Array& nodes = fields.array("nodes", kMaxNodes);
        for (std::size_t i = 0; i < nodes.size(); ++i) {
            read_node(nodes[i], i);
        }
        for (const std::int64_t id : fields.ids("outputs", kMaxTensors)) {
            const int index = readable(fields, id);
            if (!tensor(index).format.is_float()) {
                fields.fail("output tensor " + std::to_string(id) + " is not f32");
            }
            graph_.outputs.push_back(index);
        }
        if (graph_.outputs.empty()) {
            fields.fail("has no outputs");
        }
        return std::move(graph_);
    }

  private:
    const TensorSpec& tensor(int index) const {
        return graph_.tensors[static_cast<std::size_t>(index)];
    }

    int index_of(const Fields& fields, std::int64_t id) const {
        const auto found = index_.find(id);
        if (found == index_.end()) {
            fields.fail("names tensor " + std::to_string(id) + ", which does not exist");
        }
        return found->second;
    }

    int readable(const Fields& fields, std::int64_t id) const {
        const int index = index_of(fields, id);
        if (!written_[static_cast<std::size_t>(index)]) {
            fields.fail("reads tensor " + std::to_string(id) +
                        ", which no earlier node has written");
        }
        return index;
    }

    void read_tensors(const Fields& fields) {
        const Json::Array& list = fields.array("tensors", kMaxTensors);
        for (std::size_t i = 0; i < list.size(); ++i) {
            const Fields one(list[i], fields.title() + ": tensor entry " + std::to_string(i));
            one.only({"id", "shape", "format"});
            TensorSpec spec;
            spec.id = one.id("id");
            const Json::Array& shape = one.array("shape", 3);
            const int most[3] = {kMaxChannels, kMaxExtent, kMaxExtent};
            int* const extents[3] = {&spec.channels, &spec.height, &spec.width};
            for (std::size_t d = 0; d < 3; ++d) {
                const std::int64_t* extent = shape.size() == 3 ? shape[d].integer() : nullptr;
                if (extent == nullptr || *extent < 1 || *extent > most[d]) {
                    one.fail("the shape is not (C, H, W) with C up to " +
                             std::to_string(kMaxChannels) + ", H and W up to " +
                             std::to_string(kMaxExtent));
                }
                *extents[d] = static_cast<int>(*extent);
            }
            if (spec.elements() > kMaxElements) {
                one.fail("has more than 2^28 elements");
            }
            spec.format = read_format(one, "format");
            if (!spec.format.is_float() && spec.format.kind == Kind::twos) {
                one.fail("two's complement is a format of weights, not of activations");
            }
            if (!index_.emplace(spec.id, static_cast<int>(i)).second) {
                one.fail("the id " + std::to_string(spec.id) + " is taken twice");
            }
            graph_.tensors.push_back(spec);
        }
        written_.assign(graph_.tensors.size(), false);
    }

    // ------------------------------------------------------------ blobs

    const Blob* blob(const Fields& owner, const char* role, bool needed) const {
        const Json* value = owner.at("blobs").find(role);
        if (value == nullptr) {
            if (needed) {
                owner.fail(std::string("lacks the blob '") + role + "'");
            }
            return nullptr;
        }
        const std::int64_t* index = value->integer();
        if (index == nullptr || *index < 1 ||
            *index >= static_cast<std::int64_t>(file_.blobs().size())) {
            owner.fail(std::string("the blob '") + role + "' does not exist");
        }
        return &file_.blobs()[static_cast<std::size_t>(*index)];
    }

    void only_blobs(const Fields& owner, std::initializer_list<std::string_view> known) const {
        Fields(owner.at("blobs"), owner.title() + ", blobs").only(known);
    }

    template <class T>
    std::vector<T> table(const Fields& owner, const char* role, BlobType type,
                         const std::vector<std::int64_t>& shape, bool needed) {
        const Blob* found = blob(owner, role, needed);
        if (found == nullptr) {
            return {};
        }
        if (found->type != type || found->shape != shape) {
            std::string expected;
            for (const std::int64_t extent : shape) {
                expected += (expected.empty() ? "" : " x ") + std::to_string(extent);
            }
            const char* name = type == BlobType::f32 ? "f32" : type == BlobType::i32 ? "i32" : "u8";
            owner.fail(std::string("the blob '") + role + "' is not " + name + " of shape " +
                       expected);
        }
        const std::size_t count = found->size / sizeof(T);
        // Ours, and the program's, whose rows are whole groups of channels.
        const auto channels = static_cast<std::size_t>(shape.back());
        budget_.charge(count + count / channels * (channels + kGroup), sizeof(T), owner.title());
        return std::vector<T>(found->as<T>(), found->as<T>() + count);
    }

    // ------------------------------------------------------------ nodes

    void read_node(const Json& json, std::size_t index) {
        const std::string place =
            "mode '" + graph_.mode + "': node " + std::to_string(index);
        const Fields untitled(json, place);
        NodeSpec node;
        node.name = untitled.text("name");
        const std::string& op = untitled.text("op");
        const auto* known = std::find_if(std::begin(kOpNames), std::end(kOpNames),
                                         [&](const OpName& entry) { return op == entry.name; });
        if (known == std::end(kOpNames)) {
            untitled.fail("the operation '" + op + "' is unknown");
        }
        node.op = known->op;
        const Fields fields(json, "mode '" + graph_.mode + "': " + node.title(index));
        fields.only({"op", "name", "inputs", "outputs", "attrs", "blobs", "steps"});
        for (const std::int64_t id : fields.ids("inputs", kMaxTensors)) {
            node.inputs.push_back(readable(fields, id));
        }
        for (const std::int64_t id : fields.ids("outputs", kMaxSteps)) {
            const int output = index_of(fields, id);
            if (written_[static_cast<std::size_t>(output)]) {
                fields.fail("writes tensor " + std::to_string(id) + " a second time");
            }
            written_[static_cast<std::size_t>(output)] = true;
            node.outputs.push_back(output);
        }
        if (node.inputs.empty() || node.outputs.empty()) {
            fields.fail("has no input or no output");
        }
        if (node.op != Op::concat && node.inputs.size() != 1) {
            fields.fail("has " + std::to_string(node.inputs.size()) + " inputs, expected one");
        }
        const Fields attrs(fields.at("attrs"), fields.title());
        if (node.op == Op::conv) {
            read_conv(node, fields, attrs);
        } else if (node.op == Op::pointwise) {
            attrs.only({});
            only_blobs(fields, {});
            const TensorSpec& in = tensor(node.inputs.front());
            read_steps(node, fields, in.channels, in.height, in.width, !in.format.is_float());
        } else {
            only_blobs(fields, {});
            if (!fields.array("steps", kMaxSteps).empty()) {
                fields.fail("has steps, which only conv and pointwise may have");
            }
            if (node.outputs.size() != 1) {
                fields.fail("has more than one output");
            }
            read_plain(node, fields, attrs);
        }
        graph_.nodes.push_back(std::move(node));
    }

    void check_output(const NodeSpec& node, const Fields& fields, std::int64_t channels,
                      std::int64_t height, std::int64_t width, const Format& format) const {
        const TensorSpec& out = tensor(node.outputs.front());
        if (out.channels != channels || out.height != height || out.width != width) {
            fields.fail("writes shape (" + std::to_string(channels) + ", " +
                        std::to_string(height) + ", " + std::to_string(width) + ") to tensor " +
                        std::to_string(out.id) + " of shape " +
                        shape_text(out.channels, out.height, out.width));
        }
        if (!same_format(out.format, format)) {
            fields.fail("writes " + format_text(format) + " to tensor " + std::to_string(out.id) +
                        " of format " + format_text(out.format));
        }
    }

    void need_float(const Fields& fields, const TensorSpec& in) const {
        if (!in.format.is_float()) {
            fields.fail("reads tensor " + std::to_string(in.id) + ", which is not f32");
        }
    }

    void read_plain(NodeSpec& node, const Fields& fields, const Fields& attrs) {
        const TensorSpec& in = tensor(node.inputs.front());
        switch (node.op) {
            case Op::pool: read_pool(node, fields, attrs); break;
            case Op::global_avg:
                attrs.only({"scale"});
                if (!in.format.is_float()) {
                    node.scale = attrs.real("scale");
                    if (!(node.scale > 0)) {
                        attrs.fail("'scale' is not positive");
                    }
                } else if (attrs.has("scale")) {
                    attrs.fail("'scale' is for codes only");
                }
                check_output(node, fields, in.channels, 1, 1, Format{});
                break;
            case Op::concat: {
                attrs.only({});
                std::int64_t channels = 0;
                for (const int input : node.inputs) {
                    const TensorSpec& part = tensor(input);
                    if (part.height != in.height || part.width != in.width ||
                        !same_format(part.format, in.format)) {
                        fields.fail("joins tensors of different sizes or formats");
                    }
                    channels += part.channels;
                }
                check_output(node, fields, channels, in.height, in.width, in.format);
                break;
            }
            case Op::flatten:
                attrs.only({});
                check_output(node, fields, in.elements(), 1, 1, in.format);
                break;
            case Op::softmax:
                attrs.only({});
                need_float(fields, in);
                check_output(node, fields, in.channels, in.height, in.width, in.format);
                break;
            case Op::upsample: {
                attrs.only({"scale", "mode"});
                node.factor = attrs.integer("scale", 1, kMaxWindow);
                node.bilinear = attrs.choice("mode", {"nearest", "bilinear"}) == 1;
                if (node.bilinear) {
                    need_float(fields, in);
                }
                check_output(node, fields, in.channels, std::int64_t{in.height} * node.factor,
                             std::int64_t{in.width} * node.factor, in.format);
                break;
            }
            case Op::shuffle:
                attrs.only({"groups"});
                node.groups = attrs.integer("groups", 1, kMaxChannels);
                if (in.channels % node.groups != 0) {
                    attrs.fail("the channels do not divide into the groups");
                }
                check_output(node, fields, in.channels, in.height, in.width, in.format);
                break;
            default: {  // slice
                attrs.only({"start", "stop"});
                node.start = attrs.integer("start", 0, in.channels - 1);
                const int stop = attrs.integer("stop", node.start + 1, in.channels);
                check_output(node, fields, stop - node.start, in.height, in.width, in.format);
                break;
            }
        }
    }

    void read_pool(NodeSpec& node, const Fields& fields, const Fields& attrs) {
        attrs.only({"kind", "kernel", "stride", "padding", "ceil_mode", "count_include_pad"});
        const TensorSpec& in = tensor(node.inputs.front());
        PoolSpec& pool = node.pool;
        pool.max = attrs.choice("kind", {"max", "avg"}) == 0;
        if (!pool.max) {
            need_float(fields, in);
        }
        std::tie(pool.kernel_h, pool.kernel_w) = attrs.pair("kernel", 1, kMaxPool);
        std::tie(pool.stride_h, pool.stride_w) = attrs.pair("stride", 1, kMaxPool);
        std::tie(pool.pad_h, pool.pad_w) = attrs.pair("padding", 0, kMaxPool);
        pool.count_include_pad = attrs.flag("count_include_pad");
        const bool ceil_mode = attrs.flag("ceil_mode");
        if (2 * pool.pad_h > pool.kernel_h || 2 * pool.pad_w > pool.kernel_w) {
            attrs.fail("the padding is more than half the kernel");
        }
        const auto extent = [&](int size, int kernel, int stride, int pad) {
            const int room = size + 2 * pad - kernel + (ceil_mode ? stride - 1 : 0);
            int out = room < 0 ? 0 : room / stride + 1;
            // As torch: the last window begins inside the picture or its left padding.
            if (ceil_mode && (out - 1) * stride >= size + pad) {
                --out;
            }
            if (out < 1) {
                attrs.fail("the window is larger than the padded input");
            }
            return out;
        };
        const int height = extent(in.height, pool.kernel_h, pool.stride_h, pool.pad_h);
        const int width = extent(in.width, pool.kernel_w, pool.stride_w, pool.pad_w);
        check_output(node, fields, in.channels, height, width, in.format);
    }

    void read_conv(NodeSpec& node, const Fields& fields, const Fields& attrs) {
        const TensorSpec& in = tensor(node.inputs.front());
        if (in.format.is_float()) {
            attrs.only({"kernel", "stride", "padding", "dilation", "groups", "pad"});
        } else {
            attrs.only({"kernel", "stride", "padding", "dilation", "groups", "pad",
                        "weight_format", "path"});
        }
        only_blobs(fields, {"weight"});
        ConvSpec& conv = node.conv;
        conv.in_channels = in.channels;
        conv.in_height = in.height;
        conv.in_width = in.width;
        conv.in = in.format;
        std::tie(conv.kernel_h, conv.kernel_w) = attrs.pair("kernel", 1, kMaxWindow);
        std::tie(conv.stride_h, conv.stride_w) = attrs.pair("stride", 1, kMaxWindow);
        std::tie(conv.pad_h, conv.pad_w) = attrs.pair("padding", 0, kMaxPadding);
        std::tie(conv.dilation_h, conv.dilation_w) = attrs.pair("dilation", 1, kMaxWindow);
        conv.groups = attrs.integer("groups", 1, kMaxChannels);
        if (in.channels % conv.groups != 0) {
            attrs.fail("the input channels do not divide into the groups");
        }
        if (conv.dilation_h * (conv.kernel_h - 1) >= in.height + 2 * conv.pad_h ||
            conv.dilation_w * (conv.kernel_w - 1) >= in.width + 2 * conv.pad_w) {
            attrs.fail("the window is larger than the padded input");
        }
        constexpr Pad pads[] = {Pad::zero, Pad::low, Pad::high};
        conv.pad = pads[attrs.choice("pad", {"zero", "low", "high"})];
        const Blob* weight = blob(fields, "weight", true);
        node.weight = weight;
        if (in.format.is_float()) {
            if (conv.pad != Pad::zero) {
                attrs.fail("a float convolution is padded with zero");
            }
            if (weight->type != BlobType::f32 || weight->shape.size() != 4 ||
                weight->shape[1] != conv.group_in() || weight->shape[2] != conv.kernel_h ||
                weight->shape[3] != conv.kernel_w) {
                fields.fail("the weights are not f32 of shape (Co, " +
                            std::to_string(conv.group_in()) + ", " +
                            std::to_string(conv.kernel_h) + ", " + std::to_string(conv.kernel_w) +
                            ")");
            }
            refuse_infinite(fields, weight->as<float>(), weight->size / sizeof(float));
        } else {
            conv.weight = read_format(attrs, "weight_format");
            if (conv.weight.is_float()) {
                fields.fail("convolves codes with float weights");
            }
            constexpr PathWish wishes[] = {PathWish::automatic, PathWish::bits, PathWish::int8};
            node.path_wish = wishes[attrs.choice("path", {"auto", "bits", "int8"})];
            const std::int64_t words = static_cast<std::int64_t>(
                ceil_div(static_cast<std::uint64_t>(conv.group_in()), 64));
            if (weight->type != BlobType::packed || weight->shape.size() != 5 ||
                weight->shape[1] < conv.weight.bits || weight->shape[1] > 8 ||
                weight->shape[2] != conv.kernel_h || weight->shape[3] != conv.kernel_w ||
                weight->shape[4] != words) {
                fields.fail("the weights are not packed codes of shape (Co, " +
                            std::to_string(conv.weight.bits) + " or more planes, " +
                            std::to_string(conv.kernel_h) + ", " + std::to_string(conv.kernel_w) +
                            ", " + std::to_string(words) + " words)");
            }
            refuse_stray_bits(fields, *weight, conv.group_in());
            const std::int64_t terms = std::int64_t{conv.taps()} * conv.group_in();
            if (std::int64_t{conv.in.levels()} * conv.weight.levels() * terms >=
                std::int64_t{1} << 31) {
                fields.fail("the sum over a window may leave 32 bits");
            }
        }
        const std::int64_t out_channels = weight->shape[0];
        if (out_channels > kMaxChannels || out_channels % conv.groups != 0) {
            fields.fail("has " + std::to_string(out_channels) +
                        " output channels, which are too many or do not divide into the groups");
        }
        conv.out_channels = static_cast<int>(out_channels);
        read_steps(node, fields, conv.out_channels, conv.out_height(), conv.out_width(),
                   !in.format.is_float());
    }

    // Bits behind the last channel would be counted.
    static void refuse_stray_bits(const Fields& fields, const Blob& weight, int channels) {
        if (channels % 64 == 0) {
            return;
        }
        const std::size_t words = (static_cast<std::size_t>(channels) + 63) / 64;
        const std::uint64_t allowed = (std::uint64_t{1} << (channels % 64)) - 1;
        const auto* word = weight.as<std::uint64_t>();
        for (std::size_t i = words - 1; i < weight.size / 8; i += words) {
            if ((word[i] & ~allowed) != 0) {
                fields.fail("the weights have bits behind the last channel");
            }
        }
    }

    // ------------------------------------------------------------ steps

    // `integers`: the running value begins as an integer.
    void read_steps(NodeSpec& node, const Fields& fields, int channels, int height, int width,
                    bool integers) {
        std::set<int> unwritten(node.outputs.begin(), node.outputs.end());
        const Json::Array& list = fields.array("steps", kMaxSteps);
        for (std::size_t i = 0; i < list.size(); ++i) {
            const Fields one(list[i], fields.title() + ": step " + std::to_string(i));
            one.only({"op", "attrs", "blobs", "input", "output"});
            const std::string& name = one.text("op");
            const auto* known =
                std::find_if(std::begin(kStepNames), std::end(kStepNames),
                             [&](const StepName& entry) { return name == entry.name; });
            if (known == std::end(kStepNames)) {
                one.fail("the step '" + name + "' is unknown");
            }
            Step step;
            step.op = known->op;
            const bool writes = step.op == StepOp::store || step.op == StepOp::quantize ||
                                step.op == StepOp::thresholds_float;
            const bool reads = step.op == StepOp::add || step.op == StepOp::gate;
            if (one.has("output") != writes) {
                one.fail("an output belongs to store, quantize and thresholds only");
            }
            if (one.has("input") != reads) {
                one.fail("an input belongs to gate and add only");
            }
            const TensorSpec value{0, channels, height, width, {}};
            if (writes) {
                add_output(node, step, one, value, unwritten);
            }
            if (reads) {
                add_input(node, step, one, value);
            }
            read_step(step, one, channels, integers);
            integers = integers && step.op == StepOp::thresholds_int;
            node.steps.push_back(std::move(step));
        }
        if (!unwritten.empty()) {
            fields.fail("no step writes its output tensor " +
                        std::to_string(tensor(*unwritten.begin()).id));
        }
    }

    void add_output(NodeSpec& node, Step& step, const Fields& one, const TensorSpec& value,
                    std::set<int>& unwritten) {
        const int output = index_of(one, one.id("output"));
        const TensorSpec& out = tensor(output);
        if (unwritten.erase(output) == 0) {
            one.fail("writes tensor " + std::to_string(out.id) +
                     ", which is no output of the node or has been written");
        }
        if (out.channels != value.channels || out.height != value.height ||
            out.width != value.width) {
            one.fail("writes shape " + shape_text(value.channels, value.height, value.width) +
                     " to tensor " + std::to_string(out.id) + " of shape " +
                     shape_text(out.channels, out.height, out.width));
        }
        if (out.format.is_float() != (step.op == StepOp::store)) {
            one.fail("cannot write tensor " + std::to_string(out.id) + " of format " +
                     format_text(out.format));
        }
        step.format = out.format;
        step.slot = static_cast<int>(node.slots.size());
        node.slots.push_back(output);
    }

    void add_input(NodeSpec& node, Step& step, const Fields& one, const TensorSpec& value) {
        const int input = readable(one, one.id("input"));
        const TensorSpec& in = tensor(input);
        if (std::find(node.outputs.begin(), node.outputs.end(), input) != node.outputs.end()) {
            one.fail("reads tensor " + std::to_string(in.id) + ", an output of its own node");
        }
        need_float(one, in);
        const bool vector = step.op == StepOp::gate;
        const int height = vector ? 1 : value.height;
        const int width = vector ? 1 : value.width;
        if (in.channels != value.channels || in.height != height || in.width != width) {
            one.fail("reads tensor " + std::to_string(in.id) + " of shape " +
                     shape_text(in.channels, in.height, in.width) + ", expected " +
                     shape_text(value.channels, height, width));
        }
        step.slot = static_cast<int>(node.slots.size());
        node.slots.push_back(input);
        node.inputs.push_back(input);
    }

    void read_step(Step& step, const Fields& one, int channels, bool integers) {
        const Fields attrs(one.at("attrs"), one.title());
        const std::vector<std::int64_t> row(1, channels);
        const auto floats = [&](const char* role, bool needed) {
            std::vector<float> values = table<float>(one, role, BlobType::f32, row, needed);
            refuse_infinite(one, values.data(), values.size());
            return values;
        };
        switch (step.op) {
            case StepOp::affine:
                attrs.only({});
                only_blobs(one, {"alpha", "beta"});
                step.a = floats("alpha", false);
                step.b = floats("beta", false);
                if (step.a.empty() && step.b.empty()) {
                    one.fail("has neither the blob 'alpha' nor 'beta'");
                }
                break;
            case StepOp::prelu:
                attrs.only({});
                only_blobs(one, {"slope"});
                step.a = floats("slope", true);
                break;
            case StepOp::clip:
                attrs.only({"low", "high"});
                only_blobs(one, {});
                step.low = attrs.real("low");
                step.high = attrs.real("high");
                if (step.low > step.high) {
                    attrs.fail("'low' is above 'high'");
                }
                break;
            case StepOp::quantize: {
                attrs.only({"step", "round"});
                only_blobs(one, {});
                step.step = attrs.real("step");
                if (!(step.step > 0)) {
                    attrs.fail("'step' is not positive");
                }
                constexpr Rounding roundings[] = {Rounding::half_up, Rounding::half_even,
                                                  Rounding::floor};
                step.rounding = roundings[attrs.choice("round", {"half_up", "half_even", "floor"})];
                break;
            }
            case StepOp::thresholds_float:
                attrs.only({});
                only_blobs(one, {"table", "flip"});
                read_thresholds(step, one, channels, integers);
                break;
            default:
                attrs.only({});
                only_blobs(one, {});
                break;
        }
    }

    void read_thresholds(Step& step, const Fields& one, int channels, bool integers) {
        step.levels = step.format.levels();
        const std::vector<std::int64_t> shape{step.levels, channels};
        if (integers) {
            step.op = StepOp::thresholds_int;
            step.table_int = table<std::int32_t>(one, "table", BlobType::i32, shape, true);
            refuse_descent(one, step.table_int, channels);
        } else {
            step.op = StepOp::thresholds_float;
            step.table_float = table<float>(one, "table", BlobType::f32, shape, true);
            refuse_descent(one, step.table_float, channels);
        }
        step.flip = table<std::uint8_t>(one, "flip", BlobType::u8,
                                        std::vector<std::int64_t>(1, channels), true);
        if (std::any_of(step.flip.begin(), step.flip.end(),
                        [](std::uint8_t flip) { return flip > 1; })) {
            one.fail("a flip is neither 0 nor 1");
        }
    }

    static void refuse_infinite(const Fields& owner, const float* values, std::size_t count) {
        if (!std::all_of(values, values + count, [](float v) { return std::isfinite(v); })) {
            owner.fail("a weight or factor is not finite");
        }
    }

    // Also refuses not-a-number.
    template <class T>
    static void refuse_descent(const Fields& one, const std::vector<T>& table, int channels) {
        const auto width = static_cast<std::size_t>(channels);
        for (std::size_t i = 0; i < table.size(); ++i) {
            const T before = i < width ? table[i] : table[i - width];
            if (!(before <= table[i])) {
                one.fail("the thresholds of a channel do not ascend");
            }
        }
    }

    const ModelFile& file_;
    Budget& budget_;
    GraphSpec graph_;
    std::unordered_map<std::int64_t, int> index_;
    std::vector<bool> written_;
};

}  // namespace

void Budget::charge(std::uint64_t count, std::uint64_t size, const std::string& what) {
    if (size != 0 && count > left_ / size) {
        throw std::runtime_error(what + ": the model needs more memory than the limit of " +
                                 std::to_string(limit_) + " bytes");
    }
    left_ -= static_cast<std::size_t>(count * size);
}

const char* op_name(Op op) {
    for (const OpName& entry : kOpNames) {
        if (entry.op == op) {
            return entry.name;
        }
    }
    return "";
}

std::string NodeSpec::title(std::size_t index) const {
    return "node " + std::to_string(index) + " '" + name + "' (" + op_name(op) + ")";
}

std::vector<GraphSpec> read_modes(const ModelFile& file, Budget& budget) {
    const Fields top(file.document(), "model");
    top.only({"version", "modes", "meta"});
    if (top.integer("version", 0, std::numeric_limits<int>::max()) != 1) {
        top.fail("the document has a version that this engine does not know");
    }
    const Json::Array& modes = top.array("modes", kMaxModes);
    if (modes.empty()) {
        top.fail("has no modes");
    }
    std::vector<GraphSpec> graphs;
    std::set<std::string> names;
    for (std::size_t i = 0; i < modes.size(); ++i) {
        const Fields entry(modes[i], "mode " + std::to_string(i));
        entry.only({"name", "graph"});
        const std::string& name = entry.text("name");
        if (!names.insert(name).second) {
            entry.fail("the name '" + name + "' is taken twice");
        }
        const Fields graph(entry.at("graph"), "mode '" + name + "'");
        graphs.push_back(GraphReader(file, budget, name).read(graph));
    }
    return graphs;
}

}  // namespace foveate
