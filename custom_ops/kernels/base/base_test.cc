// Tests of parallel loops, the floats' mode, reading screens and sampling.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "custom_ops/kernels/base/float_mode.h"
#include "custom_ops/kernels/base/parallel.h"
#include "custom_ops/kernels/base/sample.h"
#include "custom_ops/kernels/base/screen.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

// Denormals are zero while the mode lasts, and no longer.
void TestFlushDenormals() {
  volatile float small = 1e-30f, tiny = 1e-40f, scale = 1e-10f;
  CHECK(small * scale != 0 && tiny * 1e5f != 0);
  {
    const FlushDenormals outer;
    CHECK(small * scale == 0 && tiny * 1e5f == 0);
    {
      const FlushDenormals inner;
    }
    CHECK(small * scale == 0);
  }
  CHECK(small * scale != 0 && tiny * 1e5f != 0);
}

// Every range once; what a body throws comes out, when all have ended.
void TestShareWork() {
  Random random(10);
  for (int i = 0; i < 300; ++i) {
    const int64_t total = random.Int(1, 50), ranges = random.Int(1, total);
    const int64_t bad = random.Chance(50) ? random.Int(0, total - 1) : -1;
    std::vector<std::atomic<int>> called(total);
    std::atomic<int> running{0};
    std::vector<std::thread> threads;
    std::vector<std::function<void()>> late;
    bool threw = false;
    try {
      ShareWork(
          total, ranges, 3,
          [&](std::function<void()> work) {
            if (threads.size() == 1 && i % 3 == 0) throw std::bad_alloc();
            if (i % 2 == 0) threads.emplace_back(work);
            late.push_back(work);
          },
          [&](int64_t begin, int64_t end) {
            ++running;
            for (int64_t k = begin; k < end; ++k) ++called[k];
            if (begin <= bad && bad < end) {
              --running;
              throw std::length_error("bad");
            }
            --running;
          });
    } catch (const std::length_error&) {
      threw = true;
    }
    CHECK(running == 0);
    CHECK(threw == (bad >= 0));
    for (const auto& work : late) work();
    for (std::thread& thread : threads) thread.join();
    for (const auto& count : called) CHECK(count == 1 || (threw && count == 0));
  }
}

void TestLookUpEvery() {
  Random random(2);
  for (int i = 0; i < 100; ++i) {
    const int64_t height = random.Int(1, 9), width = random.Int(1, 9);
    const int64_t step = random.Int(1, 4);
    std::vector<uint8_t> screen(height * width);
    for (uint8_t& index : screen) index = random.Int(0, 255);
    std::vector<uint16_t> table(256);
    for (uint16_t& value : table) {
      value = random.Chance(99) ? random.Int(0, 255) : 256 + random.Int(0, 255);
    }
    std::vector<uint8_t> want;
    bool known = true;
    for (int64_t y = 0; y < height; y += step) {
      for (int64_t x = 0; x < width; x += step) {
        const uint16_t value = table[screen[y * width + x]];
        want.push_back(value % 256);
        known &= value < 256;
      }
    }
    std::vector<uint8_t> out(want.size() + 1, 7);
    CHECK(LookUpEvery(step, screen.data(), height, width, table.data(),
                      out.data()) == known);
    CHECK(out.back() == 7);
    out.pop_back();
    CHECK(out == want);
  }
}

// As often as the softmax says, and never beside it.
void TestSample() {
  constexpr int kDraws = 10000;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Random random(3);
  for (int i = 0; i < 100; ++i) {
    std::vector<float> logits(random.Int(1, 18));
    for (float& logit : logits) {
      logit = random.Chance(20) ? -kInfinity : 100 + random.Int(-20, 20) / 10.0;
    }
    logits[random.Int(0, logits.size() - 1)] = 100;
    double total = 0;
    for (const float logit : logits) total += std::exp(logit - 100.0);
    std::vector<int> counts(logits.size());
    for (int j = 0; j < kDraws; ++j) {
      ++counts[Sample(logits.data(), logits.size(), (j + 0.5) / kDraws)];
    }
    for (size_t j = 0; j < logits.size(); ++j) {
      const double want = kDraws * std::exp(logits[j] - 100.0) / total;
      CHECK(std::abs(counts[j] - want) <= (want > 0 ? 1.01 : 0));
    }
    logits[random.Int(0, logits.size() - 1)] =
        random.Chance(50) ? kInfinity : std::nanf("");
    CHECK(Sample(logits.data(), logits.size(), 0.5) == -1);
  }
}

int Main() {
  TestFlushDenormals();
  TestLookUpEvery();
  TestSample();
  TestShareWork();
  return Report();
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
