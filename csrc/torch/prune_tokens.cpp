#include "gather.h"
#include "scores.h"

namespace stc {
namespace {

std::tuple<Tensor, Tensor> prune_tokens(const Tensor& tokens, int64_t k,
                                        std::optional<Tensor> temporal_anchor, std::string strategy,
                                        double alpha, std::optional<Tensor> channels) {
  const char* op = "prune_tokens";
  const ScoreArguments arguments =
      check_scores(op, tokens, temporal_anchor, strategy, alpha, channels);
  check_count(op, "k", k, tokens.size(1));
  const auto scores = scratch<float>(tokens.size(0) * tokens.size(1));
  scores_into(arguments, scores.get());
  return keep_scored(tokens, scores.get(), k, true);
}

}  // namespace
}  // namespace stc

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CPU, m) {
  m.impl("prune_tokens", TORCH_BOX(&stc::prune_tokens));
}
