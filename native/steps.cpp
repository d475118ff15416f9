#include "steps.hpp"

#include <limits>
#include <stdexcept>
#include <string>

namespace foveate {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

int round_up(int n, int to) { return (n + to - 1) / to * to; }

}  // namespace

Program::Program(int n_channels, const std::vector<Step>& list)
    : channels(n_channels), padded(round_up(n_channels, kGroup)) {
    const auto width = static_cast<std::size_t>(channels);
    const auto keep_floats = [&](const std::vector<float>& row, float fill) -> const float* {
        if (row.empty()) {
            return nullptr;
        }
        if (row.size() != width) {
            refuse("a per-channel table has " + std::to_string(row.size()) + " entries, expected " +
                   std::to_string(width));
        }
        auto kept = std::make_unique<std::vector<float>>(row);
        kept->resize(static_cast<std::size_t>(padded), fill);
        floats_.push_back(std::move(kept));
        return floats_.back()->data();
    };
    const auto keep_table = [&](const auto& table, int levels, auto fill, auto& store) {
        using Value = decltype(fill);
        if (table.size() != width * static_cast<std::size_t>(levels)) {
            refuse("a threshold table has " + std::to_string(table.size()) + " entries, expected " +
                   std::to_string(levels) + " x " + std::to_string(width));
        }
        auto kept = std::make_unique<std::vector<Value>>(
            static_cast<std::size_t>(padded) * static_cast<std::size_t>(levels), fill);
        for (int j = 0; j < levels; ++j) {
            for (std::size_t c = 0; c < width; ++c) {
                (*kept)[static_cast<std::size_t>(j) * static_cast<std::size_t>(padded) + c] =
                    table[static_cast<std::size_t>(j) * width + c];
            }
        }
        store.push_back(std::move(kept));
        return static_cast<const Value*>(store.back()->data());
    };
    bool other = false;
    for (const Step& step : list) {
        StepData data;
        data.op = step.op;
        data.slot = step.slot;
        data.low = step.low;
        data.high = step.high;
        data.kind = step.format.kind;
        data.bits = step.format.bits;
        data.rounding = step.rounding;
        const bool writes_codes = step.op == StepOp::quantize ||
                                  step.op == StepOp::thresholds_int ||
                                  step.op == StepOp::thresholds_float;
        const bool needs_slot = writes_codes || step.op == StepOp::store ||
                                step.op == StepOp::store_sums || step.op == StepOp::add ||
                                step.op == StepOp::gate;
        if (needs_slot && step.slot < 0) {
            refuse("a step that reads or writes a tensor names none");
        }
        if (writes_codes && (step.format.bits < 1 || step.format.bits > 8 ||
                             step.format.kind == Kind::twos)) {
            refuse("codes of activations have 1 to 8 bits and are bipolar or unipolar");
        }
        if (step.op == StepOp::affine) {
            data.a = keep_floats(step.a, 0.0F);
            data.b = keep_floats(step.b, 0.0F);
        } else if (step.op == StepOp::prelu) {
            if (step.a.empty()) {
                refuse("a PReLU step has no slopes");
            }
            data.a = keep_floats(step.a, 0.0F);
        } else if (step.op == StepOp::quantize) {
            if (!(step.step > 0) || step.step > std::numeric_limits<float>::max()) {
                refuse("a quantiser's step must be positive and finite");
            }
            data.step = step.step;
            data.range = step.step * static_cast<float>(step.format.levels());
        } else if (step.op == StepOp::thresholds_int || step.op == StepOp::thresholds_float) {
            if (step.levels != step.format.levels()) {
                refuse("a threshold table has " + std::to_string(step.levels) +
                       " levels, expected " + std::to_string(step.format.levels()));
            }
            data.levels = step.levels;
            const bool integer = step.op == StepOp::thresholds_int;
            if (integer) {
                if (other) {
                    refuse("integer thresholds must come before every other step");
                }
                data.table_int = keep_table(step.table_int, step.levels,
                                            std::numeric_limits<std::int32_t>::max(), ints_);
            } else {
                data.table_float = keep_table(step.table_float, step.levels,
                                              std::numeric_limits<float>::infinity(), floats_);
            }
            if (!step.flip.empty()) {
                if (step.flip.size() != width) {
                    refuse("the flips of a threshold table do not have one entry a channel");
                }
                if (integer) {
                    auto inverted = std::make_unique<std::vector<std::uint32_t>>(
                        static_cast<std::size_t>(padded / kGroup), 0);
                    for (std::size_t c = 0; c < width; ++c) {
                        (*inverted)[c / kGroup] |= (step.flip[c] != 0 ? 1U : 0U) << (c % kGroup);
                        for (int j = 0; step.flip[c] != 0 && j < step.levels; ++j) {
                            std::int32_t& t =
                                (*ints_.back())[static_cast<std::size_t>(j) *
                                                    static_cast<std::size_t>(padded) +
                                                c];
                            // The smallest integer means always: no sum reaches the largest.
                            t = t <= -std::numeric_limits<std::int32_t>::max()
                                    ? std::numeric_limits<std::int32_t>::max()
                                    : 1 - t;
                        }
                    }
                    masks_.push_back(std::move(inverted));
                    data.inverted = masks_.back()->data();
                } else {
                    auto signs = std::make_unique<std::vector<std::int32_t>>(
                        static_cast<std::size_t>(padded), 0);
                    for (std::size_t c = 0; c < width; ++c) {
                        (*signs)[c] =
                            step.flip[c] != 0 ? std::numeric_limits<std::int32_t>::min() : 0;
                    }
                    ints_.push_back(std::move(signs));
                    data.flip = ints_.back()->data();
                }
            }
        }
        other = other || (step.op != StepOp::thresholds_int && step.op != StepOp::store_sums);
        data_.push_back(data);
    }
}

}  // namespace foveate
