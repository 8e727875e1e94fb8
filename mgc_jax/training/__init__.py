"""From batches to the best checkpoint."""
