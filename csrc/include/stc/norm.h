// Layer norm of one row: mean, then variance about it, in float32; the row stays in the first-level
// cache.
#pragma once

#include <cmath>

#include "stc/similarity.h"

namespace stc {
inline namespace STC_ISA {

template <typename T>
STC_INLINE float total(const T* row, int64_t channels) {
  return reduce(row, row, channels,
                [](Floats x, Floats) __attribute__((always_inline)) { return x; });
}

// out = (row - mean) / sqrt(variance + eps) · weight + bias; bias may be null.
template <typename T>
void norm_row(const T* row, int64_t channels, const float* weight, const float* bias, float eps,
              T* out) {
  const Floats mean = splat(total(row, channels) / channels);
  Floats squares[2] = {};
  int64_t c = 0;
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes) {
    for (int i = 0; i < 2; ++i) {
      const Floats d = load(row + c + i * kLanes) - mean;
      squares[i] += d * d;
    }
  }
  for (; c + kLanes <= channels; c += kLanes) {
    const Floats d = load(row + c) - mean;
    squares[0] += d * d;
  }
  float rest = 0.0f;  // a tail padded with zeros would not be zero about the mean
  for (; c < channels; ++c) {
    const float d = to_float(row[c]) - mean[0];
    rest += d * d;
  }
  const Floats scale =
      splat(1.0f / std::sqrt((sum(squares[0] + squares[1]) + rest) / channels + eps));
  const auto at = [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
    const bool whole = lanes == kLanes;
    const Floats x = whole ? load(row + first) : load_tail(row + first, lanes);
    const Floats w = whole ? load(weight + first) : load_tail(weight + first, lanes);
    Floats b = {};
    if (bias != nullptr) b = whole ? load(bias + first) : load_tail(bias + first, lanes);
    const Floats y = (x - mean) * scale * w + b;
    if (whole) store(out + first, y);
    if (!whole) store_tail(out + first, y, lanes);
  };
  for (c = 0; c + kLanes <= channels; c += kLanes) at(c, kLanes);
  if (c < channels) at(c, channels - c);
}

}  // namespace STC_ISA
}  // namespace stc
