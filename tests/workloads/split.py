"""Works under 20 callers with a split that it measures itself, and prints the truth as one JSON line at its end.

Arguments: seconds; then any of `threads` (the same in a thread beside the main one), `sorted` (through the key function
of sorted), `generator` (through a generator), `deep` (under 400 callers in place of 20).
"""

import functools
import json
import sys
import threading
import time

SPENT = {"half": 0.0, "third": 0.0, "fifth": 0.0}
LOCK = threading.Lock()


def spin(name, seconds):
    began = time.thread_time()
    end = began + seconds
    while time.thread_time() < end:
        for _ in range(50):
            pass
    spent = time.thread_time() - began
    with LOCK:
        SPENT[name] += spent


def half():
    spin("half", 0.010)


def third():
    spin("third", 0.006)


def fifth():
    spin("fifth", 0.004)


def work():
    half()
    third()
    fifth()


def key_function(item):
    half()
    return item


def reduced(left, right):
    third()
    return left + right


def generated():
    for item in range(2):
        fifth()
        yield item


def mixed():
    sorted([1, 2], key=key_function)
    functools.reduce(reduced, [1, 2, 3])
    for _ in generated():
        pass


def recurse(depth, leaf):
    if depth == 0:
        leaf()
    else:
        recurse(depth - 1, leaf)


# One function for each caller, so that their order shows.
BODY = "def caller_{0:02}(leaf):\n    caller_{1:02}(leaf)\n"
SOURCE = "".join(BODY.format(number, number + 1) for number in range(1, 20)) + "def caller_20(leaf):\n    leaf()\n"
exec(compile(SOURCE, "callers.py", "exec"))


def loop(seconds, kinds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if "deep" in kinds:
            recurse(400, work)
        elif "mixed" in kinds:
            caller_01(mixed)
        else:
            caller_01(work)


def main():
    seconds, kinds = float(sys.argv[1]), sys.argv[2:]
    threads = [threading.Thread(target=loop, args=(seconds, kinds)) for _ in range("threads" in kinds)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    loop(seconds, kinds)
    for thread in threads:
        thread.join()
    print(json.dumps(SPENT), flush=True)


main()
