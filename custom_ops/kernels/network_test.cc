// Tests interning, structure and whole networks over random cases: with plain
// references, and a network's bits with those of networks of other histories,
// hashes, bounds, threads, and kinds of reuse. Prints each check that failed;
// exits with 1 if there is one.

#include "custom_ops/kernels/network.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "custom_ops/kernels/episode.h"
#include "custom_ops/kernels/gradients.h"
#include "custom_ops/kernels/intern.h"
#include "custom_ops/kernels/reference.h"
#include "custom_ops/kernels/structure.h"
#include "custom_ops/kernels/testing.h"
#include "custom_ops/kernels/tiles.h"

namespace reuse_tf {
namespace {

constexpr uint64_t kHashMasks[] = {~uint64_t{}, 0, 1, 7,
                                   // Tags that say nothing, and only tags.
                                   0xffffffffu, uint64_t{0xffffffffu} << 32};

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

Window RandomWindow(Random* random, int64_t height, int64_t width) {
  Window w;
  w.height = height;
  w.width = width;
  w.kernel_height = random->Int(1, 3);
  w.kernel_width = random->Int(1, 3);
  w.stride_height = random->Int(1, 2);
  w.stride_width = random->Int(1, 2);
  w.dilation_height = random->Int(1, 2);
  w.dilation_width = random->Int(1, 2);
  Pad(random->Chance(50), &w);
  if (w.positions() == 0) Pad(true, &w);
  return w;
}

// Up to three windows, one after the other, over a map whose size becomes that
// of the last one's outputs.
std::vector<Window> RandomChain(Random* random, int64_t* height,
                                int64_t* width) {
  std::vector<Window> windows;
  for (int64_t k = random->Int(0, 3); k > 0; --k) {
    windows.push_back(RandomWindow(random, *height, *width));
    *height = windows.back().out_height;
    *width = windows.back().out_width;
  }
  return windows;
}

// Frames that follow each other: of few values, so that patches come again.
class Video {
 public:
  Video(const FrameShape& shape, int64_t streams, uint32_t seed)
      : shape_(shape), streams_(streams), random_(seed) {
    values_.resize(streams * shape.pixels() * shape.channels);
    Redraw(100);
  }
  int64_t streams() const { return streams_; }
  const uint8_t* data() {
    if (!shape_.bytes) return reinterpret_cast<const uint8_t*>(values_.data());
    bytes_.assign(values_.begin(), values_.end());
    return bytes_.data();
  }
  // [streams, pixels, channels].
  const std::vector<float>& values() const { return values_; }

  void Next() {
    if (random_.Chance(30)) before_ = values_;
    switch (random_.Int(0, 7)) {
      case 0:
        if (before_.size() == values_.size()) values_.swap(before_);
        return;
      case 1:
        return Redraw(100);
      case 2:
        return Resize(random_.Pick<int64_t>({1, 2, 6}));
      case 3:  // what another stream shows
        std::copy_n(values_.end() - values_.size() / streams_,
                    values_.size() / streams_, values_.begin());
        return;
      case 4:
        if (!shape_.bytes) {
          values_[random_.Int(0, values_.size() - 1)] =
              random_.Pick<float>({NAN, INFINITY, -0.f});
        }
        return;
      default:
        return Redraw(random_.Pick<int64_t>({1, 5, 20}));
    }
  }

 private:
  void Redraw(int64_t percent) {
    for (float& value : values_) {
      if (random_.Chance(percent)) value = random_.Int(0, 2);
    }
  }
  void Resize(int64_t streams) {
    values_.resize(values_.size() / streams_ * streams);
    streams_ = streams;
  }

