// Compiled once for each instruction set, with STC_ISA naming it: see build_backend/stc_ninja.py.
#include "stc/kernels.h"

#include "stc/anchor.h"
#include "stc/difference.h"
#include "stc/merge.h"
#include "stc/norm.h"
#include "stc/select.h"
#include "stc/similarity.h"
#include "stc/variance.h"

#define STC_TEXT_OF(x) #x
#define STC_TEXT(x) STC_TEXT_OF(x)

namespace stc {
inline namespace STC_ISA {
namespace {

template <typename F>
auto with_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(Float16{});
    case DType::kBFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

template <typename T>
Rows<T> typed(const FrameRows& rows) {
  return {static_cast<const T*>(rows.data), rows.stride, rows.count, rows.channels};
}

const Kernels table = {
    .name = STC_TEXT(STC_ISA),
    .similarity =
        [](const Tokens& current, const Tokens& reference, const int64_t* reference_index,
           Metric metric, float* out, int64_t begin, int64_t end) {
          with_dtype(current.dtype, [&](auto zero) {
            similarity_rows<decltype(zero)>(current, reference, reference_index, metric, out, begin,
                                            end);
          });
        },
    .select = select_scores,
    .merge =
        [](const Tokens& updated, const Tokens& cached, const int32_t* slot,
           const int64_t* reference_index, const Tokens* residual, void* out, int64_t begin,
           int64_t end) {
          with_dtype(cached.dtype, [&](auto zero) {
            merge_rows<decltype(zero)>(updated, cached, slot, reference_index, residual, out, begin,
                                       end);
          });
        },
    .anchor_first_pass =
        [](const FrameRows& rows, Strategy strategy, const float* temporal, float* total,
           float* squares, float* dots, float* scales) {
          return with_dtype(rows.dtype, [&](auto zero) {
            return anchor_first_pass(typed<decltype(zero)>(rows), strategy, temporal, total,
                                     {squares, dots}, scales);
          });
        },
    .anchor_second_pass =
        [](const FrameRows& rows, Strategy strategy, float alpha, float rest, const float* mean,
           float mean_square, float temporal_square, float* squares, float* dots, float* scores) {
          with_dtype(rows.dtype, [&](auto zero) {
            anchor_second_pass(typed<decltype(zero)>(rows), strategy, alpha, rest, mean,
                               mean_square, temporal_square, {squares, dots}, scores);
          });
        },
    .square_sum = square_sum,
    .pick_channels =
        [](const void* row, DType dtype, const int64_t* channels, int64_t count, float* out) {
          with_dtype(dtype, [&](auto zero) {
            pick_channels(static_cast<const decltype(zero)*>(row), channels, count, out);
          });
        },
    .norm =
        [](const void* row, DType dtype, int64_t channels, const float* weight, const float* bias,
           float eps, void* out) {
          with_dtype(dtype, [&](auto zero) {
            using T = decltype(zero);
            norm_row(static_cast<const T*>(row), channels, weight, bias, eps, static_cast<T*>(out));
          });
        },
    .add =
        [](const void* a, const void* b, DType dtype, int64_t count, void* out) {
          with_dtype(dtype, [&](auto zero) {
            using T = decltype(zero);
            add_row(static_cast<const T*>(a), static_cast<const T*>(b), static_cast<T*>(out),
                    count);
          });
        },
    .to_float32 =
        [](const void* values, DType dtype, int64_t count, float* out) {
          with_dtype(dtype, [&](auto zero) {
            for (int64_t i = 0; i < count; ++i)
              out[i] = to_float(static_cast<const decltype(zero)*>(values)[i]);
          });
        },
    .variance =
        [](const Tokens& tokens, int64_t begin, int64_t end, double* sums, float* variance) {
          with_dtype(tokens.dtype, [&](auto zero) {
            channel_variance<decltype(zero)>(tokens, begin, end, sums, variance);
          });
        },
    .frame_difference = frame_difference,
};

}  // namespace

const Kernels& isa_kernels() { return table; }

}  // namespace STC_ISA
}  // namespace stc
