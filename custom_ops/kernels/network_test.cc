// Tests interning, structure and whole networks over random graphs: with plain
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
  if (random->Chance(20) && height < 10 && width < 10) {
    w.up_height = random->Int(1, 3);
    w.up_width = random->Int(1, 3);
  }
  if (random->Chance(25)) {
    Pad(random->Int(-2, 2), random->Int(-1, 2), random->Int(-2, 2),
        random->Int(-1, 3), &w);
  } else {
    Pad(random->Chance(50), &w);
  }
  if (w.positions() == 0) Pad(true, &w);
  return w;
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

Activation Named(const char* name) {
  Activation activation;
  CHECK(Activation::Make(name, {}, &activation));
  return activation;
}

RowFunction RandomFunction(Random* random, int64_t channels) {
  RowFunction f;
  f.epsilon = 0.01f;
  switch (random->Int(0, 7)) {
    case 0:
      f.op.activation = Named("relu");
      break;
    case 1:
      f.op.activation = Named("tanh");
      break;
    case 2:
      f.op.kind = RowOp::kAffine;
      f.op.scale = {0.5f};
      f.op.offset = std::vector<float>(channels, 0.25f);
      break;
    case 3:
      f.kind = RowFunction::kPRelu;
      break;
    case 4:
      f.kind = RowFunction::kNormalization;
      f.values = random->Pick<int64_t>({1, channels});
      break;
    default:
      f.kind = random->Pick({RowFunction::kBatchNorm, RowFunction::kLayerNorm,
                             RowFunction::kScale});
      f.has_gamma = random->Chance(50);
      f.has_beta = random->Chance(50);
  }
  return f;
}

enum class Kinds {
  kLocal,  // windows and joins
  kAll,
};

// Makes random nodes, each of those before it.
class RandomGraph {
 public:
  RandomGraph(Random* random, Kinds kinds) : random_(*random), kinds_(kinds) {
    graph_.frame = RandomFrame(random);
    Node frames;
    frames.height = graph_.frame.height;
    frames.width = graph_.frame.width;
    frames.channels = graph_.frame.channels;
    Add(frames);
    for (int64_t k = random_.Int(0, 5); k > 0; --k) AddAny();
  }
  // With one sum over the last map, or with outputs of all kinds.
  Graph WithSum() {
    AddDense(graph_.nodes.size() - 1);
    graph_.outputs = {static_cast<int32_t>(graph_.nodes.size()) - 1};
    return graph_;
  }
  Graph WithOutputs() {
    if (random_.Chance(60)) AddDense(PickMap());
    graph_.outputs = {PickMap()};
    while (random_.Chance(30)) graph_.outputs.push_back(PickMap());
    if (random_.Chance(60)) {
      graph_.outputs.push_back(graph_.nodes.size() - 1);
    }
    return graph_;
  }

 private:
  void Add(Node node) {
    if (node.kind != Node::kWeights) {
      while (random_.Chance(25)) {
        node.functions.push_back(RandomFunction(&random_, node.channels));
      }
    }
    graph_.Add(node);
  }
  int32_t PickMap() {
    for (;;) {
      // Mostly the last one.
      const int32_t last = static_cast<int32_t>(graph_.nodes.size()) - 1;
      const int32_t i = random_.Chance(50)
                            ? last
                            : static_cast<int32_t>(random_.Int(0, last));
      if (graph_.nodes[i].kind != Node::kWeights) return i;
    }
  }
  void AddDense(int32_t input) {
    Node node;
    node.kind = Node::kDense;
    node.inputs = {input};
    node.height = node.width = 1;
    node.channels = random_.Int(1, 20);
    node.use_bias = random_.Chance(50);
    Add(node);
  }

  void AddAny() {
    const int64_t kind = random_.Int(0, kinds_ == Kinds::kAll ? 9 : 6);
    Node node;
    node.inputs = {PickMap()};
    const Node& from = graph_.nodes[node.inputs[0]];
    node.channels = from.channels;
    if (kind < 3) {
      node.kind = Node::kConv;
      node.window = RandomWindow(&random_, from.height, from.width);
      node.groups = random_.Chance(30) ? from.channels : 1;
      node.channels = node.groups * random_.Int(1, node.groups > 1 ? 2 : 9);
      node.use_bias = random_.Chance(50);
      node.transposed = node.groups == 1 && random_.Chance(30);
    } else if (kind < 5) {
      node.kind = Node::kPool;
      node.window = RandomWindow(&random_, from.height, from.width);
      node.pooling =
          random_.Pick({Pooling::kMax, Pooling::kMean, Pooling::kSum});
    } else if (kind < 7) {
      AddJoin(node.inputs[0]);
      return;
    } else if (kind == 7) {
      AddDense(node.inputs[0]);
      return;
    } else if (kind == 8) {
      node.kind = Node::kGlobal;
      node.pooling = random_.Pick({Pooling::kMax, Pooling::kMean});
      node.height = node.width = 1;
    } else if (random_.Chance(50)) {
      node.kind = Node::kReshape;
      node.height = from.width;
      node.width = from.channels;
      node.channels = from.height;
    } else {
      node.kind = Node::kGroupNorm;
      node.groups = random_.Chance(50) ? from.channels : 1;
      node.epsilon = 0.1f;
      node.height = from.height;
      node.width = from.width;
    }
    if (node.windowed()) {
      node.height = node.window.out_height;
      node.width = node.window.out_width;
    }
    Add(node);
  }

