"""Honest numbers: held-out evaluation on frozen masks, baselines, reports."""
