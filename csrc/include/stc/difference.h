// How much each patch of a camera frame changed, straight from its bytes.
#pragma once

#include <cstdint>
#include <cstring>

#include "stc/dtype.h"

namespace stc {
inline namespace STC_ISA {

// Mean absolute difference a patch, 0 to 1, of two frames of height x width x 3 bytes. Patches at
// the right and lower edge may be cut short. columns is scratch for 3 · width values.
inline void frame_difference(const uint8_t* current, const uint8_t* reference, int64_t height,
                             int64_t width, int64_t patch, uint32_t* columns, float* out) {
  const int64_t bytes = 3 * width;
  for (int64_t top = 0; top < height; top += patch) {
    const int64_t bottom = top + patch < height ? top + patch : height;
    std::memset(columns, 0, bytes * sizeof(uint32_t));
    for (int64_t y = top; y < bottom; ++y) {
      const uint8_t* a = current + y * bytes;
      const uint8_t* b = reference + y * bytes;
      for (int64_t x = 0; x < bytes; ++x) columns[x] += a[x] > b[x] ? a[x] - b[x] : b[x] - a[x];
    }
    for (int64_t left = 0; left < width; left += patch) {
      const int64_t right = left + patch < width ? left + patch : width;
      uint64_t total = 0;
      for (int64_t x = 3 * left; x < 3 * right; ++x) total += columns[x];
      *out++ = static_cast<float>(static_cast<double>(total) /
                                  (255.0 * 3.0 * (bottom - top) * (right - left)));
    }
  }
}

}  // namespace STC_ISA
}  // namespace stc