  // With another map of the same size, with one of 1 x 1, with weights, or with
  // itself.
  void AddJoin(int32_t input) {
    const auto from = [&](int32_t i) -> const Node& { return graph_.nodes[i]; };
    std::vector<int32_t> others = {input};
    for (int32_t i = 0; i < static_cast<int32_t>(graph_.nodes.size()); ++i) {
      if (from(i).height == from(input).height &&
          from(i).width == from(input).width) {
        others.push_back(i);
      }
    }
    if (kinds_ == Kinds::kAll && random_.Chance(30)) {
      Node weights;
      weights.kind = Node::kWeights;
      weights.height = from(input).height;
      weights.width = from(input).width;
      weights.channels = from(input).channels;
      others.assign(1, graph_.nodes.size());
      graph_.Add(weights);
    }
    Node node;
    node.kind = Node::kJoin;
    node.join = random_.Pick({JoinKind::kAdd, JoinKind::kSubtract,
                              JoinKind::kMultiply, JoinKind::kAverage,
                              JoinKind::kMaximum, JoinKind::kMinimum,
                              JoinKind::kConcatenate, JoinKind::kPRelu});
    const bool two =
        node.join == JoinKind::kSubtract || node.join == JoinKind::kPRelu;
    const bool concatenate = node.join == JoinKind::kConcatenate;
    for (int32_t i = 0; !concatenate && i < input; ++i) {
      if (from(i).pixels() == 1) others.push_back(i);
    }
    node.inputs = {input};
    node.height = from(input).height;
    node.width = from(input).width;
    node.channels = from(input).channels;
    for (int64_t k = two ? 1 : random_.Int(1, 3); k > 0; --k) {
      const int32_t other = others[random_.Int(0, others.size() - 1)];
      const int64_t channels = from(other).channels;
      const bool fits =
          concatenate || channels == node.channels || channels == 1;
      node.inputs.push_back(fits ? other : input);
      if (concatenate) node.channels += channels;
    }
    if (!concatenate && random_.Chance(50)) {
      std::swap(node.inputs[0], node.inputs.back());
    }
    Add(node);
  }

  Random& random_;
  const Kinds kinds_;
  Graph graph_;
};

std::vector<int64_t> ForEachMap(const Graph& graph, int64_t value) {
  return std::vector<int64_t>(graph.nodes.size(), value);
}
std::vector<int64_t> ForEachShown(const Graph& graph, int64_t value) {
  return std::vector<int64_t>(graph.Shown().size(), value);
}

// What is under each position of a node: [streams * positions, taps], pixels of
// inputs numbered through the streams.
std::vector<int32_t> AllPatches(const Graph& graph, const Node& node,
                                int64_t streams) {
  if (node.windowed()) return reference::AllPatches(node.window, streams);
  std::vector<int32_t> patches;
  for (int64_t n = 0; n < streams; ++n) {
    for (int64_t p = 0; p < node.pixels(); ++p) {
      for (const int32_t i : node.inputs) {
        const Node& from = graph.nodes[i];
        const int64_t stream = from.kind == Node::kWeights ? 0 : n;
        patches.push_back(stream * from.pixels() +
                          (from.pixels() == 1 ? 0 : p));
      }
    }
  }
  return patches;
}

