#include <cstring>

#include "gather.h"

namespace stc {

Tensor check_gather(const char* op, const Tensor& tokens, const Tensor& index) {
  check_tokens(op, "tokens", tokens);
  check_dtype(op, "index", index, ScalarType::Long);
  if (index.dim() != 2 || index.size(0) != tokens.size(0)) {
    fail(op, "index", "have shape [" + std::to_string(tokens.size(0)) + ", k]",
         "has shape " + shape_text(index));
  }
  const Tensor places = as_contiguous(index);
  check_range<int64_t>(op, "index", places, 0, tokens.size(1));
  return places;
}

void gather_into(const Tensor& tokens, const int64_t* index, int64_t k, void* out) {
  const Tensor source = with_unit_channel_stride(tokens);
  const Tokens from = view(source);
  const int64_t row_bytes = from.channels * size_of(from.dtype);
  parallel_over(from.frames * k, row_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::memcpy(static_cast<char*>(out) + row * row_bytes, from.row_bytes(row / k, index[row]),
                  row_bytes);
    }
  });
}

namespace {

Tensor gather_tokens(const Tensor& tokens, const Tensor& index) {
  const Tensor places = check_gather("gather_tokens", tokens, index);
  Tensor out = empty({tokens.size(0), index.size(1), tokens.size(2)}, scalar_type_of(tokens));
  gather_into(tokens, data<int64_t>(places), index.size(1), out.data_ptr());
  return out;
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("gather_tokens", TORCH_BOX(&stc::gather_tokens));
}
