#include <cstring>
#include <tuple>

#include "arguments.h"
#include "gather.h"
#include "norm.h"

namespace stc {
namespace {

std::tuple<Tensor, Tensor> layer_norm_gather(const Tensor& tokens, const Tensor& index,
                                             const Tensor& weight, std::optional<Tensor> bias,
                                             std::optional<Tensor> added, double eps) {
  const char* op = "layer_norm_gather";
  const Tensor places = check_gather(op, tokens, index);
  const int64_t frames = tokens.size(0), k = index.size(1), channels = tokens.size(2);
  const Norm norm = check_norm(op, weight, bias, eps, tokens);
  std::optional<Tensor> addend;
  if (added.has_value()) {
    check_tokens(op, "added", *added, true);
    check_like(op, "added", *added, "tokens", tokens);
    check_shape(op, "added", *added, {frames, k, channels});
    addend = with_unit_channel_stride(*added);
  }
  const Tensor source = with_unit_channel_stride(tokens);
  const Tokens from = view(source);
  const Tokens more = addend.has_value() ? view(*addend) : Tokens{};
  Tensor gathered = empty({frames, k, channels}, scalar_type_of(tokens));
  Tensor normed = empty({frames, k, channels}, scalar_type_of(tokens));
  const int64_t row_bytes = channels * size_of(from.dtype);
  char* rows = static_cast<char*>(gathered.data_ptr());
  char* targets = static_cast<char*>(normed.data_ptr());
  const int64_t* chosen = data<int64_t>(places);
  parallel_over(frames * k, 4 * row_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const char* token = from.row_bytes(row / k, chosen[row]);
      char* target = rows + row * row_bytes;
      if (addend.has_value()) {
        kernels().add(token, more.row_bytes(row / k, row % k), from.dtype, channels, target);
      } else {
        std::memcpy(target, token, row_bytes);
      }
      kernels().norm(target, from.dtype, channels, norm.weight.get(), norm.bias.get(), norm.eps,
                     targets + row * row_bytes);
    }
  });
  return {gathered, normed};
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("layer_norm_gather", TORCH_BOX(&stc::layer_norm_gather));
}
