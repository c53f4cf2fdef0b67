"""A training run: steps, schedule, state, logs."""
