"""Fragments that cannot be read any more: what is in them is lost, and must be computed again."""

from collections.abc import Collection

from workers.errors import UserError
from workers.store import DECIDING, Store, fragment_key

TABLES = ("examples", "maps", "words", "metrics", "failures", "timings")
FOLLOWERS = ("words", "failures", "timings")
"""Tables whose rows say nothing without the fragment that decides their round."""


def drop_damaged(store: Store, shards: Collection[int]) -> list[str]:
    """Forget the damaged fragments of these shards; returns their keys.

    With a fragment that decides (of ``maps``, ``metrics``) goes the rest of its round: its labels
    count as not computed. For the run's driver only.
    """
    damaged = [
        (table, name)
        for table in TABLES
        for name in store.fragments(table)
        if fragment_key(name)[0] in shards and not _readable(store, f"{table}/{name}")
    ]
    for table, name in damaged:
        store.objects.delete(f"{table}/{name}")
        for follower in FOLLOWERS if table in DECIDING.values() else ():
            store.objects.delete(f"{follower}/{name}")
    return [f"{table}/{name}" for table, name in damaged]


def _readable(store: Store, key: str) -> bool:
    try:
        store.read_fragment(key)
    except FileNotFoundError:
        return True  # replaced or compacted since it was listed
    except UserError:
        return False
    return True
