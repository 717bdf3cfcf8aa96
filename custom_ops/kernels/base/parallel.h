// How kernels share work among threads without knowing whose threads they are.
#ifndef REUSE_TF_KERNELS_BASE_PARALLEL_H_
#define REUSE_TF_KERNELS_BASE_PARALLEL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

#include "custom_ops/kernels/base/float_mode.h"

namespace reuse_tf {

// Calls body(begin, end) on disjoint ranges that make up [0, total), possibly
// at once on several threads. `cycles` estimates the cost of one unit, so that
// little work stays on the calling thread. No kernel's result depends on how
// the range was cut. What a body throws is thrown on the calling thread, when
// no body runs any more; some ranges may then not have been called.
using ParallelFor =
    std::function<void(int64_t total, int64_t cycles,
                       const std::function<void(int64_t, int64_t)>& body)>;

inline void Serial(int64_t total, int64_t /*cycles*/,
                   const std::function<void(int64_t, int64_t)>& body) {
  if (total > 0) body(0, total);
}

// Ranges of a parallel loop, for any number of threads to take.
class SharedRanges {
 public:
  // Cuts [0, total) into `count` ranges. `body` must live until Finish returns.
  SharedRanges(int64_t total, int64_t count,
               const std::function<void(int64_t, int64_t)>& body)
      : total_(total), count_(count), body_(&body) {}

  // Calls the body on ranges that nobody took yet, until there are none.
  void Work() noexcept {
    const FlushDenormals flush;
    int64_t done = 0;
    for (int64_t i; (i = next_++) < count_; ++done) {
      if (failed_) continue;
      try {
        (*body_)(i* total_ / count_, (i + 1) * total_ / count_);
      } catch (...) {
        if (!failed_.exchange(true)) error_ = std::current_exception();
      }
    }
    if (done == 0) return;
    const std::lock_guard<std::mutex> lock(mu_);
    done_ += done;
    if (done_ == count_) all_done_.notify_all();
  }

  // Waits for the threads that took a range.
  void Finish() {
    std::unique_lock<std::mutex> lock(mu_);
    all_done_.wait(lock, [&] { return done_ == count_; });
    if (failed_) std::rethrow_exception(error_);
  }

 private:
  const int64_t total_, count_;
  const std::function<void(int64_t, int64_t)>* const body_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
  std::mutex mu_;
  std::condition_variable all_done_;
  int64_t done_ = 0;
};

// A parallel loop on the calling thread and at most `helpers` others.
// schedule(f) has f called on some thread, at any time, or never: a helper that
// comes late finds nothing to do. So nothing is lost if it throws.
template <typename Schedule>
void ShareWork(int64_t total, int64_t ranges, int64_t helpers,
               const Schedule& schedule,
               const std::function<void(int64_t, int64_t)>& body) {
  const auto shared = std::make_shared<SharedRanges>(total, ranges, body);
  try {
    for (int64_t i = 0; i < helpers; ++i)
      schedule([shared] { shared->Work(); });
  } catch (...) {
    // Fewer have to do.
  }
  shared->Work();
  shared->Finish();
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_BASE_PARALLEL_H_
