// How kernels share work among threads without knowing whose threads they are.
#ifndef REUSE_TF_KERNELS_PARALLEL_H_
#define REUSE_TF_KERNELS_PARALLEL_H_

#include <cstdint>
#include <functional>

namespace reuse_tf {

// Calls body(begin, end) on disjoint ranges that make up [0, total), possibly
// at once on several threads. `cycles` estimates the cost of one unit, so that
// little work stays on the calling thread. No kernel's result depends on how
// the range was cut.
using ParallelFor =
    std::function<void(int64_t total, int64_t cycles,
                       const std::function<void(int64_t, int64_t)>& body)>;

inline void Serial(int64_t total, int64_t /*cycles*/,
                   const std::function<void(int64_t, int64_t)>& body) {
  if (total > 0) body(0, total);
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_PARALLEL_H_
