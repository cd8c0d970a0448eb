"""The coordinator's decisions: ledger, schedule, membership. No clock, no thread, no I/O."""
