"""Replica groups in each of the forms in which XLA writes them, against lists written by hand."""

import pytest

from codellama_jax.compile.replica_groups import groups_of
from codellama_jax.errors import UserError

ROWS, COLUMNS = [[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("attribute", "groups"),
    [
        ("replica_groups={{0,3},{1,4},{2,5}}", COLUMNS),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5]]),
        ("to_apply=%add", [[0, 1, 2, 3, 4, 5]]),
        ("source_target_pairs={{0,1},{1,2}}", [[0, 1], [1, 2]]),
        ("replica_groups=[2,3]<=[6]", ROWS),
        ("replica_groups=[3,2]<=[2,3]T(1,0)", COLUMNS),
        ("replica_groups=mesh['a'=2,'b'=3] {'b'}", ROWS),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}", COLUMNS),
        ("replica_groups=mesh['a'=2,'b'=3] {'a','b'}", [[0, 1, 2, 3, 4, 5]]),
        ("replica_groups=mesh['a'=3,'b'=2], device_ids=([2,3]T(1,0)) {'b'}", COLUMNS),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ],
)
def test_each_form_gives_the_groups(attribute, groups):
    rest = f"%x), channel_id=1, {attribute}, use_global_device_ids=true, dimensions={{1}}"
    assert groups_of(rest, 6) == groups


def test_an_unknown_form_is_one_line():
    with pytest.raises(UserError, match="in an unknown form, 'rings'"):
        groups_of("replica_groups=rings", 6)
