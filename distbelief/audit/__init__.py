"""The audit: whether a run did what it promises, from the files of its folder alone.

    proof          holds the evidence against what was promised
    ├── promises   what the run says that it has finished
    ├── evidence   all that is read of its folder
    ├── redone     what was done twice, and why
    ├── twins      that each does what its primary does
    ├── lineage    how the push logs rest on one another: the surviving history of each shard
    └── history    what each push log says

Each rests on those below it alone.
"""

from distbelief.audit.history import CounterExample
from distbelief.audit.proof import Audit, ItemAside, audit
from distbelief.audit.redone import Redone

__all__ = ["Audit", "CounterExample", "ItemAside", "Redone", "audit"]
