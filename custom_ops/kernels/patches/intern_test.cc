// Compares interning with a map, whatever the hash; and sizes that cannot be.

#include "custom_ops/kernels/patches/intern.h"

#include <cstdint>
#include <map>
#include <vector>

#include "custom_ops/kernels/base/lazy_buffer.h"
#include "custom_ops/kernels/base/sizes.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

void TestIntern(uint64_t hash_mask) {
  Random random(1);
  for (const int64_t words : {1, 2, 3, 9}) {
    for (const int64_t max_rows : {1, 64, 1500}) {
      InternTable table(words, max_rows, hash_mask);
      std::map<std::vector<int32_t>, int32_t> known;
      for (int round = 0; round < 30; ++round) {
        // Often the same ones; all differ in one word only.
        const int64_t count = random.Int(0, 200);
        const int64_t values = random.Pick<int64_t>({1, 20, 3000});
        std::vector<int32_t> keys(count * words, -1);
        for (int64_t i = 0; i < count; ++i) {
          keys[i * words + random.Int(0, words - 1)] = random.Int(0, values);
        }
        std::vector<int32_t> want;
        bool fits = true;
        for (int64_t i = 0; i < count && fits; ++i) {
          const std::vector<int32_t> key(keys.begin() + i * words,
                                         keys.begin() + (i + 1) * words);
          const auto found = known.find(key);
          fits = found != known.end() ||
                 static_cast<int64_t>(known.size()) < max_rows;
          if (fits)
            want.push_back(known.emplace(key, known.size()).first->second);
        }
        std::vector<int32_t> ids(count, -5);
        CHECK(table.Intern(keys.data(), count, ids.data()) == fits);
        if (fits) {
          CHECK(ids == want);
          CHECK(table.size() == static_cast<int64_t>(known.size()));
          for (int64_t i = 0; i < count; ++i) {
            CHECK(SameBits(table.key(ids[i]), keys.data() + i * words, words));
          }
        } else {
          table.Clear();
          known.clear();
          CHECK(table.size() == 0);
        }
      }
    }
  }
}

void TestInterning() {
  Random random(12);
  for (int i = 0; i < 40; ++i) {
    const int64_t words = random.Int(1, 7);
    const int64_t max_rows = random.Pick<int64_t>({1, 50, 5000});
    // With weak hashes, down to one for all keys.
    const uint64_t hash_mask = random.Pick<uint64_t>({0, 7, ~uint64_t{}});
    InternTable table(words, max_rows, hash_mask);
    for (int round = 0; round < 2; ++round) {
      std::map<std::vector<int32_t>, int32_t> want;
      const int64_t kinds = random.Pick<int64_t>({2, 30, 3000});
      bool full = false;
      for (int step = 0; step < 6 && !full; ++step) {
        const int64_t count = random.Int(0, hash_mask == 0 ? 200 : 900);
        std::vector<int32_t> keys(count * words, -1), ids(count, -7);
        for (int64_t k = 0; k < count; ++k) {
          // Keys that differ in a single word, the first or the last.
          const int64_t at = random.Chance(50) ? 0 : words - 1;
          keys[k * words + at] = random.Int(0, kinds);
          const std::vector<int32_t> key(keys.begin() + k * words,
                                         keys.begin() + (k + 1) * words);
          want.emplace(key, static_cast<int32_t>(want.size()));
        }
        full = static_cast<int64_t>(want.size()) > max_rows;
        CHECK(table.Intern(keys.data(), count, ids.data()) == !full);
        for (int64_t k = 0; k < count && !full; ++k) {
          const std::vector<int32_t> key(keys.begin() + k * words,
                                         keys.begin() + (k + 1) * words);
          CHECK(ids[k] == want[key]);
          CHECK(SameBits(table.key(ids[k]), key.data(), words));
        }
        if (!full) CHECK(table.size() == static_cast<int64_t>(want.size()));
      }
      table.Clear();
      CHECK(table.size() == 0);
    }
  }
}

void TestSizes() {
  const int64_t most = std::numeric_limits<int64_t>::max();
  int64_t product = 0;
  CHECK(Multiply({3, 4, 5}, &product) && product == 60);
  CHECK(Multiply({most, 1}, &product) && product == most);
  CHECK(Multiply({most, 2, 0}, &product) && product == 0);
  CHECK(!Multiply({most, 2}, &product) && product == most);
  CHECK(!Multiply({int64_t{1} << 32, int64_t{1} << 32}, &product));
  for (const auto& make : std::initializer_list<std::function<void()>>{
           [&] { Product({most, 3}); }, [&] { LazyBuffer<float> buffer(most); },
           [&] { InternTable table(int64_t{1} << 40, int64_t{1} << 40); }}) {
    bool threw = false;
    try {
      make();
    } catch (const std::bad_alloc&) {
      threw = true;
    }
    CHECK(threw);
  }
}

int Main() {
  for (const uint64_t mask : kHashMasks) TestIntern(mask);
  TestInterning();
  TestSizes();
  return Report();
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
