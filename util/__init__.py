"""What serves every part: errors, checkpoints, metrics, figures, the report, the live view."""
