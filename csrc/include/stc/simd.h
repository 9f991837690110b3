// A vector of floats as wide as the instruction set that this file is compiled for, on the
// compiler's own vector types (GCC and Clang): + - * and comparisons are the language's. Loads
// convert to float32 in registers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "stc/dtype.h"

namespace stc {
// One namespace an instruction set: the linker must never let one stand in for another.
inline namespace STC_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Words = uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));
using Doubles = double __attribute__((vector_size(8 * kLanes)));

#define STC_INLINE static inline __attribute__((always_inline))

STC_INLINE Floats splat(float value) { return Floats{} + value; }

STC_INLINE float sum(Floats v) {
  // Halved again and again: a fixed order, and short rounding chains.
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

STC_INLINE Floats absolute(Floats v) {
  Words bits;
  std::memcpy(&bits, &v, sizeof(v));
  bits &= 0x7fffffffu;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

STC_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

STC_INLINE Floats load(const BFloat16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof(h));
  Words bits = __builtin_convertvector(h, Words) << 16;
  Floats v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

STC_INLINE Floats load(const Float16* p) {
  Floats v;
#if defined(__AVX512F__)
  const __m512 wide =
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  std::memcpy(&v, &wide, sizeof(v));
#elif defined(__F16C__)
  const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  std::memcpy(&v, &wide, sizeof(v));
#elif defined(__aarch64__)
  const float32x4_t wide = vcvt_f32_f16(vld1_f16(reinterpret_cast<const __fp16*>(p)));
  std::memcpy(&v, &wide, sizeof(v));
#else
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
#endif
  return v;
}

STC_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }

// Rounds to nearest, ties to even, as a cast in torch does.
STC_INLINE void store(BFloat16* p, Floats v) {
  Words bits;
  std::memcpy(&bits, &v, sizeof(v));
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words quiet_nan = (bits >> 16) | 0x40u;
  const Halves h =
      __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded, Halves);
  std::memcpy(p, &h, sizeof(h));
}

STC_INLINE void store(Float16* p, Floats v) {
#if defined(__AVX512F__)
  __m512 wide;
  std::memcpy(&wide, &v, sizeof(v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, wide, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  __m256 wide;
  std::memcpy(&wide, &v, sizeof(v));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  float32x4_t wide;
  std::memcpy(&wide, &v, sizeof(v));
  vst1_f16(reinterpret_cast<__fp16*>(p), vcvt_f16_f32(wide));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = to_float16(v[i]);
#endif
}

// The last few values of a row, zeros after them.
template <typename T>
STC_INLINE Floats load_tail(const T* p, int64_t count) {
  T padded[kLanes] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
}

template <typename T>
STC_INLINE void store_tail(T* p, Floats v, int64_t count) {
  T padded[kLanes];
  store(padded, v);
  std::memcpy(p, padded, count * sizeof(T));
}

}  // namespace STC_ISA
}  // namespace stc