// Equal patches share an id, others do not; what changed is listed.
void TestStructure(Reuse reuse, Kinds kinds) {
  Random random(2);
  for (int i = 0; i < 60; ++i) {
    const Graph graph = RandomGraph(&random, kinds).WithOutputs();
    const FrameShape& frame = graph.frame;
    Structure structure(graph, ForEachMap(graph, 20000), ForEachShown(graph, 0),
                        random.Pick<uint64_t>({~uint64_t{}, 3}));
    const size_t count_of_maps = graph.nodes.size();
    structure.Restart(std::vector<Reuse>(count_of_maps, reuse));
    Video video(frame, random.Int(1, 3), i);
    std::vector<std::vector<int32_t>> ids_before;
    // By map: the number of rows that have been called new.
    std::vector<int64_t> rows(count_of_maps, 0);
    int64_t frames = 0;
    for (int step = 0; step < 8; ++step, video.Next()) {
      const int64_t known_streams = structure.streams();
      for (int64_t n = 0; n < video.streams(); ++n) {
        if (n < known_streams && random.Chance(15)) structure.Reset(n);
      }
      CHECK(structure.Step(video.data(), video.streams(),
                           step % 2 == 0 ? ParallelFor(Serial) : Threads(i)));
      CHECK(structure.streams() == video.streams());
      std::vector<std::vector<int32_t>> ids(count_of_maps);
      for (size_t m = 0; m < count_of_maps; ++m) {
        const Structure::Map& map = structure.maps()[m];
        const Node& node = graph.nodes[m];
        const int64_t count = video.streams() * map.pixels();
        if (node.kind == Node::kWeights) {
          for (int64_t p = 0; p < map.pixels(); ++p) ids[m].push_back(p);
          continue;
        }
        for (int64_t at = 0; at < count; ++at) {
          ids[m].push_back(structure.id(m, at));
        }
        const auto is_stale = [&](int64_t at) {
          const int64_t x = at % map.width;
          return map.any_stale &&
                 (map.stale.line(at / map.width)[x / 64] >> (x % 64) & 1);
        };
        if (reuse == Reuse::kContent && node.per_frame) {
          for (int64_t at = 0; at < count; ++at) {
            CHECK(!is_stale(at));
            const int64_t n = at / map.pixels();
            const bool changed = structure.changed(m, n);
            const int64_t now = (frames + n) * map.pixels() + at % map.pixels();
            CHECK(changed ? ids[m][at] == now : ids[m][at] < now);
            CHECK(changed || ids[m][at] == ids_before[m][at]);
          }
          continue;
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
        } else if (!node.whole()) {
          const auto patches = AllPatches(graph, node, video.streams());
          const int64_t taps = node.taps();
          for (int64_t at = 0; at < count; ++at) {
            for (int64_t t = 0; t < taps; ++t) {
              const int32_t pixel = patches[at * taps + t];
              const int32_t input =
                  node.inputs[node.kind == Node::kJoin ? t : 0];
              contents[at].push_back(pixel < 0 ? -1 : ids[input][pixel]);
            }
          }
        }
        if (reuse == Reuse::kContent) {
          std::map<std::vector<int32_t>, int32_t> id_of;
          std::map<int32_t, std::vector<int32_t>> content_of;
          for (int64_t at = 0; at < count; ++at) {
            // What nobody looks at is left alone.
            if (is_stale(at)) continue;
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
          if (map.table != nullptr && map.rows.count > 0) {
            CHECK(map.rows.first == rows[m]);
            rows[m] += map.rows.count;
          }
          if (map.table != nullptr) CHECK(map.table->size() == rows[m]);
        } else {
          CHECK(!map.any_stale);
          CHECK(map.rows.count == static_cast<int64_t>(map.positions.size()));
          // Patches are those of the definition.
          if (m > 0 && !node.whole()) {
            const int64_t taps = node.taps();
            for (int64_t k = 0; k < map.rows.count; ++k) {
              CHECK(SameBits(map.rows.patches + k * taps,
                             contents[map.positions[k]].data(), taps));
            }
          }
        }
        for (size_t p = 1; p < map.positions.size(); ++p) {
          CHECK(map.positions[p - 1] < map.positions[p]);
        }
      }
      for (const int32_t output : graph.outputs) {
        CHECK(!structure.maps()[output].any_stale);
      }
      ids_before = ids;
      frames += video.streams();
    }
  }
}

// The places of positions in tiles, and the pixels under a tile, which are
// found by going back through all nodes.
void TestTiles() {
  Random random(8);
  for (int i = 0; i < 60; ++i) {
    const Graph graph = RandomGraph(&random, Kinds::kAll).WithSum();
    const int64_t node = graph.nodes.back().inputs[0];
    const FrameShape& frame = graph.frame;
    const int64_t height = graph.nodes[node].height;
    const int64_t width = graph.nodes[node].width;
    const Tiles tiles(graph, node);
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
    std::vector<std::vector<bool>> under(node + 1);
    for (int64_t m = 0; m <= node; ++m) {
      under[m].resize(graph.nodes[m].pixels());
    }
    tiles.ForEachPosition(tile,
                          [&](int64_t at, int64_t) { under[node][at] = true; });
    for (int64_t m = node; m > 0; --m) {
      const Node& at = graph.nodes[m];
      if (at.kind == Node::kWeights) continue;
      const auto patches =
          at.whole() ? std::vector<int32_t>() : AllPatches(graph, at, 1);
      for (int64_t p = 0; p < at.pixels(); ++p) {
        if (!under[m][p]) continue;
        if (at.whole())
          under[at.inputs[0]].assign(under[at.inputs[0]].size(), true);
        for (int64_t t = 0; !at.whole() && t < at.taps(); ++t) {
          const int32_t pixel = patches[p * at.taps() + t];
          const int32_t input = at.inputs[at.kind == Node::kJoin ? t : 0];
          if (pixel >= 0) under[input][pixel] = true;
        }
      }
    }
    std::vector<int32_t> seen;
    for (int64_t p = 0; p < frame.pixels(); ++p) {
      if (under[0][p]) seen.push_back(p);
    }
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
    const Graph graph = RandomGraph(&random, Kinds::kLocal).WithSum();
    const FrameShape& frame = graph.frame;
    const int32_t node = graph.nodes.back().inputs[0];
    const int64_t height = graph.nodes[node].height;
    const int64_t width = graph.nodes[node].width;
    const int64_t max_tiles = random.Pick<int64_t>({3, 30, 5000});
    const auto max_rows = ForEachMap(graph, 20000);
    Structure all(graph, max_rows, {0});
    Structure some(graph, max_rows, {max_tiles},
                   random.Pick<uint64_t>({~uint64_t{}, 3}));
    const Structure::Shown& shown_map = some.shown()[0];
    const Tiles& tiles = shown_map.tiles;
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
      for (const int32_t at : some.maps()[node].positions) listed[at] = true;
      for (const auto& change : shown_map.changed) {
        const bool is_new = change.id < 0 || change.id >= shown_map.first_new;
        CHECK(change.id < max_tiles);
        std::vector<int32_t> rows = {change.tile};
        tiles.ForEachPosition(change.tile, [&](int64_t position, int64_t) {
          const int64_t at = change.stream * height * width + position;
          const int32_t row = all.id(node, at);
          rows.push_back(row);
          // Pixels are always looked at.
          CHECK(is_new || !listed[at] || node == 0);
          if (!is_new) return;
          const int32_t same = some.id(node, at);
          CHECK(row_in_some.emplace(row, same).first->second == same);
          CHECK(row_in_all.emplace(same, row).first->second == row);
        });
        // The table has been cleared, and counts from 0 again.
        if (change.id < 0 || shown_map.first_new == 0) shown.clear();
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
    const Graph graph = RandomGraph(&random, Kinds::kLocal).WithSum();
    const FrameShape& frame = graph.frame;
    const int32_t node = graph.nodes.back().inputs[0];
    const int64_t height = graph.nodes[node].height;
    const int64_t width = graph.nodes[node].width;
    const auto max_rows = ForEachMap(graph, 20000);
    Structure structure(graph, max_rows, {random.Pick<int64_t>({0, 3, 5000})});
    Structure plain(graph, max_rows, {0});
    EpisodeRecorder recorder(structure, 0, 20000, 20000);
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
          want[n].back().push_back(plain.id(node, n * height * width + at));
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

using Weights = std::vector<std::vector<float>>;

Weights RandomWeights(const Graph& graph, Random* random) {
  Weights weights;
  for (const int64_t size : graph.WeightSizes()) {
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

// A function of rows, by its definition.
void Apply(const RowFunction& f, int64_t channels,
           Weights::const_iterator* next, std::vector<float>* rows) {
  const float* gamma = f.has_gamma ? (*next)++->data() : nullptr;
  const float* beta = f.has_beta ? (*next)++->data() : nullptr;
  const bool moments = f.kind == RowFunction::kBatchNorm ||
                       f.kind == RowFunction::kNormalization;
  const float* mean = moments ? (*next)++->data() : nullptr;
  const float* variance = moments ? (*next)++->data() : nullptr;
  const float* alpha =
      f.kind == RowFunction::kPRelu ? (*next)++->data() : nullptr;
  for (size_t i = 0; i < rows->size(); i += channels) {
    float* row = rows->data() + i;
    if (f.kind == RowFunction::kGiven) {
      f.op.Apply(row, channels);
      continue;
    }
    double row_mean = 0, row_variance = 0;
    for (int64_t c = 0; c < channels; ++c)
      row_mean += row[c] / double(channels);
    for (int64_t c = 0; c < channels; ++c) {
      row_variance += (row[c] - row_mean) * (row[c] - row_mean) / channels;
    }
    for (int64_t c = 0; c < channels; ++c) {
      double x = row[c];
      const int64_t m =
          f.kind == RowFunction::kNormalization && f.values == 1 ? 0 : c;
      switch (f.kind) {
        case RowFunction::kBatchNorm:
          x = (x - mean[m]) / std::sqrt(double{variance[m]} + f.epsilon);
          break;
        case RowFunction::kNormalization:
          x = (x - mean[m]) /
              std::max<double>(std::sqrt(variance[m]), f.epsilon);
          break;
        case RowFunction::kLayerNorm:
          x = (x - row_mean) / std::sqrt(row_variance + f.epsilon);
          break;
        case RowFunction::kPRelu:
          if (x < 0) x *= alpha[c];
          break;
        default:
          break;
      }
      row[c] = x * (gamma == nullptr ? 1 : gamma[c]) +
               (beta == nullptr ? 0 : beta[c]);
    }
  }
}

// One position of a window or a join, [channels], by the definition.
std::vector<float> AtPosition(const Graph& graph, const Node& node,
                              const std::vector<std::vector<float>>& maps,
                              const int32_t* patch, const float* kernel,
                              const float* bias) {
  std::vector<float> out;
  const Node& from = graph.input(node);
  const std::vector<float>& rows = maps[node.inputs[0]];
  if (node.kind == Node::kJoin && node.join == JoinKind::kConcatenate) {
    for (size_t j = 0; j < node.inputs.size(); ++j) {
      const int64_t channels = graph.nodes[node.inputs[j]].channels;
      const float* row = maps[node.inputs[j]].data() + patch[j] * channels;
      out.insert(out.end(), row, row + channels);
    }
    return out;
  }
  for (int64_t f = 0; f < node.channels; ++f) {
    if (node.kind == Node::kConv) {
      out.push_back(reference::Convolve(rows.data(), patch, node.taps(),
                                        from.channels, kernel, bias,
                                        node.channels, node.groups, f)
                        .value);
      continue;
    }
    std::vector<double> values;
    for (int64_t t = 0; t < node.taps(); ++t) {
      if (patch[t] < 0) continue;
      const int32_t input = node.inputs[node.kind == Node::kJoin ? t : 0];
      const int64_t channels = graph.nodes[input].channels;
      values.push_back(
          maps[input][patch[t] * channels + (channels > 1 ? f : 0)]);
    }
    double top = -3.4028234663852886e38, sum = 0, product = 1;
    double low = values.empty() ? 0 : values[0];
    for (const double value : values) {
      if (value > top) top = value;
      if (value < low) low = value;
      sum += value;
      product *= value;
    }
    if (node.kind == Node::kJoin && std::isnan(sum)) top = low = sum;
    if (node.kind == Node::kPool) {
      out.push_back(node.pooling == Pooling::kMax    ? top
                    : node.pooling == Pooling::kMean ? sum / values.size()
                                                     : sum);
      continue;
    }
    switch (node.join) {
      case JoinKind::kAdd:
        out.push_back(sum);
        break;
      case JoinKind::kSubtract:
        out.push_back(values[0] - values[1]);
        break;
      case JoinKind::kMultiply:
        out.push_back(product);
        break;
      case JoinKind::kAverage:
        out.push_back(sum / values.size());
        break;
      case JoinKind::kMaximum:
        out.push_back(top);
        break;
      case JoinKind::kMinimum:
        out.push_back(low);
        break;
      default:
        out.push_back(values[0] > 0 ? values[0] : values[0] * values[1]);
    }
  }
  return out;
}

// What a node makes of a whole map, by the definition.
std::vector<float> OfWhole(const Graph& graph, const Node& node,
                           const std::vector<float>& rows, const float* kernel,
                           const float* bias) {
  const Node& from = graph.input(node);
  const int64_t channels = from.channels;
  std::vector<float> out;
  if (node.kind == Node::kReshape) return rows;
  if (node.kind == Node::kDense) {
    for (int64_t u = 0; u < node.channels; ++u) {
      double sum = bias == nullptr ? 0 : bias[u];
      for (size_t i = 0; i < rows.size(); ++i) {
        sum += double{rows[i]} * kernel[i * node.channels + u];
      }
      out.push_back(sum);
    }
  } else if (node.kind == Node::kGlobal) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, top = rows[c];
      for (size_t i = c; i < rows.size(); i += channels) {
        sum += rows[i];
        top = std::max<double>(top, rows[i]);
      }
      out.push_back(node.pooling == Pooling::kMax ? top : sum / from.pixels());
    }
  } else {
    const int64_t width = channels / node.groups;
    out.resize(rows.size());
    for (int64_t g = 0; g < node.groups; ++g) {
      const auto each = [&](const auto& f) {
        for (int64_t p = 0; p < from.pixels(); ++p) {
          for (int64_t c = 0; c < width; ++c) f(p * channels + g * width + c);
        }
      };
      double mean = 0, variance = 0;
      const double count = from.pixels() * width;
      each([&](int64_t i) { mean += rows[i] / count; });
      each([&](int64_t i) {
        variance += (rows[i] - mean) * (rows[i] - mean) / count;
      });
      each([&](int64_t i) {
        out[i] = (rows[i] - mean) / std::sqrt(variance + node.epsilon);
      });
    }
  }
  return out;
}

// The outputs for one frame [pixels, channels], behind each other, by the
// definitions.
std::vector<float> Reference(const Graph& graph, const Weights& weights,
                             const float* frame) {
  auto next = weights.begin();
  std::vector<std::vector<float>> maps;
  for (const Node& node : graph.nodes) {
    const bool multiplies =
        node.kind == Node::kConv || node.kind == Node::kDense;
    const float* kernel = multiplies ? (next++)->data() : nullptr;
    const float* bias = node.use_bias ? (next++)->data() : nullptr;
    std::vector<float> turned;
    if (node.transposed) {
      const int64_t taps = node.taps(), depth = graph.input(node).channels;
      for (int64_t t = taps - 1; t >= 0; --t) {
        for (int64_t c = 0; c < depth; ++c) {
          for (int64_t f = 0; f < node.channels; ++f) {
            turned.push_back(kernel[(t * node.channels + f) * depth + c]);
          }
        }
      }
      kernel = turned.data();
    }
    std::vector<float> rows;
    if (node.kind == Node::kFrames) {
      rows.assign(frame, frame + node.pixels() * node.channels);
    } else if (node.kind == Node::kWeights) {
      rows = *next++;
    } else if (node.whole()) {
      rows = OfWhole(graph, node, maps[node.inputs[0]], kernel, bias);
    } else {
      const auto patches = AllPatches(graph, node, 1);
      for (int64_t at = 0; at < node.pixels(); ++at) {
        const auto row = AtPosition(
            graph, node, maps, patches.data() + at * node.taps(), kernel, bias);
        rows.insert(rows.end(), row.begin(), row.end());
      }
    }
    for (const RowFunction& f : node.functions) {
      Apply(f, node.channels, &next, &rows);
    }
    maps.push_back(rows);
  }
  std::vector<float> outputs;
  for (const int32_t i : graph.outputs) {
    outputs.insert(outputs.end(), maps[i].begin(), maps[i].end());
  }
  return outputs;
}

// Steps, and puts the outputs behind each other: [streams, values]. What the
// outputs held before is there again if `kept` is given.
std::vector<float> Step(Network* network, const Graph& graph,
                        const uint8_t* frames, int64_t streams,
                        const ParallelFor& parallel,
                        std::vector<std::vector<float>>* kept = nullptr) {
  std::vector<std::vector<float>> outputs;
  std::vector<float*> pointers;
  const bool keep =
      kept != nullptr && !kept->empty() && kept->size() == graph.outputs.size();
  for (const int32_t i : graph.outputs) {
    const Node& node = graph.nodes[i];
    outputs.emplace_back(streams * node.pixels() * node.channels, 77.f);
  }
  const bool same = keep && (*kept)[0].size() == outputs[0].size();
  if (same) outputs = *kept;
  for (auto& output : outputs) pointers.push_back(output.data());
  network->Step(frames, streams, parallel, pointers.data(), same);
  if (kept != nullptr) *kept = outputs;
  std::vector<float> all;
  for (int64_t n = 0; n < streams; ++n) {
    for (const auto& output : outputs) {
      const int64_t size = output.size() / streams;
      all.insert(all.end(), output.begin() + n * size,
                 output.begin() + (n + 1) * size);
    }
  }
  return all;
}

bool Near(float got, float want) {
  if (std::isnan(want) || std::isinf(want)) {
    return std::isnan(got) || std::isinf(got);
  }
  return std::fabs(got - want) <= 1e-3 * (1 + std::fabs(want));
}

using Choice = Network::Choice;

Network::Options Options(Choice reuse, int64_t max_rows = 20000,
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
    const Graph graph = RandomGraph(&random, Kinds::kAll).WithOutputs();
    Weights weights = RandomWeights(graph, &random);
    std::vector<std::unique_ptr<Network>> networks;
    const auto add = [&](const Network::Options& options) {
      networks.push_back(std::make_unique<Network>(graph, options));
      networks.back()->SetWeights(Pointers(weights), true);
    };
    for (const uint64_t mask : kHashMasks) {
      add(Options(Choice::kContent, 20000, mask));
    }
    add(Options(Choice::kTemporal));
    add(Options(Choice::kAuto));
    for (const int64_t max_rows : {1, 5, 60}) {
      add(Options(Choice::kAuto, max_rows));
    }
    add(Options(Choice::kContent, 20000, ~uint64_t{}, 0));
    std::vector<std::vector<std::vector<float>>> kept(networks.size());
    Video video(graph.frame, random.Int(1, 5), i);
    Weights moved;
    for (int step = 0; step < 9; ++step, video.Next()) {
      const int64_t streams = video.streams();
      const int64_t event = random.Int(0, 7);
      if (event == 0) {
        weights = RandomWeights(graph, &random);
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
      Network fresh(graph, Options(random.Pick({Choice::kContent, Choice::kAuto,
                                                Choice::kTemporal})));
      fresh.SetWeights(Pointers(weights), true);
      const int64_t size = graph.frame.pixels() * graph.frame.channels;
      const int64_t bytes = size * (graph.frame.bytes ? 1 : 4);
      std::vector<float> want;
      for (int64_t n = 0; n < streams; ++n) {
        // Each stream alone.
        fresh.Reset();
        const auto alone =
            Step(&fresh, graph, video.data() + n * bytes, 1, Serial);
        const auto plain =
            Reference(graph, weights, video.values().data() + n * size);
        CHECK(plain.size() == alone.size());
        for (size_t u = 0; u < plain.size(); ++u) {
          CHECK(Near(alone[u], plain[u]));
        }
        want.insert(want.end(), alone.begin(), alone.end());
      }
      for (size_t k = 0; k < networks.size(); ++k) {
        const auto got =
            Step(networks[k].get(), graph, video.data(), streams,
                 (step + k) % 3 == 0 ? Threads(k) : ParallelFor(Serial),
                 k % 2 == 0 ? &kept[k] : nullptr);
        CHECK(SameBits(got, want));
        const std::vector<int64_t> rows = networks[k]->Rows();
        for (size_t m = 0; m < rows.size(); ++m) {
          CHECK(networks[k]->reuse(m) == Reuse::kTemporal ||
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
    const Graph graph = RandomGraph(&random, Kinds::kAll).WithOutputs();
    const Weights weights = RandomWeights(graph, &random);
    std::vector<NetworkStats> all;
    for (const uint64_t mask : kHashMasks) {
      Network network(graph, Options(Choice::kAuto, 300, mask));
      network.SetWeights(Pointers(weights), true);
      Video video(graph.frame, 2, i);
      for (int step = 0; step < 10; ++step, video.Next()) {
        Step(&network, graph, video.data(), video.streams(), Serial);
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

// Convolutions of 3 x 3, one after the other, and dense layers.
Graph Chain(int64_t height, int64_t width, int64_t channels, bool bytes,
            const std::vector<int64_t>& filters,
            const std::vector<int64_t>& units) {
  Graph graph;
  graph.frame.height = height;
  graph.frame.width = width;
  graph.frame.channels = channels;
  graph.frame.bytes = bytes;
  Node node;
  node.height = height;
  node.width = width;
  node.channels = channels;
  graph.Add(node);
  const auto add = [&](Node::Kind kind, int64_t size) {
    node = Node();
    node.kind = kind;
    node.inputs = {static_cast<int32_t>(graph.nodes.size()) - 1};
    const Node& from = graph.input(node);
    node.window.height = from.height;
    node.window.width = from.width;
    if (from.pixels() > 1) {
      node.window.kernel_height = node.window.kernel_width = 3;
    }
    Pad(true, &node.window);
    node.height = kind == Node::kDense ? 1 : from.height;
    node.width = kind == Node::kDense ? 1 : from.width;
    node.channels = size;
    node.use_bias = true;
    if (kind == Node::kConv && from.pixels() > 1) {
      node.functions.emplace_back();
      node.functions.back().op.activation = Named("relu");
    }
    graph.Add(node);
  };
  for (const int64_t size : filters) add(Node::kConv, size);
  for (const int64_t size : units) {
    add(graph.nodes.back().per_frame ? Node::kConv : Node::kDense, size);
  }
  graph.outputs = {static_cast<int32_t>(graph.nodes.size()) - 1};
  return graph;
}

// Large enough that every parallel loop is cut: for the thread sanitizer too.
void TestThreads() {
  Random random(5);
  const Graph graph = Chain(24, 24, 3, false, {20, 24}, {33, 5});
  const Weights weights = RandomWeights(graph, &random);
  for (const Choice reuse : {Choice::kContent, Choice::kTemporal}) {
    Network one(graph, Options(reuse)), many(graph, Options(reuse));
    one.SetWeights(Pointers(weights), true);
    many.SetWeights(Pointers(weights), true);
    Video video(graph.frame, 3, 1);
    for (int step = 0; step < 8; ++step, video.Next()) {
      const auto want =
          Step(&one, graph, video.data(), video.streams(), Serial);
      const auto got =
          Step(&many, graph, video.data(), video.streams(), Threads(step));
      CHECK(SameBits(got, want));
    }
  }
}

// Noise makes the maps of a network go over to temporal reuse; after a pause it
// tries content reuse again, and stays with it if the noise is over.
void TestAdaptation() {
  Random random(6);
  const Graph graph = Chain(5, 5, 1, false, {4}, {3});
  const Weights weights = RandomWeights(graph, &random);
  Network network(graph, Options(Choice::kAuto));
  Network forced(graph, Options(Choice::kContent));
  Network temporal(graph, Options(Choice::kTemporal));
  for (Network* n : {&network, &forced, &temporal}) {
    n->SetWeights(Pointers(weights), true);
  }
  std::vector<std::vector<float>> frames;
  const auto until = [&](Reuse reuse, int64_t steps, bool noise) {
    for (int64_t step = 0; step < steps; ++step) {
      if (noise || frames.size() < 2) frames.push_back(random.Floats(25));
      const auto* frame = reinterpret_cast<const uint8_t*>(
          frames[frames.size() - 1 - step % 2].data());
      const auto want = Step(&temporal, graph, frame, 1, Serial);
      CHECK(SameBits(Step(&network, graph, frame, 1, Serial), want));
      CHECK(SameBits(Step(&forced, graph, frame, 1, Serial), want));
      if (network.reuse(1) == reuse) return true;
    }
    return false;
  };
  CHECK(until(Reuse::kTemporal, 1000, true));
  CHECK(network.stats().switches == 1);
  CHECK(until(Reuse::kContent, 10000, false));
  CHECK(network.stats().switches == 2);
  CHECK(!until(Reuse::kTemporal, 500, false));
  CHECK(network.stats().switches == 2);
  CHECK(forced.reuse(1) == Reuse::kContent && forced.stats().switches == 0);
  network.Reset();
  CHECK(network.stats().switches == 0);
  CHECK(network.reuse(1) == Reuse::kContent);
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
    const Graph graph = RandomGraph(&random, Kinds::kAll).WithOutputs();
    const Weights weights = RandomWeights(graph, &random);
    const Choice reuse = i % 2 == 0 ? Choice::kAuto : Choice::kTemporal;
    const int64_t max_rows = i % 4 == 0 ? 20 : 20000;
    // Right after it was made, or with much to lose.
    const int64_t warm = i % 3 == 0 ? 0 : 4;
    for (int64_t fail_at = 0;; ++fail_at) {
      Network network(graph, Options(reuse, max_rows));
      Network fresh(graph, Options(reuse));
      network.SetWeights(Pointers(weights), true);
      fresh.SetWeights(Pointers(weights), true);
      Video video(graph.frame, 2, i);
      const bool record = i % 2 == 0;
      if (record) network.Record();
      for (int64_t step = 0; step < warm; ++step, video.Next()) {
        Step(&network, graph, video.data(), video.streams(), Serial);
      }
      const uint8_t* frames = video.data();
      const ParallelFor parallel = fail_at % 2 == 0 ? Serial : Threads(i);
      std::vector<std::vector<float>> outputs;
      std::vector<float*> pointers;
      std::vector<float> got;
      for (const int32_t k : graph.outputs) {
        const Node& node = graph.nodes[k];
        outputs.emplace_back(video.streams() * node.pixels() * node.channels);
        pointers.push_back(outputs.back().data());
      }
      const bool failed = OutOfMemory(fail_at, [&] {
        network.Step(frames, video.streams(), parallel, pointers.data());
      });
      failures += failed;
      // Half a step is not recorded.
      if (failed && record) CHECK(network.TakeRecording().empty());
      for (int step = 0; step < 3; ++step, video.Next()) {
        got = Step(&network, graph, video.data(), video.streams(), Serial);
        fresh.Reset();
        CHECK(SameBits(
            got, Step(&fresh, graph, video.data(), video.streams(), Serial)));
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
    const Graph graph = RandomGraph(&random, Kinds::kAll).WithOutputs();
    Weights weights = RandomWeights(graph, &random);
    std::unique_ptr<Network> network;
    const Choice reuse = i % 2 == 0 ? Choice::kAuto : Choice::kTemporal;
    const auto until_done = [&](const auto& f) {
      // Late enough, at times, for any of them.
      while (OutOfMemory(random.Int(0, 2000), f)) continue;
    };
    until_done([&] {
      network = std::make_unique<Network>(graph, Options(reuse, 300));
    });
    Video video(graph.frame, 2, i);
    bool weights_known = false;
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
          weights = RandomWeights(graph, &random);
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
            for (EpisodeRecorder& recorder : network->TakeRecording()) {
              std::vector<Pair> pairs;
              std::vector<int32_t> contents, order;
              std::vector<Run> runs;
              recorder.Finish(&pairs, &contents, &runs, &order);
            }
          });
          break;
      }
      const std::vector<const float*> pointers = Pointers(weights);
      if (!weights_known) {
        until_done([&] { network->SetWeights(pointers, true); });
        weights_known = true;
      }
      std::vector<float> got;
      until_done([&] {
        got = Step(network.get(), graph, frames, video.streams(),
                   round % 2 == 0 ? Serial : Threads(round));
      });
      Network fresh(graph, Options(reuse));
      fresh.SetWeights(pointers, true);
      CHECK(
          SameBits(got, Step(&fresh, graph, frames, video.streams(), Serial)));
    }
  }
}

int Main() {
  for (const uint64_t mask : kHashMasks) TestIntern(mask);
  for (const Kinds kinds : {Kinds::kLocal, Kinds::kAll}) {
    TestStructure(Reuse::kContent, kinds);
    TestStructure(Reuse::kTemporal, kinds);
  }
  TestTiles();
  TestNewTiles();
  TestEpisodes();
  TestRuns();
  TestNetworks(80);
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
