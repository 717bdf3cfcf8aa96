// What the kernels' test programs share.
#ifndef REUSE_TF_KERNELS_TESTING_TESTING_H_
#define REUSE_TF_KERNELS_TESTING_TESTING_H_

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/base/parallel.h"
#include "custom_ops/kernels/patches/window.h"
#include "custom_ops/kernels/testing/reference.h"

namespace reuse_tf {

inline int64_t checks = 0, failures = 0;

#define CHECK(condition) Check((condition), #condition, __FILE__, __LINE__)

// At most this many are printed: one mistake makes thousands.
inline void Check(bool holds, const char* what, const char* file, int line) {
  constexpr int64_t kPrinted = 50;
  ++checks;
  if (holds) return;
  if (++failures <= kPrinted) {
    std::printf("%s:%d: failed: %s\n", file, line, what);
  }
}

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  // An integer in [low, high].
  int64_t Int(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % (high - low + 1));
  }
  bool Chance(int64_t percent) { return Int(0, 99) < percent; }
  float Float() { return Int(-1000, 1000) / 500.f; }
  std::vector<float> Floats(int64_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = Float();
    return values;
  }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return values.begin()[Int(0, values.size() - 1)];
  }
  template <typename T>
  void Shuffle(std::vector<T>* values) {
    for (size_t i = values->size(); i > 1; --i) {
      std::swap((*values)[i - 1], (*values)[Int(0, i - 1)]);
    }
  }

 private:
  std::mt19937 engine_;
};

template <typename T>
bool SameBits(const T* a, const T* b, int64_t count) {
  return count == 0 || std::memcmp(a, b, count * sizeof(T)) == 0;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && SameBits(a.data(), b.data(), a.size());
}

// Whether `got` is `want` to the rounding of a float sum of `terms` terms.
inline bool Near(float got, const reference::Sum& want, int64_t terms) {
  if (std::isnan(want.value)) return std::isnan(got);
  const double bound =
      (terms + 2) * std::numeric_limits<float>::epsilon() * want.size;
  return std::fabs(got - want.value) <= bound + 1e-30;
}

// Allocations fail when so many more have been made; never, if negative. Only
// in programs that replace operator new.
inline std::atomic<int64_t> allocations_left{-1};
// Threads that are not to fail: what makes the threads of the tests.
inline thread_local bool never_fails = false;

// Cuts the range at random places and runs the parts on three threads.
inline ParallelFor Threads(uint32_t seed) {
  auto next = std::make_shared<std::atomic<uint32_t>>(seed);
  return [next](int64_t total, int64_t /*cycles*/,
                const std::function<void(int64_t, int64_t)>& body) {
    Random random((*next)++);
    std::vector<int64_t> cuts = {0, total};
    for (int i = 0; i < 5; ++i) cuts.push_back(random.Int(0, total));
    std::sort(cuts.begin(), cuts.end());
    struct Joined : std::vector<std::thread> {
      ~Joined() {
        for (std::thread& thread : *this) thread.join();
      }
    } threads;
    const int64_t count = cuts.size() - 1;
    ShareWork(
        count, count, 2,
        [&](std::function<void()> work) {
          never_fails = true;
          threads.emplace_back(std::move(work));
          never_fails = false;
        },
        [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            if (cuts[i] < cuts[i + 1]) body(cuts[i], cuts[i + 1]);
          }
        });
  };
}

// A window over a small map; `wide` ones have lines of several words.
inline Window RandomWindow(Random* random, bool wide) {
  Window w;
  w.height = random->Int(1, 9);
  w.width =
      wide ? random->Pick<int64_t>({1, 7, 62, 63, 64, 65, 127, 128, 129, 200})
           : random->Int(1, 12);
  w.kernel_height = random->Int(1, 5);
  w.kernel_width = random->Int(1, 5);
  w.stride_height = random->Int(1, 3);
  w.stride_width = random->Int(1, 3);
  w.dilation_height = random->Int(1, 3);
  w.dilation_width = random->Int(1, 3);
  Pad(random->Chance(50), &w);
  return w;
}

// Arguments that an activation can have.
inline std::vector<float> RandomArguments(const Activation::Form& form,
                                          Random* random) {
  std::vector<float> arguments(form.arguments);
  for (float& value : arguments) value = random->Int(1, 40) / 16.f;
  if (form.name == std::string("general_relu")) {
    arguments = {random->Pick({0.f, 0.25f}), random->Pick({1.5f, INFINITY}),
                 random->Pick({0.f, 0.5f})};
  }
  if (form.name == std::string("clip")) {
    arguments = {random->Pick({-INFINITY, -0.5f, 0.f}),
                 random->Pick({0.f, 1.5f, INFINITY})};
  }
  return arguments;
}

inline Activation RandomActivation(Random* random, const InstructionSet& set) {
  const Activation::Form& form =
      set.activations[random->Int(0, set.activation_count - 1)];
  Activation activation;
  CHECK(Activation::Make(form.name, RandomArguments(form, random), &activation,
                         set));
  return activation;
}

constexpr uint64_t kHashMasks[] = {~uint64_t{}, 0, 1, 7,
                                   // Tags that say nothing, and only tags.
                                   0xffffffffu, uint64_t{0xffffffffu} << 32};

// Prints what came out; returns the program's exit code.
inline int Report() {
  std::printf("%" PRId64 " checks, %" PRId64 " failed; instruction set %s\n",
              checks, failures, ActiveInstructionSet().name);
  return failures == 0 ? 0 : 1;
}

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_TESTING_TESTING_H_