  FrameShape shape_;
  int64_t streams_;
  Random random_;
  std::vector<float> values_, before_;
  std::vector<uint8_t> bytes_;
};

FrameShape RandomFrame(Random* random) {
  FrameShape frame;
  frame.height = random->Int(1, 8);
  frame.width = random->Pick<int64_t>({1, 5, 8, 70});
  frame.channels = random->Int(1, 4);
  frame.bytes = random->Chance(50);
  return frame;
}

// Equal patches share an id, others do not; what changed is listed.
void TestStructure(Reuse reuse) {
  Random random(2);
  for (int i = 0; i < 40; ++i) {
    const FrameShape frame = RandomFrame(&random);
    int64_t height = frame.height, width = frame.width;
    const std::vector<Window> windows = RandomChain(&random, &height, &width);
    Structure structure(frame, windows,
                        std::vector<int64_t>(windows.size() + 1, 20000), 0,
                        random.Pick<uint64_t>({~uint64_t{}, 3}));
    structure.Restart(reuse);
    Video video(frame, random.Int(1, 3), i);
    std::vector<std::vector<int32_t>> ids_before;
    // By map: the number of rows that have been called new.
    std::vector<int64_t> rows(windows.size() + 1, 0);
    for (int step = 0; step < 8; ++step, video.Next()) {
      const int64_t known_streams = structure.streams();
      std::vector<bool> fresh(video.streams(), false);
      for (int64_t n = 0; n < video.streams(); ++n) {
        if (n < known_streams && random.Chance(15)) structure.Reset(n);
      }
      CHECK(structure.Step(video.data(), video.streams(),
                           step % 2 == 0 ? ParallelFor(Serial) : Threads(i)));
      CHECK(structure.streams() == video.streams());
      std::vector<std::vector<int32_t>> ids(windows.size() + 1);
      for (size_t m = 0; m <= windows.size(); ++m) {
        const Structure::Map& map = structure.maps()[m];
        const int64_t count = video.streams() * map.pixels();
        for (int64_t at = 0; at < count; ++at) {
          ids[m].push_back(structure.id(m, at));
        }
        // What is in each position: a pixel, or a patch of the ids before.
        std::vector<std::vector<int32_t>> contents(count);
        if (m == 0) {
          for (int64_t at = 0; at < count; ++at) {
            contents[at].resize(frame.channels);
            std::memcpy(contents[at].data(),
                        video.values().data() + at * frame.channels,
                        4 * frame.channels);
          }
        } else {
          const auto patches =
              reference::AllPatches(windows[m - 1], video.streams());
          const int64_t taps = windows[m - 1].taps();
          for (int64_t at = 0; at < count; ++at) {
            for (int64_t t = 0; t < taps; ++t) {
              const int32_t pixel = patches[at * taps + t];
              contents[at].push_back(pixel < 0 ? -1 : ids[m - 1][pixel]);
            }
          }
        }
        if (reuse == Reuse::kContent) {
          std::map<std::vector<int32_t>, int32_t> id_of;
          std::map<int32_t, std::vector<int32_t>> content_of;
          for (int64_t at = 0; at < count; ++at) {
            // What no window looks at is left alone.
            const int64_t x = at % map.width;
            const bool stale =
                map.stale.line(at / map.width)[x / 64] >> (x % 64) & 1;
            CHECK(!stale || (m > 0 && m < windows.size()));
            if (stale) continue;
            const auto a = id_of.emplace(contents[at], ids[m][at]);
            CHECK(a.first->second == ids[m][at]);
            const auto b = content_of.emplace(ids[m][at], contents[at]);
            CHECK(b.first->second == contents[at]);
          }
          // Whatever changed its id is listed.
          if (step > 0) {
            std::vector<bool> listed(count, false);
            for (const int32_t at : map.positions) listed[at] = true;
            const int64_t both = std::min<int64_t>(count, ids_before[m].size());
            for (int64_t at = 0; at < both; ++at) {
              CHECK(listed[at] || ids[m][at] == ids_before[m][at]);
            }
          }
          if (map.table != nullptr) {
            CHECK(map.rows.first == rows[m]);
            rows[m] += map.rows.count;
            CHECK(map.table->size() == rows[m]);
          }
        } else {
          CHECK(map.rows.count == static_cast<int64_t>(map.positions.size()));
        }
        for (size_t p = 1; p < map.positions.size(); ++p) {
          CHECK(map.positions[p - 1] < map.positions[p]);
        }
      }
      ids_before = ids;
    }
  }
}

// The places of positions in tiles, and the pixels under a tile, which are
// found by going back through all windows.
void TestTiles() {
  Random random(8);
  for (int i = 0; i < 60; ++i) {
    const FrameShape frame = RandomFrame(&random);
    int64_t height = frame.height, width = frame.width;
    const std::vector<Window> windows = RandomChain(&random, &height, &width);
    const Tiles tiles(frame, windows);
    const std::vector<int32_t> order = tiles.Order();
    CHECK(static_cast<int64_t>(order.size()) == height * width);
    std::vector<int64_t> count(tiles.count(), 0);
    std::vector<bool> taken(tiles.count() * Tiles::kPositions, false);
    for (const int32_t place : order) {
      CHECK(!taken[place]);
      taken[place] = true;
      ++count[place / Tiles::kPositions];
    }
    // The tiles of some marked positions, and all positions of these.
    const int64_t image = random.Int(0, 2);
    PixelMask marked, whole;
    marked.Resize(3 * height, width);
    whole.Resize(3 * height, width);
    std::vector<int64_t> want, got;
    for (int64_t at = 0; at < height * width; ++at) {
      if (!random.Chance(10)) continue;
      marked.Set(image * height + at / width, at % width);
      want.push_back(order[at] / Tiles::kPositions);
    }
    std::sort(want.begin(), want.end());
    want.erase(std::unique(want.begin(), want.end()), want.end());
    int64_t positions = 0;
    tiles.ForEach(marked, image, [&](int64_t tile) {
      got.push_back(tile);
      tiles.Mark(tile, image, &whole);
      positions += count[tile];
    });
    CHECK(got == want);
    CHECK(whole.Count() == positions);
    marked.Remove(whole);
    CHECK(marked.Count() == 0);
    // A pixel under a tile is part of its key. Windows may leave out pixels
    // between those that they look at: they may be, too.
    std::vector<uint8_t> pixels(frame.pixels() * frame.pixel_size(), 7);
    std::vector<int32_t> key(tiles.key_words(), -1), other = key;
    const int64_t tile = random.Int(0, tiles.count() - 1);
    tiles.Key(tile, pixels.data(), key.data());
    CHECK(key[0] == tile + 1);
    PixelMask under, next;
    under.Resize(height, width);
    tiles.Mark(tile, 0, &under);
    for (size_t w = windows.size(); w-- > 0;) {
      next.Resize(windows[w].height, windows[w].width);
      CoveredPixels(windows[w], 0, under, &next);
      under = next;
    }
    std::vector<int32_t> seen;
    under.Append(0, frame.height, &seen);
    for (const int32_t pixel : seen) {
      uint8_t& byte = pixels[pixel * frame.pixel_size() +
                             random.Int(0, frame.pixel_size() - 1)];
      byte = 8;
      tiles.Key(tile, pixels.data(), other.data());
      CHECK(key != other);
      byte = 7;
    }
    tiles.Key(tile, pixels.data(), other.data());
    CHECK(key == other);
  }
}

// With tiles, fewer positions are looked at: these show the rows that they show
// without, up to their numbers, and tiles are equal as their pixels are.
void TestNewTiles() {
  Random random(9);
  for (int i = 0; i < 40; ++i) {
    const FrameShape frame = RandomFrame(&random);
    int64_t height = frame.height, width = frame.width;
    const std::vector<Window> windows = RandomChain(&random, &height, &width);
    const std::vector<int64_t> max_rows(windows.size() + 1, 20000);
    const int64_t max_tiles = random.Pick<int64_t>({3, 30, 5000});
    Structure all(frame, windows, max_rows, 0);
    Structure some(frame, windows, max_rows, max_tiles,
                   random.Pick<uint64_t>({~uint64_t{}, 3}));
    const Tiles& tiles = some.tiles();
    Video video(frame, random.Int(1, 3), i);
    std::map<int32_t, int32_t> row_in_all, row_in_some;
    std::map<int32_t, std::vector<int32_t>> shown;  // by number
    for (int step = 0; step < 12; ++step, video.Next()) {
      if (random.Chance(10)) {
        const int64_t stream = random.Int(0, 3);
        all.Reset(stream);
        some.Reset(stream);
      }
      CHECK(all.Step(video.data(), video.streams(), Serial));
      CHECK(some.Step(video.data(), video.streams(), Serial));
      std::vector<bool> listed(video.streams() * height * width, false);
      for (const int32_t at : some.maps().back().positions) listed[at] = true;
      for (const auto& change : some.changed_tiles()) {
        const bool is_new = change.id < 0 || change.id >= some.first_new_tile();
        CHECK(change.id < max_tiles);
        std::vector<int32_t> rows = {change.tile};
        tiles.ForEachPosition(change.tile, [&](int64_t position, int64_t) {
          const int64_t at = change.stream * height * width + position;
          const int32_t row = all.id(windows.size(), at);
          rows.push_back(row);
          CHECK(is_new || !listed[at]);
          if (!is_new) return;
          const int32_t same = some.id(windows.size(), at);
          CHECK(row_in_some.emplace(row, same).first->second == same);
          CHECK(row_in_all.emplace(same, row).first->second == row);
        });
        // The table has been cleared, and counts from 0 again.
        if (change.id < 0 || some.first_new_tile() == 0) shown.clear();
        if (change.id >= 0) {
          CHECK(shown.emplace(change.id, rows).first->second == rows);
        }
      }
    }
  }
}

// What a recording says of each frame is what the frame alone says.
void TestEpisodes() {
  Random random(11);
  for (int i = 0; i < 40; ++i) {
    const FrameShape frame = RandomFrame(&random);
    int64_t height = frame.height, width = frame.width;
    const std::vector<Window> windows = RandomChain(&random, &height, &width);
    const std::vector<int64_t> max_rows(windows.size() + 1, 20000);
    Structure structure(frame, windows, max_rows,
                        random.Pick<int64_t>({0, 3, 5000}));
    Structure plain(frame, windows, max_rows, 0);
    const Tiles& tiles = structure.tiles();
    EpisodeRecorder recorder(tiles, 20000, 20000);
    Video video(frame, random.Int(1, 3), i);
    // By stream and frame, and position: the row of `plain`.
    std::vector<std::vector<std::vector<int32_t>>> want;
    std::vector<size_t> streams;  // by frame, in the order of the steps
    for (int step = random.Int(0, 3); step < 12; ++step, video.Next()) {
      CHECK(structure.Step(video.data(), video.streams(), Serial));
      CHECK(recorder.Add(structure));
      CHECK(plain.Step(video.data(), video.streams(), Serial));
      want.resize(std::max<size_t>(want.size(), video.streams()));
      for (int64_t n = 0; n < video.streams(); ++n) {
        want[n].emplace_back();
        streams.push_back(n);
        for (int64_t at = 0; at < height * width; ++at) {
          want[n].back().push_back(
              plain.id(windows.size(), n * height * width + at));
        }
      }
    }
    std::vector<Pair> pairs;
    std::vector<int32_t> contents, order, want_order;
    std::vector<Run> runs;
    recorder.Finish(&pairs, &contents, &runs, &order);
    std::vector<std::vector<int32_t>> frames;
    std::vector<int32_t> next;  // by stream
    for (const auto& of_stream : want) {
      next.push_back(frames.size());
      frames.insert(frames.end(), of_stream.begin(), of_stream.end());
    }
    for (const size_t n : streams) want_order.push_back(next[n]++);
    CHECK(order == want_order);
    std::map<std::pair<int32_t, int32_t>, int> distinct;
    for (size_t k = 0; k < pairs.size(); ++k) {
      CHECK(k == 0 || pairs[k - 1].position <= pairs[k].position);
      const int times = ++distinct[{pairs[k].position, pairs[k].row}];
      CHECK(times == 1);
    }
    std::vector<std::vector<int>> count(frames.size());
    for (auto& line : count) line.assign(height * width, 0);
    std::map<int32_t, int32_t> row_in_plain;
    for (const Run& run : runs) {
      for (int32_t t = run.begin; t < run.end; ++t) {
        for (int64_t k = 0; k < Tiles::kPositions; ++k) {
          const int32_t pair = contents[run.content * Tiles::kPositions + k];
          if (pair < 0) continue;
          const Pair& at = pairs[pair];
          ++count[t][at.position];
          const int32_t row = frames[t][at.position];
          CHECK(row_in_plain.emplace(at.row, row).first->second == row);
        }
      }
    }
    for (const auto& line : count) {
      for (const int times : line) CHECK(times == 1);
    }
  }
}

// Sums over time and their gradient, against plain loops; no frame has a part
// in what comes of another.
void TestRuns() {
  Random random(12);
  for (int i = 0; i < 60; ++i) {
    const int64_t tiles = random.Int(1, 300), frames = random.Int(1, 40);
    const int64_t units = random.Int(1, 20), values_count = random.Int(1, 50);
    std::vector<Run> runs;
    for (int32_t tile = 0; tile < tiles; ++tile) {
      const int64_t last = random.Int(0, frames);
      for (int32_t t = 0; t < last;) {
        const int32_t end = random.Int(t, last);
        const int32_t content = random.Int(0, values_count - 1);
        if (random.Chance(90)) runs.push_back({tile, content, t, end});
        t = end + random.Chance(20);
      }
    }
    random.Shuffle(&runs);
    const int64_t bad = random.Int(0, frames - 1);
    std::vector<float> values = random.Floats(values_count * units);
    std::vector<float> gradient = random.Floats(frames * units);
    const float infinite = random.Pick({NAN, INFINITY, 1e30f, -1e30f});
    if (random.Chance(50)) std::fill_n(values.begin(), units, infinite);
    if (random.Chance(50)) {
      std::fill_n(gradient.begin() + bad * units, units, infinite);
    }
    std::vector<reference::Sum> want(frames * units), to_values(values.size());
    for (const Run& run : runs) {
      for (int64_t t = run.begin; t < run.end; ++t) {
        for (int64_t u = 0; u < units; ++u) {
          want[t * units + u].Add(values[run.content * units + u]);
          to_values[run.content * units + u].Add(gradient[t * units + u]);
        }
      }
    }
    std::vector<float> got(frames * units), got_values(values.size(), 0);
    CHECK(RunSums(runs.data(), runs.size(), values.data(), units, frames,
                  got.data()));
    RunGradients(runs.data(), runs.size(), gradient.data(), units, frames,
                 got_values.data());
    const auto near = [](float value, const reference::Sum& sum) {
      return std::isinf(sum.value) ? value == sum.value : Near(value, sum, 300);
    };
    for (size_t k = 0; k < got.size(); ++k) CHECK(near(got[k], want[k]));
    for (size_t k = 0; k < got_values.size(); ++k) {
      CHECK(near(got_values[k], to_values[k]));
    }
    // A frame's sum has the same bits alone.
    std::vector<Run> alone;
    for (const Run& run : runs) {
      if (run.begin <= bad && bad < run.end) {
        alone.push_back({run.tile, run.content, 0, 1});
      }
    }
    // The tree is over all tiles.
    alone.push_back({static_cast<int32_t>(tiles) - 1, 0, 1, 1});
    runs.push_back({static_cast<int32_t>(tiles) - 1, 0, 0, 0});
    std::vector<float> one(units);
    CHECK(RunSums(runs.data(), runs.size(), values.data(), units, frames,
                  got.data()));
    CHECK(RunSums(alone.data(), alone.size(), values.data(), units, 1,
                  one.data()));
    CHECK(SameBits(one.data(), got.data() + bad * units, units));
    runs.push_back({0, 0, 0, static_cast<int32_t>(frames)});
    runs.push_back({0, 0, 0, static_cast<int32_t>(frames)});
    CHECK(!RunSums(runs.data(), runs.size(), values.data(), units, frames,
                   got.data()));
  }
}

Activation Named(const char* name) {
  Activation activation;
  CHECK(Activation::Make(name, {}, &activation));
  return activation;
}

NetworkSpec::Op RandomOp(Random* random) {
  NetworkSpec::Op op;
  switch (random->Int(0, 3)) {
    case 0:
      op.op.activation = Named("relu");
      break;
    case 1:
      op.op.activation = Named("tanh");
      break;
    case 2:
      op.op.kind = RowOp::kAffine;
      op.op.scale = {0.5f};
      op.op.offset = {0.25f};
      break;
    default:
      op.batch_norm = true;
      op.has_gamma = random->Chance(50);
      op.has_beta = random->Chance(50);
      op.epsilon = 0.01f;
  }
  return op;
}

NetworkSpec RandomSpec(Random* random) {
  NetworkSpec spec;
  spec.frame = RandomFrame(random);
  const auto add_ops = [&](std::vector<NetworkSpec::Op>* ops) {
    if (random->Chance(40)) ops->push_back(RandomOp(random));
  };
  add_ops(&spec.pixel_ops);
  int64_t height = spec.frame.height, width = spec.frame.width;
  for (int64_t k = random->Int(0, 3); k > 0; --k) {
    NetworkSpec::Stage stage;
    stage.window = RandomWindow(random, height, width);
    stage.channels = stage.filters = spec.channels();
    stage.kind = random->Pick(
        {NetworkSpec::Stage::kConv, NetworkSpec::Stage::kConv,
         NetworkSpec::Stage::kMaxPool, NetworkSpec::Stage::kAveragePool});
    if (stage.kind == NetworkSpec::Stage::kConv) {
      stage.groups = random->Chance(30) ? stage.channels : 1;
      stage.filters = stage.groups * random->Int(1, 9);
      stage.use_bias = random->Chance(50);
    } else {  // Keras has no dilated pooling
      stage.window.dilation_height = stage.window.dilation_width = 1;
      Pad(true, &stage.window);
    }
    add_ops(&stage.ops);
    spec.stages.push_back(stage);
    height = stage.window.out_height;
    width = stage.window.out_width;
  }
  spec.average = random->Chance(30);
  if (spec.average) add_ops(&spec.average_ops);
  for (int64_t k = random->Int(spec.average ? 0 : 1, 3); k > 0; --k) {
    spec.dense.emplace_back();
    spec.dense.back().units = random->Int(1, 20);
    spec.dense.back().use_bias = random->Chance(50);
    add_ops(&spec.dense.back().ops);
  }
  return spec;
}

using Weights = std::vector<std::vector<float>>;

Weights RandomWeights(const NetworkSpec& spec, Random* random) {
  Weights weights;
  for (const int64_t size : spec.WeightSizes()) {
    // Positive, as a variance has to be.
    weights.push_back(random->Floats(size));
    for (float& value : weights.back()) value = 0.01f + std::fabs(value) / 2;
  }
  return weights;
}

std::vector<const float*> Pointers(const Weights& weights) {
  std::vector<const float*> pointers;
  for (const auto& weight : weights) pointers.push_back(weight.data());
  return pointers;
}

// The network on one frame [pixels, channels], by the definitions.
std::vector<float> Reference(const NetworkSpec& spec, const Weights& weights,
                             const float* frame) {
  auto next = weights.begin();
  const auto apply = [&](const std::vector<NetworkSpec::Op>& ops,
                         std::vector<float>* rows, int64_t channels) {
    for (const NetworkSpec::Op& op : ops) {
      const float* gamma =
          op.batch_norm && op.has_gamma ? (next++)->data() : nullptr;
      const float* beta =
          op.batch_norm && op.has_beta ? (next++)->data() : nullptr;
      const float* mean = op.batch_norm ? (next++)->data() : nullptr;
      const float* variance = op.batch_norm ? (next++)->data() : nullptr;
      for (size_t i = 0; i < rows->size(); i += channels) {
        if (!op.batch_norm) {
          op.op.Apply(rows->data() + i, channels);
          continue;
        }
        for (int64_t c = 0; c < channels; ++c) {
          const double x = ((*rows)[i + c] - double{mean[c]}) /
                           std::sqrt(double{variance[c]} + op.epsilon);
          (*rows)[i + c] = x * (gamma == nullptr ? 1 : gamma[c]) +
                           (beta == nullptr ? 0 : beta[c]);
        }
      }
    }
  };
  int64_t channels = spec.frame.channels;
  std::vector<float> rows(frame, frame + spec.frame.pixels() * channels);
  apply(spec.pixel_ops, &rows, channels);
  for (const auto& stage : spec.stages) {
    const bool conv = stage.kind == NetworkSpec::Stage::kConv;
    const auto patches = reference::AllPatches(stage.window, 1);
    const int64_t taps = stage.window.taps();
    const float* kernel = conv ? (next++)->data() : nullptr;
    const float* bias = stage.use_bias ? (next++)->data() : nullptr;
    std::vector<float> out;
    for (int64_t at = 0; at < stage.window.positions(); ++at) {
      const int32_t* patch = patches.data() + at * taps;
      for (int64_t f = 0; f < stage.filters; ++f) {
        if (conv) {
          out.push_back(reference::Convolve(rows.data(), patch, taps, channels,
                                            kernel, bias, stage.filters,
                                            stage.groups, f)
                            .value);
          continue;
        }
        double top = -3.4028234663852886e38, sum = 0;
        int64_t inside = 0;
        for (int64_t t = 0; t < taps; ++t) {
          if (patch[t] < 0) continue;
          const double value = rows[patch[t] * channels + f];
          if (value > top) top = value;
          sum += value;
          ++inside;
        }
        out.push_back(
            stage.kind == NetworkSpec::Stage::kMaxPool ? top : sum / inside);
      }
    }
    rows = out;
    channels = stage.filters;
    apply(stage.ops, &rows, channels);
  }
  if (spec.average) {
    std::vector<float> means;
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (size_t i = c; i < rows.size(); i += channels) sum += rows[i];
      means.push_back(sum * channels / rows.size());
    }
    rows = means;
    apply(spec.average_ops, &rows, channels);
  }
  for (const auto& layer : spec.dense) {
    const std::vector<float>& kernel = *next++;
    const float* bias = layer.use_bias ? (next++)->data() : nullptr;
    std::vector<float> out;
    for (int64_t u = 0; u < layer.units; ++u) {
      double sum = bias == nullptr ? 0 : bias[u];
      for (size_t i = 0; i < rows.size(); ++i) {
        sum += double{rows[i]} * kernel[i * layer.units + u];
      }
      out.push_back(sum);
    }
    rows = out;
    apply(layer.ops, &rows, layer.units);
  }
  return rows;
}

bool Near(float got, float want) {
  if (std::isnan(want) || std::isinf(want)) {
    return std::isnan(got) || std::isinf(got);
  }
  return std::fabs(got - want) <= 1e-3 * (1 + std::fabs(want));
}

Network::Options Options(Reuse reuse, int64_t max_rows = 20000,
                         uint64_t hash_mask = ~uint64_t{},
                         int64_t tile_bytes = 1 << 16) {
  Network::Options options;
  options.reuse = reuse;
  options.max_rows = max_rows;
  options.hash_mask = hash_mask;
  options.tile_bytes = tile_bytes;
  return options;
}

void TestNetworks(int cases) {
  Random random(3);
  for (int i = 0; i < cases; ++i) {
    const NetworkSpec spec = RandomSpec(&random);
    Weights weights = RandomWeights(spec, &random);
    std::vector<std::unique_ptr<Network>> networks;
    const auto add = [&](const Network::Options& options) {
      networks.push_back(std::make_unique<Network>(spec, options));
      networks.back()->SetWeights(Pointers(weights), true);
    };
    for (const uint64_t mask : kHashMasks) {
      add(Options(Reuse::kContent, 20000, mask));
    }
    add(Options(Reuse::kTemporal));
    for (const int64_t max_rows : {1, 5, 60}) {
      add(Options(Reuse::kContent, max_rows));
    }
    add(Options(Reuse::kContent, 20000, ~uint64_t{}, 0));
    Video video(spec.frame, random.Int(1, 5), i);
    Weights moved;
    for (int step = 0; step < 9; ++step, video.Next()) {
      const int64_t streams = video.streams(), units = spec.units();
      const int64_t event = random.Int(0, 7);
      if (event == 0) {
        weights = RandomWeights(spec, &random);
        for (auto& n : networks) n->SetWeights(Pointers(weights), true);
      } else if (event == 1) {
        moved = weights;
        weights.swap(moved);
        for (auto& n : networks) n->SetWeights(Pointers(weights), false);
      } else if (event == 2) {
        for (auto& n : networks) n->Reset(random.Int(0, 5));
      } else if (event == 3) {
        networks[random.Int(0, networks.size() - 1)]->Reset();
      }
      Network fresh(spec, Options(random.Chance(50) ? Reuse::kContent
                                                    : Reuse::kTemporal));
      fresh.SetWeights(Pointers(weights), true);
      const int64_t size = spec.frame.pixels() * spec.frame.channels;
      const int64_t bytes = size * (spec.frame.bytes ? 1 : 4);
      std::vector<float> want(streams * units);
      for (int64_t n = 0; n < streams; ++n) {
        // Each stream alone.
        fresh.Reset();
        fresh.Step(video.data() + n * bytes, 1, Serial,
                   want.data() + n * units);
        const auto plain =
            Reference(spec, weights, video.values().data() + n * size);
        CHECK(static_cast<int64_t>(plain.size()) == units);
        for (int64_t u = 0; u < units; ++u) {
          CHECK(Near(want[n * units + u], plain[u]));
        }
      }
      for (size_t k = 0; k < networks.size(); ++k) {
        std::vector<float> got(streams * units, 77.f);
        networks[k]->Step(
            video.data(), streams,
            (step + k) % 3 == 0 ? Threads(k) : ParallelFor(Serial), got.data());
        CHECK(SameBits(got, want));
        const std::vector<int64_t> rows = networks[k]->Rows();
        for (size_t m = 0; m < rows.size(); ++m) {
          CHECK(networks[k]->reuse() == Reuse::kTemporal ||
                rows[m] <= networks[k]->max_rows()[m]);
        }
        for (const auto& map : networks[k]->stats().maps) {
          CHECK(0 <= map.changed && map.changed <= map.positions);
          CHECK(map.new_rows <= map.changed);
          CHECK(map.multiply_adds <= map.dense_multiply_adds);
        }
      }
    }
  }
}

// What the hash is changes nothing but time.
void TestCollisionsChangeNothing() {
  Random random(4);
  for (int i = 0; i < 15; ++i) {
    const NetworkSpec spec = RandomSpec(&random);
    const Weights weights = RandomWeights(spec, &random);
    std::vector<NetworkStats> all;
    for (const uint64_t mask : kHashMasks) {
      Network network(spec, Options(Reuse::kContent, 300, mask));
      network.SetWeights(Pointers(weights), true);
      Video video(spec.frame, 2, i);
      std::vector<float> outputs(6 * spec.units());
      for (int step = 0; step < 10; ++step, video.Next()) {
        network.Step(video.data(), video.streams(), Serial, outputs.data());
      }
      all.push_back(network.stats());
    }
    for (const NetworkStats& stats : all) {
      CHECK(stats.clears == all[0].clears);
      CHECK(stats.switches == all[0].switches);
      for (size_t m = 0; m < stats.maps.size(); ++m) {
        CHECK(stats.maps[m].changed == all[0].maps[m].changed);
        CHECK(stats.maps[m].new_rows == all[0].maps[m].new_rows);
      }
    }
  }
}

// Large enough that every parallel loop is cut: for the thread sanitizer too.
void TestThreads() {
  Random random(5);
  NetworkSpec spec;
  spec.frame.height = spec.frame.width = 24;
  spec.frame.channels = 3;
  for (const int64_t filters : {20, 24}) {
    NetworkSpec::Stage stage;
    stage.window.height = stage.window.width = 24;
    stage.window.kernel_height = stage.window.kernel_width = 3;
    Pad(true, &stage.window);
    stage.channels = spec.channels();
    stage.filters = filters;
    stage.use_bias = true;
    stage.ops.emplace_back();
    stage.ops.back().op.activation = Named("relu");
    spec.stages.push_back(stage);
  }
  spec.dense.resize(2);
  spec.dense[0].units = 33;
  spec.dense[1].units = 5;
  const Weights weights = RandomWeights(spec, &random);
  for (const Reuse reuse : {Reuse::kContent, Reuse::kTemporal}) {
    Network one(spec, Options(reuse)), many(spec, Options(reuse));
    one.SetWeights(Pointers(weights), true);
    many.SetWeights(Pointers(weights), true);
    Video video(spec.frame, 3, 1);
    for (int step = 0; step < 8; ++step, video.Next()) {
      std::vector<float> want(video.streams() * 5), got(want);
      one.Step(video.data(), video.streams(), Serial, want.data());
      many.Step(video.data(), video.streams(), Threads(step), got.data());
      CHECK(SameBits(got, want));
    }
  }
}

// Noise makes a network go over to temporal reuse; after a pause it tries
// content reuse again, and stays with it if the noise is over.
void TestAdaptation() {
  Random random(6);
  NetworkSpec spec;
  spec.frame.height = spec.frame.width = 5;
  spec.frame.channels = 1;
  NetworkSpec::Stage stage;
  stage.window.height = stage.window.width = 5;
  stage.window.kernel_height = stage.window.kernel_width = 3;
  Pad(true, &stage.window);
  stage.channels = 1;
  stage.filters = 4;
  spec.stages.push_back(stage);
  spec.dense.resize(1);
  spec.dense[0].units = 3;
  const Weights weights = RandomWeights(spec, &random);
  Network network(spec, Options(Reuse::kContent));
  Network temporal(spec, Options(Reuse::kTemporal));
  for (Network* n : {&network, &temporal}) {
    n->SetWeights(Pointers(weights), true);
  }
  std::vector<std::vector<float>> frames;
  const auto until = [&](Reuse reuse, int64_t steps, bool noise) {
    for (int64_t step = 0; step < steps; ++step) {
      if (noise || frames.size() < 2) frames.push_back(random.Floats(25));
      const auto& frame = frames[frames.size() - 1 - step % 2];
      std::vector<float> got(3), want(3);
      network.Step(frame.data(), 1, Serial, got.data());
      temporal.Step(frame.data(), 1, Serial, want.data());
      CHECK(SameBits(got, want));
      if (network.reuse() == reuse) return true;
    }
    return false;
  };
  CHECK(until(Reuse::kTemporal, 1000, true));
  CHECK(network.stats().switches == 1);
  CHECK(until(Reuse::kContent, 10000, false));
  CHECK(network.stats().switches == 2);
  CHECK(!until(Reuse::kTemporal, 500, false));
  CHECK(network.stats().switches == 2);
  network.Reset();
  CHECK(network.stats().switches == 0);
  CHECK(network.reuse() == Reuse::kContent);
}

// Calls f, whose allocation number `fail_at` fails. Whether one did.
template <typename F>
bool OutOfMemory(int64_t fail_at, const F& f) {
  bool failed = false;
  allocations_left = fail_at;
  try {
    f();
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  allocations_left = -1;
  return failed;
}

// A step that fails at any allocation leaves nothing wrong behind.
void TestStepsOutOfMemory() {
  Random random(7);
  int64_t failures = 0;
  for (int i = 0; i < 8; ++i) {
    const NetworkSpec spec = RandomSpec(&random);
    const Weights weights = RandomWeights(spec, &random);
    const Reuse reuse = i % 2 == 0 ? Reuse::kContent : Reuse::kTemporal;
    const int64_t max_rows = i % 4 == 0 ? 20 : 20000;
    // Right after it was made, or with much to lose.
    const int64_t warm = i % 3 == 0 ? 0 : 4;
    for (int64_t fail_at = 0;; ++fail_at) {
      Network network(spec, Options(reuse, max_rows));
      Network fresh(spec, Options(reuse));
      network.SetWeights(Pointers(weights), true);
      fresh.SetWeights(Pointers(weights), true);
      Video video(spec.frame, 2, i);
      std::vector<float> got(6 * spec.units(), 77.f), want(got);
      const bool record = i % 2 == 0;
      if (record) network.Record();
      for (int64_t step = 0; step < warm; ++step, video.Next()) {
        network.Step(video.data(), video.streams(), Serial, got.data());
      }
      const uint8_t* frames = video.data();
      const ParallelFor parallel = fail_at % 2 == 0 ? Serial : Threads(i);
      const bool failed = OutOfMemory(fail_at, [&] {
        network.Step(frames, video.streams(), parallel, got.data());
      });
      failures += failed;
      // Half a step is not recorded.
      if (failed && record) CHECK(network.TakeRecording() == nullptr);
      for (int step = 0; step < 3; ++step, video.Next()) {
        if (step > 0 || failed) {
          network.Step(video.data(), video.streams(), Serial, got.data());
        }
        fresh.Reset();
        fresh.Step(video.data(), video.streams(), Serial, want.data());
        CHECK(
            SameBits(got.data(), want.data(), video.streams() * spec.units()));
      }
      if (!failed) break;
    }
  }
  CHECK(failures > 100);
}

// Whatever is asked of a network fails at times, and is asked again.
void TestAnythingOutOfMemory() {
  Random random(8);
  for (int i = 0; i < 12; ++i) {
    const NetworkSpec spec = RandomSpec(&random);
    Weights weights = RandomWeights(spec, &random);
    std::unique_ptr<Network> network;
    const Reuse reuse = i % 2 == 0 ? Reuse::kContent : Reuse::kTemporal;
    const auto until_done = [&](const auto& f) {
      while (OutOfMemory(random.Int(0, 60), f)) continue;
    };
    until_done([&] {
      network = std::make_unique<Network>(spec, Options(reuse, 300));
    });
    Video video(spec.frame, 2, i);
    bool weights_known = false;
    std::vector<float> got(6 * spec.units(), 77.f), want(got);
    for (int round = 0; round < 40; ++round, video.Next()) {
      const uint8_t* frames = video.data();
      switch (random.Int(0, 6)) {
        case 0:
          OutOfMemory(random.Int(0, 9), [&] { network->Reset(); });
          break;
        case 1:
          network->Reset(random.Int(0, 3));
          break;
        case 2:
          weights = RandomWeights(spec, &random);
          weights_known = false;
          break;
        case 3:
          weights_known = false;
          OutOfMemory(random.Int(0, 9), [&] { network->Release(); });
          break;
        case 4:
          network->Record();
          break;
        case 5:
          OutOfMemory(random.Int(0, 30), [&] {
            const auto recording = network->TakeRecording();
            std::vector<Pair> pairs;
            std::vector<int32_t> contents, order;
            std::vector<Run> runs;
            if (recording != nullptr) {
              recording->Finish(&pairs, &contents, &runs, &order);
            }
          });
          break;
      }
      const std::vector<const float*> pointers = Pointers(weights);
      if (!weights_known) {
        until_done([&] { network->SetWeights(pointers, true); });
        weights_known = true;
      }
      until_done([&] {
        network->Step(frames, video.streams(),
                      round % 2 == 0 ? Serial : Threads(round), got.data());
      });
      Network fresh(spec, Options(reuse));
      fresh.SetWeights(pointers, true);
      fresh.Step(frames, video.streams(), Serial, want.data());
      CHECK(SameBits(got.data(), want.data(), video.streams() * spec.units()));
    }
  }
}

int Main() {
  for (const uint64_t mask : kHashMasks) TestIntern(mask);
  TestStructure(Reuse::kContent);
  TestStructure(Reuse::kTemporal);
  TestTiles();
  TestNewTiles();
  TestEpisodes();
  TestRuns();
  TestNetworks(40);
  TestCollisionsChangeNothing();
  TestThreads();
  TestAdaptation();
  TestStepsOutOfMemory();
  TestAnythingOutOfMemory();
  return Report("instruction set: " + std::string(ActiveInstructionSet().name));
}

}  // namespace
}  // namespace reuse_tf

// These fail when they are told to. Not inlined, as compilers then take them
// for pairs that do not match.
#define REPLACED __attribute__((noinline))
REPLACED void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  if (!reuse_tf::never_fails && reuse_tf::allocations_left >= 0 &&
      reuse_tf::allocations_left-- <= 0) {
    return nullptr;
  }
  return std::malloc(std::max<std::size_t>(1, size));
}
REPLACED void* operator new(std::size_t size) {
  void* data = operator new(size, std::nothrow);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}
REPLACED void operator delete(void* data) noexcept { std::free(data); }
REPLACED void operator delete(void* data, std::size_t) noexcept {
  std::free(data);
}

int main() { return reuse_tf::Main(); }
