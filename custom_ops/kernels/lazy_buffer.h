// A large array whose memory is only taken as it is used.
#ifndef REUSE_TF_KERNELS_LAZY_BUFFER_H_
#define REUSE_TF_KERNELS_LAZY_BUFFER_H_

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace reuse_tf {

// `size` zeros of a trivial type. The system hands out zeroed pages when they
// are first touched, so a table can have its final size from the start, never
// moves, and costs what its rows in use cost.
template <typename T>
class LazyBuffer {
 public:
  LazyBuffer() = default;
  explicit LazyBuffer(int64_t size)
      : data_(static_cast<T*>(std::calloc(size > 0 ? size : 1, sizeof(T)))) {
    if (data_ == nullptr) throw std::bad_alloc();
    UseHugePages(size * sizeof(T));
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  // Rows are read at random: with small pages, most of the time would go into
  // finding where a page is.
  void UseHugePages(int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t kHuge = 2 << 20;
    const auto begin = reinterpret_cast<uintptr_t>(data_.get());
    const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge;
    const uintptr_t last = (begin + bytes) / kHuge * kHuge;
    if (first < last) {
      madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
    }
#else
    (void)bytes;
#endif
  }

  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_LAZY_BUFFER_H_
