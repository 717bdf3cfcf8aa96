// Compares structure, tiles and recordings with plain loops over random graphs.

#include "custom_ops/kernels/graph/structure.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "custom_ops/kernels/graph/episode.h"
#include "custom_ops/kernels/graph/gradients.h"
#include "custom_ops/kernels/graph/random_graph.h"
#include "custom_ops/kernels/graph/tiles.h"
#include "custom_ops/kernels/testing/reference.h"
#include "custom_ops/kernels/testing/testing.h"

namespace reuse_tf {
namespace {

// Equal patches share an id, others do not; what changed is listed.
void TestStructure(Reuse reuse, Kinds kinds) {
  Random random(2);
  for (int i = 0; i < 60; ++i) {
    const Graph graph = RandomGraph(&random, kinds).WithOutputs();
    const FrameShape& frame = graph.frame;
    Structure structure(graph, {ForEachMap(graph, 20000)},
                        ForEachShown(graph, 0),
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
    Structure all(graph, {max_rows}, {0});
    Structure some(graph, {max_rows}, {max_tiles},
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
    Structure structure(graph, {max_rows},
                        {random.Pick<int64_t>({0, 3, 5000})});
    Structure plain(graph, {max_rows}, {0});
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

int Main() {
  for (const Kinds kinds : {Kinds::kLocal, Kinds::kAll}) {
    TestStructure(Reuse::kContent, kinds);
    TestStructure(Reuse::kTemporal, kinds);
  }
  TestTiles();
  TestNewTiles();
  TestEpisodes();
  TestRuns();
  return Report();
}

}  // namespace
}  // namespace reuse_tf

int main() { return reuse_tf::Main(); }
