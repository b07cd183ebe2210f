"""What slots hold, and which of them a prompt takes."""

from collections import Counter

import numpy as np

from codellama_jax.generation.drafts import looked_up
from codellama_jax.generation.prefixes import BLOCK, Match, Prefixes

TEXT = np.arange(100, dtype=np.int32)
NONE = Match(-1, 0, 0)


def test_a_prompt_shares_the_longest_beginning_but_never_its_last_token():
    prefixes = Prefixes(4, is_shared=True)
    prefixes.hold(0, TEXT[:40], 40, b"a")
    prefixes.hold(1, TEXT[:60], 50, b"")
    prefixes.hold(2, [*TEXT[:30], 7, 7], 32, b"")
    assert prefixes.match(TEXT[:80]) == Match(1, 50, 60)
    # Another slot, whose prompt has only begun to be read, will share more.
    prefixes.hold(3, TEXT[:70], 20, b"")
    assert prefixes.match(TEXT[:80]) == Match(1, 50, 70)
    prefixes.forget(3)
    assert prefixes.match(TEXT[:40]) == Match(0, 39, 39)
    assert prefixes.match(np.array([*TEXT[:30], 7, 8], np.int32)) == Match(2, 31, 31)
    assert prefixes.match(TEXT[:BLOCK]) == prefixes.match(TEXT[1:50]) == NONE
    assert prefixes.match(np.array([*TEXT[: BLOCK - 1], 99, 99], np.int32)) == NONE
    prefixes.truncate(20)
    assert prefixes.match(TEXT[:80]) == Match(0, 19, 19) and prefixes.slot_with(b"a") == -1
    for slot in range(3):
        prefixes.forget(slot)
    assert prefixes.match(TEXT[:80]) == NONE and not prefixes._by_head and not prefixes._by_key


def test_only_equal_prompts_are_found_where_prefixes_are_not_shared():
    prefixes = Prefixes(2, is_shared=False)
    prefixes.hold(0, TEXT[:40], 40, b"a")
    assert prefixes.match(TEXT[:80]) == NONE and prefixes.slot_with(b"a") == 0


def test_slots_are_taken_that_cost_the_least():
    prefixes, free = Prefixes(4, is_shared=True), [0, 1, 2, 3]
    for slot, length in enumerate((40, 50, 60)):
        prefixes.hold(slot, TEXT[:length] + slot, length, bytes([slot + 1]))

    def chosen(key, match=NONE, waiting=()):
        return prefixes.choose(free, key, match, Counter(waiting))

    # The prompt itself, what it continues, an empty slot, the least recently used.
    assert chosen(b"\x02") == 1 and chosen(b"x", Match(2, 30, 30)) == 2
    assert chosen(b"x", Match(2, 29, 29)) == 3
    prefixes.hold(3, TEXT[:20], 20, b"")
    assert chosen(b"x") == 0
    prefixes.touch(0)
    assert chosen(b"x") == 1
    # A prompt that others wait for is kept, even from one that continues it.
    assert chosen(b"x", Match(1, 50, 50), [b"\x02"]) == 2
    assert chosen(b"x", NONE, [b"\x01", b"\x02", b"\x03"]) == 3


def test_drafts_are_what_followed_the_longest_latest_match():
    ids = np.array([1, 2, 3, 4, 5, 9, 2, 3, 6, 7, 1, 2, 3], np.int32)
    assert looked_up(ids, 3).tolist() == [4, 5, 9]
    assert looked_up(ids[1:], 3).tolist() == [6, 7, 1]
    assert looked_up(ids[1:], 9).tolist() == [6, 7, 1, 2, 3, 6, 7, 1, 2]
    assert looked_up(ids[3:], 3).tolist() == [6, 7, 1]
    assert looked_up(ids[4:9], 3).tolist() == looked_up(ids[:1], 3).tolist() == []
    repeated = np.array([5, 5, 5, 5], np.int32)
    assert looked_up(repeated, 4).tolist() == [5, 5, 5, 5]
