// Chooses, once, the table of kernels for the processor that the program runs on.
#include <cstdlib>
#include <cstring>

#include "stc/kernels.h"

namespace stc {

namespace baseline {
const Kernels& isa_kernels();
}
#if defined(STC_HAVE_AVX2)
namespace avx2 {
const Kernels& isa_kernels();
}
#endif
#if defined(STC_HAVE_AVX512)
namespace avx512 {
const Kernels& isa_kernels();
}
#endif

namespace {

const Kernels& choose() {
  const char* wanted = std::getenv("STC_KERNELS_ISA");
  const auto allowed = [wanted](const char* name) {
    return wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, name) == 0;
  };
#if defined(STC_HAVE_AVX512)
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return avx512::isa_kernels();
  }
#endif
#if defined(STC_HAVE_AVX2)
  // Every processor with AVX2 and FMA has F16C.
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::isa_kernels();
  }
#endif
  (void)allowed;
  return baseline::isa_kernels();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace stc
