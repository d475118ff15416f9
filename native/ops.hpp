// Everything a graph does besides convolutions and their steps: pooling, joining, moving about.
//
// What keeps the format of its input works on every form that the output view has; the input must
// have it too. Rows `begin` to `end` of the output are written, so rows can be shared out among
// threads. Fillers (bits and bytes behind the last channel) are written as 0.
#pragma once

#include <vector>

#include "graph.hpp"
#include "tensor.hpp"

namespace foveate {

// Largest element of every window; padding never wins. Codes are compared as such, which is right
// for both formats of activations. Not-a-number wins.
void max_pool(const PoolSpec& pool, const View& in, const View& out, int begin, int end);
// float32: sum in row-major order, divided by the number of pixels (torch's rules for padding).
void avg_pool(const PoolSpec& pool, const View& in, const View& out, int begin, int end);

// float32: sum in row-major order times float32(1 / pixels). Codes (bytes): exact sum of the signed
// integers, to float32, times `scale`.
void global_avg(const View& in, const Format& format, float scale, const View& out);

// Channels of the inputs one behind the other.
void concat(const std::vector<const View*>& inputs, const View& out, int begin, int end);
// Channels start .. start + out.channels of the input.
void slice(const View& in, int start, const View& out, int begin, int end);
// Channel g * (C / groups) + c goes to c * groups + g.
void shuffle(const View& in, int groups, const View& out, int begin, int end);
// To one pixel, in the order channel, row, column.
void flatten(const View& in, const View& out);

// Over channels, of every pixel; float64, rounded once.
void softmax(const View& in, const View& out, int begin, int end);

void upsample_nearest(const View& in, int factor, const View& out, int begin, int end);
// Corners not aligned; along the row first, then along the column.
void upsample_bilinear(const View& in, int factor, const View& out, int begin, int end);

// Pixels around the picture in every form: 0, or the largest code.
void fill_border(const View& view, bool high);

}  // namespace foveate
