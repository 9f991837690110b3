#include "norm.h"

namespace stc {

namespace {

void check_vector(const char* op, const char* name, const Tensor& vector, const Tensor& tokens) {
  check_defined(op, name, vector);
  const ScalarType dtype = scalar_type_of(vector);
  if (dtype != ScalarType::Float && dtype != scalar_type_of(tokens)) {
    fail(op, name, "have dtype float32 or that of the tokens", "has dtype " + dtype_text(dtype));
  }
  check_shape(op, name, vector, {tokens.size(2)});
  check_no_grad(op, name, vector);
}

}  // namespace

Norm check_norm(const char* op, const Tensor& weight, const std::optional<Tensor>& bias, double eps,
                const Tensor& tokens) {
  check_vector(op, "weight", weight, tokens);
  if (bias.has_value()) check_vector(op, "bias", *bias, tokens);
  if (!(eps >= 0.0)) fail(op, "eps", "be 0 or more", "is " + number_text(eps));
  return {as_floats(weight), bias.has_value() ? as_floats(*bias) : nullptr,
          static_cast<float>(eps)};
}

}  // namespace stc
