// The structure of videos: what the differentiable path needs to know of their
// frames, however often and with whatever weights it is then run.
#ifndef REUSE_TF_KERNELS_GRAPH_EPISODE_H_
#define REUSE_TF_KERNELS_GRAPH_EPISODE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "custom_ops/kernels/graph/structure.h"
#include "custom_ops/kernels/graph/tiles.h"
#include "custom_ops/kernels/patches/intern.h"

namespace reuse_tf {

// That a position of a map shows a row.
struct Pair {
  int32_t position, row;
};

// That a tile shows one of its contents from frame `begin` up to, not
// including, frame `end`.
struct Run {
  int32_t tile, content, begin, end;
};

// Collects what the tiles of a shown map of a structure under content reuse
// show, step by step: contents, the rows at the positions of a tile, and when
// they are shown.
class EpisodeRecorder {
 public:
  // Of shown map number `shown`. `max_contents` bounds the distinct contents,
  // `max_runs` how often one is shown in all.
  EpisodeRecorder(const Structure& structure, int64_t shown,
                  int64_t max_contents, int64_t max_runs)
      : shown_number_(shown),
        tiles_(structure.shown()[shown].tiles),
        max_runs_(max_runs),
        contents_(1 + Tiles::kPositions, max_contents) {}

  // Records the step that the structure just made, one of all steps since its
  // last restart. False if there are too many contents or runs.
  bool Add(const Structure& structure) {
    const int64_t streams = structure.streams(), tiles = tiles_.count();
    const Structure::Shown& shown = structure.shown()[shown_number_];
    const int64_t pixels = structure.maps()[shown.node].pixels();
    for (int64_t n = streams; n < streams_; ++n) CloseStream(n);
    streams_ = streams;
    if (static_cast<int64_t>(frames_.size()) < streams) {
      frames_.resize(streams, 0);
      open_.resize(streams * tiles, {-1, 0});
    }
    for (const Structure::TileChange& change : shown.changed) {
      int32_t content = -1;
      if (change.id < 0) {
        known_.clear();  // The structure numbers them afresh.
      } else if (change.id < static_cast<int64_t>(known_.size())) {
        content = known_[change.id];
      }
      if (content < 0) {
        int32_t key[1 + Tiles::kPositions] = {change.tile + 1};
        std::fill(key + 1, key + 1 + Tiles::kPositions, -1);
        tiles_.ForEachPosition(change.tile, [&](int64_t at, int64_t place) {
          key[1 + place] =
              structure.id(shown.node, change.stream * pixels + at);
        });
        if (!contents_.Intern(key, 1, &content)) return false;
        if (change.id >= 0) known_.push_back(content);
      }
      // A stream that was reset may show what it showed before.
      Open& open = open_[change.stream * tiles + change.tile];
      if (open.content == content) continue;
      Close(change.stream, change.tile);
      open = {content, frames_[change.stream]};
    }
    for (int64_t n = 0; n < streams; ++n) {
      ++frames_[n];
      stream_of_.push_back(static_cast<int32_t>(n));
    }
    return static_cast<int64_t>(shown_.size() + stream_of_.size()) <= max_runs_;
  }

  // All that was recorded. `pairs` are distinct and in the order of their
  // positions, so that what belongs to a position is read once. `contents` has
  // Tiles::kPositions pairs for each content, -1 where a tile reaches beyond
  // the map. Runs number the frames stream by stream; `order` has the numbers
  // in the order of the steps. Nothing is searched or compared: all is counted.
  void Finish(std::vector<Pair>* pairs, std::vector<int32_t>* contents,
              std::vector<Run>* runs, std::vector<int32_t>* order) {
    for (int64_t n = 0; n < streams_; ++n) CloseStream(n);
    std::vector<int32_t> first_frame(frames_.size() + 1, 0);
    for (size_t n = 0; n < frames_.size(); ++n) {
      first_frame[n + 1] = first_frame[n] + frames_[n];
    }
    runs->clear();
    for (const Shown& shown : shown_) {
      const int32_t first = first_frame[shown.stream];
      const int32_t tile = contents_.key(shown.content)[0] - 1;
      runs->push_back(
          {tile, shown.content, first + shown.begin, first + shown.end});
    }
    order->clear();
    for (const int32_t n : stream_of_) order->push_back(first_frame[n]++);
    // The contents of each tile.
    const int64_t count = contents_.size(), tiles = tiles_.count();
    std::vector<int32_t> ends(tiles + 1, 0), of_tile(count);
    int32_t rows = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t* key = contents_.key(i);
      ++ends[key[0]];
      for (int64_t k = 1; k <= Tiles::kPositions; ++k) {
        rows = std::max(rows, key[k] + 1);
      }
    }
    for (int64_t t = 0; t < tiles; ++t) ends[t + 1] += ends[t];
    for (int64_t i = 0; i < count; ++i) {
      of_tile[ends[contents_.key(i)[0] - 1]++] = static_cast<int32_t>(i);
    }
    // Of each row, the pair it last stood in.
    std::vector<int32_t> pair_of(rows, -1);
    pairs->clear();
    contents->assign(count * Tiles::kPositions, -1);
    const std::vector<int32_t> places = tiles_.Order();
    for (size_t at = 0; at < places.size(); ++at) {
      const int64_t tile = places[at] / Tiles::kPositions;
      const int64_t place = places[at] % Tiles::kPositions;
      const int32_t first = static_cast<int32_t>(pairs->size());
      for (int64_t i = tile == 0 ? 0 : ends[tile - 1]; i < ends[tile]; ++i) {
        const int32_t row = contents_.key(of_tile[i])[1 + place];
        if (pair_of[row] < first) {
          pair_of[row] = static_cast<int32_t>(pairs->size());
          pairs->push_back({static_cast<int32_t>(at), row});
        }
        (*contents)[of_tile[i] * Tiles::kPositions + place] = pair_of[row];
      }
    }
  }

 private:
  struct Open {
    int32_t content;  // -1: nothing yet
    int32_t begin;
  };
  struct Shown {
    int32_t stream, content, begin, end;
  };

  void Close(int64_t stream, int64_t tile) {
    Open& open = open_[stream * tiles_.count() + tile];
    if (open.content >= 0 && open.begin < frames_[stream]) {
      shown_.push_back({static_cast<int32_t>(stream), open.content, open.begin,
                        frames_[stream]});
    }
    open.content = -1;
  }
  void CloseStream(int64_t stream) {
    for (int64_t t = 0; t < tiles_.count(); ++t) Close(stream, t);
  }

  const int64_t shown_number_;
  const Tiles tiles_;
  const int64_t max_runs_;
  InternTable contents_;        // of a tile, numbered from 1, and its rows
  std::vector<int32_t> known_;  // contents by the structure's numbers
  int64_t streams_ = 0;
  std::vector<int32_t> frames_;     // how many, by stream
  std::vector<int32_t> stream_of_;  // by frame, in the order of the steps
  std::vector<Open> open_;          // by stream and tile
  std::vector<Shown> shown_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_GRAPH_EPISODE_H_
