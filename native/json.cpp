#include "json.hpp"

#include <algorithm>
#include <cmath>
#include <locale>
#include <optional>
#include <sstream>
#include <stdexcept>

namespace foveate {

class JsonParser {
  public:
    explicit JsonParser(std::string_view text) : text_(text) {}

    Json document() {
        Json result = value(0);
        skip_space();
        if (at_ != text_.size()) {
            fail("has something after its end");
        }
        return result;
    }

  private:
    [[noreturn]] void fail(const std::string& what) const {
        throw std::runtime_error("JSON " + what + " (byte " + std::to_string(at_) + ")");
    }

    bool done() const { return at_ == text_.size(); }

    unsigned char peek() const {
        if (done()) {
            fail("ends too early");
        }
        return static_cast<unsigned char>(text_[at_]);
    }

    void skip_space() {
        while (!done() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' ||
                           text_[at_] == '\r')) {
            ++at_;
        }
    }

    void expect(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) {
            fail("has an unknown word");
        }
        at_ += word.size();
    }

    Json value(int depth) {
        if (depth > Json::kMaxDepth) {
            fail("is nested deeper than " + std::to_string(Json::kMaxDepth) + " levels");
        }
        if (++values_ > Json::kMaxValues) {
            fail("has more than " + std::to_string(Json::kMaxValues) + " values");
        }
        skip_space();
        Json result;
        switch (peek()) {
            case '{': result.value_ = object(depth); break;
            case '[': result.value_ = array(depth); break;
            case '"': result.value_ = string(); break;
            case 't':
                expect("true");
                result.value_ = true;
                break;
            case 'f':
                expect("false");
                result.value_ = false;
                break;
            case 'n': expect("null"); break;
            default: number(result); break;
        }
        return result;
    }

    Json::Object object(int depth) {
        Json::Object members;
        ++at_;
        skip_space();
        if (peek() == '}') {
            ++at_;
            return members;
        }
        for (;;) {
            skip_space();
            if (peek() != '"') {
                fail("has a member without a name");
            }
            std::string key = string();
            skip_space();
            if (peek() != ':') {
                fail("lacks a colon after a name");
            }
            ++at_;
            Json member = value(depth + 1);
            members.emplace_back(std::move(key), std::move(member));
            skip_space();
            const unsigned char next = peek();
            ++at_;
            if (next == '}') {
                break;
            }
            if (next != ',') {
                fail("lacks a comma between members");
            }
        }
        std::sort(members.begin(), members.end(),
                  [](const Json::Member& a, const Json::Member& b) { return a.first < b.first; });
        const auto twin = std::adjacent_find(
            members.begin(), members.end(),
            [](const Json::Member& a, const Json::Member& b) { return a.first == b.first; });
        if (twin != members.end()) {
            fail("has the same name twice in one object");
        }
        return members;
    }

    Json::Array array(int depth) {
        Json::Array items;
        ++at_;
        skip_space();
        if (peek() == ']') {
            ++at_;
            return items;
        }
        for (;;) {
            items.push_back(value(depth + 1));
            skip_space();
            const unsigned char next = peek();
            ++at_;
            if (next == ']') {
                return items;
            }
            if (next != ',') {
                fail("lacks a comma between items");
            }
        }
    }

    std::size_t digits() {
        const std::size_t start = at_;
        while (!done() && text_[at_] >= '0' && text_[at_] <= '9') {
            ++at_;
        }
        if (at_ == start) {
            fail("has a malformed value");
        }
        return at_ - start;
    }

    void number(Json& result) {
        const std::size_t start = at_;
        const bool negative = peek() == '-';
        at_ += negative ? 1 : 0;
        const bool leading_zero = peek() == '0';
        const std::size_t whole = digits();
        if (leading_zero && whole > 1) {
            fail("has a number with a leading zero");
        }
        const std::string_view magnitude = text_.substr(at_ - whole, whole);
        bool is_integer = true;
        if (!done() && text_[at_] == '.') {
            is_integer = false;
            ++at_;
            digits();
        }
        if (!done() && (text_[at_] == 'e' || text_[at_] == 'E')) {
            is_integer = false;
            ++at_;
            if (peek() == '+' || peek() == '-') {
                ++at_;
            }
            digits();
        }
        if (at_ - start > Json::kMaxNumberLength) {
            fail("has a number that is too long");
        }
        if (is_integer) {
            if (const auto fits = to_integer(magnitude, negative)) {
                result.value_ = *fits;
                return;
            }
        }
        // The classic locale, whatever the host program has set: a decimal point is a point.
        std::istringstream stream(std::string(text_.substr(start, at_ - start)));
        stream.imbue(std::locale::classic());
        double real = 0.0;
        stream >> real;
        if (stream.fail() || !std::isfinite(real)) {
            fail("has a number out of range");
        }
        result.value_ = real;
    }

    static std::optional<std::int64_t> to_integer(std::string_view magnitude, bool negative) {
        if (magnitude.size() > 18) {  // 10^18 fits; rarer, longer ones become reals
            return std::nullopt;
        }
        std::int64_t sum = 0;
        for (const char digit : magnitude) {
            sum = sum * 10 + (digit - '0');
        }
        return negative ? -sum : sum;
    }

    std::string string() {
        std::string out;
        ++at_;
        for (;;) {
            const unsigned char c = peek();
            if (c == '"') {
                ++at_;
                return out;
            }
            if (c < 0x20) {
                fail("has a control character inside a string");
            }
            if (c == '\\') {
                escape(out);
            } else {
                utf8(out);
            }
        }
    }

    // Copies one code point, refusing overlong forms, surrogates and anything past U+10FFFF.
    void utf8(std::string& out) {
        const unsigned char first = peek();
        std::size_t length = 1;
        std::uint32_t point = first;
        if (first >= 0x80) {
            length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
            point = first & (0xFFU >> (length + 1));
            if (first < 0xC2 || first > 0xF4 || text_.size() - at_ < length) {
                fail("is not UTF-8");
            }
        }
        for (std::size_t i = 1; i < length; ++i) {
            const auto next = static_cast<unsigned char>(text_[at_ + i]);
            if ((next & 0xC0U) != 0x80U) {
                fail("is not UTF-8");
            }
            point = (point << 6) | (next & 0x3FU);
        }
        const bool overlong = (length == 3 && point < 0x800) || (length == 4 && point < 0x10000);
        if (overlong || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) {
            fail("is not UTF-8");
        }
        out.append(text_.substr(at_, length));
        at_ += length;
    }

    std::uint32_t hex4() {
        if (text_.size() - at_ < 4) {
            fail("ends too early");
        }
        std::uint32_t sum = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = text_[at_];
            std::uint32_t digit = 0;
            if (c >= '0' && c <= '9') {
                digit = static_cast<std::uint32_t>(c - '0');
            } else if (c >= 'a' && c <= 'f') {
                digit = static_cast<std::uint32_t>(c - 'a') + 10;
            } else if (c >= 'A' && c <= 'F') {
                digit = static_cast<std::uint32_t>(c - 'A') + 10;
            } else {
                fail("has a malformed escape");
            }
            sum = sum * 16 + digit;
        }
        return sum;
    }

    void escape(std::string& out) {
        ++at_;
        const unsigned char c = peek();
        ++at_;
        switch (c) {
            case '"': out += '"'; return;
            case '\\': out += '\\'; return;
            case '/': out += '/'; return;
            case 'b': out += '\b'; return;
            case 'f': out += '\f'; return;
            case 'n': out += '\n'; return;
            case 'r': out += '\r'; return;
            case 't': out += '\t'; return;
            case 'u': break;
            default: fail("has a malformed escape");
        }
        std::uint32_t point = hex4();
        if (point >= 0xD800 && point < 0xDC00) {
            if (text_.substr(at_, 2) != "\\u") {
                fail("has half a surrogate pair");
            }
            at_ += 2;
            const std::uint32_t low = hex4();
            if (low < 0xDC00 || low >= 0xE000) {
                fail("has half a surrogate pair");
            }
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        } else if (point >= 0xDC00 && point < 0xE000) {
            fail("has half a surrogate pair");
        }
        if (point < 0x80) {
            out += static_cast<char>(point);
        } else if (point < 0x800) {
            out += static_cast<char>(0xC0U | (point >> 6));
            out += static_cast<char>(0x80U | (point & 0x3FU));
        } else if (point < 0x10000) {
            out += static_cast<char>(0xE0U | (point >> 12));
            out += static_cast<char>(0x80U | ((point >> 6) & 0x3FU));
            out += static_cast<char>(0x80U | (point & 0x3FU));
        } else {
            out += static_cast<char>(0xF0U | (point >> 18));
            out += static_cast<char>(0x80U | ((point >> 12) & 0x3FU));
            out += static_cast<char>(0x80U | ((point >> 6) & 0x3FU));
            out += static_cast<char>(0x80U | (point & 0x3FU));
        }
    }

    std::string_view text_;
    std::size_t at_ = 0;
    std::size_t values_ = 0;
};

Json Json::parse(std::string_view text) {
    if (text.size() > kMaxSize) {
        throw std::runtime_error("JSON of " + std::to_string(text.size()) +
                                 " bytes is larger than the limit of 64 MiB");
    }
    return JsonParser(text).document();
}

const Json* Json::find(std::string_view key) const {
    const Object* members = object();
    if (members == nullptr) {
        return nullptr;
    }
    const auto found = std::lower_bound(
        members->begin(), members->end(), key,
        [](const Member& member, std::string_view name) { return member.first < name; });
    return found != members->end() && found->first == key ? &found->second : nullptr;
}

}  // namespace foveate
