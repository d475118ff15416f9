// A small strict JSON reader for untrusted model files.
//
// RFC 8259 and nothing more: no comments, no NaN, no trailing commas, no duplicate keys, valid
// UTF-8 only. Size, nesting, the number of values and the length of a number are bounded, so a
// hostile document costs no more than a large honest one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace foveate {

class Json {
  public:
    using Array = std::vector<Json>;
    using Member = std::pair<std::string, Json>;
    using Object = std::vector<Member>;  // sorted by key

    static constexpr std::size_t kMaxSize = std::size_t{64} << 20;  // bytes
    static constexpr int kMaxDepth = 32;
    static constexpr std::size_t kMaxValues = 4'000'000;
    static constexpr std::size_t kMaxNumberLength = 64;  // characters

    // Throws std::runtime_error with the byte offset of the first violation.
    static Json parse(std::string_view text);

    // A pointer to the value when it has that type, else null. A whole number written without
    // fraction or exponent that fits std::int64_t is an integer; every other one is a real.
    const bool* boolean() const { return std::get_if<bool>(&value_); }
    const std::int64_t* integer() const { return std::get_if<std::int64_t>(&value_); }
    const double* real() const { return std::get_if<double>(&value_); }
    const std::string* string() const { return std::get_if<std::string>(&value_); }
    const Array* array() const { return std::get_if<Array>(&value_); }
    const Object* object() const { return std::get_if<Object>(&value_); }
    bool is_null() const { return std::holds_alternative<std::monostate>(value_); }

    // The member of that name; null when there is none or this is no object.
    const Json* find(std::string_view key) const;

  private:
    friend class JsonParser;
    std::variant<std::monostate, bool, std::int64_t, double, std::string, Array, Object> value_;
};

}  // namespace foveate
