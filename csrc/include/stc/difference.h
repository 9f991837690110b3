// How much each patch of a camera frame changed, straight from its bytes.
#pragma once

#include <cstdint>
#include <cstring>

#include "stc/dtype.h"

namespace stc {
inline namespace STC_ISA {

// So many rows' differences, each at most 255, add up in 32 bits.
constexpr int64_t kRowsInWord = int64_t{UINT32_MAX} / 255;

// Mean absolute difference a patch, 0 to 1, of two frames of height x width x 3 bytes. Patches at
// the right and lower edge may be cut short. Scratch: columns for 3 · width values, totals for one
// a patch across.
inline void frame_difference(const uint8_t* current, const uint8_t* reference, int64_t height,
                             int64_t width, int64_t patch, uint32_t* columns, uint64_t* totals,
                             float* out) {
  const int64_t bytes = 3 * width, across = (width + patch - 1) / patch;
  for (int64_t top = 0; top < height; top += patch) {
    const int64_t bottom = top + patch < height ? top + patch : height;
    std::memset(totals, 0, across * sizeof(uint64_t));
    for (int64_t first = top; first < bottom; first += kRowsInWord) {
      const int64_t last = first + kRowsInWord < bottom ? first + kRowsInWord : bottom;
      std::memset(columns, 0, bytes * sizeof(uint32_t));
      for (int64_t y = first; y < last; ++y) {
        const uint8_t* a = current + y * bytes;
        const uint8_t* b = reference + y * bytes;
        for (int64_t x = 0; x < bytes; ++x) columns[x] += a[x] > b[x] ? a[x] - b[x] : b[x] - a[x];
      }
      for (int64_t p = 0; p < across; ++p) {
        const int64_t left = p * patch, right = left + patch < width ? left + patch : width;
        for (int64_t x = 3 * left; x < 3 * right; ++x) totals[p] += columns[x];
      }
    }
    for (int64_t p = 0; p < across; ++p) {
      const int64_t left = p * patch, right = left + patch < width ? left + patch : width;
      *out++ = static_cast<float>(static_cast<double>(totals[p]) /
                                  (255.0 * 3.0 * (bottom - top) * (right - left)));
    }
  }
}

}  // namespace STC_ISA
}  // namespace stc
