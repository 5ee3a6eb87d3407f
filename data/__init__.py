"""What enters: readers, splits, tiles, synthetic smears, the loader and its augmentation."""
