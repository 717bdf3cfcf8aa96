// The structure of a video: what the differentiable path needs to know of its
// frames, however often and with whatever weights it is then run.
#ifndef REUSE_TF_KERNELS_EPISODE_H_
#define REUSE_TF_KERNELS_EPISODE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "custom_ops/kernels/structure.h"

namespace reuse_tf {

// That a position of the last map shows a row.
struct Pair {
  int32_t position, row;
};

// That a pair holds from frame `begin` up to, not including, frame `end`.
struct Run {
  int32_t pair, begin, end;
};

// Collects the runs of the last map of a structure of one stream under content
// reuse, step by step.
class EpisodeRecorder {
 public:
  explicit EpisodeRecorder(int64_t positions) : open_(positions, {-1, 0}) {}

  // Records the step that the structure just made.
  void Add(const Structure& structure) {
    const int64_t last = structure.maps().size() - 1;
    for (const int32_t at : structure.maps()[last].positions) {
      Close(at);
      open_[at] = {structure.id(last, at), frames_};
    }
    ++frames_;
  }

  // All that was recorded. `pairs` are distinct and in the order of their
  // positions, so that what belongs to a position is read once; `runs` are in
  // the order of their pairs. Nothing is searched or compared: all is counted.
  void Finish(std::vector<Pair>* pairs, std::vector<Run>* runs) {
    const int64_t positions = open_.size();
    for (int64_t at = 0; at < positions; ++at) Close(at);
    std::vector<int64_t> ends(positions + 1, 0);
    int32_t rows = 0;
    for (const Shown& shown : shown_) {
      ++ends[shown.position + 1];
      rows = std::max(rows, shown.row + 1);
    }
    for (int64_t p = 0; p < positions; ++p) ends[p + 1] += ends[p];
    std::vector<Shown> ordered(shown_.size());
    for (const Shown& shown : shown_) ordered[ends[shown.position]++] = shown;
    // Of each row, the pair it last stood in.
    std::vector<int32_t> pair_of(rows, -1);
    std::vector<int64_t> next;  // by pair: where its next run goes
    pairs->clear();
    runs->resize(ordered.size());
    for (int64_t begin = 0, p = 0; p < positions; begin = ends[p++]) {
      const int64_t first = pairs->size();
      next.clear();
      for (int64_t i = begin; i < ends[p]; ++i) {
        int32_t& pair = pair_of[ordered[i].row];
        if (pair < first) {
          pair = pairs->size();
          pairs->push_back({ordered[i].position, ordered[i].row});
          next.push_back(0);
        }
        ++next[pair - first];
      }
      for (int64_t at = begin, i = 0; i < static_cast<int64_t>(next.size());
           ++i) {
        const int64_t count = next[i];
        next[i] = at;
        at += count;
      }
      for (int64_t i = begin; i < ends[p]; ++i) {
        const int32_t pair = pair_of[ordered[i].row];
        (*runs)[next[pair - first]++] = {pair, ordered[i].begin,
                                         ordered[i].end};
      }
    }
  }

 private:
  struct Open {
    int32_t row;  // -1: nothing yet
    int32_t begin;
  };
  struct Shown {
    int32_t position, row, begin, end;
  };

  void Close(int64_t at) {
    const Open& open = open_[at];
    if (open.row < 0) return;
    shown_.push_back({static_cast<int32_t>(at), open.row, open.begin, frames_});
  }

  int32_t frames_ = 0;
  std::vector<Open> open_;  // by position
  std::vector<Shown> shown_;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_EPISODE_H_
