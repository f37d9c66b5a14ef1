"""GPG against PPO, and the paper's tables: protocol, runs and report."""
