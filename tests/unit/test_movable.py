"""Every method of the asset store is a read or a noted write: a move would lose a write that is not noted."""

from __future__ import annotations

from pipeline.assets.movable import POSTPONED, PURGES, WRITES
from pipeline.assets.store import AssetStore

READS = {
    *("check", "close", "open", "scrub"),
    *("all_ids", "all_keys", "all_records", "damaged_of", "expired", "find_record", "find_key"),
    *("finished_since", "get", "get_many", "identity", "records", "records_of", "existing_ids"),
    *("originals_before", "page"),
    *("unfinished_before", "count_jobs", "failures", "find_by_job", "jobs"),
    *("count_unfinished", "stored_bytes"),
    *("newest_records", "unfinished_before", "unfinished_jobs"),
}


def test_every_method_is_a_read_or_a_noted_write() -> None:
    """Each method is on one of the lists, so a new method must be added to one."""
    protocols = [each for each in AssetStore.__mro__ if each.__module__.startswith("pipeline.assets")]
    methods = {name for each in protocols for name in vars(each) if not name.startswith("_")}
    assert methods == READS | set(WRITES) | set(PURGES) | set(POSTPONED)
