//! Transforms: SQL stages, expectations, event-time windows, deduplication.
