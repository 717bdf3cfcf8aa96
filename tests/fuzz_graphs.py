"""Fuzzes the runner over random graphs.

python tests/fuzz_graphs.py SECONDS SEED

Seeds are tried one after the other; those that fail are printed. To see one
alone: python tests/fuzz_graphs.py 0 SEED.
"""

import sys
import time
import traceback

import graphs
import keras


def main(seconds, seed):
    end = time.monotonic() + seconds
    count = failures = 0
    while count == 0 or time.monotonic() < end:
        for check in graphs.check_history, graphs.check_gradient:
            try:
                check(seed)
            except Exception:
                failures += 1
                print(f"seed {seed}: {check.__name__}", flush=True)
                traceback.print_exc()
        keras.backend.clear_session()
        count += 1
        seed += 1
    print(f"{count} seeds, {failures} failures")
    return min(1, failures)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2])))
