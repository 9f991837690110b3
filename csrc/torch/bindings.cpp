// Every schema of the namespace; the CPU kernels are registered beside their code. Kept in step
// with SCHEMAS in stc_kernels/_registry.py, which a test compares.
#include <torch/csrc/stable/library.h>

#include <string>

#include "stc/kernels.h"

namespace {

std::string instruction_set() { return stc::kernels().name; }

}  // namespace

STABLE_TORCH_LIBRARY(stc_kernels, m) {
  // Similarity of each token to the reference token at its place.
  m.def(
      "patch_similarity(Tensor current, Tensor reference, Tensor? reference_index=None, str "
      "metric=\"cosine\")"
      " -> Tensor");
  // The k least similar tokens of each frame, and each token's place among them.
  m.def(
      "select_dynamic(Tensor current, Tensor reference, SymInt k, Tensor? reference_index=None, "
      "str "
      "metric=\"cosine\")"
      " -> (Tensor index, Tensor slot)");
  // The tokens that an index names.
  m.def("gather_tokens(Tensor tokens, Tensor index) -> Tensor");
  // Recomputed tokens and reused ones together as whole frames.
  m.def(
      "merge_tokens(Tensor updated, Tensor cached, Tensor slot, Tensor? reference_index=None, "
      "Tensor? residual=None)"
      " -> Tensor");
  // The same, and the layer norm of every row of the result.
  m.def(
      "merge_tokens_norm(Tensor updated, Tensor cached, Tensor slot, Tensor weight, Tensor? "
      "bias=None,"
      " Tensor? reference_index=None, Tensor? residual=None, float eps=1e-06) -> (Tensor merged, "
      "Tensor normed)");
  // The tokens that an index names, plus what is added to them, and the layer norm of the sums.
  m.def(
      "layer_norm_gather(Tensor tokens, Tensor index, Tensor weight, Tensor? bias=None, Tensor? "
      "added=None,"
      " float eps=1e-06) -> (Tensor gathered, Tensor normed)");
  // The channels of lowest variance.
  m.def("quiet_channels(Tensor tokens, SymInt keep) -> Tensor");
  // Novelty of each token against its frame and the past.
  m.def(
      "anchor_scores(Tensor tokens, Tensor? temporal_anchor=None, str strategy=\"dual_anchor\", "
      "float alpha=0.5,"
      " Tensor? channels=None) -> Tensor");
  // The k tokens of highest (or lowest) score, in order of position.
  m.def(
      "topk_gather(Tensor tokens, Tensor scores, SymInt k, bool largest=True) -> (Tensor kept, "
      "Tensor "
      "index)");
  // The k most novel tokens, in order of position.
  m.def(
      "prune_tokens(Tensor tokens, SymInt k, Tensor? temporal_anchor=None, str "
      "strategy=\"dual_anchor\","
      " float alpha=0.5, Tensor? channels=None) -> (Tensor kept, Tensor index)");
  // Name of the instruction set that the CPU kernels use on this machine.
  m.def("_instruction_set() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(stc_kernels, CompositeExplicitAutograd, m) {
  m.impl("_instruction_set", TORCH_BOX(&instruction_set));
}
