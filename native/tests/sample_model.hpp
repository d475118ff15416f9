// A small model file made in memory, with most operations in it: the seed of the fuzzer and the
// patient of the native tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "crc32.hpp"
#include "model_file.hpp"

namespace foveate::testing {

struct SampleBlob {
    BlobType type = BlobType::u8;
    std::vector<std::uint32_t> shape;
    std::string bytes;
};

template <class T>
SampleBlob sample_blob(BlobType type, std::vector<std::uint32_t> shape, std::vector<T> values) {
    std::string bytes(values.size() * sizeof(T), '\0');
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return {type, std::move(shape), std::move(bytes)};
}

template <class T>
void put_number(std::string& file, std::size_t at, T value) {
    std::memcpy(file.data() + at, &value, sizeof value);
}

// The container of model_file.hpp around a document and its blobs (blob 0, the document, is added).
inline std::string make_file(const std::string& document, std::vector<SampleBlob> blobs) {
    blobs.insert(blobs.begin(), {BlobType::u8, {static_cast<std::uint32_t>(document.size())},
                                 document});
    std::string file(64 + 64 * blobs.size(), '\0');
    for (std::size_t i = 0; i < blobs.size(); ++i) {
        file.resize((file.size() + 63) / 64 * 64, '\0');
        const std::size_t entry = 64 + 64 * i;
        put_number<std::uint64_t>(file, entry, file.size());
        put_number<std::uint64_t>(file, entry + 8, blobs[i].bytes.size());
        put_number(file, entry + 16, static_cast<std::uint32_t>(blobs[i].type));
        put_number(file, entry + 20, static_cast<std::uint32_t>(blobs[i].shape.size()));
        for (std::size_t d = 0; d < blobs[i].shape.size(); ++d) {
            put_number(file, entry + 24 + 4 * d, blobs[i].shape[d]);
        }
        put_number(file, entry + 48, crc32(blobs[i].bytes.data(), blobs[i].bytes.size()));
        file += blobs[i].bytes;
    }
    std::memcpy(file.data(), "FOVEATE\0", 8);
    put_number<std::uint32_t>(file, 8, 1);
    put_number<std::uint32_t>(file, 12, 0x01020304);
    std::memcpy(file.data() + 16, file.data() + 64, 16);  // offset and size of the document
    put_number<std::uint64_t>(file, 32, 64);
    put_number<std::uint64_t>(file, 40, blobs.size());
    put_number<std::uint64_t>(file, 48, file.size());
    put_number(file, 56, crc32(file.data(), 56));
    return file;
}

inline std::vector<SampleBlob> sample_blobs() {
    std::vector<float> stem(4 * 3 * 3 * 3);
    for (std::size_t i = 0; i < stem.size(); ++i) {
        stem[i] = static_cast<float>(static_cast<int>(i * 7 % 11) - 5) / 8.0F;
    }
    std::vector<std::uint64_t> one(8 * 1 * 3 * 3);
    std::vector<std::uint64_t> two(8 * 2 * 1 * 1);
    for (std::size_t i = 0; i < one.size(); ++i) {
        one[i] = i * 5 % 16;
    }
    for (std::size_t i = 0; i < two.size(); ++i) {
        two[i] = i * 3 % 16;
    }
    return {
        sample_blob(BlobType::f32, {4, 3, 3, 3}, stem),
        sample_blob<float>(BlobType::f32, {4}, {0.5F, -1.0F, 2.0F, 0.25F}),
        sample_blob(BlobType::packed, {8, 1, 3, 3, 1}, one),
        sample_blob<std::int32_t>(BlobType::i32, {1, 8}, {-4, -2, 0, 1, 2, 3, 5, 9}),
        sample_blob<std::uint8_t>(BlobType::u8, {8}, {0, 1, 0, 0, 1, 0, 0, 1}),
        sample_blob(BlobType::packed, {8, 2, 1, 1, 1}, two),
    };
}

// Two modes: a little of everything, and next to nothing.
inline std::string sample_document() {
    return R"({"version": 1, "meta": {"made": "here"}, "modes": [
{"name": "full", "graph": {"version": 1, "meta": {}, "inputs": [0], "outputs": [12, 14],
"tensors": [
 {"id": 0, "shape": [3, 6, 5], "format": "f32"},
 {"id": 1, "shape": [4, 6, 5], "format": "f32"},
 {"id": 2, "shape": [4, 6, 5], "format": {"kind": "bipolar", "bits": 1}},
 {"id": 3, "shape": [4, 6, 5], "format": {"kind": "unipolar", "bits": 2}},
 {"id": 4, "shape": [8, 6, 5], "format": {"kind": "bipolar", "bits": 1}},
 {"id": 5, "shape": [8, 6, 5], "format": "f32"},
 {"id": 6, "shape": [8, 3, 2], "format": {"kind": "bipolar", "bits": 1}},
 {"id": 7, "shape": [8, 3, 2], "format": {"kind": "bipolar", "bits": 1}},
 {"id": 8, "shape": [16, 3, 2], "format": {"kind": "bipolar", "bits": 1}},
 {"id": 9, "shape": [4, 3, 2], "format": {"kind": "bipolar", "bits": 1}},
 {"id": 10, "shape": [4, 6, 4], "format": {"kind": "bipolar", "bits": 1}},
 {"id": 11, "shape": [8, 1, 1], "format": "f32"},
 {"id": 12, "shape": [8, 1, 1], "format": "f32"},
 {"id": 13, "shape": [96, 1, 1], "format": {"kind": "bipolar", "bits": 1}},
 {"id": 14, "shape": [8, 6, 4], "format": "f32"}],
"nodes": [
 {"op": "conv", "name": "stem", "inputs": [0], "outputs": [1, 2, 3],
  "attrs": {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
            "groups": 1, "pad": "zero"},
  "blobs": {"weight": 1}, "steps": [
   {"op": "affine", "attrs": {}, "blobs": {"alpha": 2, "beta": 2}, "input": null, "output": null},
   {"op": "store", "attrs": {}, "blobs": {}, "input": null, "output": 1},
   {"op": "quantize", "attrs": {"step": 1, "round": "half_up"}, "blobs": {}, "input": null,
    "output": 2},
   {"op": "quantize", "attrs": {"step": 0.3, "round": "half_even"}, "blobs": {}, "input": null,
    "output": 3}]},
 {"op": "conv", "name": "body", "inputs": [2], "outputs": [4],
  "attrs": {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
            "groups": 1, "pad": "zero", "path": "bits",
            "weight_format": {"kind": "bipolar", "bits": 1}},
  "blobs": {"weight": 3}, "steps": [
   {"op": "thresholds", "attrs": {}, "blobs": {"table": 4, "flip": 5}, "input": null,
    "output": 4}]},
 {"op": "conv", "name": "side", "inputs": [3], "outputs": [5],
  "attrs": {"kernel": [1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1],
            "groups": 1, "pad": "low", "path": "int8",
            "weight_format": {"kind": "twos", "bits": 2}},
  "blobs": {"weight": 6}, "steps": [
   {"op": "clip", "attrs": {"low": -3.5, "high": 1e2}, "blobs": {}, "input": null, "output": null},
   {"op": "sigmoid", "attrs": {}, "blobs": {}, "input": null, "output": null},
   {"op": "store", "attrs": {}, "blobs": {}, "input": null, "output": 5}]},
 {"op": "pool", "name": "pool", "inputs": [4], "outputs": [6], "attrs": {"kind": "max",
  "kernel": [2, 3], "stride": [2, 2], "padding": [0, 0], "ceil_mode": false,
  "count_include_pad": true}, "blobs": {}, "steps": []},
 {"op": "shuffle", "name": "shuffle", "inputs": [6], "outputs": [7], "attrs": {"groups": 2},
  "blobs": {}, "steps": []},
 {"op": "concat", "name": "join", "inputs": [6, 7], "outputs": [8], "attrs": {}, "blobs": {},
  "steps": []},
 {"op": "slice", "name": "slice", "inputs": [8], "outputs": [9], "attrs": {"start": 6, "stop": 10},
  "blobs": {}, "steps": []},
 {"op": "upsample", "name": "up", "inputs": [9], "outputs": [10], "attrs": {"scale": 2,
  "mode": "nearest"}, "blobs": {}, "steps": []},
 {"op": "global_avg", "name": "mean", "inputs": [5], "outputs": [11], "attrs": {}, "blobs": {},
  "steps": []},
 {"op": "softmax", "name": "soft", "inputs": [11], "outputs": [12], "attrs": {}, "blobs": {},
  "steps": []},
 {"op": "flatten", "name": "flat", "inputs": [10], "outputs": [13], "attrs": {}, "blobs": {},
  "steps": []},
 {"op": "conv", "name": "tail", "inputs": [10], "outputs": [14],
  "attrs": {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
            "groups": 1, "pad": "high", "path": "auto",
            "weight_format": {"kind": "bipolar", "bits": 1}},
  "blobs": {"weight": 3}, "steps": [
   {"op": "gate", "attrs": {}, "blobs": {}, "input": 12, "output": null},
   {"op": "store", "attrs": {}, "blobs": {}, "input": null, "output": 14}]}]}},
{"name": "least", "graph": {"version": 1, "meta": {}, "inputs": [7], "outputs": [9],
"tensors": [{"id": 7, "shape": [3, 6, 5], "format": "f32"},
            {"id": 9, "shape": [3, 6, 5], "format": "f32"}],
"nodes": [{"op": "pointwise", "name": "twice", "inputs": [7], "outputs": [9], "attrs": {},
 "blobs": {}, "steps": [
  {"op": "add", "attrs": {}, "blobs": {}, "input": 7, "output": null},
  {"op": "store", "attrs": {}, "blobs": {}, "input": null, "output": 9}]}]}}]})";
}

inline std::string sample_file() { return make_file(sample_document(), sample_blobs()); }

}  // namespace foveate::testing
